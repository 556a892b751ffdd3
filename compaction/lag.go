package compaction

import (
	"fmt"
	"time"
)

// Worst is the partition of which a figure is largest, and that figure; the zero Worst: it is 0 for all.
type Worst struct {
	Topic     string
	Partition int32
	Value     float64
}

func (w *Worst) at(topic string, partition int32, value float64) {
	if value > w.Value {
		*w = Worst{topic, partition, value}
	}
}

// Lag is how far compaction is behind, by what this worker saw when it last looked at each partition. Durations are in
// seconds and go on growing between two looks.
type Lag struct {
	Dirty   Worst // share of the bytes that may be compacted and are not
	Delay   Worst // for how long a record is dirty that max.compaction.lag.ms wants compacted by now
	Waiting Worst // for how long a round is due, here or at another worker, without having come any further
	Failing Worst // for how long each try has failed

	Delayed      int   // partitions whose Delay is above 0
	FailingBytes int64 // that are dirty, of partitions whose last try failed
}

// Lag tells how far compaction is behind.
func (w *Worker) Lag() (l Lag) {
	now := w.o.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	for key, k := range w.known {
		topic, index := k.policy.Name, key.index
		if _, ok := w.o.Topic(key.topic); !ok {
			continue // deleted
		}
		l.Dirty.at(topic, index, k.dirty)
		if late := now.UnixMilli() - k.behind.Late; k.behind.Bytes > 0 && late > 0 {
			l.Delayed++
			l.Delay.at(topic, index, float64(late)/1000)
		}
		if !k.waits.IsZero() {
			l.Waiting.at(topic, index, now.Sub(k.waits).Seconds())
		}
		if k.fails > 0 {
			l.FailingBytes += k.behind.Bytes
			l.Failing.at(topic, index, now.Sub(k.failed).Seconds())
		}
	}
	return l
}

// looked notes that a look gets on, which counts while no job is under way: looks go on while one hangs.
func (w *Worker) looked() {
	w.mu.Lock()
	working := len(w.crew.at) > 0
	w.mu.Unlock()
	if !working {
		w.alive()
	}
}

// alive notes that work gets on. It is called where anything is read or written for a job, and not by the scrub, which may
// get on while nothing else does.
func (w *Worker) alive() {
	now := w.o.Now()
	w.lively.Store(&now)
}

// Stuck is nil, or tells that for so long nothing was read or written for a job, or looked at if there is none, while Run runs, rests apart. Every request
// has a deadline, and what fails is tried again: it means a defect, and that only a new process gets on.
func (w *Worker) Stuck(after time.Duration) error {
	last := w.lively.Load()
	if last == nil {
		return nil // Run has not begun, or is over
	}
	if idle := w.o.Now().Sub(*last); idle >= after+w.settings().Backoff {
		return fmt.Errorf("compaction: nothing was looked at, read or written for %s", idle.Round(time.Second))
	}
	return nil
}
