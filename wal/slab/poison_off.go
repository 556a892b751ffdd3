//go:build !race && !slabdebug

package slab

const poisonOnRelease = false
