package main

import (
	"bufio"
	"errors"
	"math"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
)

// What may be wrong with the file itself: exit 2 before anything is opened,
// every problem on a line of its own with its place.
func TestConfigurationFiles(t *testing.T) {
	dir := t.TempDir()
	file := func(name, content string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	// Not enough to start with, so that nothing here starts a broker.
	const some = "node.id=1\nlog.dirs=/nowhere\n"
	big := file("big", "#"+strings.Repeat("x", 1<<20)+"\n", 0o600)
	link := filepath.Join(dir, "link")
	if err := os.Symlink(file("target", some+"num.partitions=many\n", 0o600), link); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		what, path string
		want       []string
		not        string
	}{
		{"missing", filepath.Join(dir, "nope"), []string{"varve: --config: open ", "no such file or directory"}, ""},
		{"a directory", dir, []string{"varve: --config: read ", "is a directory"}, ""},
		{"no end", "/dev/zero", []string{"varve: --config: /dev/zero has more than the 1048576 bytes"}, ""},
		{"too long", big, []string{"has more than the 1048576 bytes"}, ""},
		{"byte order mark", file("bom", "\ufeff"+some, 0o600), []string{"bom:1: the file begins with a byte order mark"}, ""},
		{"twice, two of them", file("twice", some+"node.id=2\nlog.dirs=/b\n", 0o600), []string{
			"twice:3: node.id is set again; line 1 sets it already\n", "twice:4: log.dirs is set again; line 2 sets it already\n"}, `\n`},
		{"a symbolic link", link, []string{"link:3: Invalid value \"many\" for configuration num.partitions"}, ""},
		{"a secret that others may read", file("open", some+"etcd.password=s3cret\n", 0o644), []string{"open holds a password and others may read it: chmod 600 "}, "s3cret"},
		{"a secret that others may not read", file("closed", some+"etcd.password=s3cret\n", 0o600), []string{"etcd.endpoints is not set"}, "others may read"},
		{"nothing to hide", file("plain", some, 0o644), []string{"remote.storage.url is not set"}, "others may read"},
		{"a bucket that is no bucket", file("gs", some+"remote.storage.url=gs://bucket\n", 0o600), []string{"gs:3: Invalid value \"gs://bucket\""}, "remote.storage.url is not set"},
	} {
		r := varve(t, "", "broker", "--config", c.path)
		if r.code != exitUsage {
			t.Errorf("%s: exit %d, want %d", c.what, r.code, exitUsage)
		}
		for _, w := range c.want {
			if !strings.Contains(r.errOut, w) {
				t.Errorf("%s: %q is not in\n%s", c.what, w, r.errOut)
			}
		}
		if c.not != "" && strings.Contains(r.errOut, c.not) {
			t.Errorf("%s: %q is in\n%s", c.what, c.not, r.errOut)
		}
	}
}

// A listener for brokers that there is not (B32): one line says so, with its
// place, and nothing was opened or made.
func TestInterBrokerListener(t *testing.T) {
	for _, c := range []struct{ what, lines, message string }{
		{"no such listener", "listeners=PLAINTEXT://127.0.0.1:0\ninter.broker.listener.name=INSIDE\n", ":6: inter.broker.listener.name is INSIDE, which is not among listeners"},
		{"not advertised", "listeners=PLAINTEXT://127.0.0.1:0,INSIDE://127.0.0.1:0\nlistener.security.protocol.map=PLAINTEXT:PLAINTEXT,INSIDE:PLAINTEXT\n" +
			"advertised.listeners=PLAINTEXT://127.0.0.1:9092\ninter.broker.listener.name=inside\n", ":8: inter.broker.listener.name is INSIDE, which is not among advertised.listeners"},
	} {
		dir := t.TempDir()
		file, logs := filepath.Join(dir, "server.properties"), filepath.Join(dir, "wal")
		text := "node.id=1\nlog.dirs=" + logs + "\netcd.endpoints=http://127.0.0.1:1\nremote.storage.url=file://" + filepath.Join(dir, "objects") + "\n" + c.lines
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		r := varve(t, "", "broker", "--config", file)
		var errors []string
		for line := range strings.Lines(r.errOut) {
			if strings.HasPrefix(line, "error: ") {
				errors = append(errors, line)
			}
		}
		if r.code != exitUsage || len(errors) != 1 || !strings.Contains(errors[0], file+c.message) {
			t.Errorf("%s: exit %d\n%s", c.what, r.code, r.errOut)
		}
		if _, err := os.Stat(logs); err == nil {
			t.Errorf("%s: the log directory was made", c.what)
		}
	}
}

// startLogged starts a process and returns the lines that it logs.
func startLogged(t *testing.T, cmd *exec.Cmd) *bufio.Scanner {
	t.Helper()
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return bufio.NewScanner(stderr)
}

