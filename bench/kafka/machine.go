package main

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func execCommand(name string, args ...string) *exec.Cmd { return exec.Command(name, args...) }

// machineState is what the whole machine has done so far.
type machineState struct {
	at    time.Time
	busy  time.Duration // of all cores
	stall time.Duration // somebody waited for the disk
}

func machineNow() machineState {
	m := machineState{at: time.Now()}
	if b, err := os.ReadFile("/proc/stat"); err == nil {
		f := strings.Fields(strings.SplitN(string(b), "\n", 2)[0])
		// user nice system idle iowait irq softirq steal
		for i, v := range f {
			if n, err := strconv.ParseInt(v, 10, 64); err == nil && i <= 8 && i != 4 && i != 5 {
				m.busy += time.Duration(n) * 10 * time.Millisecond
			}
		}
	}
	if b, err := os.ReadFile("/proc/pressure/io"); err == nil {
		for _, f := range strings.Fields(strings.SplitN(string(b), "\n", 2)[0]) {
			if v, ok := strings.CutPrefix(f, "total="); ok {
				n, _ := strconv.ParseInt(v, 10, 64)
				m.stall = time.Duration(n) * time.Microsecond
			}
		}
	}
	return m
}

// coresSince is how many cores were busy, or given to another machine.
func (m machineState) coresSince(before machineState) float64 {
	return (m.busy - before.busy).Seconds() / m.at.Sub(before.at).Seconds()
}

func (m machineState) stalledSince(before machineState) float64 {
	return 100 * (m.stall - before.stall).Seconds() / m.at.Sub(before.at).Seconds()
}

// machineInfo describes where the figures come from.
type machineInfo struct {
	CPU        string `json:"cpu"`
	Cores      int    `json:"cores"`
	MemoryGB   string `json:"memory"`
	Kernel     string `json:"kernel"`
	FileSystem string `json:"file_system"`
	Go         string `json:"go"`
	Java       string `json:"java"`
	Kafka      string `json:"kafka"`
	Varve      string `json:"varve"`
}

func describeMachine(dir, varve string) machineInfo {
	m := machineInfo{CPU: "unknown", Cores: runtime.NumCPU(), Go: runtime.Version(), Java: javaVersion(), Kafka: kafkaVersion()}
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(b)) {
			k, v, _ := strings.Cut(line, ":")
			if strings.TrimSpace(k) == "model name" {
				m.CPU = strings.TrimSpace(v)
				break
			}
		}
	}
	if b, err := os.ReadFile("/proc/meminfo"); err == nil {
		f := strings.Fields(string(b))
		if len(f) > 1 {
			kb, _ := strconv.ParseInt(f[1], 10, 64)
			m.MemoryGB = fmt.Sprintf("%.1f GiB", float64(kb)/(1<<20))
		}
	}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.Kernel = unix.ByteSliceToString(u.Sysname[:]) + " " + unix.ByteSliceToString(u.Release[:])
	}
	m.FileSystem = fileSystem(dir)
	if out, err := exec.Command(varve, "version").Output(); err == nil {
		m.Varve = strings.TrimSpace(strings.SplitN(string(out), "\n", 2)[0])
	}
	if bi, ok := debug.ReadBuildInfo(); ok && m.Varve == "" {
		m.Varve = bi.Main.Version
	}
	return m
}

// fileSystem is the type and device of what a directory lies on.
func fileSystem(dir string) string {
	b, err := os.ReadFile("/proc/mounts")
	if err != nil {
		return "unknown"
	}
	best, name := "", "unknown"
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 4 {
			continue
		}
		at := strings.TrimSuffix(f[1], "/")
		if (dir == f[1] || strings.HasPrefix(dir, at+"/")) && len(f[1]) >= len(best) {
			best, name = f[1], fmt.Sprintf("%s (%s)", f[2], f[3])
		}
	}
	return name
}

// raiseFiles allows as many open files as thousands of partitions and
// connections need, for this process and its children. Setting it explicitly
// also keeps Go from giving children the old limit back.
func raiseFiles(want uint64) (uint64, error) {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return 0, err
	}
	if l.Max < want {
		// Root may go above the hard limit.
		if syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: want, Max: want}) == nil {
			return want, nil
		}
		want = l.Max
	}
	return want, syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: want, Max: l.Max})
}

func freeBytes(dir string) int64 {
	var st unix.Statfs_t
	if unix.Statfs(dir, &st) != nil {
		return 0
	}
	return int64(st.Bavail) * st.Bsize
}

// blocksOf is what a file takes on disk, which is less than its size where it
// has holes.
func blocksOf(path string) int64 {
	var st unix.Stat_t
	if unix.Lstat(path, &st) != nil {
		return 0
	}
	return st.Blocks * 512
}

// writtenTo is how many bytes the device below a directory has been given to
// write, by anybody. The kernel also counts for each process, but by the pages
// that it made dirty, which with large folios is many times what it wrote.
func writtenTo(dir string) int64 { return sectorsOf(dir, 6) }

// givenTo is that and how many bytes it was told to discard.
func givenTo(dir string) int64 { return sectorsOf(dir, 6) + sectorsOf(dir, 13) }

// sectorsOf is a column of the device's statistics, in bytes.
func sectorsOf(dir string, column int) int64 {
	var st unix.Stat_t
	if unix.Stat(dir, &st) != nil {
		return 0
	}
	b, err := os.ReadFile(fmt.Sprintf("/sys/dev/block/%d:%d/stat", unix.Major(st.Dev), unix.Minor(st.Dev)))
	f := strings.Fields(string(b))
	if err != nil || len(f) <= column {
		return 0
	}
	n, _ := strconv.ParseInt(f[column], 10, 64)
	return n * 512
}
