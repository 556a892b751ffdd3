package broker

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/broker/protocol"
	"github.com/varve/varve/config"
	"github.com/varve/varve/tiering"
	"github.com/varve/varve/wal/batch"
)

// slowTier answers reads only once all that were to come have come.
type slowTier struct {
	Tier
	all sync.WaitGroup

	mu    sync.Mutex
	asked int64 // bytes
}

func (t *slowTier) Read(_ context.Context, _ [16]byte, _ int32, offset int64, maxBytes int) (tiering.Run, error) {
	t.mu.Lock()
	t.asked += int64(maxBytes)
	t.mu.Unlock()
	t.all.Done()
	t.all.Wait()
	b := batch.NewBuilder()
	b.BaseOffset = offset
	b.Add(0, nil, []byte("v"))
	one, err := b.Build()
	return tiering.Run{Chunks: [][]byte{one}, Base: offset, Next: offset + 1, Held: int64(len(one)), Release: func() {}}, err
}

// Reads of the bucket that are under way count as what they may bring: many of
// them at one time keep within the bound of responses, and nothing of them
// stays counted.
func TestColdReadsAreChargedBeforeTheyCome(t *testing.T) {
	const parts, each, bound = 40, 1 << 20, 5 << 20
	tier := &slowTier{}
	tier.all.Add(parts)
	events := &Events{}
	events.fill()
	b := &Broker{
		ctx: context.Background(), tier: tier, ev: events, requests: newBudget(1 << 20),
		responses: &gauge{max: bound}, wasted: &gauge{max: bound},
	}
	b.cfg.Store(&config.BrokerConfig{RemoteReads: parts, RemoteFetchMaxWait: time.Minute, FetchMaxBytes: 1 << 30})
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	c := &conn{b: b, ctx: ctx, signal: make(chan struct{}, 1)}
	req := kmsg.NewPtrFetchRequest()
	req.SetVersion(12)
	f := &fetch{b: b, p: &pending{c: c, hdr: protocol.RequestHeader{Key: keyFetch, Version: 12}}, req: req, ctx: ctx, s: &session{}, full: true, max: 1 << 30, end: time.Now().Add(time.Minute)}
	for i := range parts {
		w := &watch{s: f.s, r: &replica{b: b, topic: "t", index: int32(i)}}
		w.p.key = partitionKey{topic: "t", index: int32(i)}
		res := fetchResult{w: w, divergeEpoch: -1, cold: true, coldMax: each}
		res.view.HighWatermark = 1
		f.cold = append(f.cold, i)
		f.results = append(f.results, res)
	}
	f.loadCold()
	if tier.asked > bound+each+parts {
		t.Errorf("%d reads asked for %d bytes together, of %d that responses may hold", parts, tier.asked, bound)
	}
	for i := range f.results {
		if f.results[i].bytes == 0 {
			t.Errorf("partition %d got nothing", i)
		}
	}
	f.p.release()
	if n := b.responses.n.Load(); n != 0 {
		t.Errorf("%d bytes stay charged", n)
	}
}