// Every signal that asks a server to end drains it: exit 0, and the next one
// has what was acknowledged. A hangup under nohup is none.
func TestServerSignals(t *testing.T) {
	dir := t.TempDir()
	bin := filepath.Join(dir, "varve")
	if out, err := exec.Command("go", "build", "-o", bin, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	bootstrap := regexp.MustCompile(`bootstrap_server=(\S+)`)
	for i, signals := range [][]syscall.Signal{{syscall.SIGTERM}, {syscall.SIGINT}, {syscall.SIGHUP}, {syscall.SIGHUP, syscall.SIGTERM}} {
		if i == 2 && signal.Ignored(syscall.SIGHUP) {
			continue // these tests run under nohup, and so would the server: the next case is that
		}
		command := `exec "$0" "$@"`
		if len(signals) > 1 {
			command = `trap "" HUP; ` + command // as nohup
		}
		listen := "127.0.0.1:0"
		if l, err := net.Listen("tcp", "[::1]:0"); err == nil && i == 1 { // what is printed can be given to a client
			listen = "[::1]:0"
			l.Close()
		}
		cmd := exec.Command("bash", "-c", command, bin, "dev", "--data-dir", filepath.Join(dir, "data"), "--set", "listeners=PLAINTEXT://"+listen,
			"--set", "admin.listener=127.0.0.1:0", "--set", "wal.max.bytes=67108864")
		lines := startLogged(t, cmd)
		var log strings.Builder
		until := func(what string) string {
			for lines.Scan() {
				log.WriteString(lines.Text() + "\n")
				if strings.Contains(lines.Text(), what) {
					return lines.Text()
				}
			}
			cmd.Wait()
			t.Fatalf("%v: no %q in\n%s", signals, what, log.String())
			return ""
		}
		addr := bootstrap.FindStringSubmatch(until("bootstrap_server="))[1]
		until("serving metrics and health")
		varve(t, "line\n", "produce", "t", "-b", addr, "-q").want(t, 0, "", "")
		if r := varve(t, "", "consume", "t", "-b", addr, "--from-beginning", "-e", "-q"); r.out != strings.Repeat("line\n", i+1) {
			t.Errorf("%v: exit %d, after %d of them: %q %s", signals, r.code, i, r.out, r.errOut)
		}
		for _, s := range signals[:len(signals)-1] {
			if err := cmd.Process.Signal(s); err != nil {
				t.Fatal(err)
			}
			varve(t, "", "topic", "list", "-b", addr).want(t, 0, "t ", "")
		}
		if err := cmd.Process.Signal(signals[len(signals)-1]); err != nil {
			t.Fatal(err)
		}
		until("msg=stopped")
		if err := cmd.Wait(); err != nil {
			t.Errorf("%v: %v\n%s", signals, err, log.String())
		}
	}
	// So does one that still waits for the etcd that it knew.
	waiting := filepath.Join(dir, "waiting")
	if err := errors.Join(os.Mkdir(waiting, 0o700), os.WriteFile(filepath.Join(waiting, "metadata.seen"), []byte(`{"v":1,"cluster":"MkU3OEVBNTcwNTJENDM2Qk","revision":7}`), 0o600)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(bin, "broker", "--set", "node.id=1", "--set", "log.dirs="+waiting, "--set", "listeners=PLAINTEXT://127.0.0.1:0",
		"--set", "admin.listener=", "--set", "remote.storage.url=mem://", "--set", "etcd.endpoints=http://127.0.0.1:1")
	var log strings.Builder
	for lines := startLogged(t, cmd); lines.Scan(); {
		log.WriteString(lines.Text() + "\n")
		if strings.Contains(lines.Text(), "etcd does not answer yet") {
			cmd.Process.Signal(syscall.SIGTERM)
		}
	}
	if err := cmd.Wait(); err != nil || !strings.Contains(log.String(), "stopped before it served") {
		t.Errorf("waiting for etcd: %v\n%s", err, log.String())
	}
}

// The limit that counts is the least of those from the process's own group up to the root, in both versions.
func TestCgroupMemory(t *testing.T) {
	const none = int64(math.MaxInt64)
	for _, c := range []struct {
		name, membership string
		files            map[string]string
		want             int64
	}{
		{"none", "0::/\n", nil, none},
		{"no limit", "0::/\n", map[string]string{"memory.max": "max\n"}, none},
		{"container", "0::/\n", map[string]string{"memory.max": "536870912\n"}, 536870912},
		{"service", "0::/system.slice/varve.service\n", map[string]string{"system.slice/varve.service/memory.max": "max", "system.slice/memory.max": "1000", "memory.max": "2000"}, 1000},
		{"its own", "0::/system.slice/varve.service\n", map[string]string{"system.slice/varve.service/memory.max": "500\n", "system.slice/memory.max": "1000"}, 500},
		{"version 1", "3:cpuset:/\n4:cpu,memory:/a/b\n0::/\n", map[string]string{"memory/a/b/memory.limit_in_bytes": "700", "memory/memory.limit_in_bytes": "9223372036854771712"}, 700},
		{"a container of version 1", "4:memory:/docker/0123\n", map[string]string{"memory/memory.limit_in_bytes": "800"}, 800},
		{"both", "4:memory:/a\n0::/b\n", map[string]string{"memory/a/memory.limit_in_bytes": "800", "unified/b/memory.max": "600"}, 600},
		{"nothing known", "", map[string]string{"memory.max": "900"}, 900},
	} {
		dir := t.TempDir()
		root := filepath.Join(dir, "cgroup")
		for name, content := range c.files {
			if err := os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(root, name), []byte(content), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		membership := filepath.Join(dir, "membership")
		if err := os.WriteFile(membership, []byte(c.membership), 0o644); err != nil {
			t.Fatal(err)
		}
		if got := cgroupMemory(membership, root); got != c.want {
			t.Errorf("%s: %d, want %d", c.name, got, c.want)
		}
	}
}
