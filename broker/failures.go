package broker

import (
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// failures bound what is logged of what fails again and again, each kind by itself: none hides another.
type failures struct {
	localRead, coldRead, lookup   *rate.Limiter
	damage, markers, inSync       *rate.Limiter
	copyBrokeOff, copiedPartition *rate.Limiter
	overShare                     *rate.Limiter
}

func newFailures() failures {
	kind := func() *rate.Limiter { return rate.NewLimiter(rate.Every(10*time.Second), 10) }
	return failures{
		localRead: kind(), coldRead: kind(), lookup: kind(),
		damage: kind(), markers: kind(), inSync: kind(),
		copyBrokeOff: kind(), copiedPartition: kind(),
		overShare: rate.NewLimiter(rate.Every(time.Minute), 1),
	}
}

// refusal is why producers are refused.
type refusal int

const (
	atBound refusal = iota
	diskFull
	noFiles
	refusalReasons
)

// refusalMessages are what clients are told.
var refusalMessages = [refusalReasons]string{
	atBound:  "the write-ahead log is at its bound (wal.max.bytes): object storage is behind or away",
	diskFull: "the disk of the write-ahead log is full",
	noFiles:  "the broker has too many open files",
}

const refusalsTold = time.Minute

// producerRefusals decides when it is told that producers are refused: when that begins or the reason changes, and then once a
// minute. A reason that comes and goes is told no more often than one that stays.
type producerRefusals struct {
	mu  sync.Mutex
	why [refusalReasons]struct {
		told  time.Time
		since int64 // refused since then
	}
}

// count counts one that is refused at now, and says whether to tell it, with how many were for that reason since that was
// last told.
func (r *producerRefusals) count(why refusal, now time.Time) (n int64, tell bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	x := &r.why[why]
	x.since++
	if !x.told.IsZero() && now.Sub(x.told) < refusalsTold {
		return 0, false
	}
	n = x.since
	x.told, x.since = now, 0
	return n, true
}
