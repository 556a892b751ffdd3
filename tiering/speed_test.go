package tiering

import (
	"os"
	"testing"
	"time"

	"github.com/varve/varve/tiering/cache"
	"github.com/varve/varve/tiering/objstore"
	"github.com/varve/varve/wal/batch"
)

// BenchmarkSeal: reading, checking and cutting records into an object, no bucket.
func BenchmarkSeal(b *testing.B) {
	f := newLog(1, 0)
	f.plain(b, 256, 16, 4000) // 16 MiB in batches of 64 KiB
	x, err := Open(Options{Bucket: objstore.NewMem(), Manifests: NewMemManifests(), FlushInterval: time.Hour})
	if err != nil {
		b.Fatal(err)
	}
	defer x.Close()
	f.policy.CopyDisabled = true
	if _, err := x.Lead(bg, f); err != nil {
		b.Fatal(err)
	}
	l := x.leader(partitionKey{f.id, 0})
	bytes, _ := f.Pending(0)
	b.SetBytes(bytes)
	b.ReportAllocs()
	for b.Loop() {
		o := newBuilder(256 << 10)
		if _, err := x.seal(o, candidate{l: l, limit: 1 << 30}); err != nil {
			b.Fatal(err)
		}
		if err := o.finish(); err != nil {
			b.Fatal(err)
		}
		o.body.release()
	}
}

// BenchmarkReplay: a cold reader from start to end; nothing cached at its start.
func BenchmarkReplay(b *testing.B) {
	var bucket objstore.Bucket = objstore.NewMem()
	if dir := os.Getenv("VARVE_BENCH_DIR"); dir != "" {
		d, err := objstore.OpenFile(dir, true)
		if err != nil {
			b.Fatal(err)
		}
		bucket = d
	}
	store := NewMemManifests()
	f := newLog(1, 0)
	f.id[1] = byte(time.Now().UnixNano())
	x, err := Open(Options{Bucket: bucket, Manifests: store, FlushInterval: 20 * time.Millisecond, TargetBytes: 32 << 20})
	if err != nil {
		b.Fatal(err)
	}
	defer x.Close()
	f.plain(b, 2048, 16, 4000) // 128 MiB
	if _, err := x.Lead(bg, f); err != nil {
		b.Fatal(err)
	}
	for s := (State{}); s.RemoteEnd < f.hw; s, _ = x.State(f.id, 0) {
		time.Sleep(10 * time.Millisecond)
	}
	b.SetBytes(128 << 20)
	b.ReportAllocs()
	for b.Loop() {
		c, err := cache.Open(cache.Options{MemoryBytes: 64 << 20})
		if err != nil {
			b.Fatal(err)
		}
		y, err := Open(Options{Bucket: bucket, Manifests: store, Cache: c})
		if err != nil {
			b.Fatal(err)
		}
		for at := int64(0); at < f.hw; {
			r, err := y.Read(bg, f.id, 0, at, 1<<20)
			if err != nil {
				b.Fatal(err)
			}
			for _, run := range r.Chunks {
				batch.Walk(run, func(batch.Header, []byte) error { return nil })
			}
			at = r.Next
			r.Release()
		}
		y.Close()
		c.Close()
	}
}

// BenchmarkIdle: one look of the scheduler at 10,000 partitions without news.
func BenchmarkIdle(b *testing.B) {
	x, err := Open(Options{Bucket: objstore.NewMem(), Manifests: NewMemManifests(), FlushInterval: time.Hour})
	if err != nil {
		b.Fatal(err)
	}
	defer x.Close()
	for i := range int32(10_000) {
		if _, err := x.Lead(bg, newLog(1, i)); err != nil {
			b.Fatal(err)
		}
	}
	var p pauser
	for b.Loop() {
		x.schedule(&p)
	}
}
