// Command crash kills a broker again and again under load, and then proves
// that nothing was lost, repeated or put out of order. Two workloads:
//
//   - produce: an idempotent producer; every acknowledged record is there,
//     once, at its offset, in the order it was sent;
//   - transactions: processes that read, process and write, killed as well;
//     who reads committed records sees every input exactly once, in order.
package main

import (
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/varve/varve/internal/child"
)

func main() {
	varve := flag.String("varve", "bin/varve", "the broker's binary")
	rounds := flag.Int("rounds", 50, "how many times to kill it")
	partitions := flag.Int("partitions", 8, "partitions of the topic")
	seed := flag.Uint64("seed", uint64(time.Now().UnixNano()), "decides when each kill comes")
	workload := flag.String("workload", "produce", "produce or transactions")
	breaks := flag.String("break", "", "what the workload transactions does wrong, to see it found: offsets, isolation")
	logs := flag.String("logs", "", "a directory in which the workload transactions leaves the logs of its processors, whose clients say there what they do")
	if len(os.Args) > 1 && os.Args[1] == "processor" {
		fmt.Println(processorMain(os.Args[2:]))
		os.Exit(1) // a processor does not end by itself
	}
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var err error
	switch {
	case *workload == "transactions" && (*breaks == "" || *breaks == breaksOffsets || *breaks == breaksIsolation):
		err = runTransactions(ctx, *varve, *rounds, *partitions, *seed, *breaks, *logs)
	case *workload == "produce" && *breaks == "":
		err = run(ctx, *varve, *rounds, *partitions, *seed)
	default:
		fmt.Fprintf(os.Stderr, "crash: there is no workload %q with -break %q\n", *workload, *breaks)
		os.Exit(2)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "crash: FAIL (seed %d): %v\n", *seed, err)
		fmt.Println("0 passed, 1 failed")
		os.Exit(1)
	}
	fmt.Println("1 passed, 0 failed")
}

const topic = "crash"

// sent is what the producer knows of one partition: the value at each
// acknowledged offset. Values count up from 0.
type sent struct {
	mu    sync.Mutex
	acked map[int64]uint64
	next  uint64
}

func run(ctx context.Context, varve string, rounds, partitions int, seed uint64) error {
	varve, err := filepath.Abs(varve)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "varve-crash-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	addr, err := child.FreeAddr()
	if err != nil {
		return err
	}
	p := &process{varve: varve, dir: dir, addr: addr}
	if err := p.start(); err != nil {
		return err
	}
	defer p.kill()

	cl, err := kgo.NewClient(kgo.SeedBrokers(p.addr), kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.RequiredAcks(kgo.AllISRAcks()), kgo.ProducerLinger(0), kgo.MaxBufferedRecords(20_000), kgo.RetryBackoffFn(func(int) time.Duration { return 50 * time.Millisecond }),
		kgo.RecordDeliveryTimeout(5*time.Minute), kgo.UnknownTopicRetries(-1))
	if err != nil {
		return err
	}
	defer cl.Close()
	adm := kadm.NewClient(cl)
	if err := eventually(ctx, 30*time.Second, func() error {
		_, err := adm.CreateTopic(ctx, int32(partitions), 1, nil, topic)
		return err
	}); err != nil {
		return fmt.Errorf("create topic: %w", err)
	}

	state := make([]*sent, partitions)
	for i := range state {
		state[i] = &sent{acked: map[int64]uint64{}}
	}
	var failed atomic.Pointer[error]
	var ackedCount atomic.Int64
	produceCtx, stopProducing := context.WithCancel(ctx)
	defer stopProducing()
	var wg sync.WaitGroup
	for i, st := range state {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for produceCtx.Err() == nil && failed.Load() == nil {
				value := make([]byte, 8, 200)
				st.mu.Lock()
				n := st.next
				st.next++
				st.mu.Unlock()
				binary.BigEndian.PutUint64(value, n)
				value = value[:cap(value)]
				cl.Produce(ctx, &kgo.Record{Topic: topic, Partition: int32(i), Value: value}, func(r *kgo.Record, err error) {
					if err != nil {
						err = fmt.Errorf("partition %d: record %d was refused: %w", i, n, err)
						failed.CompareAndSwap(nil, &err)
						return
					}
					st.mu.Lock()
					if prev, ok := st.acked[r.Offset]; ok {
						err := fmt.Errorf("partition %d: offset %d acknowledged for record %d and for record %d", i, r.Offset, prev, n)
						failed.CompareAndSwap(nil, &err)
					}
					st.acked[r.Offset] = n
					st.mu.Unlock()
					ackedCount.Add(1)
				})
				if n%64 == 0 {
					time.Sleep(time.Millisecond)
				}
			}
		}()
	}

	rnd := rand.New(rand.NewPCG(seed, 1))
	for round := 1; round <= rounds; round++ {
		before := ackedCount.Load()
		// Each round lets acknowledgements come before it kills.
		if err := eventually(ctx, 60*time.Second, func() error {
			if e := failed.Load(); e != nil {
				return *e
			}
			if ackedCount.Load() == before {
				return errors.New("no acknowledgement since the broker came back")
			}
			return nil
		}); err != nil {
			return fmt.Errorf("round %d: %w\n%s", round, err, p.tail())
		}
		time.Sleep(time.Duration(rnd.IntN(800)) * time.Millisecond)
		p.kill()
		if err := p.start(); err != nil {
			return fmt.Errorf("round %d: %w", round, err)
		}
		fmt.Printf("round %d: killed and restarted, %d records acknowledged so far\n", round, ackedCount.Load())
	}
	stopProducing()
	wg.Wait()
	flushCtx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	if err := cl.Flush(flushCtx); err != nil {
		return fmt.Errorf("flush: %w\n%s", err, p.tail())
	}
	if e := failed.Load(); e != nil {
		return *e
	}
	if err := verify(ctx, p.addr, state); err != nil {
		return err
	}
	fmt.Printf("crash: %d rounds, %d partitions, %d records acknowledged, all there, once, in order (seed %d)\n", rounds, partitions, ackedCount.Load(), seed)
	return nil
}

