package etcd

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// Another process reads what an embedded etcd holds, whether that runs or not, and changes nothing.
func TestReaders(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "etcd")
	read := func(c *clientv3.Client) string {
		t.Helper()
		resp, err := c.Get(bg, "a")
		if err != nil || len(resp.Kvs) != 1 {
			t.Fatalf("%v %v", resp, err)
		}
		return string(resp.Kvs[0].Value)
	}
	if _, _, err := OpenReader(bg, dir, DialOptions{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("nothing is there: %v", err)
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("a reader has made the directory")
	}
	s := must[*Server](t)(Embedded(dir, nil))
	if _, err := s.Client().Put(bg, "a", "1"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := OpenReader(bg, dir, DialOptions{}); !errors.Is(err, ErrNoReaders) {
		t.Errorf("it serves no readers: %v", err)
	}
	// What a process that was killed has left is in nobody's way.
	stale, err := net.Listen("unix", socketOf(dir))
	if err != nil {
		t.Fatal(err)
	}
	stale.(*net.UnixListener).SetUnlinkOnClose(false)
	stale.Close()
	if err := s.ServeReaders(); err != nil {
		t.Fatal(err)
	}
	if i, err := os.Stat(socketOf(dir)); err != nil || i.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", i, err)
	}
	c, closer, err := OpenReader(bg, dir, DialOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if v := read(c); v != "1" {
		t.Error(v)
	}
	ctx, cancel := context.WithTimeout(bg, 30*time.Second)
	defer cancel()
	_, putErr := c.Put(ctx, "a", "2")
	_, deleteErr := c.Delete(ctx, "a")
	_, txnErr := c.Txn(ctx).Then(clientv3.OpPut("a", "2")).Commit()
	_, compactErr := c.Compact(ctx, 1)
	_, leaseErr := c.Grant(ctx, 10)
	for what, err := range map[string]error{"put": putErr, "delete": deleteErr, "transaction": txnErr, "compact": compactErr, "lease": leaseErr} {
		if err == nil || !strings.Contains(err.Error(), "this socket is for reading") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if w, ok := <-c.Watch(ctx, "a"); ok && w.Err() == nil {
		t.Errorf("watch: %+v", w)
	}
	if v := read(s.Client()); v != "1" {
		t.Error(v)
	}
	closer()
	s.Close()
	if _, err := os.Stat(socketOf(dir)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is left: %v", err)
	}

	// Nothing runs: it is opened.
	c, closer, err = OpenReader(bg, dir, DialOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if v := read(c); v != "1" {
		t.Error(v)
	}
	if err := closer(); err != nil {
		t.Error(err)
	}
	// A path that no socket can have.
	long := filepath.Join(t.TempDir(), strings.Repeat("x", 120))
	s = must[*Server](t)(Embedded(long, nil))
	defer s.Close()
	if err := s.ServeReaders(); err == nil {
		t.Error("a socket with a path of more than 120 bytes")
	}
}
