package load

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Usage is what processes used while a run was measured, as the kernel tells
// it.
type Usage struct {
	CPUSeconds   float64 `json:"cpu_seconds"` // user and system
	Cores        float64 `json:"cores"`       // CPU seconds for each second
	PeakRSS      int64   `json:"peak_rss_bytes"`
	SecondsPerGB float64 `json:"cpu_seconds_per_gb,omitempty"` // of keys and values that went through
}

// ProcessTimes is what a process has used so far. CPU times are in ticks of
// 10 ms.
type ProcessTimes struct {
	CPU time.Duration
	RSS int64
}

// Times reads what a process has used from /proc.
func Times(pid int) (ProcessTimes, error) {
	var t ProcessTimes
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return t, err
	}
	f := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(f) < 22 {
		return t, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(f))
	}
	num := func(b []byte) int64 { n, _ := strconv.ParseInt(string(b), 10, 64); return n }
	t.CPU = time.Duration(num(f[11])+num(f[12])) * 10 * time.Millisecond
	t.RSS = num(f[21]) * int64(os.Getpagesize())
	return t, nil
}

// watcher samples processes until it is stopped.
type watcher struct {
	pids  []int
	first map[int]ProcessTimes
	begin time.Time
	end   chan struct{}
	done  chan int64 // peak of the sum of resident sets
}

func watch(pids []int) *watcher {
	w := &watcher{pids: pids, first: map[int]ProcessTimes{}, begin: time.Now(), end: make(chan struct{}), done: make(chan int64, 1)}
	for _, p := range pids {
		if t, err := Times(p); err == nil {
			w.first[p] = t
		}
	}
	go func() {
		var peak int64
		every := time.NewTicker(100 * time.Millisecond)
		defer every.Stop()
		for {
			var sum int64
			for _, p := range pids {
				if t, err := Times(p); err == nil {
					sum += t.RSS
				}
			}
			peak = max(peak, sum)
			select {
			case <-every.C:
			case <-w.end:
				w.done <- peak
				return
			}
		}
	}()
	return w
}

func (w *watcher) stop() Usage {
	took := time.Since(w.begin)
	var u Usage
	for _, p := range w.pids {
		t, err := Times(p)
		if err != nil {
			continue
		}
		was := w.first[p]
		u.CPUSeconds += (t.CPU - was.CPU).Seconds()
	}
	close(w.end)
	u.PeakRSS = <-w.done
	u.Cores = u.CPUSeconds / took.Seconds()
	return u
}

// Listener finds the process of this machine that listens at addr, a loopback
// address and port.
func Listener(addr string) (int, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return 0, err
	}
	ip := net.ParseIP(host)
	if host == "localhost" {
		ip = net.IPv4(127, 0, 0, 1)
	}
	if !ip.IsLoopback() {
		return 0, fmt.Errorf("%s is not on this machine", addr)
	}
	want, err := strconv.Atoi(port)
	if err != nil {
		return 0, err
	}
	var inodes []string
	for _, table := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		b, err := os.ReadFile(table)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(b)) {
			f := strings.Fields(line)
			if len(f) < 10 || f[3] != "0A" { // LISTEN
				continue
			}
			_, hexPort, _ := strings.Cut(f[1], ":")
			p, err := hex.DecodeString(hexPort)
			if err == nil && len(p) == 2 && int(p[0])<<8|int(p[1]) == want {
				inodes = append(inodes, "socket:["+f[9]+"]")
			}
		}
	}
	if len(inodes) == 0 {
		return 0, fmt.Errorf("nothing listens at %s", addr)
	}
	fds, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, fd := range fds {
		if to, err := os.Readlink(fd); err == nil && slices.Contains(inodes, to) {
			return strconv.Atoi(strings.Split(fd, "/")[2])
		}
	}
	return 0, errors.New("the process that listens at " + addr + " belongs to somebody else")
}
