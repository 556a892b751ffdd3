package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/cmd/varve/servertest"
	"github.com/varve/varve/internal/cluster"
	"github.com/varve/varve/wal/batch"
)

// walBlock is a block of a log that was written whole, as wal/README.md draws it. Positions are in its file.
type walBlock struct {
	at   int64
	head int64 // end of the header and the descriptors
	end  int64 // end of the payloads; up to the next page follows nothing
	next int64 // the offset after the last one of what is in it and before it; -1 before there is any
}

const walPage = 4096

func (b walBlock) padded() int64 { return (b.end + walPage - 1) / walPage * walPage }

// newestSegment is the file that a log was writing, and the blocks in it. The log has records of one partition, all in this file.
func newestSegment(t *testing.T, dir string) (name string, blocks []walBlock) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*.wal"))
	if err != nil || len(names) == 0 {
		t.Fatalf("segments in %s: %v, %v", dir, names, err)
	}
	name = slices.Max(names)
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	le, table := binary.LittleEndian, crc32.MakeTable(crc32.Castagnoli)
	if string(b[:8]) != "VARVEWAL" {
		t.Fatalf("%s begins with %q", name, b[:8])
	}
	place := b[12:36] // uuid and generation
	seed := crc32.Checksum(place, table)
	sum := func(crc uint32, b []byte) uint32 { return crc32.Update(crc, table, b) }
	next, local := int64(-1), uint64(0)
	for at := int64(walPage); at+72 <= int64(len(b)); {
		h := b[at:]
		if string(h[:4]) != "VBLK" || string(h[8:32]) != string(place) {
			break
		}
		body, count := int64(le.Uint32(h[56:])), int64(le.Uint32(h[60:]))
		if 72+body > int64(len(h)) || 48*count > body || sum(sum(seed, h[:64]), h[72:72+48*count]) != le.Uint32(h[64:]) {
			break
		}
		one := walBlock{at: at, head: at + 72 + 48*count, end: at + 72 + body}
		if le.Uint16(h[6:])&1 != 0 { // paged: the payloads begin at the next page
			one.head = (one.head-at+walPage-1)/walPage*walPage + at
		}
		pos, whole, data := one.head, true, next
		for i := range count {
			d := h[72+48*i:]
			length := int64(le.Uint32(d[40:]))
			whole = whole && sum(seed, b[pos:pos+length]) == le.Uint32(d[44:])
			pos += length
			if d[0] == 1 { // DATA
				if id := le.Uint64(d[8:]); local != 0 && id != local {
					t.Fatalf("%s has records of several partitions", name)
				} else {
					local = id
				}
				data = int64(le.Uint64(d[24:]))
			}
		}
		if !whole {
			break
		}
		next, one.next = data, data
		blocks = append(blocks, one)
		at = one.padded()
	}
	if next < 0 {
		t.Fatalf("%s has no records", name)
	}
	return name, blocks
}

// tear makes a file end at a position, as a disk does that had not written what comes behind. A segment has its whole length from the
// beginning: behind are zeros, or, with stale, what its blocks on the disk had before.
func tear(t *testing.T, name string, at int64, stale bool) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	rest := make([]byte, st.Size()-at)
	if stale {
		for i := range rest {
			rest[i] = 0xEE
		}
	}
	if _, err := f.WriteAt(rest, at); err != nil {
		t.Fatal(err)
	}
}

