package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/varve/varve/internal/child"
	"github.com/varve/varve/internal/cluster"
)

// disks has every broker's directory on a file system of its own: ext4 in a file, in this program's mount namespace. It
// can be made to lose what was not fsynced, as a disk does that loses its power, and be full. Linux, as root.
type disks struct {
	image map[string]string // of processes
	dir   map[string]string
}

// diskBytes is more than a broker's log takes.
const diskBytes = 512 << 20

func newDisks(c *cluster.Cluster, dir string) (*disks, error) {
	d := &disks{image: map[string]string{}, dir: map[string]string{}}
	// Processes get mount namespaces of their own, from ip: what is mounted and unmounted here is there, and not outside.
	if err := errors.Join(execute("mount --make-rprivate /"), execute("mount --make-rshared /")); err != nil {
		return nil, err
	}
	for _, b := range c.Brokers {
		image := filepath.Join(dir, b.Name+".ext4")
		f, err := os.Create(image)
		if err == nil {
			err = errors.Join(f.Truncate(diskBytes), f.Close(), os.MkdirAll(b.Dir, 0o700))
		}
		if err == nil {
			err = execute("mkfs.ext4 -q -F " + image)
		}
		if err == nil {
			d.image[b.Name], d.dir[b.Name] = image, b.Dir
			err = d.mount(b.Name)
		}
		if err != nil {
			d.close()
			return nil, err
		}
	}
	return d, nil
}

func (d *disks) mount(name string) error {
	return execute(fmt.Sprintf("mount -o loop %s %s", d.image[name], d.dir[name]))
}

func (d *disks) close() {
	for _, dir := range d.dir {
		execute("umount " + dir)
	}
}

// cut takes the power away: what is in the page cache alone, and what of the journal is not on the disk, is lost. Every
// read and write fails from then on (EXT4_IOC_SHUTDOWN, without a flush of the log).
func (d *disks) cut(name string) error {
	f, err := os.Open(d.dir[name])
	if err != nil {
		return err
	}
	defer f.Close()
	const shutdown, noLogFlush = 0x8004587d, 2
	flags := uint32(noLogFlush)
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, f.Fd(), shutdown, uintptr(unsafe.Pointer(&flags))); errno != 0 {
		return fmt.Errorf("shut down the file system of %s: %w", name, errno)
	}
	return nil
}

// restore mounts a disk that was cut off, once nobody has it any more: its journal is replayed.
func (d *disks) restore(ctx context.Context, name string) error {
	err := child.Eventually(ctx, patience, func() error { return execute("umount " + d.dir[name]) })
	if err != nil {
		return err
	}
	err = child.Eventually(ctx, patience, func() error {
		out, err := exec.Command("losetup", "-j", d.image[name]).CombinedOutput()
		if err == nil && len(out) > 0 {
			err = fmt.Errorf("still in use: %s", strings.TrimSpace(string(out)))
		}
		return err
	})
	if err != nil {
		return err
	}
	return d.mount(name)
}

// fill takes all of the space that is left, until undo gives it back.
func (d *disks) fill(name string) (undo func() error, err error) {
	file := filepath.Join(d.dir[name], "in-the-way")
	f, err := os.Create(file)
	if err != nil {
		return nil, err
	}
	_, err = io.CopyN(f, zeros{}, 2*diskBytes)
	err = errors.Join(ignore(err, unix.ENOSPC), f.Close())
	return func() error { return os.Remove(file) }, err
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { return len(b), nil }

func ignore(err, what error) error {
	if errors.Is(err, what) {
		return nil
	}
	return err
}

// powerLost has all brokers lose their power at once, or some.
func powerLost(n *nemesis, ctx context.Context, names []string, d time.Duration) error {
	var err error
	for _, name := range names {
		err = errors.Join(err, n.disks.cut(name))
	}
	for _, name := range names {
		// It may have ended by itself, for want of a disk.
		err = errors.Join(err, ignore(n.server(name).Kill(), os.ErrProcessDone))
	}
	wait(ctx, d)
	for _, name := range names {
		err = errors.Join(err, n.disks.restore(ctx, name))
	}
	return errors.Join(err, n.start(ctx, names))
}

// diskGone has a broker's disk fail under it: the process has to end by itself.
func diskGone(n *nemesis, ctx context.Context, names []string, d time.Duration) error {
	s := n.server(names[0])
	if err := n.disks.cut(s.Name); err != nil {
		return err
	}
	err := child.Eventually(ctx, patience, func() error {
		if s.Running() {
			return errors.New("the process goes on without its disk")
		}
		return nil
	})
	if err != nil {
		return err
	}
	wait(ctx, d)
	if err := n.disks.restore(ctx, s.Name); err != nil {
		return err
	}
	return n.start(ctx, names)
}

func diskFilled(n *nemesis, ctx context.Context, names []string, d time.Duration) error {
	undo, err := n.disks.fill(names[0])
	if err != nil {
		return err
	}
	wait(ctx, 2*d)
	return undo()
}

func execute(line string) error {
	args := strings.Fields(line)
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", line, err, strings.TrimSpace(string(out)))
	}
	return nil
}
