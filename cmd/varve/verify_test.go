package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What varve dev has in its directory is verified while it runs, when it was killed, and when it runs again, by the
// directory's name alone.
func TestVerifyDev(t *testing.T) {
	p := startProcess(t, t.TempDir(), "remote.flush.interval.ms=100")
	p.createTopic("t", "cleanup.policy", "delete")
	cl := p.client()
	var l ledger
	for range 20 {
		if err := l.produceOnce(p, cl, "t", 1000); err != nil {
			t.Fatal(err)
		}
	}
	l.drains(p, "t")
	dir := filepath.Join(p.dir, "data")
	verify := []string{"tier", "verify", "t", "--data", "--data-dir", dir}
	varve(t, "", verify...).want(t, 0, "", "all is there: 1 partitions")

	var lost string
	err := filepath.WalkDir(filepath.Join(dir, "objects", "data"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && lost == "" {
			lost = path
		}
		return err
	})
	if err != nil || lost == "" {
		t.Fatalf("no object of %s: %v", dir, err)
	}
	raw, err := os.ReadFile(lost)
	if err != nil {
		t.Fatal(err)
	}
	missing := func(when string) {
		t.Helper()
		if r := varve(t, "", verify...); r.code != 1 || !strings.Contains(r.out, "missing: t-0") || !strings.Contains(r.out, filepath.Base(lost)) {
			t.Errorf("%s: exit %d\n%s%s", when, r.code, r.out, r.errOut)
		}
	}
	if err := os.Remove(lost); err != nil {
		t.Fatal(err)
	}
	missing("while it runs")
	p.Kill()
	missing("when it was killed")
	p.restart()
	missing("when it runs again")
	if err := os.WriteFile(lost, raw, 0o644); err != nil {
		t.Fatal(err)
	}
	varve(t, "", verify...).want(t, 0, "", "all is there")

	varve(t, "", "tier", "verify", "--data-dir", t.TempDir()).want(t, 1, "", "holds no metadata of a varve dev")
	if err := os.Remove(filepath.Join(dir, "etcd", "read.sock")); err != nil {
		t.Fatal(err)
	}
	varve(t, "", verify...).want(t, 1, "", "lets nobody look")
	if err := p.Stop(); err != nil {
		t.Error(err)
	}
}
