package broker

import (
	"testing"

	"golang.org/x/time/rate"

	"github.com/varve/varve/config"
)

// A rate of 0 is no missing bound, but the least.
func TestConnectionRates(t *testing.T) {
	for set, want := range map[int]rate.Limit{0: 1, 1: 1, 20: 20, 1<<31 - 1: rate.Inf} {
		l := &listener{creation: rate.NewLimiter(rate.Inf, 0)}
		l.limit(&config.BrokerConfig{MaxConnectionCreationRate: set})
		if got := l.creation.Limit(); got != want || got != rate.Inf && l.creation.Burst() != int(got) {
			t.Errorf("max.connection.creation.rate=%d: %v a second, %d at once", set, got, l.creation.Burst())
		}
	}
}
