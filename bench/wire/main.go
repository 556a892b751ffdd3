// Command wire measures a broker at the wire: raw Produce and Fetch requests
// of fixed sizes over pipelined connections, with the broker's own CPU time,
// each beside the floor (bench/floor): a bare server under the same requests.
// Ratios to the floor of the same run are what to quote.
package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/bench/floor"
	"github.com/varve/varve/wal/batch"
)

var (
	varve    = flag.String("varve", "bin/varve", "the broker's binary")
	seconds  = flag.Int("seconds", 4, "length of each measurement")
	conns    = flag.Int("conns", 8, "connections")
	depth    = flag.Int("depth", 5, "requests in flight on each")
	parts    = flag.Int("partitions", 16, "partitions of the topic")
	sizes    = flag.String("sizes", "1024,16384,65536,1048576", "bytes of a request's batch")
	rounds   = flag.Int("rounds", 1, "how often to measure each, floor and broker in turn")
	dir      = flag.String("dir", "", "where to put data; a temporary directory by default")
	profiles = flag.String("cpuprofile", "", "a folder for CPU profiles of the broker, one for each measurement: produce-16384.prof")
	matrix   = flag.Bool("matrix", false, "what a request costs the broker over sizes, partitions (1, 100, 10,000) and connections (1, 100, 1,000); -conns, -depth and -partitions do not count")
	floorAt  = flag.String("floor-server", "", "run the bare server at this address (used by the command itself)")
)

func main() {
	flag.Parse()
	var err error
	if *floorAt != "" {
		err = serveFloor(*floorAt, *dir)
	} else {
		err = run()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "wire:", err)
		os.Exit(1)
	}
}

