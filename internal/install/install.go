// Package install brings what others wrote into a cache folder of the user:
// jars, packages, servers. A cached folder is named by the hash of what it was
// made from and is complete once it has a file ".complete"; anything else is
// made anew.
package install

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"syscall"
)

// Cache is a folder of installed things. One process has it at a time.
type Cache struct {
	base string
	lock *os.File
}

// Open opens the cache of the given name, and waits for whoever has it.
func Open(name string) (*Cache, error) {
	base, err := os.UserCacheDir()
	if err != nil {
		return nil, err
	}
	base = filepath.Join(base, name)
	if err := os.MkdirAll(base, 0o755); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(base, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		lock.Close()
		return nil, err
	}
	return &Cache{base, lock}, nil
}

// Close lets others have the cache.
func (c *Cache) Close() error { return c.lock.Close() }

// Folder returns the folder NAME-HASH: the files of the folder name in sources
// (which may be nil, or have none of that name), and what fill adds to them.
// Programs, by their extension, are not part of the hash; they are written anew
// each time.
func (c *Cache) Folder(sources fs.FS, name string, fill func(dir string) error) (string, error) {
	h := sha256.New()
	var programs, lists []string
	var entries []fs.DirEntry
	if sources != nil {
		var err error
		if entries, err = fs.ReadDir(sources, name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
	}
	for _, e := range entries {
		file := path.Join(name, e.Name())
		switch path.Ext(file) {
		case ".java", ".py", ".mjs":
			programs = append(programs, file)
		default:
			lists = append(lists, file)
			b, err := fs.ReadFile(sources, file)
			if err != nil {
				return "", err
			}
			h.Write(b)
		}
	}
	dir := filepath.Join(c.base, name+"-"+hex.EncodeToString(h.Sum(nil))[:12])
	done := filepath.Join(dir, ".complete")
	if _, err := os.Stat(done); err != nil {
		// A virtual environment and npm's links hold absolute paths: it is made in its place.
		if err := os.RemoveAll(dir); err != nil {
			return "", err
		}
		if err := write(sources, dir, lists); err != nil {
			return "", err
		}
		if err := fill(dir); err != nil {
			return "", err
		}
		if err := os.WriteFile(done, nil, 0o644); err != nil {
			return "", err
		}
	}
	return dir, write(sources, dir, programs)
}

func write(sources fs.FS, dir string, files []string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, f := range files {
		b, err := fs.ReadFile(sources, f)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, path.Base(f)), b, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// Jars lays what dir/pom.xml names, and what that needs at run time, into
// dir/jars.
func Jars(ctx context.Context, dir string) error {
	for _, tool := range []string{"java", "mvn"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("%w: install a JDK 17 and Maven", err)
		}
	}
	return Command(ctx, dir, "mvn", "-q", "-B", "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies",
		"-DincludeScope=runtime", "-DoutputDirectory="+filepath.Join(dir, "jars"))
}

// minioVersion is the last commit of MinIO's server; its images are no longer published.
const minioVersion = "v0.0.0-20260212201848-7aac2a2c5b7c"

// FindMinIO returns a binary of MinIO's server that is there already: one in PATH, or one that was built into a cache.
func FindMinIO() (string, bool) {
	if file, err := exec.LookPath("minio"); err == nil {
		return file, true
	}
	base, err := os.UserCacheDir()
	if err != nil {
		return "", false
	}
	done, _ := filepath.Glob(filepath.Join(base, "varve-*", "minio-"+minioVersion+"-*", ".complete"))
	if len(done) == 0 {
		return "", false
	}
	return filepath.Join(filepath.Dir(done[0]), "minio"), true
}

// MinIO builds MinIO's server, and returns its binary.
func (c *Cache) MinIO(ctx context.Context) (string, error) {
	dir, err := c.Folder(nil, "minio-"+minioVersion, func(dir string) error {
		fmt.Println("building MinIO", minioVersion, "(several minutes, once)")
		cmd := exec.CommandContext(ctx, "go", "install", "-ldflags", "-s -w", "github.com/minio/minio@"+minioVersion)
		cmd.Env = append(os.Environ(), "GOBIN="+dir, "GOFLAGS=")
		return output(cmd)
	})
	return filepath.Join(dir, "minio"), err
}

// Command runs a program in dir; an error carries the end of what it printed.
func Command(ctx context.Context, dir string, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
	return output(cmd)
}

func output(cmd *exec.Cmd) error {
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		s := strings.TrimSpace(out.String())
		if len(s) > 2000 {
			s = "..." + s[len(s)-2000:]
		}
		return fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, s)
	}
	return nil
}
