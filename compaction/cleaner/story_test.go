package cleaner

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"

	"github.com/varve/varve/wal/batch"
	"github.com/varve/varve/wal/producer"
)

// A story's log. Commands:
//
//	data [pid= epoch= seq=] [txn] [codec=] [ts=] [append-time]   one batch, a record a line: key=value, key=- for a
//	                                                             tombstone, -=value for no key
//	abort|commit pid= [epoch=]    a marker
//	log                           what is there
//	scan|clean [dirty= end= now= retention= keys= codec= sections= from=]
//	                              a round over the whole log; sections ends at the offsets given
type story struct {
	log     [][]byte
	next    int64
	state   *producer.State
	aborted []producer.Aborted
	dirty   int64
}

func (s *story) append(b []byte) {
	batch.SetBaseOffset(b, s.next)
	batch.SetLeaderEpoch(b, 3)
	h, err := batch.ParseHeader(b)
	if err != nil {
		panic(err)
	}
	s.state.Apply(h, b)
	s.log = append(s.log, b)
	s.next = h.NextOffset()
	s.aborted = s.state.Aborted(0, s.next)
}

func (s *story) show() string {
	var w strings.Builder
	for _, b := range s.log {
		w.WriteString(showBatch(b))
	}
	return w.String()
}

func showBatch(b []byte) string {
	var w strings.Builder
	h, err := batch.ParseHeader(b)
	if err == nil {
		err = batch.VerifyCRC(b)
	}
	if err != nil {
		return err.Error() + "\n"
	}
	fmt.Fprintf(&w, "%d-%d epoch %d", h.BaseOffset, h.LastOffset(), h.LeaderEpoch)
	if h.HasProducer() {
		fmt.Fprintf(&w, " producer %d/%d", h.ProducerID, h.ProducerEpoch)
		if h.BaseSequence >= 0 {
			fmt.Fprintf(&w, " sequence %d-%d", h.BaseSequence, h.LastSequence())
		}
	}
	if h.Transactional() {
		w.WriteString(" txn")
	}
	if h.Codec() != batch.None {
		fmt.Fprintf(&w, " %v", h.Codec())
	}
	fmt.Fprintf(&w, " max %d", h.MaxTimestamp)
	if h.LogAppendTime() {
		w.WriteString(" append time")
	}
	if h.HasDeleteHorizon() {
		fmt.Fprintf(&w, " horizon %d", h.BaseTimestamp)
	}
	if h.RecordCount == 0 {
		w.WriteString(" empty")
	}
	w.WriteByte('\n')
	for r, err := range batch.Records(b, 1<<20) {
		if err != nil {
			fmt.Fprintf(&w, "  %v\n", err)
			break
		}
		fmt.Fprintf(&w, "  %d @%d ", h.BaseOffset+int64(r.OffsetDelta), h.Timestamp(r))
		if h.Control() {
			commit, _, err := batch.ReadMarker(r.Key, r.Value)
			fmt.Fprintf(&w, "commit=%v err=%v\n", commit, err)
			continue
		}
		text := func(b []byte) string {
			if b == nil {
				return "-"
			}
			return string(b)
		}
		fmt.Fprintf(&w, "%s=%s", text(r.Key), text(r.Value))
		for _, x := range r.Headers {
			fmt.Fprintf(&w, " %s:%s", x.Key, x.Value)
		}
		w.WriteByte('\n')
	}
	return w.String()
}

func arg[T any](t *testing.T, d *datadriven.TestData, key string, def T) T {
	if d.HasArg(key) {
		d.ScanArgs(t, key, &def)
	}
	return def
}

func TestStories(t *testing.T) {
	datadriven.Walk(t, "testdata/stories", func(t *testing.T, path string) {
		s := &story{state: producer.New()}
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			switch d.Cmd {
			case "data":
				b := batch.NewBuilder()
				b.ProducerID, b.ProducerEpoch = arg(t, d, "pid", int64(-1)), int16(arg(t, d, "epoch", -1))
				b.BaseSequence, b.Transactional, b.LogAppendTime = int32(arg(t, d, "seq", -1)), d.HasArg("txn"), d.HasArg("append-time")
				if b.ProducerID >= 0 {
					b.ProducerEpoch = max(b.ProducerEpoch, 0)
				}
				b.Codec, _ = batch.ParseCodec(arg(t, d, "codec", "none"))
				ts := arg(t, d, "ts", int64(100))
				for i, line := range strings.Fields(d.Input) {
					key, value, _ := strings.Cut(line, "=")
					null := func(s string) []byte {
						if s == "-" {
							return nil
						}
						return []byte(s)
					}
					b.Add(ts+int64(i), null(key), null(value), batch.RecordHeader{Key: "h", Value: []byte(fmt.Sprint(s.next + int64(i)))})
				}
				raw, err := b.Build()
				if err != nil {
					return err.Error()
				}
				s.append(raw)
				return showBatch(raw)
			case "abort", "commit":
				raw := batch.Marker(arg(t, d, "pid", int64(1)), int16(arg(t, d, "epoch", 0)), d.Cmd == "commit", 1, arg(t, d, "ts", int64(100)))
				s.append(raw)
				return showBatch(raw)
			case "log":
				return s.show()
			case "forget": // an entry of the aborted transactions
				s.aborted = nil
				return ""
			case "claim": // that a transaction was aborted
				s.aborted = append(s.aborted, producer.Aborted{ProducerID: arg(t, d, "pid", int64(0)),
					FirstOffset: arg(t, d, "first", int64(0)), LastOffset: arg(t, d, "last", int64(0))})
				return ""
			case "clean":
				return s.clean(t, d)
			}
			t.Fatalf("%s: unknown command %s", d.Pos, d.Cmd)
			return ""
		})
	})
}

