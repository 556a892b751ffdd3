package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"golang.org/x/sys/unix"

	"github.com/varve/varve/cmd/varve/server"
	"github.com/varve/varve/config"
	"github.com/varve/varve/internal/child"
	"github.com/varve/varve/internal/cluster"
	"github.com/varve/varve/wal/batch"
	"github.com/varve/varve/wal/vfs"
)

// What only a whole process shows: its exit code, its last words, signals, and
// a disk that is really full. The process is this test binary, which is varve
// where the environment says so.
const (
	envBeVarve = "TEST_BE_VARVE"
	// envFailSync names a file: once it exists, one fsync of the log fails, and
	// what it was to write is lost.
	envFailSync = "TEST_FAIL_SYNC"
	// envDieAt names a file: once it exists, the process kills itself where it gives back a file of its log, before that or after it, as the
	// file says.
	envDieAt = "TEST_DIE_AT"
	// envMayMount says that the test runs again, in name spaces in which it may mount.
	envMayMount = "TEST_MAY_MOUNT"
)

func TestMain(m *testing.M) {
	cluster.Serve(os.Args[1:])
	if os.Getenv(envBeVarve) == "" {
		os.Exit(m.Run())
	}
	var disk vfs.FS
	switch {
	case os.Getenv(envFailSync) != "":
		disk = &failingDisk{trigger: os.Getenv(envFailSync)}
	case os.Getenv(envDieAt) != "":
		disk = &lastDisk{trigger: os.Getenv(envDieAt)}
	default:
		main()
	}
	ctx, stop := withSignals(context.Background())
	defer stop()
	root := newRoot()
	for _, name := range []string{"dev", "broker"} {
		cmd, _, err := root.Find([]string{name})
		if err != nil {
			panic(err)
		}
		cmd.RunE = func(cmd *cobra.Command, _ []string) error { return onDisk(cmd, disk) }
	}
	os.Exit(run(ctx, root, os.Stderr))
}

// onDisk is `varve dev` or `varve broker` on another disk, without configuration files.
func onDisk(cmd *cobra.Command, disk vfs.FS) error {
	set, err := cmd.Flags().GetStringArray("set")
	if err != nil {
		return err
	}
	o := server.Options{Dev: cmd.Name() == "dev", FS: disk}
	var mode config.Settings
	required := []string{"node.id"}
	if o.Dev {
		required = nil
		if o.DataDir, err = cmd.Flags().GetString("data-dir"); err != nil {
			return err
		}
		defaults := config.DevDefaults()
		defaults["log.dirs"] = filepath.Join(o.DataDir, "wal")
		mode = config.FromMode("varve dev", defaults)
	}
	if o.Config, err = loadConfig(cmd.ErrOrStderr(), mode, "", set, required); err != nil {
		return err
	}
	if !o.Dev {
		o.DataDir = o.Config.LogDir
	}
	return serve(cmd.Context(), cmd.ErrOrStderr(), o)
}

// lastDisk is the disk of a process that dies where it gives back a file of its log: before that or after it, as it is told by a file.
type lastDisk struct {
	vfs.OS
	trigger string
}

func (d *lastDisk) Remove(name string) error {
	return d.dies(name, func() error { return d.OS.Remove(name) })
}

func (d *lastDisk) Rename(from, to string) error {
	return d.dies(from, func() error { return d.OS.Rename(from, to) })
}

func (d *lastDisk) dies(name string, do func() error) error {
	if filepath.Ext(name) != ".wal" {
		return do()
	}
	when, err := os.ReadFile(d.trigger)
	if err != nil {
		return do()
	}
	if string(when) == "after" {
		if err := do(); err != nil {
			return err
		}
	}
	if err := syscall.Kill(os.Getpid(), syscall.SIGKILL); err != nil {
		panic(err)
	}
	select {}
}

// failingDisk is a disk of which one fsync fails, as file systems let it fail:
// what was written since the last one is lost, and the next fsync succeeds.
type failingDisk struct {
	vfs.OS
	trigger string
	failed  atomic.Bool
}