// flood has records with the numbers from 0 on written to a partition that is empty, one after the other. The first acked are
// acknowledged before the next is sent. What comes then is sent as fast as the broker may be writing it, and nobody listens to what it
// answers, until unheard records were sent; then the processes are killed, by kill. It returns how many may have been sent.
func flood(t *testing.T, addr, topic string, acked, unheard int, kill func()) (sent int) {
	t.Helper()
	f := forge(t, addr)
	request := func(n int) kmsg.Request {
		bb := batch.NewBuilder()
		bb.Add(time.Now().UnixMilli(), nil, numbered(uint64(n), 300))
		run, err := bb.Build()
		if err != nil {
			t.Fatal(err)
		}
		req := kmsg.NewPtrProduceRequest()
		req.Acks, req.TimeoutMillis = -1, 30_000
		rt, rp := kmsg.NewProduceRequestTopic(), kmsg.NewProduceRequestTopicPartition()
		rt.Topic, rp.Records = topic, run
		rt.Partitions = append(rt.Partitions, rp)
		req.Topics = append(req.Topics, rt)
		return req
	}
	for ; sent < acked; sent++ {
		p := f.must(11, request(sent)).(*kmsg.ProduceResponse).Topics[0].Partitions[0]
		if sent == 0 && kerr.IsRetriable(kerr.ErrorForCode(p.ErrorCode)) { // a leader may be the last to hear that it is one
			eventually(t, func() error {
				p = f.must(11, request(0)).(*kmsg.ProduceResponse).Topics[0].Partitions[0]
				if err := kerr.ErrorForCode(p.ErrorCode); kerr.IsRetriable(err) {
					return err
				}
				return nil
			})
		}
		if err := kerr.ErrorForCode(p.ErrorCode); err != nil || p.BaseOffset != int64(sent) {
			t.Fatalf("record %d is at offset %d: %v", sent, p.BaseOffset, err)
		}
	}
	more := make(chan int)
	stop := make(chan struct{})
	go func() {
		n := sent
		for reached := false; ; n++ {
			if !reached && n >= acked+unheard {
				reached = true
				close(stop)
			}
			req := request(n)
			req.SetVersion(11)
			f.next++
			if _, err := f.nc.Write(f.form.AppendRequest(nil, req, f.next)); err != nil {
				break
			}
			time.Sleep(time.Millisecond) // so that not all are in one block
		}
		more <- n + 1
	}()
	<-stop
	kill()
	return <-more
}