func (s *story) clean(t *testing.T, d *datadriven.TestData) string {
	end := arg(t, d, "end", s.next)
	if first, ok := s.state.FirstUnstable(); ok {
		end = min(end, first)
	}
	codec := KeepCodec
	if d.HasArg("codec") {
		codec, _ = batch.ParseCodec(arg(t, d, "codec", ""))
	}
	o := Options{DirtyStart: arg(t, d, "dirty", s.dirty), End: end, Now: arg(t, d, "now", int64(1000)), DeleteRetention: arg(t, d, "retention", int64(500)),
		Codec: codec, Level: batch.DefaultLevel, Window: 1 << 20, Aborted: s.aborted, Producers: s.state}
	if d.HasArg("expired") { // all producers
		o.Producers = nil
	}
	from := arg(t, d, "from", int64(0))
	if from > 0 {
		before := producer.New()
		for _, b := range s.log {
			if h, _ := batch.ParseHeader(b); h.BaseOffset < from {
				before.Apply(h, b)
			}
		}
		o.Open = before.Open()
	}
	r := NewRound(o, newTable(t, arg(t, d, "keys", 100), 0.9))
	if !d.HasArg("no-scan") {
		for _, b := range s.log {
			h, _ := batch.ParseHeader(b)
			more, err := r.Scan(h, b)
			if err != nil {
				return err.Error()
			}
			if !more {
				break
			}
		}
	}
	var cuts []int64
	if d.HasArg("cuts") {
		var list string
		d.ScanArgs(t, "cuts", &list)
		for f := range strings.SplitSeq(list, "/") {
			var n int64
			fmt.Sscan(f, &n)
			cuts = append(cuts, n)
		}
	}
	var w strings.Builder
	var log [][]byte
	for _, b := range s.log {
		h, _ := batch.ParseHeader(b)
		if h.BaseOffset < from || h.BaseOffset >= r.TableEnd() {
			log = append(log, b)
			continue
		}
		out, err := r.Filter(h, b, slices.Contains(cuts, h.NextOffset()))
		if errors.Is(err, ErrTransactions) {
			return err.Error()
		} else if err != nil {
			t.Fatal(err)
		}
		if out != nil {
			log = append(log, slices.Clone(out))
		}
		if slices.Contains(cuts, h.NextOffset()) {
			fmt.Fprintf(&w, "section to %d: %s", h.LastOffset(), showSummary(r.Cut()))
		}
	}
	fmt.Fprintf(&w, "cleaned to %d", r.TableEnd())
	if r.Full() {
		w.WriteString(", the table is full")
	}
	fmt.Fprintf(&w, "; %s", showSummary(r.Cut()))
	s.log = log
	if from == 0 {
		s.dirty = max(s.dirty, r.TableEnd())
	}
	return w.String() + s.show()
}

func showSummary(s Summary) string {
	var w strings.Builder
	fmt.Fprintf(&w, "batches %d -> %d, records %d -> %d", s.BatchesIn, s.Batches, s.RecordsIn, s.Records)
	for _, f := range []struct {
		what string
		n    int64
	}{{"rewritten", s.Rewritten}, {"emptied", s.Emptied}, {"without key", s.NullKeys}} {
		if f.n > 0 {
			fmt.Fprintf(&w, ", %s %d", f.what, f.n)
		}
	}
	if s.HorizonBytes > 0 {
		fmt.Fprintf(&w, ", %d bytes until %d", s.HorizonBytes, s.Horizon)
	}
	for _, a := range s.Aborted {
		fmt.Fprintf(&w, ", aborted %d: %d-%d", a.ProducerID, a.FirstOffset, a.LastOffset)
	}
	w.WriteByte('\n')
	return w.String()
}
