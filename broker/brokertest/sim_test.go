package brokertest

import (
	"log/slog"
	"os"
	"testing"
	"testing/synctest"
	"time"
)

func TestUp(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(1, dir, slog.NewTextHandler(os.Stderr, nil), 3)
		for _, n := range c.nodes {
			n.Start()
		}
		time.Sleep(10 * time.Second)
		c.Close()
		t.Log(c.report())
	})
}
