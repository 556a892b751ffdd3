package load

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Transactions are those of a run's processors.
type Transactions struct {
	Committed  int64   `json:"committed"`
	Aborted    int64   `json:"aborted"`
	PerSecond  float64 `json:"per_second"` // committed
	PerCommit  float64 `json:"records_per_transaction"`
	CPUPerTxn  float64 `json:"broker_cpu_ms_per_transaction,omitempty"`
	Processors int     `json:"processors"`
}

// processor is a transactional producer. With a session it reads as a member of
// a group, writes what it has read, and commits its offsets with it; without
// one it makes the records itself.
type processor struct {
	r    *run
	cl   *kgo.Client
	sess *kgo.GroupTransactSession

	started bool // its first transaction has ended

	mu   sync.Mutex
	hist *hdrhistogram.Histogram // from asking for the commit to its answer
}

func (p *processor) close() {
	if p.sess != nil {
		p.sess.Close()
		return
	}
	p.cl.Close()
}

// backlog is how many records producers without a rate are ahead of the
// processors: enough that these never wait, and no more, since what is written
// but never read takes part of what is measured.
const backlog = 20_000

// sink is the topic that consumers read.
func (s *Spec) sink() string {
	if s.Processors > 0 {
		return s.Output
	}
	return s.Topic
}

func (s *Spec) checkTransactions() error {
	switch {
	case s.Processors < 0 || s.TxnRecords < 0 || s.TxnEvery < 0:
		return fmt.Errorf("load: negative numbers of processors (%d), records (%d) or a negative interval (%s)", s.Processors, s.TxnRecords, s.TxnEvery)
	case s.Processors == 0:
		return nil
	case s.Output == "":
		return errors.New("load: transactions without a topic that they write to")
	case s.Producers > 0 && s.Output == s.Topic:
		return errors.New("load: transactions cannot write to the topic that they read")
	case (s.TxnEvery > 0) == (s.TxnRecords > 0):
		return errors.New("load: a transaction ends either after a time or after a number of records")
	case s.Producers == 0 && s.TxnRecords == 0:
		return errors.New("load: transactions that read nothing end after a number of records")
	}
	return nil
}

// openProcessors opens the processors. Those that read stand at the present end
// of their topic, and share its partitions, when it returns.
func (r *run) openProcessors(ctx context.Context) ([]*processor, error) {
	s := r.spec
	if s.Processors == 0 {
		return nil, nil
	}
	group := fmt.Sprintf("varve-bench-%x", uint64(r.id))
	codec, err := codecOf(s.Codec)
	if err != nil {
		return nil, err
	}
	partitions := 0
	if s.Producers > 0 {
		if partitions, err = standAtEnd(ctx, s.Bootstrap, s.Topic, group); err != nil {
			return nil, err
		}
	}
	own := newOwners(s.Processors, partitions)
	var out []*processor
	for i := range s.Processors {
		opts := append(r.options("varve-bench-t"+strconv.Itoa(i)),
			kgo.TransactionalID(group+"-"+strconv.Itoa(i)),
			kgo.DefaultProduceTopic(s.Output),
			kgo.ProducerBatchMaxBytes(int32(s.BatchBytes)),
			kgo.ProducerLinger(s.Linger),
			kgo.ProducerBatchCompression(codec),
			kgo.RecordPartitioner(kgo.UniformBytesPartitioner(max(s.BatchBytes-100, 1), false, false, nil)),
		)
		p := &processor{r: r, hist: newHistogram()}
		var err error
		if s.Producers > 0 {
			opts = append(opts, own.options(i)...)
			opts = append(opts,
				kgo.ConsumerGroup(group), kgo.ConsumeTopics(s.Topic), kgo.FetchIsolationLevel(kgo.ReadCommitted()),
				kgo.Balancers(kgo.RangeBalancer()),
				kgo.HeartbeatInterval(500*time.Millisecond), // only so that they share the partitions soon
				kgo.FetchMaxWait(s.FetchMaxWait), kgo.FetchMaxBytes(int32(s.FetchMaxBytes)), kgo.FetchMaxPartitionBytes(int32(s.PartitionMaxBytes)))
			if p.sess, err = kgo.NewGroupTransactSession(opts...); err == nil {
				p.cl = p.sess.Client()
			}
		} else {
			p.cl, err = kgo.NewClient(opts...)
		}
		if err != nil {
			return out, fmt.Errorf("load: transactions: %w", err)
		}
		out = append(out, p)
	}
	if s.Producers > 0 {
		if err := own.balanced(ctx, time.Minute); err != nil {
			return out, fmt.Errorf("load: the processors' group: %w", err)
		}
	}
	return out, each(len(out), func(i int) error {
		_, _, err := out[i].cl.ProducerID(ctx)
		return err
	})
}

// standAtEnd has a new group begin at the end of a topic, and returns the number
// of its partitions.
func standAtEnd(ctx context.Context, bootstrap []string, topic, group string) (int, error) {
	ext, err := Extents(ctx, bootstrap, topic)
	if err != nil {
		return 0, err
	}
	cl, err := kgo.NewClient(kgo.SeedBrokers(bootstrap...), kgo.ClientID("varve-bench"), kgo.DisableClientMetrics())
	if err != nil {
		return 0, err
	}
	defer cl.Close()
	at := kadm.Offsets{}
	for p, x := range ext {
		at.AddOffset(topic, p, x.End, -1)
	}
	if err := kadm.NewClient(cl).CommitAllOffsets(ctx, group, at); err != nil {
		return 0, fmt.Errorf("load: first offsets of group %s: %w", group, err)
	}
	return len(ext), nil
}

