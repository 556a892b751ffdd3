package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
)

// The programs and the lists of what they need travel inside this one.
//
//go:embed java/pom.xml java/Interop.java python/*.py python/requirements.txt node/*.mjs node/package.json node/package-lock.json
var sources embed.FS

// minioVersion is the last commit of MinIO's server; its images are no longer published.
const minioVersion = "v0.0.0-20260212201848-7aac2a2c5b7c"

// installation is where each thing lies.
type installation struct {
	jars   string // folder of jars
	java   string // folder of Interop.java
	python string // folder of a virtual environment with the programs in it
	node   string // folder with the programs and node_modules
	minio  string // the server's binary
	kcat   string
}

// install brings what the chosen parts need into the cache. A cached folder is named by the hash of
// what it was made from and gets that name when it is complete.
func install(ctx context.Context, chosen map[string]bool) (*installation, error) {
	base, err := os.UserCacheDir()
	if err != nil {
		return nil, err
	}
	base = filepath.Join(base, "varve-interop")
	if err := os.MkdirAll(base, 0o755); err != nil {
		return nil, err
	}
	// One installation at a time: another run may share the cache.
	lock, err := os.OpenFile(filepath.Join(base, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return nil, err
	}

	in := &installation{}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var failed error
	part := func(f func() error, names ...string) {
		for _, n := range names {
			if chosen[n] {
				wg.Go(func() {
					if err := f(); err != nil {
						mu.Lock()
						failed = err
						mu.Unlock()
					}
				})
				return
			}
		}
	}
	part(func() (err error) {
		in.java, err = cached(base, "java", func(dir string) error {
			for _, tool := range []string{"java", "mvn"} {
				if _, err := exec.LookPath(tool); err != nil {
					return fmt.Errorf("%w: install a JDK 17 and Maven", err)
				}
			}
			return command(ctx, dir, "mvn", "-q", "-B", "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies",
				"-DincludeScope=runtime", "-DoutputDirectory="+filepath.Join(dir, "jars"))
		})
		in.jars = filepath.Join(in.java, "jars")
		return err
	}, "java", "tools")
	part(func() (err error) {
		in.python, err = cached(base, "python", func(dir string) error {
			if err := command(ctx, dir, "python3", "-m", "venv", "venv"); err != nil {
				return fmt.Errorf("%w (Debian: python3-venv)", err)
			}
			return command(ctx, dir, "venv/bin/python", "-m", "pip", "install", "-q", "--disable-pip-version-check", "-r", "requirements.txt")
		})
		return err
	}, "kafka-python", "confluent")
	part(func() (err error) {
		in.node, err = cached(base, "node", func(dir string) error {
			// No package here needs its install script; the native parts come ready-made.
			return command(ctx, dir, "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")
		})
		return err
	}, "kafkajs", "platformatic")
	part(func() (err error) {
		dir, err := cached(base, "minio-"+minioVersion, func(dir string) error {
			fmt.Println("building MinIO", minioVersion, "(several minutes, once)")
			cmd := exec.CommandContext(ctx, "go", "install", "-ldflags", "-s -w", "github.com/minio/minio@"+minioVersion)
			cmd.Env = append(os.Environ(), "GOBIN="+dir, "GOFLAGS=")
			return output(cmd)
		})
		in.minio = filepath.Join(dir, "minio")
		return err
	}, "minio")
	part(func() (err error) {
		if in.kcat, err = exec.LookPath("kcat"); err == nil {
			return nil
		}
		if os.Getuid() != 0 {
			return fmt.Errorf("%w: install kcat (Debian: apt-get install kcat)", err)
		}
		if err := command(ctx, "/", "apt-get", "install", "-y", "-qq", "kcat"); err != nil {
			if err := command(ctx, "/", "apt-get", "update", "-qq"); err != nil {
				return err
			}
			if err := command(ctx, "/", "apt-get", "install", "-y", "-qq", "kcat"); err != nil {
				return err
			}
		}
		in.kcat, err = exec.LookPath("kcat")
		return err
	}, "kcat")
	wg.Wait()
	return in, failed
}

// cached returns the folder NAME-HASH in base: the sources of that name, and what fill adds. The
// programs are not part of the hash; they are written anew each time.
func cached(base, name string, fill func(dir string) error) (string, error) {
	h := sha256.New()
	var programs, lists []string
	if _, err := fs.Stat(sources, name); err == nil {
		entries, err := sources.ReadDir(name)
		if err != nil {
			return "", err
		}
		for _, e := range entries {
			file := path.Join(name, e.Name())
			switch path.Ext(file) {
			case ".java", ".py", ".mjs":
				programs = append(programs, file)
			default:
				lists = append(lists, file)
				b, err := sources.ReadFile(file)
				if err != nil {
					return "", err
				}
				h.Write(b)
			}
		}
	}
	dir := filepath.Join(base, name+"-"+hex.EncodeToString(h.Sum(nil))[:12])
	done := filepath.Join(dir, ".complete")
	if _, err := os.Stat(done); err != nil {
		// A virtual environment and npm's links hold absolute paths: it is made in its place.
		if err := os.RemoveAll(dir); err != nil {
			return "", err
		}
		if err := write(dir, lists); err != nil {
			return "", err
		}
		if err := fill(dir); err != nil {
			return "", err
		}
		if err := os.WriteFile(done, nil, 0o644); err != nil {
			return "", err
		}
	}
	return dir, write(dir, programs)
}

func write(dir string, files []string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, f := range files {
		b, err := sources.ReadFile(f)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, path.Base(f)), b, 0o644); err != nil {
			return err
		}
	}
	return nil
}

func command(ctx context.Context, dir string, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
	return output(cmd)
}

// output runs cmd; an error carries the end of what it printed.
func output(cmd *exec.Cmd) error {
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, tail(out.String(), 2000))
	}
	return nil
}

func tail(s string, n int) string {
	s = strings.TrimSpace(s)
	if len(s) > n {
		s = "..." + s[len(s)-n:]
	}
	return s
}