// cuts are places behind the acknowledged records at which a log may have been torn: all bytes of headers and descriptors
// of the last three blocks and those where something begins or ends in the others; of payloads, which look all alike, some.
func cuts(blocks []walBlock, acked int64) (list []int64) {
	var open []walBlock
	before := int64(0)
	for _, b := range blocks {
		if b.next > acked && before >= acked { // no record in it is one of those
			open = append(open, b)
		}
		before = b.next
	}
	for i, b := range open {
		list = append(list, b.at, b.at+1, b.at+71, b.at+72, b.head-1, b.head, b.head+1, (b.head+b.end)/2, b.end-1, b.end)
		if b.end < b.padded() {
			list = append(list, b.end+1, b.padded()-1)
		}
		if i < len(open)-3 {
			continue
		}
		for at := b.at; at < b.end; at++ {
			if at < b.head+64 || at >= b.end-8 || at%61 == 0 {
				list = append(list, at)
			}
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// numbers reads a topic from its beginning to its end, where the records are to have the numbers of their offsets, and
// returns how many there are.
func numbers(t *testing.T, cl *kgo.Client, topic string) (n int64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var end kadm.ListedOffset
	servertest.Eventually(t, func() error { // OFFSET_NOT_AVAILABLE, to be asked again, until the leader's followers have begun
		ends, err := kadm.NewClient(cl).ListEndOffsets(ctx, topic)
		end, _ = ends.Lookup(topic, 0)
		return errors.Join(err, ends.Error())
	})
	for n < end.Offset {
		fs := cl.PollFetches(ctx)
		if err := fs.Err(); err != nil {
			t.Fatalf("at %d of %d: %v", n, end.Offset, err)
		}
		fs.EachRecord(func(r *kgo.Record) {
			if got := binary.BigEndian.Uint64(r.Value); r.Offset != n || got != uint64(n) {
				t.Fatalf("record %d is at offset %d, where %d was due", got, r.Offset, n)
			}
			n++
		})
	}
	return n
}

var fromStart = kgo.ConsumeResetOffset(kgo.NewOffset().AtStart())

// long is for tests that try more, or for longer, where there is time.
var long = os.Getenv("VARVE_LONG") == "1"

// TestTornEnd: a broker is killed with appends under way, and what it leaves is copied and torn at one place after the other behind
// what its producer was told of (F24). It starts whatever the place is, and has the records of the blocks that are whole, and no other.
func TestTornEnd(t *testing.T) {
	dir := t.TempDir()
	settings := []string{"wal.segment.bytes=4194304", "wal.max.bytes=67108864", "remote.flush.interval.ms=3600000"}
	state := filepath.Join(dir, "state")
	p := startProcess(t, state, settings...)
	p.createTopic("t")
	const acked = 40
	sent := flood(t, p.Addr, "t", acked, 60, p.Kill)
	name, blocks := newestSegment(t, filepath.Join(state, "data", "wal"))
	rel, err := filepath.Rel(state, name)
	if err := errors.Join(err, os.Remove(filepath.Join(state, "data", "etcd", "read.sock"))); err != nil { // which cannot be copied
		t.Fatal(err)
	}
	all := cuts(blocks, acked)
	had := blocks[len(blocks)-1].next
	if had <= acked || len(all) < 20 {
		t.Fatalf("%d records in the log, %d of them acknowledged, and %d places to tear it at", had, acked, len(all))
	}
	t.Logf("%d records acknowledged, %d in the log, %d sent; %d blocks, %d places to tear them at", acked, had, sent, len(blocks), len(all))
	step := 1
	if !long {
		step = (len(all) + 5) / 6
	}
	for i := len(all) - 1; i >= 0; i -= step {
		for _, stale := range []bool{false, true} {
			if !long && stale == (i/step%2 == 0) {
				continue
			}
			cut := all[i]
			where := filepath.Join(dir, "torn")
			if err := os.CopyFS(where, os.DirFS(state)); err != nil {
				t.Fatal(err)
			}
			tear(t, filepath.Join(where, rel), cut, stale)
			_, left := newestSegment(t, filepath.Join(where, "data", "wal"))
			want := left[len(left)-1].next
			torn := startProcess(t, where, settings...)
			cl := torn.client(kgo.ConsumeTopics("t"), fromStart, kgo.DefaultProduceTopic("t"))
			if n := numbers(t, cl, "t"); n != want || n < acked || n > int64(sent) {
				t.Errorf("cut at %d, stale bytes behind %v: %d records, and the blocks that are whole have %d", cut, stale, n, want)
			}
			r := &kgo.Record{Value: numbered(uint64(want), 300)}
			if err := cl.ProduceSync(t.Context(), r).FirstErr(); err != nil || r.Offset != want {
				t.Errorf("cut at %d, stale bytes behind %v: the next record is at %d: %v", cut, stale, r.Offset, err)
			}
			cl.Close()
			torn.Kill()
			if err := os.RemoveAll(where); err != nil {
				t.Fatal(err)
			}
			if t.Failed() {
				return
			}
		}
	}
}

// TestTornEnds: as above, with three brokers, whose logs are torn each at a place of its own behind what all of them
// have. What they agree on then has every record that was acknowledged, and is a prefix of what was sent.
func TestTornEnds(t *testing.T) {
	c := cluster.Start(t, processes(cluster.Options{Etcd: 1, Set: []string{
		"default.replication.factor=3", "min.insync.replicas=2", "remote.flush.interval.ms=3600000",
	}}))
	cl := c.Client(t, kgo.MetadataMinAge(50*time.Millisecond))
	inSync := func(cl *kgo.Client) (leader int32) {
		t.Helper()
		eventually(t, func() error {
			topics, err := kadm.NewClient(cl).ListTopics(t.Context(), "t")
			if err != nil {
				return err
			}
			p, ok := topics["t"].Partitions[0]
			if leader = p.Leader; !ok || p.Err != nil || leader < 1 || len(p.ISR) != 3 {
				return fmt.Errorf("leader %d, in sync %v, %v", leader, p.ISR, p.Err)
			}
			return nil
		})
		return leader
	}
	if _, err := kadm.NewClient(cl).CreateTopic(t.Context(), 1, -1, nil, "t"); err != nil {
		t.Fatal(err)
	}
	const acked = 40
	sent := flood(t, c.Broker(inSync(cl)).Addr, "t", acked, 60, func() {
		for _, f := range []func(*cluster.Broker) error{
			func(b *cluster.Broker) error { return b.Pause() }, // so that none sees another end
			func(b *cluster.Broker) error { return b.Kill() },
		} {
			for _, b := range c.Brokers {
				if err := f(b); err != nil {
					t.Error(err)
				}
			}
		}
	})
	if err := c.Etcd[0].Kill(); err != nil {
		t.Fatal(err)
	}
	servers := []*cluster.Server{c.Etcd[0]}
	for _, b := range c.Brokers {
		servers = append(servers, b.Server)
	}
	state := t.TempDir()
	for _, s := range servers {
		if err := os.CopyFS(filepath.Join(state, s.Name), os.DirFS(s.Dir)); err != nil {
			t.Fatal(err)
		}
	}
	// What all of them have may have been committed, though nobody was told any more: it had been synced by each.
	common := int64(math.MaxInt64)
	for _, b := range c.Brokers {
		_, blocks := newestSegment(t, b.Dir)
		common = min(common, blocks[len(blocks)-1].next)
	}
	rounds, seed := 1, uint64(time.Now().UnixNano())
	if long {
		rounds = 30
	}
	random := rand.New(rand.NewPCG(seed, 0))
	t.Logf("seed %d", seed)
	for round := range rounds {
		for _, s := range servers {
			if s.Running() {
				if err := s.Kill(); err != nil {
					t.Fatal(err)
				}
			}
			if err := errors.Join(os.RemoveAll(s.Dir), os.CopyFS(s.Dir, os.DirFS(filepath.Join(state, s.Name)))); err != nil {
				t.Fatal(err)
			}
		}
		most := int64(0)
		for _, b := range c.Brokers {
			name, blocks := newestSegment(t, b.Dir)
			all := append(cuts(blocks, max(acked, common)), blocks[len(blocks)-1].padded()) // the last: nothing is torn
			cut, stale := all[random.IntN(len(all))], random.IntN(2) == 0
			tear(t, name, cut, stale)
			_, left := newestSegment(t, b.Dir)
			most = max(most, left[len(left)-1].next)
			t.Logf("round %d: broker %d has %d records, and %d when it is cut at %d", round, b.ID, blocks[len(blocks)-1].next, left[len(left)-1].next, cut)
		}
		if err := c.Etcd[0].Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		errs := make([]error, len(c.Brokers))
		var wg sync.WaitGroup
		for i, b := range c.Brokers {
			wg.Go(func() { errs[i] = b.Start(t.Context()) })
		}
		wg.Wait()
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
		in := c.Client(t, kgo.MetadataMinAge(50*time.Millisecond), kgo.ConsumeTopics("t"), fromStart, kgo.DefaultProduceTopic("t"))
		inSync(in)
		n := numbers(t, in, "t")
		if n < acked || n > most || n > int64(sent) {
			t.Errorf("round %d: %d records; %d were acknowledged, %d sent, and %d are in some log", round, n, acked, sent, most)
		}
		for i := range int64(5) {
			r := &kgo.Record{Value: numbered(uint64(n+i), 300)}
			if err := in.ProduceSync(t.Context(), r).FirstErr(); err != nil || r.Offset != n+i {
				t.Errorf("round %d: the next record is at %d: %v", round, r.Offset, err)
			}
		}
		in.Close()
		if t.Failed() {
			return
		}
	}
}