func (d *failingDisk) Create(name string) (vfs.File, error) { return d.wrap(d.OS.Create(name))(name) }
func (d *failingDisk) Open(name string) (vfs.File, error)   { return d.wrap(d.OS.Open(name))(name) }

func (d *failingDisk) wrap(f vfs.File, err error) func(string) (vfs.File, error) {
	return func(name string) (vfs.File, error) {
		if err != nil || filepath.Ext(name) != ".wal" {
			return f, err
		}
		return &failingFile{File: f, d: d}, nil
	}
}

type span struct{ off, n int64 }

type failingFile struct {
	vfs.File
	d  *failingDisk
	mu sync.Mutex
	// Written since the last sync. The log has one writer, so no sync is under
	// way while it writes.
	dirty []span
}

func (f *failingFile) wrote(off, n int64) {
	f.mu.Lock()
	f.dirty = append(f.dirty, span{off, n})
	f.mu.Unlock()
}

func (f *failingFile) WriteAt(p []byte, off int64) (int, error) {
	f.wrote(off, int64(len(p)))
	return f.File.WriteAt(p, off)
}

func (f *failingFile) WriteVAt(bufs [][]byte, off int64) (int64, error) {
	n := int64(0)
	for _, b := range bufs {
		n += int64(len(b))
	}
	f.wrote(off, n)
	return f.File.WriteVAt(bufs, off)
}

func (f *failingFile) Sync() error {
	f.mu.Lock()
	dirty := f.dirty
	f.dirty = nil
	f.mu.Unlock()
	if _, err := os.Stat(f.d.trigger); err != nil || len(dirty) == 0 || !f.d.failed.CompareAndSwap(false, true) {
		return f.File.Sync()
	}
	for _, s := range dirty {
		if _, err := f.File.WriteAt(make([]byte, s.n), s.off); err != nil {
			panic(err)
		}
	}
	if err := f.File.Sync(); err != nil {
		panic(err)
	}
	return syscall.EIO
}

// process is a broker in a process of its own.
type process struct {
	*child.Varve
	t        *testing.T
	dir      string
	settings []string
}

func startProcess(t *testing.T, dir string, settings ...string) *process {
	t.Helper()
	t.Setenv(envBeVarve, "1")
	p := &process{t: t, dir: dir, settings: settings}
	var addrs [2]string
	for i := range addrs {
		var err error
		if addrs[i], err = child.FreeAddr(); err != nil {
			t.Fatal(err)
		}
	}
	p.start(addrs[0], addrs[1])
	t.Cleanup(func() { p.Kill() })
	return p
}

func (p *process) start(addr, admin string) {
	p.t.Helper()
	var err error
	if p.Varve, err = child.StartVarveAt(p.t.Context(), os.Args[0], p.dir, addr, admin, p.settings...); err != nil {
		p.t.Fatal(err)
	}
}

// restart starts the broker again, whatever became of it, where it was.
func (p *process) restart() {
	p.t.Helper()
	p.Kill()
	p.start(p.Addr, strings.TrimPrefix(p.Admin, "http://"))
}

// lines is what the process has said.
func (p *process) lines() []string {
	p.t.Helper()
	b, err := os.ReadFile(p.Log)
	if err != nil {
		p.t.Fatal(err)
	}
	return strings.Split(strings.TrimSpace(string(b)), "\n")
}

func (p *process) client(opts ...kgo.Opt) *kgo.Client {
	p.t.Helper()
	cl, err := kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(p.Addr), kgo.MetadataMinAge(20 * time.Millisecond),
		kgo.RetryBackoffFn(func(int) time.Duration { return 20 * time.Millisecond })}, opts...)...)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(cl.Close)
	return cl
}

func (p *process) createTopic(name string, settings ...string) {
	p.t.Helper()
	conf := map[string]*string{}
	for i := 0; i+1 < len(settings); i += 2 {
		conf[settings[i]] = &settings[i+1]
	}
	if _, err := kadm.NewClient(p.client()).CreateTopic(p.t.Context(), 1, 1, conf, name); err != nil {
		p.t.Fatalf("create topic %s: %v", name, err)
	}
}

