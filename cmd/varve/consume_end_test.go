package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/cmd/varve/servertest"
	"github.com/varve/varve/wal/batch"
)

// A log whose last records compaction has taken away is at its end behind what is left of them. Without that, the command
// would wait until --timeout.
func TestExitAtEndOfACompactedTopic(t *testing.T) {
	b := servertest.Start(t, servertest.Options{Settings: map[string]string{"log.cleaner.backoff.ms": "50"}})
	b.CreateTopic("t", 2, "cleanup.policy", "compact", "local.retention.bytes", "1", "min.cleanable.dirty.ratio", "0.01", "delete.retention.ms", "100")
	cl := b.Client(kgo.RecordPartitioner(kgo.ManualPartitioner()))
	put := func(partition int32, key string, value []byte) {
		t.Helper()
		if err := cl.ProduceSync(t.Context(), &kgo.Record{Topic: "t", Partition: partition, Key: []byte(key), Value: value}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range []int32{0, 1} {
		put(p, "stays", fmt.Append(nil, "in ", p))
	}
	put(0, "goes", []byte("x"))
	put(0, "goes", nil)
	b.Remote("t", true)
	// In partition 0 nothing but headers is left behind the first record.
	servertest.Eventually(t, func() error {
		list, err := b.Server().TierStatus("t")
		if err != nil {
			return err
		}
		end := list[0].HighWatermark
		for at := int64(1); at < end; {
			raw, err := fetched(t.Context(), cl, "t", 0, at)
			if err != nil {
				return err
			}
			to, more := nothingToSee(raw, nil, at, end)
			if more || to == at {
				return fmt.Errorf("%d bytes at offset %d of %d, records: %v", len(raw), at, end, more)
			}
			at = to
		}
		return nil
	})
	for _, isolation := range []string{"read_uncommitted", "read_committed"} {
		r := varve(t, "", "consume", "t", "-b", b.Addr(), "--from-beginning", "-e", "--isolation", isolation, "--timeout", "1m", "--format", `%o %v\n`)
		if got := sortedLines(r.out); r.code != 0 || got != "0 in 0\n0 in 1" {
			t.Errorf("%s: exit %d %q, %q", isolation, r.code, r.errOut, got)
		}
	}
}

func fetched(ctx context.Context, cl *kgo.Client, topic string, partition int32, offset int64) ([]byte, error) {
	req := kmsg.NewPtrFetchRequest()
	req.MaxWaitMillis, req.MinBytes, req.MaxBytes = 500, 1, 1<<20
	rp := kmsg.NewFetchRequestTopicPartition()
	rp.Partition, rp.FetchOffset, rp.PartitionMaxBytes = partition, offset, 1<<20
	req.Topics = []kmsg.FetchRequestTopic{{Topic: topic, Partitions: []kmsg.FetchRequestTopicPartition{rp}}}
	resp, err := cl.Broker(1).RetriableRequest(ctx, fetchByName{req})
	if err != nil {
		return nil, err
	}
	f := resp.(*kmsg.FetchResponse)
	if len(f.Topics) != 1 || len(f.Topics[0].Partitions) != 1 || f.Topics[0].Partitions[0].ErrorCode != 0 {
		return nil, errors.New("no answer")
	}
	return f.Topics[0].Partitions[0].RecordBatches, nil
}

// Batches without records are passed over however many there are, and while records beyond the end of another partition keep
// coming; an answer without batches does not end a partition.
func TestExitAtEndBehindManyEmptyBatches(t *testing.T) {
	f := startFake(t)
	f.create("t", 2)
	in := func(partition int32, empty bool) {
		f.look(func() {
			p := f.topics["t"].parts[partition]
			raw := built(t, p.end(), nil, 1)
			if empty {
				raw = emptied(t, raw)
			}
			p.batches = append(p.batches, fakeBatch{p.end(), p.end() + 1, 0, raw})
		})
	}
	in(0, false)
	in(1, false)
	for range 3 * lookPartition / batch.HeaderSize { // more than one answer has
		in(1, true)
	}
	ctx, stop := context.WithCancel(t.Context())
	written := make(chan struct{})
	go func() {
		defer close(written)
		for ctx.Err() == nil {
			in(0, false)
			time.Sleep(lookAfter / 20)
		}
	}()
	r := varve(t, "", "consume", "t", "-b", f.addr(), "--from-beginning", "-e", "--timeout", "1m", "--format", `%p %o\n`)
	stop()
	<-written
	if got := sortedLines(r.out); r.code != 0 || !strings.HasPrefix(got, "0 0\n") || !strings.HasSuffix(got, "\n1 0") {
		t.Errorf("exit %d %q, %q", r.code, r.errOut, got)
	}

	f.create("gap", 1) // no batch reaches the end
	f.look(func() {
		f.topics["gap"].parts[0].batches = []fakeBatch{{0, 1, 0, built(t, 0, nil, 1)}, {1, 2, 0, nil}}
	})
	varve(t, "", "consume", "gap", "-b", f.addr(), "--from-beginning", "-e", "--timeout", "1500ms").want(t, 1, "0\n", "no record for 1.5s: 1 partitions are not at their end")
}

// built is a batch of records at these offsets from base on; of a transaction of producer, if there is one.
func built(t *testing.T, base int64, producer *int64, records int) []byte {
	t.Helper()
	b := batch.NewBuilder()
	b.BaseOffset = base
	if producer != nil {
		b.ProducerID, b.Transactional = *producer, true
	}
	for i := range records {
		b.Add(1, nil, fmt.Append(nil, i))
	}
	raw, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// emptied is a batch without its records.
func emptied(t *testing.T, raw []byte) []byte {
	t.Helper()
	h, err := batch.ParseHeader(raw)
	if err != nil {
		t.Fatal(err)
	}
	return batch.Empty(h)
}

func TestNothingToSee(t *testing.T) {
	type aborted = kmsg.FetchResponseTopicPartitionAbortedTransaction
	one, two := int64(1), int64(2)
	at := func(base int64, records int) []byte { return built(t, base, nil, records) }
	marker := func(base, producer int64, commit bool) []byte {
		m := batch.Marker(producer, 0, commit, 0, 1)
		batch.SetBaseOffset(m, base)
		return m
	}
	gaps := func(base int64, deltas ...int32) []byte { // a batch of ten offsets, of which these are left
		b := batch.NewBuilder()
		b.BaseOffset = base
		for _, d := range deltas {
			b.AddAt(d, 1, nil, []byte("v"))
		}
		raw, err := b.Build()
		if err != nil {
			t.Fatal(err)
		}
		h, err := batch.ParseHeader(raw)
		if err != nil {
			t.Fatal(err)
		}
		binary.BigEndian.PutUint32(raw[23:], 9) // the last offset delta
		if h, err = batch.ParseHeader(raw); err != nil || h.LastOffsetDelta != 9 {
			t.Fatal(h, err)
		}
		return raw
	}
	old := at(0, 1)
	old[16] = 1 // the magic byte
	for _, c := range []struct {
		name      string
		raw       []byte
		aborted   []aborted
		next, end int64
		to        int64
		more      bool
	}{
		{"nothing", nil, nil, 3, 9, 3, false},
		{"empty batches", slices.Concat(emptied(t, at(3, 2)), emptied(t, at(5, 4))), nil, 3, 9, 9, false},
		{"empty batches with a gap between them", slices.Concat(emptied(t, at(3, 2)), emptied(t, at(7, 2))), nil, 3, 9, 9, false},
		{"one that reaches further", emptied(t, at(3, 20)), nil, 3, 9, 23, false},
		{"one that does not reach", emptied(t, at(3, 2)), nil, 3, 9, 5, false},
		{"a record behind one", slices.Concat(emptied(t, at(3, 2)), at(5, 1), emptied(t, at(6, 3))), nil, 3, 9, 5, true},
		{"seen before", slices.Concat(at(0, 3), emptied(t, at(3, 6))), nil, 3, 9, 9, false},
		{"partly seen", gaps(0, 1, 2), nil, 3, 10, 10, false},
		{"partly not", gaps(0, 1, 3), nil, 3, 10, 3, true},
		{"from the end on", gaps(0, 1, 9), nil, 3, 9, 10, false},
		{"cut off", slices.Concat(emptied(t, at(3, 2)), emptied(t, at(5, 4))[:9]), nil, 3, 9, 5, false},
		{"cut off in its records", slices.Concat(emptied(t, at(3, 2)), at(5, 4)[:batch.HeaderSize+3]), nil, 3, 9, 5, false},
		{"another format", old, nil, 0, 9, 0, true},
		{"markers", slices.Concat(marker(3, 1, true), marker(4, 2, false)), nil, 3, 5, 5, false},
		{"a transaction", slices.Concat(built(t, 3, &one, 2), marker(5, 1, true)), nil, 3, 6, 3, true},
		{"an aborted one", slices.Concat(built(t, 3, &one, 2), marker(5, 1, false)), []aborted{{ProducerID: 1, FirstOffset: 3}}, 3, 6, 6, false},
		{"one that began before", slices.Concat(built(t, 3, &one, 2), marker(5, 1, false)), []aborted{{ProducerID: 1, FirstOffset: 0}}, 3, 6, 6, false},
		{"an aborted one, and the next of its producer", slices.Concat(built(t, 3, &one, 2), marker(5, 1, false), built(t, 6, &one, 1)), []aborted{{ProducerID: 1, FirstOffset: 3}}, 3, 7, 6, true},
		{"two of a producer", slices.Concat(built(t, 3, &one, 2), marker(5, 1, false), built(t, 6, &one, 1), marker(7, 1, false)), []aborted{{ProducerID: 1, FirstOffset: 6}, {ProducerID: 1, FirstOffset: 3}}, 3, 8, 8, false},
		{"another producer's", slices.Concat(built(t, 3, &two, 2), marker(5, 1, false)), []aborted{{ProducerID: 1, FirstOffset: 3}}, 3, 6, 3, true},
		{"an aborted one, for who reads uncommitted records", slices.Concat(built(t, 3, &one, 2), marker(5, 1, false)), nil, 3, 6, 3, true},
		{"a record beside an aborted one", slices.Concat(built(t, 3, &one, 2), at(5, 1), marker(6, 1, false)), []aborted{{ProducerID: 1, FirstOffset: 3}}, 3, 7, 5, true},
	} {
		if to, more := nothingToSee(c.raw, c.aborted, c.next, c.end); to != c.to || more != c.more {
			t.Errorf("%s: up to %d, more: %v; want %d, %v", c.name, to, more, c.to, c.more)
		}
	}
}

// A member that its group has forgotten, as it may after a restart of the coordinator, says so, joins again, and goes on.
func TestGroupMemberJoinsAgain(t *testing.T) {
	b := servertest.Start(t, servertest.Options{})
	b.CreateTopic("t", 1)
	cl := b.Client(kgo.DefaultProduceTopic("t"))
	put := func(value string) {
		t.Helper()
		if err := cl.ProduceSync(t.Context(), kgo.StringRecord(value)).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	put("before")
	var once sync.Once
	shown, ended := make(chan struct{}), make(chan result, 1)
	ctx, interrupt := context.WithCancelCause(t.Context())
	defer interrupt(nil)
	go func() {
		ended <- varveContext(ctx, strings.NewReader(""), writeFunc(func(p []byte) (int, error) {
			once.Do(func() { close(shown) })
			if strings.Contains(string(p), "after") {
				interrupt(signalled{syscall.SIGINT})
			}
			return len(p), nil
		}), "consume", "t", "-b", b.Addr(), "--group", "g", "--from-beginning")
	}()
	select {
	case <-shown:
	case r := <-ended:
		t.Fatalf("%+v", r)
	}
	adm := kadm.NewClient(cl)
	member := func() string {
		t.Helper()
		groups, err := adm.DescribeGroups(t.Context(), "g")
		if err != nil {
			t.Fatal(err)
		}
		if m := groups["g"].Members; len(m) == 1 {
			return m[0].MemberID
		}
		return ""
	}
	was := member()
	req := kmsg.NewPtrLeaveGroupRequest()
	req.Group = "g"
	m := kmsg.NewLeaveGroupRequestMember()
	m.MemberID = was
	req.Members = append(req.Members, m)
	if resp, err := req.RequestWith(t.Context(), cl); err != nil || resp.ErrorCode != 0 || resp.Members[0].ErrorCode != 0 {
		t.Fatalf("%+v, %v", resp, err)
	}
	servertest.Eventually(t, func() error {
		if is := member(); is == "" || is == was {
			return fmt.Errorf("the member is %q", is)
		}
		return nil
	})
	put("after")
	if r := <-ended; r.code != 0 || strings.Count(r.errOut, "not a member for now, joining again: ") != 1 {
		t.Errorf("%+v", r)
	}
	if o, err := adm.FetchOffsets(t.Context(), "g"); err != nil || o["t"][0].At != 2 {
		t.Errorf("committed %+v, %v", o, err)
	}
}

// What ends a member of a group is what no retry changes; with --quiet nothing is said of the rest.
func TestGroupSessionErrors(t *testing.T) {
	for err, ends := range map[error]bool{
		io.EOF: false, syscall.ECONNREFUSED: false, kerr.NotCoordinator: false, kerr.CoordinatorLoadInProgress: false, kerr.CoordinatorNotAvailable: false,
		kerr.UnknownMemberID: false, kerr.IllegalGeneration: false, kerr.FencedMemberEpoch: false,
		kerr.GroupAuthorizationFailed: true, kerr.GroupMaxSizeReached: true, kerr.InvalidGroupID: true, kerr.FencedInstanceID: true,
	} {
		for _, quiet := range []bool{false, true} {
			var told strings.Builder
			cmd := &cobra.Command{}
			cmd.SetErr(&told)
			c := &consumption{f: &consumeFlags{group: "g", quiet: quiet, conn: &connection{}}, cmd: cmd}
			for range 2 {
				got := c.errors(kgo.NewErrFetch(&kgo.ErrGroupSession{Err: err}))
				if (got != nil) != ends {
					t.Errorf("%v: %v", err, got)
				}
			}
			if n := strings.Count(told.String(), "\n"); n == 1 != (!ends && !quiet) || n > 1 {
				t.Errorf("%v, quiet %v: said %q", err, quiet, told.String())
			}
		}
	}
}
