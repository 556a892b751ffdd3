package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"github.com/twmb/franz-go/pkg/kadm"
	"golang.org/x/sys/unix"

	"github.com/varve/varve/internal/cluster"
	"github.com/varve/varve/interop/chaos/history"
)

// fsyncs stands between processes and their disks. A process whose command line begins with what begin returns has a filter of
// system calls (seccomp_unotify(2)), by which each of its fsyncs and fdatasyncs waits for a word of this program:
//
//	the process                this program
//	fdatasync(fd) ---------->
//	              <---------   go on                          as a rule
//	              <--- d ---   go on                          delay
//	                           fdatasync of the same file
//	              <--- ? ---   its result, when it is let go  hold
//
// A process that is held has not heard of an fsync that is done. Nothing else of it is slower, unlike under a tracer, which stops
// it at each system call. One that is stopped meanwhile asks again when it goes on. Linux 5.6 and later.
type fsyncs struct {
	self     string
	listener *net.UnixListener
	running  sync.WaitGroup

	mu     sync.Mutex
	delays map[string]*delay // by the name of a process
	holds  map[string]*hold  // of the next fsync, likewise
}

// delay is of all fsyncs, for some time.
type delay struct {
	of   func() time.Duration // of the next one
	over chan struct{}
	n    int // fsyncs that it happened to
}

// hold is of one fsync.
type hold struct {
	wants func(path string) bool // whether it is of this file
	done  chan struct{}          // closed when it is done, and not answered
	let   chan struct{}          // closed when it may be
	err   error                  // why it could not be done here
}

const fsyncGate = "fsync-gate" // a command of this program: SOCKET NAME PROGRAM ARGUMENT...

// newFsyncs returns an error, and why, where there is no such thing.
func newFsyncs(dir string) (*fsyncs, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "fsync.socket")})
	if err != nil {
		return nil, err
	}
	f := &fsyncs{self: self, listener: l, delays: map[string]*delay{}, holds: map[string]*hold{}}
	f.running.Go(f.admit)
	if err := f.try(dir); err != nil {
		f.close()
		return nil, err
	}
	return f, nil
}

// close returns when the processes that it stands before have ended, which is up to others.
func (f *fsyncs) close() {
	f.listener.Close()
	f.running.Wait()
}

// begin is what the command line of a process begins with.
func (f *fsyncs) begin(name string) []string {
	return []string{f.self, fsyncGate, f.listener.Addr().String(), name}
}

// try has a process write a file to the disk, and not hear of it for a moment.
func (f *fsyncs) try(dir string) error {
	const name = "trial"
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	file := filepath.Join(dir, "fsync.trial")
	if err := os.WriteFile(file, []byte(name), 0o600); err != nil {
		return err
	}
	defer os.Remove(file)
	args := append(f.begin(name), "sync", "-d", file)
	ran := make(chan error, 1)
	f.running.Go(func() {
		out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput()
		if err != nil {
			err = fmt.Errorf("%w: %s", err, strings.TrimSpace(string(out)))
			cancel()
		}
		ran <- err
	})
	let, err := f.hold(ctx, name, func(path string) bool { return path == file })
	if err != nil {
		cancel()
		return errors.Join(err, <-ran)
	}
	select {
	case err := <-ran:
		return fmt.Errorf("it did not wait to be answered: %v", err)
	case <-time.After(10 * time.Millisecond):
	}
	let()
	return <-ran
}

// delayed has every fsync of some processes take longer by of(), until undo is called, which says how many did.
func (f *fsyncs) delayed(names []string, of func() time.Duration) (undo func() int) {
	d := &delay{of: of, over: make(chan struct{})}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, name := range names {
		f.delays[name] = d
	}
	return func() int {
		f.mu.Lock()
		defer f.mu.Unlock()
		for _, name := range names {
			delete(f.delays, name)
		}
		close(d.over)
		return d.n
	}
}