// metric reads a metric of the process.
func (p *process) metric(name string) float64 {
	p.t.Helper()
	resp, err := http.Get(p.Admin + "/metrics")
	if err != nil {
		p.t.Fatal(err)
	}
	defer resp.Body.Close()
	for sc := bufio.NewScanner(resp.Body); sc.Scan(); {
		if v, ok := strings.CutPrefix(sc.Text(), name+" "); ok {
			f, err := strconv.ParseFloat(v, 64)
			if err != nil {
				p.t.Fatal(err)
			}
			return f
		}
	}
	return 0
}

// eventually waits until f reports no error.
func eventually(t *testing.T, f func() error) {
	t.Helper()
	if err := child.Eventually(t.Context(), time.Minute, f); err != nil {
		t.Fatalf("still, after a minute: %v", err)
	}
}

// ledger is what was acknowledged: the number of the record at each offset.
type ledger struct {
	mu   sync.Mutex
	at   map[int64]uint64
	next uint64
}

func (l *ledger) number() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.next++
	return l.next - 1
}

func (l *ledger) acked(offset int64, n uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.at == nil {
		l.at = map[int64]uint64{}
	}
	l.at[offset] = n
}

func (l *ledger) numberAt(offset int64) (n uint64, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n, ok = l.at[offset]
	return n, ok
}

func (l *ledger) len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.at)
}

// numbered is the value of a record: its number, and so many bytes that follow from it.
func numbered(n uint64, size int) []byte {
	b := binary.BigEndian.AppendUint64(make([]byte, 0, 16+size), n)
	for rnd := rand.NewPCG(n, 0); len(b) < 8+size; {
		b = binary.BigEndian.AppendUint64(b, rnd.Uint64())
	}
	return b[:8+size]
}

// produce writes numbered records to a topic's partition 0, a few at a time,
// until stop is closed. Whatever is refused is told to refused.
func (l *ledger) produce(cl *kgo.Client, topic string, stop <-chan struct{}, refused func(error)) {
	for {
		var wg sync.WaitGroup
		for range 16 {
			n := l.number()
			wg.Add(1)
			cl.Produce(context.Background(), &kgo.Record{Topic: topic, Value: numbered(n, 500)}, func(r *kgo.Record, err error) {
				defer wg.Done()
				if err == nil {
					l.acked(r.Offset, n)
				} else {
					refused(err)
				}
			})
		}
		wg.Wait()
		select {
		case <-stop:
			return
		default:
		}
	}
}

// check reads the topic and compares it with what was acknowledged.
func (l *ledger) check(p *process, topic string) {
	p.t.Helper()
	l.checkFrom(p, topic, 0)
}

// checkFrom is check of the records from an offset on.
func (l *ledger) checkFrom(p *process, topic string, from int64) {
	p.t.Helper()
	cl := p.client(kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().At(from)))
	defer cl.Close()
	l.checkWith(p.t, cl, from)
}

