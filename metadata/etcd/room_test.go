package etcd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"golang.org/x/sys/unix"

	"github.com/varve/varve/internal/child"
)

// envSmallDisk is the directory on which the process that TestRoom starts mounts a disk that it fills.
const envSmallDisk = "TEST_SMALL_DISK"

// TestRoom: another's file takes the last byte of the disk that etcd is on. It goes on: with its database, its log, and its snapshots;
// also when it is started again. Where it cannot, what ends the process is one line of ours. That needs a process, which has the
// disk in a name space of its own.
func TestRoom(t *testing.T) {
	if os.Getenv(envSmallDisk) != "" {
		fullDisk(t)
		return
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestRoom$", "-test.v")
	cmd.Env = append(os.Environ(), envSmallDisk+"="+t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
		}
	}
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(string(out), "\nused up\n") {
		t.Fatalf("it was to end with 1 after its room was used up: %v\n%s", err, out)
	}
	_, after, _ := strings.Cut(string(out), "\nused up\n")
	var said []string
	for line := range strings.Lines(after) {
		if strings.Contains(line, "level=ERROR") {
			said = append(said, line)
		}
	}
	if len(said) != 1 || !strings.Contains(said[0], "the disk is full") || !strings.Contains(said[0], " wanted=") {
		t.Errorf("it said\n%s", after)
	}
}

func fullDisk(t *testing.T) {
	mnt := os.Getenv(envSmallDisk)
	if err := unix.Mount("tmpfs", mnt, "tmpfs", 0, "size=160m"); err != nil {
		t.Fatal(err)
	}
	fill := func() {
		t.Helper()
		f, err := os.OpenFile(filepath.Join(mnt, "somebody-else's"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for b := make([]byte, 64<<10); ; {
			if _, err := f.Write(b); errors.Is(err, syscall.ENOSPC) {
				if len(b) == 1 {
					return
				}
				b = b[:len(b)/2]
			} else if err != nil {
				t.Fatal(err)
			}
		}
	}
	const segment, snapshots = 4 << 20, 100
	wal.SegmentSizeBytes = segment
	logger := slog.New(slog.NewTextHandler(os.Stdout, nil))
	dir := filepath.Join(mnt, "etcd")

	// A first start on a full disk says so, and what it wants.
	fill()
	want := fmt.Sprintf("0 bytes are left for %s, and etcd needs %d to start", dir, 2*segment+ballastBytes)
	if _, err := Embedded(dir, logger); !errors.Is(err, ErrDiskFull) || !strings.Contains(err.Error(), want) {
		t.Fatalf("a first start on a full disk: %v, want %s", err, want)
	}
	room := func() {
		t.Helper()
		if err := os.Remove(filepath.Join(mnt, "somebody-else's")); err != nil {
			t.Fatal(err)
		}
	}
	room()

	var s *Server
	open := func() {
		t.Helper()
		var err error
		if s, err = embedded(dir, logger, func(c *embed.Config) { c.SnapshotCount, c.MaxSnapFiles = snapshots, 100 }); err != nil {
			t.Fatal(err)
		}
	}
	segments := func() int {
		files, err := filepath.Glob(filepath.Join(dir, dataDir, "member/wal/*.wal"))
		if err != nil || len(files) == 0 {
			t.Fatal(files, err)
		}
		n := 0
		if _, err := fmt.Sscanf(filepath.Base(files[len(files)-1]), "%x-", &n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	put := func(size int) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := s.Client().Put(ctx, "/k", strings.Repeat("x", size)); err != nil {
			t.Fatal(err)
		}
	}
	// roll writes so many files of the log.
	roll := func(n int) {
		t.Helper()
		for end := segments() + n; segments() < end; {
			put(100 << 10)
		}
		if _, err := s.Client().Compact(t.Context(), must[*clientv3.GetResponse](t)(s.Client().Get(t.Context(), "/k")).Header.Revision, clientv3.WithCompactPhysical()); err != nil {
			t.Fatal(err)
		}
	}
	taken := func() {
		t.Helper()
		if err := child.Eventually(t.Context(), time.Minute, func() error {
			if n := s.room.wanted(); n > 0 {
				return fmt.Errorf("%d bytes are missing", n)
			}
			return s.Room()
		}); err != nil {
			t.Fatal(err)
		}
	}
	open()
	taken()
	for round := range 3 {
		fill()
		roll(1)
		for range 10 * snapshots {
			put(10)
		}
		// With what it has left over, if there is anything, the disk is full again.
		fill()
		if round == 1 {
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			open()
			put(10)
		}
		room()
		taken()
	}
	fill()
	fmt.Print("\nused up\n")
	for range 2 {
		roll(1)
		fill() // what is left over of the file before
	}
	if err := child.Eventually(t.Context(), time.Minute, func() error {
		if err := s.Room(); err == nil || !strings.Contains(err.Error(), "the next file of etcd's log") {
			return fmt.Errorf("it has no next file: %v", err)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	roll(1)
	t.Error("etcd needs no room")
}