// hold waits for an fsync of a file that is wanted, does it, and returns while its caller waits for the answer, which let gives.
func (f *fsyncs) hold(ctx context.Context, name string, wants func(path string) bool) (let func(), err error) {
	h := &hold{wants: wants, done: make(chan struct{}), let: make(chan struct{})}
	f.mu.Lock()
	f.holds[name] = h
	f.mu.Unlock()
	select {
	case <-h.done:
	case <-ctx.Done():
		f.mu.Lock()
		waits := f.holds[name] == h
		if waits {
			delete(f.holds, name)
		}
		f.mu.Unlock()
		if waits {
			return nil, fmt.Errorf("no fsync of %s came: %w", name, ctx.Err())
		}
		<-h.done
	}
	if h.err != nil {
		close(h.let)
		return nil, h.err
	}
	return func() { close(h.let) }, nil
}

// admit takes over the filters of processes that begin.
func (f *fsyncs) admit() {
	for {
		c, err := f.listener.AcceptUnix()
		if err != nil {
			return // closed
		}
		name, pid, fd, err := received(c)
		if err == nil {
			f.running.Go(func() { f.serve(name, pid, fd) })
			c.Write([]byte{1})
		}
		c.Close() // without a word: the process ends, and says so
	}
}

// received is what gated sends.
func received(c *net.UnixConn) (name string, pid, fd int, err error) {
	text, rights := make([]byte, 256), make([]byte, unix.CmsgSpace(4))
	n, oob, _, _, err := c.ReadMsgUnix(text, rights)
	if err != nil {
		return "", 0, 0, err
	}
	messages, err := unix.ParseSocketControlMessage(rights[:oob])
	if err != nil || len(messages) != 1 {
		return "", 0, 0, fmt.Errorf("no file descriptor: %v", err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return "", 0, 0, fmt.Errorf("no file descriptor: %v", err)
	}
	number, name, _ := strings.Cut(string(text[:n]), " ")
	pid, err = strconv.Atoi(number)
	return name, pid, fds[0], err
}

// serve answers one process for as long as it is there.
func (f *fsyncs) serve(name string, pid, fd int) {
	var late sync.WaitGroup // answers
	defer unix.Close(fd)
	defer late.Wait()
	for {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if _, err := unix.Poll(poll, -1); err == unix.EINTR {
			continue
		}
		if poll[0].Revents&unix.POLLIN == 0 {
			return // it has ended
		}
		var n notification
		if control(fd, unix.SECCOMP_IOCTL_NOTIF_RECV, unsafe.Pointer(&n)) != 0 {
			continue // who asked was interrupted
		}
		// Another may be asked of meanwhile: a process has several files.
		if answer := f.answer(name, pid, fd, &n); answer != nil {
			late.Go(answer)
		} else {
			goOn(fd, &n)
		}
	}
}

// answer is what is to be done about an fsync that does not just go on; else nil.
func (f *fsyncs) answer(name string, pid, fd int, n *notification) func() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if h := f.holds[name]; h != nil {
		path, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", pid, n.args[0]))
		if err == nil && h.wants(path) {
			delete(f.holds, name)
			return func() { h.through(pid, fd, n) }
		}
	}
	if d := f.delays[name]; d != nil {
		d.n++
		takes := d.of()
		return func() {
			select {
			case <-time.After(takes):
			case <-d.over:
			}
			goOn(fd, n)
		}
	}
	return nil
}

// through does what a process asked for, and answers when it is let go.
func (h *hold) through(pid, fd int, n *notification) {
	errno, err := syncOf(pid, n)
	h.err = err
	close(h.done)
	<-h.let
	if err != nil {
		goOn(fd, n)
		return
	}
	send(fd, &reply{id: n.id, errno: -int32(errno)})
}

// syncOf does the fsync that a process asked for, on its own open file.
func syncOf(pid int, n *notification) (errno syscall.Errno, err error) {
	process, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return 0, fmt.Errorf("pidfd_open: %w", err)
	}
	defer unix.Close(process)
	file, err := unix.PidfdGetfd(process, int(n.args[0]), 0)
	if err != nil {
		return 0, fmt.Errorf("pidfd_getfd: %w", err)
	}
	defer unix.Close(file)
	for {
		_, _, errno = unix.Syscall(uintptr(n.number), uintptr(file), 0, 0)
		if errno != unix.EINTR {
			return errno, nil
		}
	}
}

