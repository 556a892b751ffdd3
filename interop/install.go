package main

import (
	"context"
	"embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"github.com/varve/varve/internal/install"
)

// The programs and the lists of what they need travel inside this one.
//
//go:embed java/pom.xml java/*.java python/*.py python/requirements.txt node/*.mjs node/package.json node/package-lock.json
var sources embed.FS

// installation is where each thing lies.
type installation struct {
	jars   string // folder of jars
	java   string // folder of the Java programs
	python string // folder of a virtual environment with the programs in it
	node   string // folder with the programs and node_modules
	minio  string // the server's binary
	kcat   string
}

// installAll brings what the chosen parts need into the cache.
func installAll(ctx context.Context, chosen map[string]bool) (*installation, error) {
	cache, err := install.Open("varve-interop")
	if err != nil {
		return nil, err
	}
	defer cache.Close()

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
		in.java, err = cache.Folder(sources, "java", func(dir string) error {
			return install.Jars(ctx, dir)
		})
		in.jars = filepath.Join(in.java, "jars")
		return err
	}, "java", "tools", "streams", "connect", "compaction", "restore")
	part(func() (err error) {
		in.python, err = cache.Folder(sources, "python", func(dir string) error {
			if err := install.Command(ctx, dir, "python3", "-m", "venv", "venv"); err != nil {
				return fmt.Errorf("%w (Debian: python3-venv)", err)
			}
			return install.Command(ctx, dir, "venv/bin/python", "-m", "pip", "install", "-q", "--disable-pip-version-check", "-r", "requirements.txt")
		})
		return err
	}, "kafka-python", "confluent", "compaction")
	part(func() (err error) {
		in.node, err = cache.Folder(sources, "node", func(dir string) error {
			// No package here needs its install script; the native parts come ready-made.
			return install.Command(ctx, dir, "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")
		})
		return err
	}, "kafkajs", "platformatic")
	part(func() (err error) {
		in.minio, err = cache.MinIO(ctx)
		return err
	}, "minio")
	part(func() (err error) {
		if in.kcat, err = exec.LookPath("kcat"); err == nil {
			return nil
		}
		if os.Getuid() != 0 {
			return fmt.Errorf("%w: install kcat (Debian: apt-get install kcat)", err)
		}
		if err := install.Command(ctx, "/", "apt-get", "install", "-y", "-qq", "kcat"); err != nil {
			if err := install.Command(ctx, "/", "apt-get", "update", "-qq"); err != nil {
				return err
			}
			if err := install.Command(ctx, "/", "apt-get", "install", "-y", "-qq", "kcat"); err != nil {
				return err
			}
		}
		in.kcat, err = exec.LookPath("kcat")
		return err
	}, "kcat")
	wg.Wait()
	return in, failed
}

func tail(s string, n int) string {
	s = strings.TrimSpace(s)
	if len(s) > n {
		s = "..." + s[len(s)-n:]
	}
	return s
}
