package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// process is a server that runs beside the checks.
type process struct {
	name, addr, admin, log string
	cmd                    *exec.Cmd
	done                   chan struct{}
	once                   sync.Once
	err                    error
}

// launch starts a server whose output goes to a file, and returns once up answers without an error.
func launch(ctx context.Context, p *process, cmd *exec.Cmd, up func() error) (*process, error) {
	f, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	cmd.Stdout, cmd.Stderr = f, f
	// A signal to the terminal's process group is not for the servers: they end when the checks have.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p.cmd, p.done = cmd, make(chan struct{})
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	err = eventually(ctx, 60*time.Second, func() error {
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
		p.kill()
		return nil, fmt.Errorf("starting %s: %w\n%s", p.name, err, p.tail())
	}
	return p, nil
}

// stop ends the server with SIGTERM; it is an error if it does not exit 0.
func (p *process) stop() error {
	err := p.err
	p.once.Do(func() {
		p.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-p.done:
			err = p.err
		case <-time.After(60 * time.Second):
			p.kill()
			err = errors.New("still there 60 s after SIGTERM")
		}
	})
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", p.name, err, p.tail())
	}
	return nil
}

func (p *process) kill() {
	p.once.Do(func() {})
	p.cmd.Process.Kill()
	<-p.done
}

func (p *process) tail() string {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return "its log ends:\n" + tail(string(b), 3000)
}

// startVarve runs a broker of its own on free ports.
func startVarve(ctx context.Context, varve, dir string, settings ...string) (*process, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	addr, err := freeAddr()
	if err != nil {
		return nil, err
	}
	admin, err := freeAddr()
	if err != nil {
		return nil, err
	}
	args := []string{"dev", "--data-dir", filepath.Join(dir, "data")}
	for _, s := range []string{"listeners=PLAINTEXT://" + addr, "admin.listener=" + admin, "wal.max.bytes=4294967296", "group.initial.rebalance.delay.ms=0"} {
		name, _, _ := strings.Cut(s, "=")
		if !slices.ContainsFunc(settings, func(given string) bool { return strings.HasPrefix(given, name+"=") }) {
			args = append(args, "--set", s)
		}
	}
	for _, s := range settings {
		args = append(args, "--set", s)
	}
	p := &process{name: "varve dev", addr: addr, admin: "http://" + admin, log: filepath.Join(dir, "varve.log")}
	return launch(ctx, p, exec.Command(varve, args...), func() error {
		resp, err := http.Get(p.admin + "/readyz")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("/readyz answers %s", resp.Status)
		}
		c, err := net.DialTimeout("tcp", addr, time.Second)
		if err == nil {
			c.Close()
		}
		return err
	})
}

func freeAddr() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}