// notification and reply are struct seccomp_notif and struct seccomp_notif_resp of linux/seccomp.h.
type notification struct {
	id          uint64
	thread      uint32
	flags       uint32
	number      int32 // of the system call
	arch        uint32
	instruction uint64
	args        [6]uint64
}

type reply struct {
	id    uint64
	value int64
	errno int32 // negative
	flags uint32
}

// send answers. Who asked may be gone, or have been interrupted and ask again.
func send(fd int, r *reply) { control(fd, unix.SECCOMP_IOCTL_NOTIF_SEND, unsafe.Pointer(r)) }

func goOn(fd int, n *notification) {
	send(fd, &reply{id: n.id, flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE})
}

func control(fd int, what uintptr, arg unsafe.Pointer) syscall.Errno {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), what, uintptr(arg))
	return errno
}

// gated makes this program another one, whose fsyncs wait for a word of who listens at a socket, if that is what it was called
// for. Anything else that is on the command line is left to the caller.
func gated(args []string) {
	if len(args) < 4 || args[0] != fsyncGate {
		return
	}
	err := become(args[1], args[2], args[3:])
	fmt.Fprintf(os.Stderr, "%s: %v\n", fsyncGate, err)
	os.Exit(1)
}

func become(socket, name string, command []string) error {
	program, err := exec.LookPath(command[0])
	if err != nil {
		return err
	}
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket})
	if err != nil {
		return err
	}
	runtime.LockOSThread()                                                                    // whose filter it is, and which becomes the program
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil { // may have been another thread's
		return err
	}
	fd, err := filter(unix.SYS_FSYNC, unix.SYS_FDATASYNC)
	if err != nil {
		return fmt.Errorf("seccomp: %w", err)
	}
	if _, _, err := c.WriteMsgUnix(fmt.Appendf(nil, "%d %s", os.Getpid(), name), unix.UnixRights(fd), nil); err != nil {
		return err
	}
	if _, err := c.Read(make([]byte, 1)); err != nil {
		return fmt.Errorf("nobody answers: %w", err)
	}
	return syscall.Exec(program, command, os.Environ()) // which closes both files
}

// filter has this thread, and what comes of it, ask before some system calls, and returns the file that answers are given with.
func filter(calls ...uint32) (fd int, err error) {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil { // else it wants root
		return 0, err
	}
	const number = 0 // where the number of the call is in struct seccomp_data
	program := []unix.SockFilter{{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: number}}
	for i, call := range calls {
		program = append(program, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: call, Jt: uint8(len(calls) - i)})
	}
	program = append(program,
		unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
		unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_USER_NOTIF})
	p := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	r, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_NEW_LISTENER, uintptr(unsafe.Pointer(&p)))
	if errno != 0 {
		return 0, errno
	}
	return int(r), nil
}

// What happens to processes that way.

// segment says whether a file is one that a broker's log syncs before it acknowledges.
func segment(s *cluster.Server) func(path string) bool {
	return func(path string) bool { return filepath.Dir(path) == s.Dir && filepath.Ext(path) == ".wal" }
}

// afterFsync has something happen to a broker between an fsync of its log and its hearing of it, and so before anything of what
// was written is acknowledged.
func afterFsync(do func(*nemesis, context.Context, []string, time.Duration) error) func(*nemesis, context.Context, []string, time.Duration) error {
	return func(n *nemesis, ctx context.Context, names []string, d time.Duration) error {
		until, cancel := context.WithTimeout(ctx, 10*time.Second)
		let, err := n.fsyncs.hold(until, names[0], segment(n.server(names[0])))
		cancel()
		if errors.Is(err, context.DeadlineExceeded) {
			n.note("%v", err) // nobody can write: something else happens to its followers
			return nil
		}
		if err != nil {
			return err
		}
		defer let()
		return do(n, ctx, names, d)
	}
}