// checkWith is checkFrom by a consumer that begins there.
func (l *ledger) checkWith(t *testing.T, cl *kgo.Client, from int64) {
	t.Helper()
	l.mu.Lock()
	want := make(map[int64]uint64, len(l.at))
	last := int64(-1)
	for o, n := range l.at {
		if o >= from {
			want[o] = n
			last = max(last, o)
		}
	}
	l.mu.Unlock()
	if last < 0 {
		t.Fatal("nothing was acknowledged")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	found, next := 0, from
	seen := map[uint64]int64{} // by number: the producer is idempotent
	for next <= last {
		fs := cl.PollFetches(ctx)
		if err := fs.Err(); err != nil {
			t.Fatalf("read back at %d of %d: %v", next, last, err)
		}
		fs.EachRecord(func(r *kgo.Record) {
			if r.Offset != next {
				t.Errorf("offset %d where %d was due", r.Offset, next)
			}
			next = r.Offset + 1
			got := binary.BigEndian.Uint64(r.Value)
			if !bytes.Equal(r.Value, numbered(got, len(r.Value)-8)) {
				t.Errorf("offset %d: the %d bytes of record %d are not what was written", r.Offset, len(r.Value), got)
			}
			if before, twice := seen[got]; twice {
				t.Errorf("record %d is there twice, at offsets %d and %d", got, before, r.Offset)
			}
			seen[got] = r.Offset
			if n, ok := want[r.Offset]; ok {
				found++
				if got != n {
					t.Errorf("offset %d: record %d, but %d was acknowledged there", r.Offset, got, n)
				}
			}
		})
		if t.Failed() {
			return
		}
	}
	if found != len(want) {
		t.Errorf("%d of %d acknowledged records are there", found, len(want))
	}
}

// TestFailedSyncEndsTheProcess: one fsync of the log fails (F22). The process
// ends by itself, with an exit code and last words that say why; what that
// fsync was to make durable was acknowledged to nobody.
func TestFailedSyncEndsTheProcess(t *testing.T) {
	dir := t.TempDir()
	trigger := filepath.Join(dir, "fail")
	t.Setenv(envFailSync, trigger)
	p := startProcess(t, filepath.Join(dir, "broker"), "wal.max.bytes=67108864", "remote.flush.interval.ms=600000")
	p.createTopic("t")
	var l ledger
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 3 {
		// Not idempotent, for then the client gives up what it cannot deliver.
		cl := p.client(kgo.ProducerLinger(0), kgo.DisableIdempotentWrite(), kgo.RecordDeliveryTimeout(2*time.Second))
		wg.Go(func() { l.produce(cl, "t", stop, func(error) {}) })
	}
	eventually(t, func() error {
		if n := l.len(); n < 500 {
			return fmt.Errorf("%d records acknowledged", n)
		}
		return nil
	})
	if err := os.WriteFile(trigger, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	select {
	case <-p.Ended():
	case <-time.After(time.Minute):
		t.Fatalf("the process lives\n%s", p.Tail())
	}
	close(stop)
	wg.Wait()
	var exit *exec.ExitError
	if err := p.Stop(); !errors.As(err, &exit) || exit.ExitCode() != exitFailed {
		t.Errorf("the process ended with %v, want exit code %d", err, exitFailed)
	}
	lines := p.lines()
	if last := lines[len(lines)-1]; !strings.HasPrefix(last, "varve: the broker ends because its log failed: ") || !strings.HasSuffix(last, syscall.EIO.Error()) {
		t.Errorf("its last words are %q", last)
	}
	if err := os.Remove(trigger); err != nil {
		t.Fatal(err)
	}
	p.restart()
	l.check(p, "t")
	before := l.len()
	stop = make(chan struct{})
	wg.Go(func() { l.produce(p.client(), "t", stop, func(err error) { t.Error(err) }) })
	eventually(t, func() error {
		if l.len() < before+100 {
			return errors.New("nothing new is acknowledged")
		}
		return nil
	})
	close(stop)
	wg.Wait()
	l.check(p, "t")
	if err := p.Stop(); err != nil {
		t.Error(err)
	}
}

// TestSignalStorm: signals by the thousand interrupt the broker's system calls
// while it is written to and read from (F23). No client sees an error, and
// nothing is lost.
func TestSignalStorm(t *testing.T) {
	p := startProcess(t, t.TempDir(), "wal.max.bytes=67108864", "wal.segment.bytes=1048576")
	p.createTopic("t", "local.retention.bytes", "1")
	var l ledger
	stop := make(chan struct{})
	var wg sync.WaitGroup
	refused := func(err error) { t.Errorf("a record was refused: %v", err) }
	for range 3 {
		cl := p.client(kgo.ProducerLinger(0))
		wg.Go(func() { l.produce(cl, "t", stop, refused) })
	}
	consumed := atomic.Int64{}
	consumer := p.client(kgo.ConsumerGroup("g"), kgo.ConsumeTopics("t"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	ctx, cancel := context.WithCancel(t.Context())
	wg.Go(func() {
		for ctx.Err() == nil {
			fs := consumer.PollFetches(ctx)
			fs.EachError(func(_ string, _ int32, err error) {
				if ctx.Err() == nil {
					t.Errorf("fetch: %v", err)
				}
			})
			consumed.Add(int64(fs.NumRecords()))
		}
	})
	// Of each kind that a Go process has a handler for and lives through. Those
	// to a thread interrupt what that thread does; threads come and go.
	sent := 0
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); {
		tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", p.PID()))
		if err != nil {
			t.Fatal(err)
		}
		for _, task := range tasks {
			tid, err := strconv.Atoi(task.Name())
			if err != nil {
				t.Fatal(err)
			}
			for _, sig := range []syscall.Signal{syscall.SIGURG, syscall.SIGUSR1, syscall.SIGIO, syscall.SIGWINCH, syscall.SIGPIPE} {
				if err := unix.Tgkill(p.PID(), tid, sig); err == nil {
					sent++
				} else if !errors.Is(err, unix.ESRCH) {
					t.Fatal(err)
				}
			}
		}
		time.Sleep(100 * time.Microsecond)
	}
	close(stop)
	eventually(t, func() error {
		if n := consumed.Load(); n < int64(l.len()) {
			return fmt.Errorf("%d of %d records consumed", n, l.len())
		}
		return nil
	})
	cancel()
	wg.Wait()
	if sent < 1000 || l.len() < 1000 {
		t.Errorf("%d signals sent, %d records acknowledged", sent, l.len())
	}
	t.Logf("%d signals, %d records", sent, l.len())
	l.check(p, "t")
	if err := p.Stop(); err != nil {
		t.Error(err)
	}
	p.restart()
	l.check(p, "t")
}

// mayMount tells whether this process may mount file systems. Where only root may, the test runs once more as the root
// of a user name space of its own, which is what its outcome here is then.
func mayMount(t *testing.T) bool {
	t.Helper()
	dir := t.TempDir()
	err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=4096")
	if err == nil {
		if err = unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Fatal(err)
		}
		return true
	}
	if os.Getenv(envMayMount) != "" {
		t.Fatalf("mount as the root of a user name space: %v", err)
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), envMayMount+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	out, runErr := cmd.CombinedOutput()
	if runErr != nil {
		t.Fatalf("this test fills a disk of its own: mounting one needs root (%v) or user name spaces, in which it ended with: %v\n%s", err, runErr, out)
	}
	return false
}

// smallDisk mounts a file system of so many bytes.
func smallDisk(t *testing.T, bytes int64) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "disk")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", bytes)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	return dir
}

