package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/varve/varve/internal/admin"
	"github.com/varve/varve/tiering/objstore/s3test"
)

// remoteEnd is how far a topic's partition 0 is in the bucket.
func (p *process) remoteEnd(topic string) int64 {
	p.t.Helper()
	r := varve(p.t, "", "tier", "status", topic, "-o", "json", "--admin-url", p.Admin)
	var list []admin.TierStatus
	if err := json.Unmarshal([]byte(r.out), &list); err != nil || len(list) != 1 {
		p.t.Fatalf("tier status of %s: exit %d, %v in %q, %s", topic, r.code, err, r.out, r.errOut)
	}
	return list[0].RemoteEnd
}

// drains waits until everything acknowledged is in the bucket and no alarm stands.
func (l *ledger) drains(p *process, topic string) {
	p.t.Helper()
	eventually(p.t, func() error {
		if end, n := p.remoteEnd(topic), int64(l.len()); end < n {
			return fmt.Errorf("%d of %d records are in the bucket", end, n)
		}
		if p.metric("varve_tier_failing") != 0 {
			return errors.New("the alarm stands")
		}
		return nil
	})
}

// toTheReserve produces until the log takes no more.
func (l *ledger) toTheReserve(p *process, cl *kgo.Client, topic string) {
	p.t.Helper()
	for range 10_000 {
		if err := l.produceOnce(p, cl, topic, 100_000); err != nil {
			if !errors.Is(err, kerr.NotEnoughReplicas) {
				p.t.Fatalf("at the reserve: %v", err)
			}
			return
		}
	}
	p.t.Fatal("the log has no bound")
}

// stores runs a test with a bucket behind a gateway, through both client libraries.
func stores(t *testing.T, f func(t *testing.T, g *s3test.Gateway, url string)) {
	for _, scheme := range []string{"s3", "minio"} {
		t.Run(scheme, func(t *testing.T) {
			g := s3test.Start(t).Gateway(t)
			url := g.S3("varve-process")
			if scheme == "minio" {
				url = g.Minio("varve-process")
			}
			f(t, g, url)
		})
	}
}

// TestRotatedCredentials: the bucket's credentials are revoked, and later others are
// written to their file (F42). Meanwhile an alarm stands, and producers go on up to
// the log's reserve; afterwards everything drains, without a restart.
func TestRotatedCredentials(t *testing.T) {
	stores(t, func(t *testing.T, g *s3test.Gateway, url string) {
		dir := t.TempDir()
		file := filepath.Join(dir, "credentials")
		rotate := func(key string) {
			t.Helper()
			g.Allow(key, true)
			if err := os.WriteFile(file+".new", []byte(key+"\nsecret-canary-of-"+key+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(file+".new", file); err != nil {
				t.Fatal(err)
			}
		}
		g.Allow(s3test.AccessKey, false) // what the environment says is not used
		rotate("first")
		p := startProcess(t, filepath.Join(dir, "broker"), "remote.storage.url="+url+"&credentials_file="+file,
			"wal.max.bytes=33554432", "wal.segment.bytes=1048576", "remote.flush.interval.ms=200")
		p.createTopic("t", "local.retention.bytes", "1")
		cl := p.client()
		var l ledger
		for range 20 {
			if err := l.produceOnce(p, cl, "t", 100_000); err != nil {
				t.Fatal(err)
			}
		}
		l.drains(p, "t")
		g.Allow("first", false)
		before := l.len()
		l.toTheReserve(p, cl, "t")
		if n := l.len() - before; n < 50 {
			t.Errorf("%d records taken after the credentials were revoked", n)
		}
		eventually(t, func() error {
			if p.metric("varve_tier_failing") != 1 || p.metric(`varve_objstore_requests_total{operation="put",outcome="denied"}`) == 0 {
				return errors.New("no alarm")
			}
			return nil
		})
		l.checkFrom(p, "t", int64(before)) // what is in the bucket cannot be read now
		rotate("second")
		eventually(t, func() error { return l.produceOnce(p, cl, "t", 100_000) })
		l.drains(p, "t")
		l.check(p, "t")
		log := strings.Join(p.lines(), "\n")
		failing := slices.DeleteFunc(p.lines(), func(line string) bool { return !strings.Contains(line, "tiering fails and is tried again") })
		if !strings.Contains(strings.Join(failing, "\n"), "InvalidAccessKeyId") {
			t.Errorf("that uploads are denied is not among what the log says: %q", failing)
		}
		if !strings.Contains(log, "tiering works again") {
			t.Error("the log does not say that they are not any more")
		}
		if strings.Contains(log, "secret-canary") {
			t.Error("a secret is in the log")
		}
		if err := p.Stop(); err != nil {
			t.Error(err)
		}
	})
}

// TestSlowDown: the bucket answers 30 % and then all requests with 503 SlowDown
// (F33). They become few, at moments of no pattern; memory stays in its bound;
// producers go on up to the reserve, and when it is over everything drains.
func TestSlowDown(t *testing.T) {
	const memory = 256 << 20
	stores(t, func(t *testing.T, g *s3test.Gateway, url string) {
		slowDown := func(probability float64) func(*http.Request) (int, string) {
			return func(*http.Request) (int, string) {
				if rand.Float64() < probability {
					return http.StatusServiceUnavailable, "SlowDown"
				}
				return 0, ""
			}
		}
		p := startProcess(t, t.TempDir(), "remote.storage.url="+url, fmt.Sprintf("memory.max.bytes=%d", memory),
			"wal.max.bytes=67108864", "wal.segment.bytes=1048576", "remote.flush.interval.ms=100")
		p.createTopic("t", "local.retention.bytes", "1")
		cl := p.client()
		var l ledger
		g.Before(slowDown(0.3))
		for range 200 {
			eventually(t, func() error { return l.produceOnce(p, cl, "t", 100_000) })
		}
		l.drains(p, "t")

		from := len(g.Requests())
		g.Before(slowDown(1))
		before := l.len()
		l.toTheReserve(p, cl, "t")
		peak := 0.0
		for end := time.Now().Add(3 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
			if err := l.produceOnce(p, cl, "t", 100_000); !errors.Is(err, kerr.NotEnoughReplicas) {
				t.Fatalf("at the reserve: %v", err)
			}
			peak = max(peak, p.metric("go_memstats_heap_inuse_bytes"))
		}
		requests := g.Requests()[from:]
		if n := len(requests); n == 0 || n > 200 {
			t.Errorf("%d requests in an outage of at least 3 s", n)
		}
		if peak == 0 || peak > memory {
			t.Errorf("a heap of %.0f bytes, memory.max.bytes is %d", peak, memory)
		}
		l.checkFrom(p, "t", int64(before))
		g.Before(nil)
		eventually(t, func() error { return l.produceOnce(p, cl, "t", 100_000) })
		l.drains(p, "t")
		l.check(p, "t")
		t.Logf("%d requests in the outage, a heap of %.0f bytes at most", len(requests), peak)
		if err := p.Stop(); err != nil {
			t.Error(err)
		}
	})
}
