package txn

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// The stories under testdata are told in these commands. Time stands still but for wait; what is due on the way happens
// at its time. Whoever asks is named first, and named again when answered. Producers are written as id/epoch; ids are
// handed out from 1000.
//
//	config [version=N] [max-timeout=D] [expiration=D] [partitions=N] [bytes=N]   a new, empty shard
//	init CLIENT ID [timeout=D] [expect=P] [v=N] [2pc] [keep]
//	add CLIENT ID by=P to=t/0,t/1 [v=N] [verify]
//	add-offsets CLIENT ID by=P partition=N [v=N]
//	commit|abort CLIENT ID by=P [v=N]
//	written ID in=t/0,t/1 [older=N]   the markers asked for last, or N times before, are written
//	wait D; tick ID; expire
//	describe ID; list [states=..] [ids=..] [longer=D] [pattern=..]; show
//	dry            the next need of a producer id finds none
//	fail CODE      the next append fails
//	log ID state=N by=P [version=N] [timeout=D] [in=t/0]   a record that lies in the log from before; reload finds it
//	reload         a new coordinator replays the log
//	lead EPOCH     the same coordinator leads on in another epoch
type story struct {
	shard *Shard
	now   time.Time
	log   []Record
	names map[uint64]string
	token uint64
	ids   int64
	epoch int32
	dry   bool
	fail  int16
	out   strings.Builder
}

var storyStart = time.UnixMilli(1_000_000).UTC()

func newStory(cfg Config) *story {
	s := &story{shard: NewShard(cfg), now: storyStart, names: map[uint64]string{}, ids: 1000, epoch: 7}
	s.shard.Loaded(s.epoch)
	return s
}

func TestStories(t *testing.T) {
	paths, err := filepath.Glob("testdata/*.story")
	if err != nil || len(paths) == 0 {
		t.Fatalf("stories: %v, %v", paths, err)
	}
	for _, path := range paths {
		t.Run(filepath.Base(path), func(t *testing.T) {
			s := newStory(Config{})
			datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
				s.out.Reset()
				if d.Cmd == "config" {
					s = newStory(configOf(t, d))
					return ""
				}
				s.command(t, d)
				return s.out.String()
			})
		})
	}
}

func configOf(t *testing.T, d *datadriven.TestData) Config {
	a := args{t, d}
	return Config{TransactionVersion: int16(a.num("version", DefaultTransactionVersion)), MaxTimeout: a.dur("max-timeout", DefaultMaxTimeout),
		Expiration: a.dur("expiration", DefaultExpiration), MaxPartitions: a.num("partitions", 0), MaxBytes: int64(a.num("bytes", 0))}
}

// args reads a story's arguments by name.
type args struct {
	t *testing.T
	d *datadriven.TestData
}

func (a args) has(key string) bool {
	for _, x := range a.d.CmdArgs {
		if x.Key == key {
			return true
		}
	}
	return false
}
func (a args) str(key, def string) string {
	for _, x := range a.d.CmdArgs {
		if x.Key == key {
			return strings.Join(x.Vals, ",")
		}
	}
	return def
}
func (a args) list(key string) []string {
	if s := a.str(key, ""); s != "" {
		return strings.Split(s, ",")
	}
	return nil
}
func (a args) num(key string, def int) int {
	s := a.str(key, "")
	if s == "" {
		return def
	}
	return number(a.t, s)
}
func (a args) dur(key string, def time.Duration) time.Duration {
	s := a.str(key, "")
	if s == "" {
		return def
	}
	return duration(a.t, s)
}
func (a args) pos(i int) string {
	if i >= len(a.d.CmdArgs) {
		return ""
	}
	if k := a.d.CmdArgs[i].Key; k != "none" {
		return k
	}
	return ""
}

// producer is a producer id and epoch.
func (a args) producer(key string) (id int64, epoch int16) {
	s := a.str(key, "")
	if s == "" {
		return -1, -1
	}
	x, y, _ := strings.Cut(s, "/")
	return int64(number(a.t, x)), int16(number(a.t, y))
}

func (a args) topics(key string) (ts []Topic) {
	for _, s := range a.list(key) {
		topic, p, _ := strings.Cut(s, "/")
		if n := len(ts); n > 0 && ts[n-1].Topic == topic {
			ts[n-1].Partitions = append(ts[n-1].Partitions, int32(number(a.t, p)))
			continue
		}
		ts = append(ts, Topic{topic, []int32{int32(number(a.t, p))}})
	}
	return ts
}

