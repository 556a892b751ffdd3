//go:build !race

package protocol

const race = false
