package skew

import (
	"errors"
	"fmt"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The installed standard library has the place that is looked for, and what is made of it can be compiled; a source that
// has it not is refused.
func TestPatch(t *testing.T) {
	root, err := goroot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	src := filepath.Join(root, "src", "time")
	dir := t.TempDir()
	overlay, err := prepare(src, dir)
	if err != nil {
		t.Fatal(err)
	}
	was, err := os.ReadFile(filepath.Join(src, "time.go"))
	if err != nil {
		t.Fatal(err)
	}
	now, err := os.ReadFile(filepath.Join(dir, "time.go"))
	if err != nil {
		t.Fatal(err)
	}
	if n := len(strings.Split(string(now), "\n")); n != len(strings.Split(string(was), "\n")) || strings.Count(string(now), "varveSkewed") != 1 {
		t.Errorf("%d lines, and varveSkewed is called %d times", n, strings.Count(string(now), "varveSkewed"))
	}
	for _, name := range []string{"time.go", "skew.go"} {
		if _, err := parser.ParseFile(token.NewFileSet(), filepath.Join(dir, name), nil, 0); err != nil {
			t.Error(err)
		}
	}
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-overlay", overlay, "time").CombinedOutput(); err != nil {
		t.Errorf("package time: %v\n%s", err, out)
	}
	if !strings.Contains(added, Env) {
		t.Errorf("what is added to package time does not look at %s", Env)
	}
	for _, src := range []string{
		"package time", "package time\nfunc Now() Time", "package time\nfunc Now() Time { return Time{} }",
		"package time\nfunc Now() Time { sec, nsec := runtimeNow(); return Time{} }",
		"package time\nfunc Now() Time { sec, nsec, mono := now(); return Time{} }",
		"package time\nfunc Now() Time { sec, _, mono := runtimeNow(); return Time{} }",
		"package time\nfunc (t Time) Now() Time { sec, nsec, mono := runtimeNow(); return Time{} }",
	} {
		if _, err := patch([]byte(src)); !errors.Is(err, errPlace) {
			t.Errorf("%q: %v", src, err)
		}
	}
	if _, err := patch([]byte("package")); err == nil {
		t.Error("no error for what is no source")
	}
}

// A program sees the clock jump, and durations, timers and deadlines as they are.
func TestClock(t *testing.T) {
	dir := t.TempDir()
	source := `package main

import ("bufio"; "fmt"; "os"; "time")

func main() {
	began := time.Now()
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		now := time.Now()
		fmt.Println(now.UnixNano(), now.Sub(began).Nanoseconds(), time.Since(began) < 10*time.Minute)
	}
}
`
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "main.go"), []byte(source), 0o600), os.WriteFile(filepath.Join(dir, "go.mod"), []byte("module clock\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	t.Chdir(dir)
	if err := Build(t.Context(), filepath.Join(dir, "clock"), "."); err != nil {
		t.Fatal(err)
	}
	c, err := New(filepath.Join(dir, "skew"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	cmd := exec.CommandContext(t.Context(), filepath.Join(dir, "clock"))
	cmd.Env = append(os.Environ(), Env+"="+filepath.Join(dir, "skew"))
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	last := int64(-1)
	for _, d := range []time.Duration{0, time.Hour, -time.Hour, 1500 * time.Millisecond, -1500 * time.Millisecond, 999999999, -999999999, 30 * time.Second, -30 * time.Second, 0} {
		c.Set(d)
		from := time.Now()
		fmt.Fprintln(in)
		var at, since int64
		var short bool
		if _, err := fmt.Fscan(out, &at, &since, &short); err != nil {
			t.Fatal(err)
		}
		if low, high := from.Add(d), time.Now().Add(d); at < low.UnixNano() || at > high.UnixNano() {
			t.Errorf("%s: the clock shows %s, between %s and %s", d, time.Unix(0, at), low, high)
		}
		if since <= last || !short {
			t.Errorf("%s: %d ns since it began, after %d ns", d, since, last)
		}
		last = since
	}
	in.Close()
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	cmd = exec.CommandContext(t.Context(), filepath.Join(dir, "clock"))
	cmd.Env = append(os.Environ(), Env+"="+filepath.Join(dir, "none"))
	if b, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(b), Env) {
		t.Errorf("without its file: %v\n%s", err, b)
	}
}