// fillDisk fills a disk with another's files, until so much is left.
func fillDisk(t *testing.T, mnt string, left int64) {
	t.Helper()
	for { // others take some meanwhile, and let go of some
		var st unix.Statfs_t
		if err := unix.Statfs(mnt, &st); err != nil {
			t.Fatal(err)
		}
		more := int64(st.Bavail)*st.Bsize - left
		if more < int64(st.Bsize) {
			return
		}
		f, err := os.CreateTemp(mnt, "somebody-else's-")
		if err != nil {
			t.Fatal(err)
		}
		if _, err = f.Write(make([]byte, more)); err != nil && !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// emptyDisk takes back what fillDisk did.
func emptyDisk(t *testing.T, mnt string) {
	t.Helper()
	extra, err := filepath.Glob(filepath.Join(mnt, "somebody*"))
	if err != nil || len(extra) == 0 {
		t.Fatal(extra, err)
	}
	for _, file := range extra {
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
	}
}

// produceOnce sends one record and does not try again.
func (l *ledger) produceOnce(p *process, cl *kgo.Client, topic string, size int) error {
	p.t.Helper()
	n := l.number()
	bb := batch.NewBuilder()
	bb.Add(time.Now().UnixMilli(), nil, numbered(n, size))
	run, err := bb.Build()
	if err != nil {
		p.t.Fatal(err)
	}
	req := kmsg.NewPtrProduceRequest()
	req.Acks, req.TimeoutMillis = -1, 30_000
	rt := kmsg.NewProduceRequestTopic()
	rt.Topic = topic
	rp := kmsg.NewProduceRequestTopicPartition()
	rp.Records = run
	rt.Partitions = append(rt.Partitions, rp)
	req.Topics = append(req.Topics, rt)
	resp, err := cl.Broker(1).RetriableRequest(p.t.Context(), produceByName{req})
	if err != nil {
		p.t.Fatal(err)
	}
	out := resp.(*kmsg.ProduceResponse).Topics[0].Partitions[0]
	if err := kerr.ErrorForCode(out.ErrorCode); err != nil {
		return err
	}
	l.acked(out.BaseOffset, n)
	return nil
}

// produceByName is a produce request of a version that names topics.
type produceByName struct{ *kmsg.ProduceRequest }

func (produceByName) MaxVersion() int16 { return 11 }

// TestFullDisk: another's file fills the disk that the log is on, so that it is
// full at a roll, a part of a segment before one, and one after (F28). Producers
// are told to try again, consumers and groups go on, also after the process was
// killed; when there is room again, everything does, by itself.
func TestFullDisk(t *testing.T) {
	if !mayMount(t) {
		return
	}
	const segment, disk = 1 << 20, 40 << 20
	for _, left := range []int64{0, segment / 3, segment, segment + segment/3} {
		t.Run(fmt.Sprintf("%d KiB left", left>>10), func(t *testing.T) {
			mnt := smallDisk(t, disk)
			// The bucket is there for the start and away from then on, so that what
			// is full stays full.
			var away atomic.Bool
			store := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if away.Load() {
					w.WriteHeader(http.StatusServiceUnavailable)
				}
			}))
			defer store.Close()
			t.Setenv("AWS_ACCESS_KEY_ID", "id")
			t.Setenv("AWS_SECRET_ACCESS_KEY", "secret")
			p := startProcess(t, t.TempDir(), "log.dirs="+filepath.Join(mnt, "wal"), "wal.max.bytes=1073741824", fmt.Sprintf("wal.segment.bytes=%d", segment),
				"remote.storage.url=minio://"+strings.TrimPrefix(store.URL, "http://")+"/bucket?attempts=1", "remote.flush.interval.ms=600000")
			away.Store(true)
			p.createTopic("t")
			cl := p.client()
			adm := kadm.NewClient(cl)
			var l ledger
			for range 20 {
				if err := l.produceOnce(p, cl, "t", 100_000); err != nil {
					t.Fatal(err)
				}
			}
			commit := func(when string) {
				t.Helper()
				var os kadm.Offsets
				os.Add(kadm.Offset{Topic: "t", Partition: 0, At: 7, LeaderEpoch: -1})
				if rs, err := adm.CommitOffsets(t.Context(), "g", os); err != nil || rs.Error() != nil {
					t.Errorf("commit of offsets %s: %v %v", when, err, rs.Error())
				}
			}
			commit("with room")
			fillDisk(t, mnt, left)
			full := func() {
				t.Helper()
				// Large ones first, and then until not even a small one is taken.
				for size := 100_000; size > 0; size /= 4 {
					var err error
					for range 1000 {
						if err = l.produceOnce(p, cl, "t", size); err != nil {
							break
						}
					}
					if !errors.Is(err, kerr.NotEnoughReplicas) || !kerr.IsRetriable(err) {
						t.Fatalf("a record of %d bytes on a full disk: %v", size, err)
					}
				}
				eventually(t, func() error {
					if f, d := p.metric("varve_wal_full"), p.metric("varve_wal_disk_full"); f != 1 || d != 1 {
						return fmt.Errorf("varve_wal_full %v, varve_wal_disk_full %v", f, d)
					}
					return nil
				})
				l.check(p, "t")
				// What is kept for the broker's own records is there.
				commit("on a full disk")
			}
			full()
			p.restart()
			full()
			emptyDisk(t, mnt)
			eventually(t, func() error { return l.produceOnce(p, cl, "t", 100_000) })
			for range 50 {
				if err := l.produceOnce(p, cl, "t", 100_000); err != nil {
					t.Fatalf("with room on the disk: %v", err)
				}
			}
			roomAgain(t, p, &l)
		})
	}
}