// outlasted stops processes for longer than a broker's session lasts.
func outlasted(n *nemesis, ctx context.Context, names []string, d time.Duration) error {
	const session = 2 * time.Second // broker.session.timeout.ms
	return paused(n, ctx, names, session+d)
}

// slowDisk has each fsync of a broker take so much longer, and says what became of the partitions that it leads and of those that it
// follows.
func slowDisk(longer func(lasts time.Duration) time.Duration) func(*nemesis, context.Context, []string, time.Duration) error {
	return func(n *nemesis, ctx context.Context, names []string, d time.Duration) error {
		before, err := n.topics(ctx)
		if err != nil {
			return err
		}
		from, had := time.Now(), n.l.counts(n.in)
		undo := n.fsyncs.delayed(names, func() time.Duration { return longer(d) })
		wait(ctx, 3*d)
		has, took := n.l.counts(n.in), time.Since(from)
		after, err := n.topics(ctx)
		times := undo()
		if err != nil {
			return err
		}
		i := slices.IndexFunc(n.c.Brokers, func(b *cluster.Broker) bool { return b.Name == names[0] })
		id := n.c.Brokers[i].ID
		var led, kept, out, all int
		leads, follows := -1.0, -1.0 // records a second, in the partition with the fewest
		after.EachPartition(func(p kadm.PartitionDetail) {
			all++
			if !slices.Contains(p.ISR, id) {
				out++
			}
			was := before[p.Topic].Partitions[p.Partition].Leader
			if was == id {
				led++
			}
			if was == id && p.Leader == id {
				kept++
			}
			if p.Topic != n.in || (was == id) != (p.Leader == id) {
				return
			}
			least := &follows
			if was == id {
				least = &leads
			}
			at := history.Partition{Topic: p.Topic, Index: p.Partition}
			if rate := float64(has[at]-had[at]) / took.Seconds(); *least < 0 || rate < *least {
				*least = rate
			}
		})
		n.note("%d fsyncs of %s took %s longer in %.1fs: it leads %d of the %d partitions that it led, and is out of the ISR of %d of %d; records of %s acknowledged a second, at least (-1: no partition): %.0f where it leads, %.0f where it follows",
			times, names[0], longer(d), took.Seconds(), kept, led, out, all, n.in, leads, follows)
		return nil
	}
}

// etcdSlowDisk has each fsync of all members of etcd take up to d longer, for half a minute: longer than their elections wait, and, with
// most d, than the brokers' leases do. What is led is written as before, and leaderships do not move in their masses: sessions that
// all run out for etcd's own reasons are waited for.
func etcdSlowDisk(n *nemesis, ctx context.Context, _ []string, d time.Duration) error {
	before, err := n.topics(ctx)
	if err != nil {
		return err
	}
	lost, err := n.sessionsLost(ctx)
	if err != nil {
		return err
	}
	rnd := rand.New(rand.NewPCG(uint64(d), 1)) // one fsync at a time asks
	undo := n.fsyncs.delayed(members(n, nil), func() time.Duration { return d/5 + time.Duration(rnd.Int64N(int64(4*d/5))) })
	err = n.goesOn(ctx, 30*time.Second)
	times := undo()
	after, e := inSync(ctx, n.adm)
	if err = errors.Join(err, e); err != nil {
		return err
	}
	lostToo, err := n.sessionsLost(ctx)
	if err != nil {
		return err
	}
	in, most, where := risen(before, after)
	all := 0
	after.EachPartition(func(kadm.PartitionDetail) { all++ })
	n.note("%d fsyncs of etcd took %s to %s longer: brokers lost %d sessions, and in %d of %d partitions leaders were elected, %d times at most%s",
		times, (d / 5).Round(time.Millisecond), d, lostToo-lost, in, all, most, where)
	if 2*in > all {
		return fmt.Errorf("leaders were elected in %d of %d partitions while nothing happened to any broker", in, all)
	}
	return nil
}
