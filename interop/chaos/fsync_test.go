package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/varve/varve/internal/child"
)

func TestMain(m *testing.M) {
	gated(os.Args[1:])
	os.Exit(m.Run())
}

// syncing has a process that does one fdatasync, of a file.
func syncing(t *testing.T, f *fsyncs) (cmd *exec.Cmd, file string) {
	t.Helper()
	file = filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	args := append(f.begin(t.Name()), "sync", "-d", file)
	return exec.Command(args[0], args[1:]...), file
}

func openFsyncs(t *testing.T) *fsyncs {
	t.Helper()
	f, err := newFsyncs(t.TempDir())
	if err != nil {
		t.Fatal(err) // Linux 5.6 and later; `make chaos` says why, and does without
	}
	t.Cleanup(f.close)
	return f
}

// A process whose fsync is done and not answered waits, and can be stopped, go on and be killed there.
func TestFsyncHeld(t *testing.T) {
	for _, what := range []string{"let go", "stopped", "killed"} {
		t.Run(what, func(t *testing.T) {
			f := openFsyncs(t)
			cmd, file := syncing(t, f)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			let, err := f.hold(t.Context(), t.Name(), func(path string) bool { return path == file })
			if err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			go func() { ended <- cmd.Wait() }()
			time.Sleep(20 * time.Millisecond)
			select {
			case err := <-ended:
				t.Fatalf("it did not wait: %v", err)
			default:
			}
			switch what {
			case "stopped":
				cmd.Process.Signal(syscall.SIGSTOP)
				stopped(t, cmd.Process.Pid)
				let()
				time.Sleep(20 * time.Millisecond)
				select {
				case err := <-ended:
					t.Fatalf("it ended while it was stopped: %v", err)
				default:
				}
				cmd.Process.Signal(syscall.SIGCONT)
			case "killed":
				cmd.Process.Kill()
				defer let()
			default:
				let()
			}
			if err := <-ended; (err != nil) != (what == "killed") {
				t.Error(err)
			}
		})
	}
}

// stopped waits until a process is.
func stopped(t *testing.T, pid int) {
	t.Helper()
	err := child.Eventually(t.Context(), time.Minute, func() error {
		var info syscall.WaitStatus
		got, err := syscall.Wait4(pid, &info, syscall.WNOHANG|syscall.WUNTRACED, nil)
		if err == nil && (got != pid || !info.Stopped()) {
			err = os.ErrNotExist
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// What is delayed takes that long, and no longer than until the end of the delay.
func TestFsyncDelayed(t *testing.T) {
	f := openFsyncs(t)
	const d = 200 * time.Millisecond
	undo := f.delayed([]string{t.Name()}, func() time.Duration { return d })
	cmd, _ := syncing(t, f)
	from := time.Now()
	if out, err := cmd.CombinedOutput(); err != nil || time.Since(from) < d {
		t.Errorf("it took %s: %v %s", time.Since(from), err, out)
	}
	if n := undo(); n != 1 {
		t.Errorf("%d fsyncs were delayed", n)
	}

	undo = f.delayed([]string{t.Name()}, func() time.Duration { return time.Hour })
	cmd, _ = syncing(t, f)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	err := child.Eventually(t.Context(), time.Minute, func() error {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.delays[t.Name()].n == 0 {
			return os.ErrNotExist
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	undo()
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}
