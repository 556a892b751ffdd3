package tiering

import (
	"math"

	"github.com/varve/varve/tiering/manifest"
)

// Decisions, as functions of what is known and of now. The runtime carries them
// out.

// verdict is what to do with the records of a partition that are not uploaded.
type verdict int

const (
	wait   verdict = iota // nothing to do yet
	follow                // may go along in a mixed object that is made anyway
	flush                 // must go; in a mixed object
	own                   // must go; in an object of its own
)

// pending is what waits for upload in one partition.
type pending struct {
	bytes    int64
	oldestMs int64 // append time of the oldest of them
}

// decide says whether a partition's records are due. A flush interval seals
// whatever segment.ms says, and segment.ms may seal sooner; size seals at once.
func decide(p Policy, o *Options, w pending, nowMs int64, jitter float64, urgent bool) verdict {
	if w.bytes <= 0 || p.CopyDisabled {
		return wait
	}
	age := max(0, nowMs-w.oldestMs)
	if !urgent && lags(p, w, age) {
		return wait
	}
	if w.bytes >= target(p, o) {
		return own
	}
	switch due := age >= flushAge(p, o, jitter) || urgent; {
	case due && w.bytes >= o.OwnBytes:
		return own
	case due:
		return flush
	case w.bytes < o.OwnBytes:
		return follow
	}
	return wait // soon in an object of its own
}

// flushAge is how old (ms) the oldest record gets before it must go.
func flushAge(p Policy, o *Options, jitter float64) int64 {
	limit := o.FlushInterval.Milliseconds()
	if p.FlushIntervalMs > 0 {
		limit = p.FlushIntervalMs
	}
	if p.SegmentMs > 0 {
		limit = min(limit, max(1, p.SegmentMs-int64(jitter*float64(p.SegmentJitterMs))))
	}
	return limit
}

// restsUntil is until when (ms) a verdict of wait or follow stands if nothing is added, 0 if that is not known.
func restsUntil(p Policy, o *Options, w pending, jitter float64) int64 {
	if p.CopyLagMs != 0 && p.CopyLagBytes != 0 {
		return 0
	}
	if p.CopyDisabled {
		return math.MaxInt64 // a change of that is found by the look that is due anyway
	}
	return w.oldestMs + flushAge(p, o, jitter)
}

// lags tells whether the records are still to be held back from the bucket: as
// long as the oldest is younger than remote.copy.lag.ms and there are not more
// than remote.copy.lag.bytes of them. A lag of -1 follows local retention, and
// that of -2 follows retention: then there is no time or size at which the
// records would have to go, other than that the log needs the room.
func lags(p Policy, w pending, ageMs int64) bool {
	inherit := func(lag, local, total int64) int64 {
		if lag == -1 {
			lag = local
		}
		if lag == -2 {
			lag = total
		}
		if lag < 0 {
			return math.MaxInt64
		}
		return lag
	}
	if p.CopyLagMs == 0 || p.CopyLagBytes == 0 {
		return false
	}
	byTime := ageMs < inherit(p.CopyLagMs, p.LocalRetentionMs, p.RetentionMs)
	if p.CopyLagBytes < 0 {
		return byTime // remote.copy.lag.bytes of -1: time alone decides
	}
	return byTime && w.bytes <= p.CopyLagBytes
}

// target is the size at which an object is full.
func target(p Policy, o *Options) int64 {
	if p.SegmentBytes > 0 {
		return min(p.SegmentBytes, o.TargetBytes)
	}
	return o.TargetBytes
}

// size of what a partition holds beside the entries: local records above the
// remote end.
type retained struct {
	remote int64 // bytes of live entries
	local  int64 // bytes above the remote end
}

// expired tells whether the oldest entry may go, given what there is in all:
// every record of it is older than retention.ms, or without it there is still
// retention.bytes left.
func expired(p Policy, e manifest.Entry, total retained, nowMs int64) bool {
	if !p.Delete {
		return false
	}
	ts := e.MaxTimestamp
	if ts < 0 {
		ts = e.Created // records without timestamps: as of the upload
	}
	if p.RetentionMs >= 0 && ts < nowMs-p.RetentionMs {
		return true
	}
	return p.RetentionBytes >= 0 && total.remote+total.local-e.Bytes >= p.RetentionBytes
}