// roomAgain: the disk is not full any more; all that was acknowledged is there, and after a restart.
func roomAgain(t *testing.T, p *process, l *ledger) {
	t.Helper()
	eventually(t, func() error {
		if f, d := p.metric("varve_wal_full"), p.metric("varve_wal_disk_full"); f != 0 || d != 0 {
			return fmt.Errorf("varve_wal_full %v, varve_wal_disk_full %v", f, d)
		}
		return nil
	})
	l.check(p, "t")
	if err := p.Stop(); err != nil {
		t.Error(err)
	}
	p.restart()
	l.check(p, "t")
}

// TestFullDataDir: the disk that is full holds all that `varve dev` has: its log, its bucket and its etcd. Either another's file
// fills it to the last byte, or what producers write does. They are told to try again, and nothing else ends: consumers, groups and
// topics go on, also after the process was killed, and it needs no help once there is room again.
func TestFullDataDir(t *testing.T) {
	if !mayMount(t) {
		return
	}
	const segment, disk = 1 << 20, 288 << 20
	start := func(t *testing.T, mnt string) (*process, *kgo.Client, *ledger) {
		t.Helper()
		p := startProcess(t, filepath.Join(mnt, "data"), "wal.max.bytes=1073741824", fmt.Sprintf("wal.segment.bytes=%d", segment))
		p.createTopic("t")
		cl, l := p.client(), &ledger{}
		for range 20 {
			if err := l.produceOnce(p, cl, "t", 100_000); err != nil {
				t.Fatal(err)
			}
		}
		return p, cl, l
	}
	topics := 0
	// full awaits that producers are refused, and looks at everything else.
	full := func(t *testing.T, p *process, cl *kgo.Client, l *ledger) {
		t.Helper()
		eventually(t, func() error {
			for range 1000 {
				if err := l.produceOnce(p, cl, "t", 100_000); errors.Is(err, kerr.NotEnoughReplicas) {
					return nil
				} else if err != nil {
					t.Fatalf("a record on a full disk: %v", err)
				}
			}
			return errors.New("all records were taken")
		})
		l.check(p, "t")
		topics++
		p.createTopic(fmt.Sprintf("on-a-full-disk-%d", topics))
		var offsets kadm.Offsets
		offsets.Add(kadm.Offset{Topic: "t", Partition: 0, At: 7, LeaderEpoch: -1})
		eventually(t, func() error { // the first of them makes the topic that they are in
			rs, err := kadm.NewClient(cl).CommitOffsets(t.Context(), "g", offsets)
			return errors.Join(err, rs.Error())
		})
		eventually(t, func() error {
			resp, err := http.Get(p.Admin + "/readyz")
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if want := "the disk of the write-ahead log is full"; err != nil || resp.StatusCode != http.StatusOK || !bytes.Contains(body, []byte(want)) {
				return fmt.Errorf("%s %s, %v: want %q", resp.Status, body, err, want)
			}
			return nil
		})
	}
	// goesOn: all of it is as it was, and has been as it should.
	goesOn := func(t *testing.T, p *process, cl *kgo.Client, l *ledger) {
		t.Helper()
		eventually(t, func() error { return l.produceOnce(p, cl, "t", 100_000) })
		roomAgain(t, p, l)
	}

	t.Run("by another", func(t *testing.T) {
		mnt := smallDisk(t, disk)
		p, cl, l := start(t, mnt)
		fillDisk(t, mnt, 0)
		full(t, p, cl, l)
		p.restart()
		// It has let go of what it does not need; there is somebody who takes that.
		fillDisk(t, mnt, 0)
		full(t, p, cl, l)
		emptyDisk(t, mnt)
		goesOn(t, p, cl, l)
	})

	t.Run("by producers", func(t *testing.T) {
		mnt := smallDisk(t, disk)
		p, cl, l := start(t, mnt)
		full(t, p, cl, l)
		var st unix.Statfs_t
		if err := unix.Statfs(mnt, &st); err != nil {
			t.Fatal(err)
		}
		if free, kept := int64(st.Bavail)*st.Bsize, int64(disk/20); free < kept/2 {
			t.Errorf("%d bytes are free: %d were to be left", free, kept)
		}
		fillDisk(t, mnt, 0)
		p.restart()
		full(t, p, cl, l)
		emptyDisk(t, mnt)
		full(t, p, cl, l)
		// Deleting something is what helps.
		if _, err := kadm.NewClient(cl).DeleteTopic(t.Context(), "t"); err != nil {
			t.Fatal(err)
		}
		p.createTopic("after")
		var after ledger
		eventually(t, func() error { return after.produceOnce(p, cl, "after", 100_000) })
		after.check(p, "after")
	})
}
