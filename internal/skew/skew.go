// Package skew builds programs whose wall clock can be set from outside, each process its own, while they run. The clock of a
// machine is one for all its processes, and a Go program reads it where no library that is put before it notices
// (the kernel's vDSO). So the program is built with a standard library in which time.Now adds what a file says; what
// measures durations, the monotonic clock, and with it timers and deadlines, stays as it is.
//
// Nothing of the standard library is kept here: the statement is added to the source of the installed one when a program is
// built, and where the source does not have the place for it, the build fails.
package skew

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Env is the environment variable that names the file of a process's clock. A program that was built here and is started
// without it has the machine's clock; with a file that cannot be had it panics.
const Env = "VARVE_TEST_CLOCK"

//go:embed added.go.txt
var added string

// Build builds the program of a package, as the go command names it in the working directory, into the file out. Everything is
// compiled anew with it once, which takes minutes; the go command keeps it for the next time.
func Build(ctx context.Context, out, pkg string) error {
	root, err := goroot(ctx)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "varve-skew-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	overlay, err := prepare(filepath.Join(root, "src", "time"), dir)
	if err != nil {
		return err
	}
	if b, err := exec.CommandContext(ctx, "go", "build", "-overlay", overlay, "-o", out, pkg).CombinedOutput(); err != nil {
		return fmt.Errorf("build %s with another clock: %w\n%s", pkg, err, b)
	}
	return nil
}

func goroot(ctx context.Context) (string, error) {
	b, err := exec.CommandContext(ctx, "go", "env", "GOROOT").Output()
	if err != nil {
		return "", fmt.Errorf("go env GOROOT: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// prepare writes what takes the place of files of package time, whose source is in the directory src, into dir, and the file
// that tells the go command so.
func prepare(src, dir string) (overlay string, err error) {
	b, err := os.ReadFile(filepath.Join(src, "time.go"))
	if err != nil {
		return "", err
	}
	patched, err := patch(b)
	if err != nil {
		return "", fmt.Errorf("%s: %w", filepath.Join(src, "time.go"), err)
	}
	now, more := filepath.Join(dir, "time.go"), filepath.Join(dir, "skew.go")
	list, err := json.Marshal(map[string]map[string]string{"Replace": {
		filepath.Join(src, "time.go"):       now,
		filepath.Join(src, "varve_skew.go"): more,
	}})
	if err != nil {
		return "", err
	}
	overlay = filepath.Join(dir, "overlay.json")
	return overlay, errors.Join(os.WriteFile(now, patched, 0o600), os.WriteFile(more, []byte(added), 0o600), os.WriteFile(overlay, list, 0o600))
}

// errPlace: the source is another than this package knows.
var errPlace = errors.New("skew: func Now does not begin with the runtime's time in three variables: look how it is made in this version of Go, and mend package skew")

// patch has Now, in the source of package time, pass what the runtime says through varveSkewed.
func patch(src []byte) ([]byte, error) {
	set := token.NewFileSet()
	f, err := parser.ParseFile(set, "time.go", src, parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	for _, d := range f.Decls {
		fn, ok := d.(*ast.FuncDecl)
		if !ok || fn.Recv != nil || fn.Name.Name != "Now" || fn.Body == nil || len(fn.Body.List) == 0 {
			continue
		}
		first, ok := fn.Body.List[0].(*ast.AssignStmt)
		if !ok || len(first.Lhs) != 3 || len(first.Rhs) != 1 {
			return nil, errPlace
		}
		call, ok := first.Rhs[0].(*ast.CallExpr)
		if !ok || len(call.Args) != 0 {
			return nil, errPlace
		}
		if name, ok := call.Fun.(*ast.Ident); !ok || name.Name != "runtimeNow" {
			return nil, errPlace
		}
		var names [2]string
		for i := range names {
			id, ok := first.Lhs[i].(*ast.Ident)
			if !ok || id.Name == "_" {
				return nil, errPlace
			}
			names[i] = id.Name
		}
		end := set.Position(first.End()).Offset
		stmt := fmt.Sprintf("; %s, %s = varveSkewed(%[1]s, %[2]s)", names[0], names[1])
		return []byte(string(src[:end]) + stmt + string(src[end:])), nil
	}
	return nil, errPlace
}

// Clock is by how much the clock of a process, or of several that have the same file, goes before the machine's.
type Clock struct {
	mem []byte
}

// New makes the file of a clock that goes right.
func New(path string) (*Clock, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := f.Truncate(8); err != nil {
		return nil, err
	}
	mem, err := unix.Mmap(int(f.Fd()), 0, 8, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", path, err)
	}
	c := &Clock{mem}
	c.Set(0)
	return c, nil
}

// Set has the clock go so far before the machine's, or behind it, from now on.
func (c *Clock) Set(d time.Duration) {
	atomic.StoreInt64((*int64)(unsafe.Pointer(&c.mem[0])), int64(d))
}

// Close lets go of the file; the clock stays as it was set.
func (c *Clock) Close() error { return unix.Munmap(c.mem) }
