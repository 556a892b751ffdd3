package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kversion"
)

// processor is what a process of the read-process-write workload does: it
// reads records of the input as a member of a group, writes each to every
// output, and does both in one transaction, which it sometimes aborts. It ends
// with an error at the first thing that a client cannot go on after, as when
// somebody else has its transactional id; who started it starts another.
type processor struct {
	bootstrap, group, id string
	in                   string
	out                  []string
	consumer             bool // the consumer protocol (KIP-848), else the classic one
	version              int  // of transactions: 1, or 2 (KIP-890)
	breaks               string
	debug                bool // its client says what it does
	rnd                  *rand.Rand
}

// What a processor can be told to do wrong, for the check to find.
const (
	breaksOffsets   = "offsets"   // the offsets are committed behind the transaction, not in it
	breaksIsolation = "isolation" // readers see what was aborted (the processors are well)
)

func processorMain(args []string) error {
	var p processor
	fs := flag.NewFlagSet("processor", flag.ContinueOnError)
	fs.StringVar(&p.bootstrap, "bootstrap", "", "the broker")
	fs.StringVar(&p.group, "group", "", "group")
	fs.StringVar(&p.id, "id", "", "transactional id")
	fs.StringVar(&p.in, "in", "", "input topic")
	out := fs.String("out", "", "output topics")
	fs.BoolVar(&p.consumer, "consumer", false, "the consumer protocol")
	fs.IntVar(&p.version, "transactions", 2, "version of transactions")
	fs.StringVar(&p.breaks, "break", "", "what to do wrong")
	fs.BoolVar(&p.debug, "debug", false, "have its client say what it does")
	seed := fs.Uint64("seed", 0, "decides the sizes of transactions and which are aborted")
	if err := fs.Parse(args); err != nil {
		return err
	}
	p.out, p.rnd = strings.Split(*out, ","), rand.New(rand.NewPCG(*seed, 2))
	if p.breaks == breaksOffsets {
		return p.runWithoutOffsets()
	}
	return p.run()
}

func (p *processor) options() []kgo.Opt {
	opts := []kgo.Opt{kgo.SeedBrokers(p.bootstrap), kgo.TransactionalID(p.id), kgo.TransactionTimeout(10 * time.Second),
		kgo.ConsumerGroup(p.group), kgo.ConsumeTopics(p.in), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.FetchMaxWait(100 * time.Millisecond),
		kgo.SessionTimeout(3 * time.Second), kgo.HeartbeatInterval(300 * time.Millisecond), kgo.RebalanceTimeout(10 * time.Second),
		kgo.UnknownTopicRetries(-1), kgo.ProducerLinger(0), kgo.RetryBackoffFn(func(int) time.Duration { return 50 * time.Millisecond })}
	if p.debug {
		opts = append(opts, kgo.WithLogger(kgo.BasicLogger(os.Stdout, kgo.LogLevelInfo, func() string { return time.Now().UTC().Format("15:04:05.000 ") })))
	}
	if p.consumer {
		opts = append(opts, kgo.ServerSideBalancer(), kgo.Balancers(kgo.StickyBalancer()))
	} else {
		opts = append(opts, kgo.Balancers(kgo.CooperativeStickyBalancer()))
	}
	if p.version == 1 {
		// What a client of Kafka 3.6 knows, and the requests of the consumer protocol.
		v := kversion.V3_6_0()
		v.SetMaxKeyVersion(68, 1)
		v.SetMaxKeyVersion(69, 1)
		// One produce request at a time: franz-go 1.22.2 forgets a batch that is not answered for when a second request that
		// has the batch after it waits for AddPartitionsToTxn, and the broker goes away. Both are set back to be sent
		// again, the first to its beginning, the second to behind it; flushing never ends then. Newer transactions
		// have no such request.
		opts = append(opts, kgo.MaxVersions(v), kgo.MaxProduceRequestsInflightPerBroker(1))
	}
	return opts
}

// output is what becomes of one input record.
func (p *processor) output(r *kgo.Record, produce func(*kgo.Record)) {
	for _, topic := range p.out {
		produce(&kgo.Record{Topic: topic, Key: r.Key, Value: r.Value})
	}
}

func (p *processor) run() error {
	ctx := context.Background()
	s, err := kgo.NewGroupTransactSession(p.options()...)
	if err != nil {
		return err
	}
	defer s.Close()
	for {
		fetches := s.PollRecords(ctx, 1+p.rnd.IntN(300))
		for _, e := range fetches.Errors() {
			fmt.Printf("poll: %s-%d: %v\n", e.Topic, e.Partition, e.Err)
		}
		if fetches.NumRecords() == 0 {
			continue
		}
		if err := s.Begin(); err != nil {
			return fmt.Errorf("begin: %w", err)
		}
		failed := kgo.AbortingFirstErrPromise(s.Client())
		fetches.EachRecord(func(r *kgo.Record) {
			p.output(r, func(o *kgo.Record) { s.Produce(ctx, o, failed.Promise()) })
		})
		commit := failed.Err() == nil && p.rnd.IntN(8) > 0
		committed, err := s.End(ctx, kgo.TransactionEndTry(commit))
		if err != nil {
			return fmt.Errorf("end: %w", err)
		}
		if commit && !committed {
			fmt.Println("a transaction was aborted by a rebalance or a lost broker")
		}
	}
}

// runWithoutOffsets is the same with a mistake: a crash between the
// transaction and the commit of the offsets makes the next one repeat it.
func (p *processor) runWithoutOffsets() error {
	ctx := context.Background()
	cl, err := kgo.NewClient(append(p.options(), kgo.DisableAutoCommit())...)
	if err != nil {
		return err
	}
	defer cl.Close()
	for {
		fetches := cl.PollRecords(ctx, 1+p.rnd.IntN(300))
		if fetches.NumRecords() == 0 {
			continue
		}
		if err := cl.BeginTransaction(); err != nil {
			return err
		}
		fetches.EachRecord(func(r *kgo.Record) {
			p.output(r, func(o *kgo.Record) { cl.Produce(ctx, o, nil) })
		})
		if err := errors.Join(cl.Flush(ctx), cl.EndTransaction(ctx, kgo.TryCommit), cl.CommitUncommittedOffsets(ctx)); err != nil {
			return err
		}
	}
}