func run() error {
	tmp := *dir
	if tmp == "" {
		d, err := os.MkdirTemp("", "varve-wire-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(d)
		tmp = d
	}
	if *matrix {
		return runMatrix(tmp)
	}
	fmt.Printf("%d connections, %d in flight each, %d partitions, %d s each; broker and load share this machine's cores\n", *conns, *depth, *parts, *seconds)
	fmt.Printf("%-8s %-9s %-7s %10s %12s %14s %12s\n", "what", "request", "server", "MB/s", "requests/s", "CPU s/GB", "of floor")
	for _, f := range strings.Split(*sizes, ",") {
		size, err := strconv.Atoi(f)
		if err != nil {
			return err
		}
		for range *rounds {
			if err := measure(tmp, size); err != nil {
				return err
			}
		}
	}
	return nil
}

type server struct {
	cmd   *exec.Cmd
	addr  string
	admin string
}

func (s *server) stop() {
	s.cmd.Process.Signal(os.Interrupt)
	s.cmd.Wait()
}

// cpu is the user and system time that the process has used.
func (s *server) cpu() time.Duration {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	u, _ := strconv.Atoi(f[11])
	k, _ := strconv.Atoi(f[12])
	return time.Duration(u+k) * 10 * time.Millisecond
}

func freeAddr() string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func start(tmp string, bare bool) (*server, error) {
	s := &server{addr: freeAddr()}
	data := filepath.Join(tmp, fmt.Sprint(time.Now().UnixNano()))
	if err := os.MkdirAll(data, 0o700); err != nil {
		return nil, err
	}
	if bare {
		self, err := os.Executable()
		if err != nil {
			return nil, err
		}
		s.cmd = exec.Command(self, "-floor-server", s.addr, "-dir", data, "-partitions", strconv.Itoa(*parts))
	} else {
		s.admin = freeAddr()
		s.cmd = exec.Command(*varve, "dev", "--data-dir", data, "--set", "listeners=PLAINTEXT://"+s.addr, "--set", "admin.listener="+s.admin,
			"--set", "wal.max.bytes=8589934592", "--set", "remote.flush.interval.ms=600000", "--set", "remote.object.bytes=1073741824")
	}
	s.cmd.Stderr = os.Stderr
	if !bare {
		s.cmd.Stderr = nil
	}
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	for range 3000 {
		if c, err := net.Dial("tcp", s.addr); err == nil {
			c.Close()
			return s, nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	s.stop()
	return nil, fmt.Errorf("%s did not come up", s.addr)
}

func measure(tmp string, size int) error {
	raw, err := oneBatch(size)
	if err != nil {
		return err
	}
	var floorProduce, floorFetch float64
	for _, bare := range []bool{true, false} {
		s, err := start(tmp, bare)
		if err != nil {
			return err
		}
		name := "varve"
		if bare {
			name = "floor"
		} else {
			cl, err := kgo.NewClient(kgo.SeedBrokers(s.addr))
			if err != nil {
				return err
			}
			if _, err := kadm.NewClient(cl).CreateTopic(context.Background(), int32(*parts), 1, map[string]*string{"max.message.bytes": kmsg.StringPtr("16777216")}, "wire"); err != nil {
				return err
			}
			cl.Close()
		}
		r, err := load(s, fmt.Sprintf("produce-%d", size), func(part int32) []byte { return produceFrame(part, raw) })
		if err != nil {
			return err
		}
		report("produce", size, name, r, size, &floorProduce, bare)
		from, err := tail(s.addr, size)
		if err != nil {
			return err
		}
		if r, err = load(s, fmt.Sprintf("fetch-%d", size), func(part int32) []byte { return fetchFrame(part, from(part), size) }); err != nil {
			return err
		}
		report("fetch", size, name, r, 0, &floorFetch, bare)
		s.stop()
	}
	return nil
}

type result struct {
	requests, bytes int64 // bytes of answers
	took, cpu       time.Duration
	costs           map[string]float64 // what else the broker has used; see server.costs
}

// frameBytes bounds what a connection keeps of frames for different partitions.
const frameBytes = 4 << 20

func report(what string, size int, name string, r result, perRequest int, base *float64, bare bool) {
	bytes := float64(r.requests) * float64(perRequest)
	if perRequest == 0 {
		bytes = float64(r.bytes)
	}
	mb := bytes / 1e6 / r.took.Seconds()
	ratio := ""
	if bare {
		*base = mb
	} else if *base > 0 {
		ratio = fmt.Sprintf("%.2f", mb / *base)
	}
	fmt.Printf("%-8s %-9d %-7s %10.1f %12.0f %14.2f %12s\n", what, size, name, mb, float64(r.requests)/r.took.Seconds(), r.cpu.Seconds()/(bytes/1e9), ratio)
}

// load keeps depth requests in flight on each connection for the measured
// time, after a second of warming up. Each connection goes round partitions of
// its own, as many as there are frames for. A CPU profile of the broker is called name.
func load(s *server, name string, frame func(part int32) []byte) (result, error) {
	var requests, bytes atomic.Int64
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for i := range *conns {
		c, err := net.Dial("tcp", s.addr)
		if err != nil {
			fmt.Fprintln(os.Stderr, "wire:", err)
			continue
		}
		wg.Add(1)
		go func() {
			defer wg.Done()
			defer c.Close()
			var frames [][]byte
			for part := i % *parts; part < *parts && (len(frames) == 0 || len(frames)*len(frames[0]) < frameBytes); part += *conns {
				if f := frame(int32(part)); f != nil {
					frames = append(frames, f)
				}
			}
			if len(frames) == 0 {
				return
			}
			next := 0
			send := func() error {
				_, err := c.Write(frames[next%len(frames)])
				next++
				return err
			}
			for range *depth {
				send()
			}
			br := bufio.NewReaderSize(c, 64<<10)
			var size [4]byte
			for {
				if _, err := io.ReadFull(br, size[:]); err != nil {
					fmt.Fprintln(os.Stderr, "wire: read:", err)
					return
				}
				n := int(binary.BigEndian.Uint32(size[:]))
				if _, err := br.Discard(n); err != nil {
					fmt.Fprintln(os.Stderr, "wire: read:", err)
					return
				}
				requests.Add(1)
				bytes.Add(int64(n))
				select {
				case <-stop:
					return
				default:
				}
				if send() != nil {
					return
				}
			}
		}()
	}
	time.Sleep(time.Second)
	costs := s.costs()
	r0, b0, c0, t0 := requests.Load(), bytes.Load(), s.cpu(), time.Now()
	profiled := make(chan error, 1)
	if *profiles != "" && s.admin != "" {
		go func() { profiled <- s.profile(filepath.Join(*profiles, name+".prof")) }()
	} else {
		profiled <- nil
	}
	time.Sleep(time.Duration(*seconds) * time.Second)
	r := result{requests.Load() - r0, bytes.Load() - b0, time.Since(t0), s.cpu() - c0, nil}
	r.costs = s.costs()
	for k := range r.costs {
		r.costs[k] -= costs[k]
	}
	close(stop)
	wg.Wait()
	return r, <-profiled
}

func oneBatch(size int) ([]byte, error) {
	b := batch.NewBuilder()
	now := time.Now().UnixMilli()
	value := make([]byte, 1000)
	for i := range value {
		value[i] = byte(i * 7)
	}
	for b.Size()+1010 <= size || b.Len() == 0 {
		room := min(len(value), size-b.Size()-20)
		b.Add(now, nil, value[:max(room, 1)])
	}
	return b.Build()
}

func frameOf(req kmsg.Request) []byte {
	return kmsg.NewRequestFormatter(kmsg.FormatterClientID("wire")).AppendRequest(nil, req, 1)
}

func produceFrame(part int32, raw []byte) []byte {
	req := kmsg.NewPtrProduceRequest()
	req.SetVersion(8) // the newest that the floor serves too
	req.Acks, req.TimeoutMillis = -1, 30000
	t := kmsg.NewProduceRequestTopic()
	t.Topic = "wire"
	p := kmsg.NewProduceRequestTopicPartition()
	p.Partition, p.Records = part, raw
	t.Partitions = append(t.Partitions, p)
	req.Topics = append(req.Topics, t)
	return frameOf(req)
}

// tail tells where in each partition the newest records begin, some requests'
// worth: below zero if there are none.
func tail(addr string, size int) (func(part int32) int64, error) {
	cl, err := kgo.NewClient(kgo.SeedBrokers(addr))
	if err != nil {
		return nil, err
	}
	defer cl.Close()
	ends, err := kadm.NewClient(cl).ListEndOffsets(context.Background(), "wire")
	if err != nil {
		return nil, err
	}
	behind := int64(4 * max(size/1000, 1))
	return func(part int32) int64 {
		end, _ := ends.Lookup("wire", part)
		return max(end.Offset-behind, min(end.Offset-1, 0))
	}, nil
}

// fetchFrame asks for the same newest records again and again: about size
// bytes, from near the end of what has been produced.
func fetchFrame(part int32, from int64, size int) []byte {
	if from < 0 {
		return nil
	}
	req := kmsg.NewPtrFetchRequest()
	req.SetVersion(11)
	req.ReplicaID, req.MaxWaitMillis, req.MinBytes, req.MaxBytes = -1, 100, 1, int32(size)
	req.SessionID, req.SessionEpoch = 0, -1
	t := kmsg.NewFetchRequestTopic()
	t.Topic = "wire"
	p := kmsg.NewFetchRequestTopicPartition()
	p.Partition, p.FetchOffset, p.PartitionMaxBytes, p.CurrentLeaderEpoch, p.LastFetchedEpoch = part, from, int32(size), -1, -1
	t.Partitions = append(t.Partitions, p)
	req.Topics = append(req.Topics, t)
	return frameOf(req)
}

// profile takes a CPU profile of the broker while it is measured.
func (s *server) profile(file string) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	resp, err := http.Get(fmt.Sprintf("http://%s/debug/pprof/profile?seconds=%d", s.admin, max(*seconds, 1)))
	if err != nil {
		return fmt.Errorf("profile: %w", err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, b)
	}
	if err != nil {
		return fmt.Errorf("profile: %w", err)
	}
	return os.WriteFile(file, b, 0o644)
}

// serveFloor runs the bare server in this process.
func serveFloor(addr, dir string) error {
	s, err := floor.Open(addr, floor.Options{Dir: dir, Partitions: int32(*parts)})
	if err != nil {
		return err
	}
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, os.Interrupt)
	<-ended
	return s.Close()
}