// verify reads everything and compares it with what was acknowledged.
func verify(ctx context.Context, addr string, state []*sent) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	cl, err := kgo.NewClient(kgo.SeedBrokers(addr), kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		return err
	}
	defer cl.Close()
	ends, err := kadm.NewClient(cl).ListEndOffsets(ctx, topic)
	if err != nil {
		return err
	}
	type seen struct {
		next  int64  // next offset
		value uint64 // next value
		found int
	}
	got := make([]seen, len(state))
	left := len(state)
	for i := range state {
		if o, ok := ends.Lookup(topic, int32(i)); !ok || o.Err != nil {
			return fmt.Errorf("end offset of partition %d: %v", i, o.Err)
		} else if o.Offset == 0 {
			left--
		}
	}
	for left > 0 {
		fs := cl.PollFetches(ctx)
		if err := fs.Err(); err != nil {
			return fmt.Errorf("read back: %w", err)
		}
		var bad error
		fs.EachRecord(func(r *kgo.Record) {
			s, st := &got[r.Partition], state[r.Partition]
			v := binary.BigEndian.Uint64(r.Value)
			switch {
			case bad != nil:
			case r.Offset != s.next:
				bad = fmt.Errorf("partition %d: offset %d where %d was due", r.Partition, r.Offset, s.next)
			case v != s.value:
				// The producer is idempotent and retries for ever: its records
				// come in the order it sent them, with no gap and no repeat.
				bad = fmt.Errorf("partition %d, offset %d: record %d where record %d was due (lost, repeated or out of order)", r.Partition, r.Offset, v, s.value)
			}
			if w, ok := st.acked[r.Offset]; ok {
				if w != v && bad == nil {
					bad = fmt.Errorf("partition %d, offset %d: record %d, but %d was acknowledged there", r.Partition, r.Offset, v, w)
				}
				s.found++
			}
			s.next, s.value = r.Offset+1, v+1
			if o, _ := ends.Lookup(topic, r.Partition); s.next == o.Offset {
				left--
			}
		})
		if bad != nil {
			return bad
		}
	}
	for i, s := range got {
		if s.found != len(state[i].acked) {
			return fmt.Errorf("partition %d: %d of %d acknowledged records are there", i, s.found, len(state[i].acked))
		}
	}
	return nil
}

// process is the broker under test.
type process struct {
	varve, dir, addr string
	cmd              *exec.Cmd
	log              string
}

func (p *process) start() error {
	p.log = filepath.Join(p.dir, "broker.log")
	f, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	// A small log of small files: the kills also come while files are begun,
	// sealed, carried from and given back.
	p.cmd = exec.Command(p.varve, "dev", "--data-dir", filepath.Join(p.dir, "data"),
		"--set", "listeners=PLAINTEXT://"+p.addr, "--set", "admin.listener=127.0.0.1:0", "--set", "wal.segment.bytes=4194304", "--set", "wal.max.bytes=67108864")
	p.cmd.Stdout, p.cmd.Stderr = f, f
	if err := p.cmd.Start(); err != nil {
		return err
	}
	deadline := time.Now().Add(60 * time.Second)
	for {
		c, err := net.DialTimeout("tcp", p.addr, time.Second)
		if err == nil {
			c.Close()
			return nil
		}
		if p.cmd.ProcessState != nil || time.Now().After(deadline) || syscall.Kill(p.cmd.Process.Pid, 0) != nil {
			return fmt.Errorf("the broker did not come up: %v\n%s", err, p.tail())
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (p *process) kill() {
	if p.cmd != nil && p.cmd.Process != nil {
		p.cmd.Process.Kill()
		p.cmd.Wait()
	}
}

// tail returns the end of the broker's log.
func (p *process) tail() string {
	f, err := os.Open(p.log)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	if st, err := f.Stat(); err == nil && st.Size() > 8<<10 {
		f.Seek(-8<<10, io.SeekEnd)
	}
	b, _ := io.ReadAll(f)
	return "the broker's log ends:\n" + string(b)
}

func eventually(ctx context.Context, d time.Duration, f func() error) error {
	deadline := time.Now().Add(d)
	for {
		err := f()
		if err == nil || time.Now().After(deadline) || ctx.Err() != nil {
			return err
		}
		time.Sleep(20 * time.Millisecond)
	}
}
