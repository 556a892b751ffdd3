//go:build race

package batch

// With the race detector a sync.Pool drops some of what it is given: decoders and encoders are made more often.
const race = true
