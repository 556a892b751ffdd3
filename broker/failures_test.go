package broker

import (
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/varve/varve/wal"
)

// lines are what was logged.
type lines []string

func (l *lines) Write(b []byte) (int, error) {
	*l = append(*l, string(b))
	return len(b), nil
}

func (l *lines) count(part string) (n int) {
	for _, s := range *l {
		if strings.Contains(s, part) {
			n++
		}
	}
	return n
}

type refusingLog struct {
	Log
	stats wal.Stats
}

func (l *refusingLog) Stats() wal.Stats { return l.stats }

// However often something fails, it is told a few times, and hides nothing else.
func TestFailuresHideNoOthers(t *testing.T) {
	log := &refusingLog{}
	r := uncleanly(t, log, nil)
	var told lines
	b := r.b
	b.log = slog.New(slog.NewTextHandler(&told, nil))
	for range 1000 {
		b.lookupFailed(r, errors.New("no bucket"))
	}
	if n := told.count("lookup by timestamp failed"); n < 10 || n > 20 {
		t.Errorf("1000 failures of lookups were told %d times", n)
	}
	for _, c := range []struct {
		stats wal.Stats
		want  string
	}{
		{wal.Stats{Full: true}, "the write-ahead log is at its bound"},
		{wal.Stats{Full: true, DiskFull: true}, "the disk of the write-ahead log is full"},
		{wal.Stats{Full: true, NoFiles: true}, "too many open files"},
	} {
		log.stats = c.stats
		for range 1000 {
			b.appendCode(wal.ErrNoSpace)
		}
		if n := told.count("producers are refused: " + c.want); n == 0 || n > 3 {
			t.Errorf("%s: 1000 refusals were told %d times", c.want, n)
		}
	}
}

// It is told that producers are refused when that begins, when the reason changes, and once a minute; and no more of reasons
// that take turns.
func TestRefusalsAreCounted(t *testing.T) {
	var r producerRefusals
	now := time.Unix(1e9, 0)
	var told []int64
	at := func(d time.Duration, why refusal) {
		if n, tell := r.count(why, now.Add(d)); tell {
			told = append(told, int64(d/time.Second), int64(why), n)
		}
	}
	for s := range 130 {
		at(time.Duration(s)*time.Second, atBound)
		if s >= 30 && s < 100 {
			at(time.Duration(s)*time.Second, diskFull)
		}
	}
	at(time.Hour, diskFull)
	want := []int64{0, 0, 1, 30, 1, 1, 60, 0, 60, 90, 1, 60, 120, 0, 60, 3600, 1, 10}
	if !slices.Equal(told, want) {
		t.Errorf("told at, why, how many: %v, want %v", told, want)
	}
}
