// Package child runs servers as children of this program: brokers, object
// stores, whatever a check or a measurement needs beside it. A child ends
// when its program does, however that comes about, unless it is to stay.
package child

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Process is a server that runs as a child.
type Process struct {
	Name     string
	Log      string        // the file that its output is appended to
	Patience time.Duration // for its start and its end; 0: a minute
	Stays    bool          // it goes on when this program has ended

	cmd  *exec.Cmd
	done chan struct{}
	err  error
}

// Start runs cmd and returns once up answers without an error.
func Start(ctx context.Context, p *Process, cmd *exec.Cmd, up func() error) (*Process, error) {
	if p.Patience == 0 {
		p.Patience = time.Minute
	}
	f, err := os.OpenFile(p.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	cmd.Stdout, cmd.Stderr = f, f
	// A signal to the terminal's process group is not for the servers: they end when this program has.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if p.Stays {
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p.cmd, p.done = cmd, make(chan struct{})
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	err = Eventually(ctx, p.Patience, func() error {
		select {
		case <-p.done:
			return nil
		default:
			return up()
		}
	})
	select {
	case <-p.done:
		err = fmt.Errorf("it ended at once: %v", p.err)
	default:
	}
	if err != nil {
		p.Kill()
		return nil, fmt.Errorf("starting %s: %w\n%s", p.Name, err, p.Tail())
	}
	return p, nil
}

// PID is the child's process id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Ended is closed when the child has ended, whoever ended it.
func (p *Process) Ended() <-chan struct{} { return p.done }

// ErrStays is what Stop says of a child that did not end in time and was killed.
var ErrStays = errors.New("still there after SIGTERM")

// Stop ends the child with SIGTERM; it is an error if it does not exit with 0.
// Of a child that has ended it tells how.
func (p *Process) Stop() error {
	p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(p.Patience):
		p.Kill()
		return fmt.Errorf("%s: %w (%s)\n%s", p.Name, ErrStays, p.Patience, p.Tail())
	}
	if p.err != nil {
		return fmt.Errorf("%s: %w\n%s", p.Name, p.err, p.Tail())
	}
	return nil
}

// Kill ends the child with SIGKILL.
func (p *Process) Kill() {
	p.cmd.Process.Kill()
	<-p.done
}

// Tail is the end of what the child has printed.
func (p *Process) Tail() string {
	b, err := os.ReadFile(p.Log)
	if err != nil {
		return err.Error()
	}
	return "its log ends:\n" + end(string(b), 3000)
}

// Stacks ends the child, a Go program that is still there, with SIGQUIT, and is what it prints then: where each of its goroutines stands.
func (p *Process) Stacks() string {
	before, _ := os.ReadFile(p.Log)
	p.cmd.Process.Signal(syscall.SIGQUIT)
	select {
	case <-p.done:
	case <-time.After(5 * time.Second):
		p.Kill()
	}
	b, err := os.ReadFile(p.Log)
	if err != nil {
		return err.Error()
	}
	s := string(b[min(len(before), len(b)):])
	return "its goroutines:\n" + s[:min(len(s), 400_000)]
}

func end(s string, n int) string {
	s = strings.TrimSpace(s)
	if len(s) > n {
		s = "..." + s[len(s)-n:]
	}
	return s
}

// Ports are given out in blocks, from below the range that the kernel takes the ports of outgoing connections from: one of
// those could have a port before the server does, or while it is restarted.
const (
	firstPort  = 11000
	portBlocks = 200
	blockPorts = 100
)

// given is what FreeAddr has given out of the blocks of this process.
var given struct {
	sync.Mutex
	guards []net.Listener // at the first port of each block, so that no other process gives the rest out; for good
	next   int            // port; 0: none is left of the last block
}

// FreeAddr is an address of this machine that nobody listens at now, and that it gives to nobody else while this process
// runs, here or in another one.
func FreeAddr() (string, error) {
	given.Lock()
	defer given.Unlock()
	listen := func(port int) (net.Listener, error) {
		return net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	}
	var err error
	for range 50 * blockPorts {
		if given.next == 0 {
			first := firstPort + rand.IntN(portBlocks)*blockPorts
			var l net.Listener
			if l, err = listen(first); err != nil {
				continue
			}
			given.guards, given.next = append(given.guards, l), first+1
		}
		port := given.next
		if given.next++; given.next%blockPorts == 0 {
			given.next = 0
		}
		var l net.Listener
		if l, err = listen(port); err == nil {
			defer l.Close()
			return l.Addr().String(), nil
		}
	}
	return "", fmt.Errorf("no free port: %w", err)
}

// Dialled is an answer for Start: somebody listens at addr.
func Dialled(addr string) error {
	c, err := net.DialTimeout("tcp", addr, time.Second)
	if err == nil {
		c.Close()
	}
	return err
}

// Eventually tries f until it is content or the time is over, and returns its
// last answer.
func Eventually(ctx context.Context, d time.Duration, f func() error) error {
	deadline := time.Now().Add(d)
	for {
		err := f()
		if err == nil || time.Now().After(deadline) {
			return err
		}
		select {
		case <-ctx.Done():
			return errors.Join(err, ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
}
