package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/varve/varve/internal/child"
)

// Server is one process of a cluster: a broker, a compaction worker, a member of etcd, the S3 server.
type Server struct {
	Name string
	Dir  string // what it keeps

	log     string
	pidFile string
	listens []string // addresses that must be free for it
	stays   bool
	command func() *exec.Cmd
	ready   func() error

	mu      sync.Mutex
	process *child.Process // of this program; nil if it was found running
	pid     pid
}

// pid names a process for good: numbers come again, and never with the same start.
type pid struct {
	number int
	start  string // in ticks of the kernel since the machine started
}

// startOf returns when a process started; empty if it has ended, whether or not its parent has noticed. A process whose
// first thread has ended has not, as long as others run: it still listens.
func startOf(number int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", number))
	if err != nil {
		return ""
	}
	// The second field is the program's name between brackets, and may have spaces.
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if len(f) < 20 {
		return ""
	}
	if f[0] == "Z" || f[0] == "X" {
		if threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", number)); err != nil || len(threads) <= 1 {
			return ""
		}
	}
	return f[19]
}

func (p pid) runs() bool { return p.number > 0 && p.start != "" && startOf(p.number) == p.start }

func (p pid) signal(s syscall.Signal) error {
	if !p.runs() {
		return os.ErrProcessDone
	}
	return syscall.Kill(p.number, s)
}

// find takes over the process that an earlier program has left.
func (s *Server) find() {
	b, err := os.ReadFile(s.pidFile)
	if err == nil {
		fmt.Sscan(string(b), &s.pid.number, &s.pid.start)
	}
}

// PID is the process's id; 0 if it does not run.
func (s *Server) PID() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.pid.runs() {
		return 0
	}
	return s.pid.number
}

// Running reports whether the process is there, be it stopped.
func (s *Server) Running() bool { return s.PID() != 0 }

// Start runs the server, on what an earlier process of it has left, and returns once it serves.
func (s *Server) Start(ctx context.Context) error {
	if s.Running() {
		return fmt.Errorf("%s runs already, as process %d", s.Name, s.PID())
	}
	if err := os.MkdirAll(s.Dir, 0o700); err != nil {
		return err
	}
	cmd := s.command()
	written := false
	p, err := child.Start(ctx, &child.Process{Name: s.Name, Log: s.log, Patience: patience, Stays: s.stays}, cmd, func() error {
		// Before anything can fail or be interrupted: who stays must be found again.
		if !written {
			if err := s.started(cmd.Process.Pid); err != nil {
				return err
			}
			written = true
		}
		return s.ready()
	})
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.process = p
	return nil
}

// free reports an error if the server could not listen where it is to.
func (s *Server) free() error {
	for _, addr := range s.listens {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			return fmt.Errorf("%s cannot have %s: %w (ss -ltnp 'sport = :%s' says who has it)", s.Name, addr, err, addr[strings.LastIndexByte(addr, ':')+1:])
		}
		l.Close()
	}
	return nil
}

// patience bounds the start and the end of a server. Several start at a time, on machines that do other work.
const patience = 2 * time.Minute

func (s *Server) started(number int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.process, s.pid = nil, pid{number, startOf(number)}
	return os.WriteFile(s.pidFile, fmt.Appendf(nil, "%d %s\n", s.pid.number, s.pid.start), 0o600)
}

// Stop ends the server with SIGTERM; it is an error if it has to be killed, or does not exit with 0 where this program
// can know. Stopping one that does not run is none.
func (s *Server) Stop() error {
	s.mu.Lock()
	p, number := s.process, s.pid
	s.mu.Unlock()
	if !number.runs() {
		return nil
	}
	// One that is paused would not hear of it. A second SIGTERM would kill a broker that drains.
	number.signal(syscall.SIGCONT)
	if p != nil {
		return p.Stop()
	}
	if err := number.signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("ending %s: %w", s.Name, err)
	}
	if !number.ends(patience) {
		number.signal(syscall.SIGKILL)
		number.ends(patience)
		return fmt.Errorf("%s: %w (%s), and was killed\n%s", s.Name, child.ErrStays, patience, s.Tail())
	}
	return nil
}

// Kill ends the server with SIGKILL, and returns when it is gone.
func (s *Server) Kill() error {
	s.mu.Lock()
	number := s.pid
	s.mu.Unlock()
	if err := number.signal(syscall.SIGKILL); err != nil {
		return fmt.Errorf("killing %s: %w", s.Name, err)
	}
	if !number.ends(patience) {
		return fmt.Errorf("%s is still there after SIGKILL", s.Name)
	}
	return nil
}

func (p pid) ends(d time.Duration) bool {
	for deadline := time.Now().Add(d); p.runs(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			return false
		}
	}
	return true
}

// Pause stops the process where it stands (SIGSTOP): its connections stay and nothing answers.
func (s *Server) Pause() error { return s.send(syscall.SIGSTOP) }

// Resume lets a paused process go on.
func (s *Server) Resume() error { return s.send(syscall.SIGCONT) }

func (s *Server) send(sig syscall.Signal) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.pid.signal(sig); err != nil {
		return fmt.Errorf("%s to %s: %w", sig, s.Name, err)
	}
	return nil
}

// Restart ends the server in order, if it runs, and starts it again.
func (s *Server) Restart(ctx context.Context) error {
	if err := s.Stop(); err != nil {
		return err
	}
	return s.Start(ctx)
}

// Tail is the end of what the server has printed.
func (s *Server) Tail() string { return (&child.Process{Log: s.log}).Tail() }

// Log is the file of what it prints.
func (s *Server) Log() string { return s.log }

// forget removes the note of a process that has ended.
func (s *Server) forget() error {
	if err := os.Remove(s.pidFile); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func (s *Server) under(dir string) {
	s.Dir = filepath.Join(dir, s.Name)
	s.log = s.Dir + ".log"
	s.pidFile = s.Dir + ".pid"
}