// process runs transactions until ctx ends; the last is aborted.
func (p *processor) process(ctx context.Context) {
	if p.sess == nil {
		p.make(ctx)
		return
	}
	s := p.r.spec
	var began time.Time
	n := 0 // records of the transaction; 0: it has not begun
	for ctx.Err() == nil {
		most, poll, stop := s.TxnRecords-n, ctx, context.CancelFunc(func() {})
		if s.TxnRecords == 0 {
			most = 10_000
			if n > 0 {
				poll, stop = context.WithDeadline(ctx, began.Add(s.TxnEvery))
			}
		}
		fs := p.sess.PollRecords(poll, most)
		stop()
		fs.EachError(func(_ string, _ int32, err error) {
			if !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
				p.r.failed(err)
			}
		})
		if got := fs.NumRecords(); got > 0 {
			if n == 0 {
				if err := p.sess.Begin(); err != nil {
					p.r.failed(err)
					return
				}
				began = time.Now()
			}
			n += got
			p.r.taken(got)
			fs.EachRecord(func(rec *kgo.Record) {
				out := &kgo.Record{Key: rec.Key, Value: rec.Value}
				if s.Rate == 0 {
					// Nobody meant the record to be sent earlier than it is.
					out.Key = p.r.stamp(began)
				}
				p.sess.Produce(ctx, out, p.sent)
			})
		}
		if n > 0 && (s.TxnRecords > 0 && n >= s.TxnRecords || s.TxnRecords == 0 && time.Since(began) >= s.TxnEvery) {
			at := time.Now()
			committed, err := p.sess.End(ctx, kgo.TryCommit)
			p.ended(ctx, at, n, committed, err)
			n = 0
		}
	}
	if n > 0 {
		over, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		p.sess.End(over, kgo.TryAbort)
	}
}

// make runs transactions of records that are made up.
func (p *processor) make(ctx context.Context) {
	s := p.r.spec
	values := s.Payload.Values(s.RecordBytes, 1)
	for i := 0; ctx.Err() == nil; {
		if err := p.cl.BeginTransaction(); err != nil {
			p.r.failed(err)
			return
		}
		began := time.Now()
		for range s.TxnRecords {
			p.cl.Produce(ctx, &kgo.Record{Key: p.r.stamp(began), Value: values[i%len(values)]}, p.sent)
			i++
		}
		at := time.Now()
		err := p.cl.Flush(ctx)
		if err == nil {
			err = p.cl.EndTransaction(ctx, kgo.TryCommit)
		}
		p.ended(ctx, at, s.TxnRecords, err == nil, err)
	}
	over, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	p.cl.AbortBufferedRecords(over)
	p.cl.EndTransaction(over, kgo.TryAbort)
}

func (p *processor) sent(_ *kgo.Record, err error) {
	if err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, kgo.ErrClientClosed) && !errors.Is(err, kgo.ErrAborting) {
		p.r.failed(err)
	}
}

// ended counts a transaction. A processor's first is nobody's measure: the
// session aborts it for partitions that moved while the group was gathering.
func (p *processor) ended(ctx context.Context, at time.Time, records int, committed bool, err error) {
	first := !p.started
	p.started = true
	if ctx.Err() != nil || !p.r.measuring.Load() || first && err == nil {
		return
	}
	switch {
	case err != nil:
		p.r.failed(err)
	case !committed:
		p.r.aborted.Add(1)
	default:
		p.r.committed.Add(1)
		p.r.inTxns.Add(int64(records))
		p.mu.Lock()
		record(p.hist, time.Since(at))
		p.mu.Unlock()
	}
}

// stamp is the key of a record that is meant to be sent at a time.
func (r *run) stamp(at time.Time) []byte {
	if !r.stamped {
		return nil
	}
	b := make([]byte, 0, 16)
	b = binary.BigEndian.AppendUint64(b, uint64(r.id))
	return binary.BigEndian.AppendUint64(b, uint64(at.UnixNano()))
}

// lead waits until a producer without a rate may send one more record for the
// processors.
func (r *run) lead(ctx context.Context) {
	if r.ahead == nil {
		return
	}
	select {
	case r.ahead <- struct{}{}:
	case <-ctx.Done():
	}
}

// taken lets producers send as many more. Records that were there before they
// began are nobody's.
func (r *run) taken(n int) {
	if r.ahead == nil {
		return
	}
	for range n {
		select {
		case <-r.ahead:
		default:
			return
		}
	}
}

// addTransactions puts into a result what the processors did.
func (r *run) addTransactions(res *Result, ps []*processor) error {
	t := &Transactions{Committed: r.committed.Load(), Aborted: r.aborted.Load(), Processors: len(ps)}
	t.PerSecond = float64(t.Committed) / res.Seconds
	if t.Committed > 0 {
		t.PerCommit = float64(r.inTxns.Load()) / float64(t.Committed)
		if res.Broker != nil {
			t.CPUPerTxn = 1000 * res.Broker.CPUSeconds / float64(t.Committed)
		}
	}
	var hs []*hdrhistogram.Histogram
	for _, p := range ps {
		p.mu.Lock()
		hs = append(hs, p.hist)
		p.mu.Unlock()
	}
	res.Transactions, res.Commit = t, latencyOf(hs)
	switch {
	case t.Committed == 0 && res.LastError != "":
		return fmt.Errorf("load: no transaction was committed: %s", res.LastError)
	case t.Committed == 0:
		return errors.New("load: no transaction was committed")
	}
	return nil
}