func number(t *testing.T, s string) int {
	t.Helper()
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func duration(t *testing.T, s string) time.Duration {
	t.Helper()
	d, err := time.ParseDuration(s)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func (s *story) command(t *testing.T, d *datadriven.TestData) {
	a := args{t, d}
	ask := func() uint64 {
		s.token++
		s.names[s.token] = a.pos(0)
		return s.token
	}
	switch d.Cmd {
	case "init":
		req := kmsg.NewPtrInitProducerIDRequest()
		req.Version = int16(a.num("v", 5))
		id := a.pos(1)
		req.TransactionalID = &id
		if a.has("null") {
			req.TransactionalID = nil
		}
		req.TransactionTimeoutMillis = int32(a.dur("timeout", time.Minute).Milliseconds())
		req.ProducerID, req.ProducerEpoch = a.producer("expect")
		s.do(&Init{Token: ask(), Req: req, Enable2PC: a.has("2pc"), KeepPreparedTxn: a.has("keep")})
	case "add":
		c := &AddPartitions{Token: ask(), Version: int16(a.num("v", 3)), Txn: kmsg.NewAddPartitionsToTxnRequestTransaction()}
		c.Txn.TransactionalID, c.Txn.VerifyOnly = a.pos(1), a.has("verify")
		c.Txn.ProducerID, c.Txn.ProducerEpoch = a.producer("by")
		for _, x := range a.topics("to") {
			ct := kmsg.NewAddPartitionsToTxnRequestTransactionTopic()
			ct.Topic, ct.Partitions = x.Topic, x.Partitions
			c.Txn.Topics = append(c.Txn.Topics, ct)
		}
		s.do(c)
	case "add-offsets":
		req := kmsg.NewPtrAddOffsetsToTxnRequest()
		req.Version = int16(a.num("v", 4))
		req.TransactionalID, req.Group = a.pos(1), "g"
		req.ProducerID, req.ProducerEpoch = a.producer("by")
		s.do(&AddOffsets{Token: ask(), Req: req, Partition: int32(a.num("partition", 0))})
	case "commit", "abort":
		req := kmsg.NewPtrEndTxnRequest()
		req.Version = int16(a.num("v", 5))
		req.TransactionalID, req.Commit = a.pos(1), d.Cmd == "commit"
		req.ProducerID, req.ProducerEpoch = a.producer("by")
		s.do(&End{Token: ask(), Req: req})
	case "written":
		c := &MarkersWritten{ID: a.pos(0), Topics: a.topics("in")}
		if e := s.shard.entries[a.pos(0)]; e != nil {
			c.Order = e.order - uint64(a.num("older", 0))
		}
		s.do(c)
	case "tick":
		s.do(&Tick{ID: a.pos(0)})
	case "expire":
		for _, id := range s.shard.IDs() {
			s.do(&Expire{ID: id})
		}
	case "wait":
		s.wait(duration(t, a.pos(0)))
	case "dry":
		s.dry = true
	case "fail":
		s.fail = int16(number(t, a.pos(0)))
	case "log":
		m := metadata{state: State(a.num("state", 0)), nextID: -1, last: -1, timeout: int32(a.dur("timeout", 3*time.Second).Milliseconds()),
			topics: a.topics("in"), updated: s.now.UnixMilli(), started: s.now.UnixMilli(), version: int16(a.num("version", 0))}
		m.producerID, m.epoch = a.producer("by")
		m.previousID = m.producerID
		s.log = append(s.log, recordOf(a.pos(0), m, DefaultTransactionVersion))
	case "reload":
		s.shard = NewShard(s.shard.cfg)
		for _, r := range s.log {
			if err := s.shard.Apply(r); err != nil {
				t.Fatal(err)
			}
		}
		s.epoch++
		s.asked(s.shard.Loaded(s.epoch)...)
	case "lead":
		s.epoch = int32(number(t, a.pos(0)))
		s.asked(s.shard.Loaded(s.epoch)...)
	case "describe":
		x := s.shard.Describe(a.pos(0))
		if x.ErrorCode != 0 {
			fmt.Fprintf(&s.out, "%s%s\n", x.TransactionalID, code(x.ErrorCode))
			return
		}
		fmt.Fprintf(&s.out, "%s %s %d/%d timeout=%dms start=%d", x.TransactionalID, x.State, x.ProducerID, x.ProducerEpoch, x.TimeoutMillis, x.StartTimestamp)
		for _, y := range x.Topics {
			fmt.Fprintf(&s.out, " %s%v", y.Topic, y.Partitions)
		}
		s.out.WriteByte('\n')
	case "list":
		req := kmsg.NewPtrListTransactionsRequest()
		req.StateFilters = a.list("states")
		for _, id := range a.list("ids") {
			req.ProducerIDFilters = append(req.ProducerIDFilters, int64(number(t, id)))
		}
		if a.has("longer") {
			req.DurationFilterMillis = a.dur("longer", 0).Milliseconds()
		}
		if d.Input != "" { // a pattern has letters that arguments may not have
			p := strings.TrimSpace(d.Input)
			req.TransactionalIDPattern = &p
		}
		f, unknown, c := NewFilter(req)
		if len(unknown) > 0 {
			fmt.Fprintf(&s.out, "unknown states: %q\n", unknown)
		}
		if c != 0 {
			fmt.Fprintf(&s.out, "list%s\n", code(c))
			return
		}
		for _, x := range s.shard.List(s.now, f) {
			if !f.Matches(x.TransactionalID) {
				continue
			}
			fmt.Fprintf(&s.out, "%s %s %d\n", x.TransactionalID, x.TransactionState, x.ProducerID)
		}
	case "show":
		s.out.WriteString(dump(s.shard))
	default:
		t.Fatalf("unknown command %s", d.Cmd)
	}
}

// do takes a command through its life, with an append that succeeds at once unless it was told to fail.
func (s *story) do(c Command) {
	r := s.shard.Handle(s.now, c)
	if r.NeedProducerID {
		if s.dry {
			s.dry = false
			fmt.Fprintf(&s.out, "no producer id\n")
			s.replies(Fail(r, 14))
			return
		}
		s.ids++
		r = s.shard.Handle(s.now, &Supplied{Command: c, ProducerID: s.ids - 1})
		if r.NeedProducerID {
			panic("a producer id was supplied, and asked for again")
		}
	}
	if len(r.Records) > 0 {
		if s.fail != 0 {
			fmt.Fprintf(&s.out, "append fails\n")
			s.replies(Fail(r, s.fail))
			s.fail = 0
			return
		}
		for _, rec := range r.Records {
			s.log = append(s.log, rec)
			fmt.Fprintf(&s.out, "append %s\n", text(rec))
			if err := s.shard.Apply(rec); err != nil {
				panic(err)
			}
		}
	}
	s.shard.Settle(s.now, r)
	for _, n := range r.Notes {
		switch n.Kind {
		case NoteFenced, NoteTimedOut, NoteRefused, NoteExpired:
			fmt.Fprintf(&s.out, "note: %s %d/%d partitions=%d age=%s\n",
				map[NoteKind]string{NoteFenced: "fenced", NoteTimedOut: "timed out", NoteRefused: n.Reason, NoteExpired: "expired"}[n.Kind],
				n.ProducerID, n.Epoch, n.Partitions, n.Age)
		}
	}
	s.replies(r.Replies)
	if r.Markers != nil {
		s.asked(*r.Markers)
	}
}

func (s *story) asked(ms ...Markers) {
	for _, m := range ms {
		if m.CoordinatorEpoch != s.epoch {
			panic(fmt.Sprintf("markers of coordinator epoch %d in epoch %d", m.CoordinatorEpoch, s.epoch))
		}
		fmt.Fprintf(&s.out, "markers %s %d/%d %s coordinator=%d version=%d%s\n", m.ID, m.ProducerID, m.ProducerEpoch,
			map[bool]string{true: "commit", false: "abort"}[m.Commit], m.CoordinatorEpoch, m.TransactionVersion, places(m.Topics))
	}
}

// wait lets time pass.
func (s *story) wait(d time.Duration) {
	end := s.now.Add(d)
	for {
		var at time.Time
		due := ""
		for _, id := range s.shard.IDs() {
			if by, ok := s.shard.Deadline(id); ok && !by.After(end) && (due == "" || by.Before(at)) {
				due, at = id, by
			}
		}
		if due == "" {
			if end.After(s.now) {
				s.now = end
			}
			return
		}
		if at.After(s.now) {
			s.now = at
		}
		before := s.out.Len()
		s.do(&Tick{ID: due})
		if s.out.Len() == before {
			panic("nothing happens at a deadline")
		}
		fmt.Fprintf(&s.out, "  at %s\n", s.now.Sub(storyStart))
		if by, ok := s.shard.Deadline(due); ok && !by.After(s.now) { // the append failed, or there was no producer id
			s.now = s.now.Add(time.Second)
		}
	}
}

func (s *story) replies(rs []Reply) {
	for _, r := range rs {
		name := s.names[r.Token]
		if name == "" {
			panic(fmt.Sprintf("token %d answered twice, or never asked", r.Token))
		}
		delete(s.names, r.Token)
		fmt.Fprintf(&s.out, "-> %s:%s\n", name, response(r.Response))
	}
}

var codeNames = map[int16]string{
	-1: "UNKNOWN_SERVER_ERROR", 14: "COORDINATOR_LOAD_IN_PROGRESS", 15: "COORDINATOR_NOT_AVAILABLE", 16: "NOT_COORDINATOR",
	codeUnsupportedVersion: "UNSUPPORTED_VERSION", codeInvalidRequest: "INVALID_REQUEST", codeInvalidProducerEpoch: "INVALID_PRODUCER_EPOCH",
	codeInvalidTxnState: "INVALID_TXN_STATE", codeInvalidProducerIDMapping: "INVALID_PRODUCER_ID_MAPPING",
	codeInvalidTransactionTimeout: "INVALID_TRANSACTION_TIMEOUT", codeConcurrentTransactions: "CONCURRENT_TRANSACTIONS",
	codeTransactionalIDAuthorizationFailed: "TRANSACTIONAL_ID_AUTHORIZATION_FAILED", codeProducerFenced: "PRODUCER_FENCED",
	codeTransactionalIDNotFound: "TRANSACTIONAL_ID_NOT_FOUND", codeTransactionAbortable: "TRANSACTION_ABORTABLE",
	codeInvalidRegularExpression: "INVALID_REGULAR_EXPRESSION",
}

func code(c int16) string {
	if c == 0 {
		return ""
	}
	return " " + codeNames[c]
}

func okOr(c int16) string {
	if c == 0 {
		return " ok"
	}
	return code(c)
}

func response(r kmsg.Response) string {
	switch r := r.(type) {
	case *kmsg.InitProducerIDResponse:
		if r.ErrorCode != 0 {
			if r.ProducerID != -1 || r.ProducerEpoch != -1 {
				panic("an error with a producer id")
			}
			return code(r.ErrorCode)
		}
		return fmt.Sprintf(" producer %d/%d", r.ProducerID, r.ProducerEpoch)
	case *kmsg.AddPartitionsToTxnResponse:
		s := ""
		for _, t := range r.Topics {
			for _, p := range t.Partitions {
				s += fmt.Sprintf(" %s/%d%s", t.Topic, p.Partition, okOr(p.ErrorCode))
			}
		}
		for _, x := range r.Transactions {
			s += " [" + x.TransactionalID
			for _, t := range x.Topics {
				for _, p := range t.Partitions {
					s += fmt.Sprintf(" %s/%d%s", t.Topic, p.Partition, okOr(p.ErrorCode))
				}
			}
			s += "]"
		}
		if (r.Version >= 4) != (r.Transactions != nil) {
			panic("the wrong half of the response")
		}
		return s
	case *kmsg.AddOffsetsToTxnResponse:
		return okOr(r.ErrorCode)
	case *kmsg.EndTxnResponse:
		if r.ErrorCode == 0 && r.Version >= 5 {
			return fmt.Sprintf(" ok, producer %d/%d", r.ProducerID, r.ProducerEpoch)
		}
		return okOr(r.ErrorCode)
	}
	return fmt.Sprintf(" %T", r)
}

func places(ts []Topic) (s string) {
	for _, t := range ts {
		s += fmt.Sprintf(" %s%v", t.Topic, t.Partitions)
	}
	return s
}

func text(r Record) string {
	id, m, err := decode(r)
	switch {
	case err != nil:
		return err.Error()
	case m == nil:
		return id + ": null"
	}
	return id + ": " + m.text()
}

func (m metadata) text() string {
	s := fmt.Sprintf("%s %d/%d", m.state, m.producerID, m.epoch)
	if m.previousID != m.producerID {
		s += fmt.Sprintf(" previous=%d", m.previousID)
	}
	if m.nextID != -1 {
		s += fmt.Sprintf(" next=%d", m.nextID)
	}
	if m.last != -1 {
		s += fmt.Sprintf(" last=%d", m.last)
	}
	if m.version != 0 {
		s += fmt.Sprintf(" version=%d", m.version)
	}
	s += fmt.Sprintf(" timeout=%dms updated=%d", m.timeout, m.updated)
	if m.started != -1 {
		s += fmt.Sprintf(" started=%d", m.started)
	}
	return s + places(m.topics)
}

// dump is everything that a shard knows, for people.
func dump(s *Shard) string {
	var b strings.Builder
	for _, id := range s.IDs() {
		e := s.entries[id]
		fmt.Fprintf(&b, "%s: %s", id, e.m.text())
		if e.last != e.m.last {
			fmt.Fprintf(&b, " in memory: last=%d", e.last)
		}
		if e.m.state.prepared() {
			fmt.Fprintf(&b, " unmarked:%s", places(e.left()))
		}
		b.WriteByte('\n')
	}
	return b.String()
}
