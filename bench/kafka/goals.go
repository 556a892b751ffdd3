package main

import (
	"fmt"
	"math"
)

// goal is a line of the table of goals: what must be reached, and where it is
// measured.
type goal struct {
	What string
	Key  string // of the workload
	Case string
	Of   string // metric of Varve
	// Over is what it is divided by: Kafka's figure of the same case, the
	// floor's, or Varve's own of another case. Nothing: the figure itself counts.
	Over     string
	OverCase string // for overCase
	Unit     string
	Least    float64
	Aim      float64
	Less     bool // at most rather than at least
}

const (
	overKafka = "Kafka"
	overFloor = "the floor"
	overCase  = "another case"
	itself    = ""
)

var goals = []goal{
	{What: "produce, 16 KiB batches, fsynced, against Kafka without", Key: "W2", Case: "linger 0", Of: mMBs, Over: overKafka, Unit: "x", Least: 1.5, Aim: 2.5},
	{What: "the same, against the floor", Key: "W2", Case: "linger 0", Of: mMBs, Over: overFloor, Unit: "x", Least: 0.6, Aim: 0.6},
	{What: "produce, 1 MiB batches, fsynced, against Kafka without", Key: "W1", Case: "none", Of: mMBs, Over: overKafka, Unit: "x", Least: 1.0, Aim: 1.5},
	{What: "the same, against the fsynced floor", Key: "W1", Case: "none", Of: mMBs, Over: overFloor, Unit: "x", Least: 0.75, Aim: 0.75},
	{What: "fsync before every ack, 100 partitions", Key: "W9", Case: "100 partitions, 256 in flight", Of: mRecords, Over: overKafka, Unit: "x", Least: 20, Aim: 50},
	{What: "fsync before every ack, 1,000 partitions", Key: "W9", Case: "1,000 partitions, 256 in flight", Of: mRecords, Over: overKafka, Unit: "x", Least: 20, Aim: 50},
	{What: "broker CPU s/GB, produce uncompressed, 16 KiB", Key: "W2", Case: "linger 0", Of: mCPU, Over: overKafka, Unit: "x", Least: 0.6, Aim: 0.4, Less: true},
	{What: "broker CPU s/GB, produce uncompressed, 1 MiB", Key: "W1", Case: "none", Of: mCPU, Over: overKafka, Unit: "x", Least: 0.6, Aim: 0.4, Less: true},
	{What: "broker CPU s/GB, produce compressed, lz4", Key: "W7", Case: "lz4", Of: mCPU, Over: overKafka, Unit: "x", Least: 0.4, Aim: 0.25, Less: true},
	{What: "broker CPU s/GB, fetch of the tail", Key: "W6", Case: "10 groups", Of: mFetchCPU, Over: overKafka, Unit: "x", Least: 0.8, Aim: 0.5, Less: true},
	{What: "end to end p99 at 30 % of Kafka's maximum, against Kafka", Key: "W3", Case: "30 %", Of: mEnd99, Over: overKafka, Unit: "x", Least: 1.0, Aim: 0.5, Less: true},
	{What: "the same, itself", Key: "W3", Case: "30 %", Of: mEnd99, Unit: "ms", Least: math.Inf(1), Aim: 10, Less: true},
	{What: "memory, peak RSS under load, 1 MiB batches", Key: "W1", Case: "none", Of: mRSS, Over: overKafka, Unit: "x", Least: 0.5, Aim: 0.25, Less: true},
	{What: "memory, peak RSS under load, 16 KiB batches", Key: "W2", Case: "linger 0", Of: mRSS, Over: overKafka, Unit: "x", Least: 0.5, Aim: 0.25, Less: true},
	{What: "10,000 partitions: throughput kept", Key: "W8", Case: "10,000 partitions", Of: mMBs, Over: overCase, OverCase: "16 partitions", Unit: "x", Least: 0.9, Aim: 0.97},
	{What: "10,000 partitions: idle CPU", Key: "W8-idle", Case: "10,000 partitions", Of: mIdle, Unit: "%", Least: 2, Aim: 1, Less: true},
	{What: "10,000 partitions: start", Key: "W8-start", Case: "10,000 partitions", Of: mStart, Unit: "s", Least: 10, Aim: 3, Less: true},
	{What: "4 to 400 producers at the same bytes/s: kept", Key: "W5", Case: "400 producers", Of: mMBs, Over: overCase, OverCase: "4 producers", Unit: "x", Least: 0.8, Aim: 0.9},
	{What: "replay from object storage, against raw parallel GET", Key: "W11", Case: "16 partitions, 4 consumers", Of: mOfRaw, Unit: "x", Least: 0.7, Aim: 0.9},
	{What: "replay from object storage, against Kafka", Key: "W11", Case: "16 partitions, 4 consumers", Of: mReplay, Over: overKafka, Unit: "x", Least: 3, Aim: 3},
	{What: "tail p99 while replaying", Key: "W11-tail", Case: "while replaying", Of: mEnd99, Over: overCase, OverCase: "alone", Unit: "x", Least: math.Inf(1), Aim: 1.2, Less: true},
	{What: "restart after kill -9", Key: "W18", Case: "kill -9 under load", Of: mRestart, Unit: "s", Least: 10, Aim: 3, Less: true},
	{What: "10,000 idle connections, each", Key: "W14", Case: "10,000 connections", Of: mConnRSS, Unit: "KiB", Least: 40, Aim: 20, Less: true},

	{What: "RF=3: broker CPU s/GB at 25 MB/s, 16 KiB batches", Key: "RF3", Case: "16 KiB batches, 25 MB/s", Of: mCPU, Over: overKafka, Unit: "x", Least: 0.7, Aim: 0.5, Less: true},
	{What: "RF=3: broker CPU s/GB at 50 MB/s, 1 MiB batches", Key: "RF3", Case: "1 MiB batches, 50 MB/s", Of: mCPU, Over: overKafka, Unit: "x", Least: 0.7, Aim: 0.5, Less: true},
	{What: "RF=3: broker CPU s/GB, produced at 15 MB/s and read by 4 groups", Key: "RF3-tail", Case: "4 groups", Of: mCPU, Over: overKafka, Unit: "x", Least: 0.8, Aim: 0.5, Less: true},
	{What: "kill -9 of a leader: the longest without a write", Key: "W16", Case: "kill -9", Of: mGapMax, Unit: "ms", Least: 3000, Aim: 1000, Less: true},
	{What: "the same, against Kafka", Key: "W16", Case: "kill -9", Of: mGapMax, Over: overKafka, Unit: "x", Least: 0.5, Aim: 0.2, Less: true},
	{What: "kill -9 of a leader that is the controller: the longest without a write", Key: "W16", Case: "kill -9 of the controller", Of: mGapMax, Unit: "ms", Least: 3000, Aim: 1000, Less: true},
	{What: "restart in good order: the longest without a write", Key: "W16", Case: "restart in good order", Of: mGapMax, Unit: "ms", Least: 300, Aim: 300, Less: true},
	{What: "a third of 300 partitions to a new broker, against Kafka", Key: "W17", Case: "300 MB stored", Of: mMoved, Over: overKafka, Unit: "x", Least: 1, Aim: 0.5, Less: true},
	{What: "the same: records that were given up", Key: "W17", Case: "300 MB stored", Of: mErrors, Unit: "", Least: 0, Aim: 0, Less: true},
	{What: "a partition with 10 GB in the bucket is moved", Key: "W17-size", Case: "one partition, one replica", Of: mMoveLargeMax, Unit: "s", Least: 5, Aim: 1, Less: true},
	{What: "the same, against one with 100 MB", Key: "W17-size", Case: "one partition, one replica", Of: mLargeOfSmall, Unit: "x", Least: 1.5, Aim: 1.1, Less: true},
}

// verdict is what a goal has come to.
type verdict struct {
	What     string  `json:"what"`
	Asked    string  `json:"asked"`
	Measured float64 `json:"measured,omitempty"`
	Low      float64 `json:"low,omitempty"`
	High     float64 `json:"high,omitempty"`
	Unit     string  `json:"unit"`
	Result   string  `json:"result"`
	Doubtful bool    `json:"doubtful,omitempty"` // the floor moved in every block
}

const (
	notMeasured = "not measured"
	notReached  = "not reached"
	reached     = "reached"
	aimReached  = "aim reached"
)

func (g goal) asked() string {
	word := "at least"
	if g.Less {
		word = "at most"
	}
	switch {
	case math.IsInf(g.Least, 0):
		return fmt.Sprintf("aim %s %g %s", word, g.Aim, g.Unit)
	case g.Least == g.Aim:
		return fmt.Sprintf("%s %g %s", word, g.Least, g.Unit)
	}
	return fmt.Sprintf("%s %g %s, aim %g", word, g.Least, g.Unit, g.Aim)
}

// evaluate holds the goal against what was measured.
func (g goal) evaluate(tables []*table) verdict {
	v := verdict{What: g.What, Asked: g.asked(), Unit: g.Unit, Result: notMeasured}
	r, ok := g.measured(tables)
	if !ok {
		return v
	}
	v.Measured, v.Low, v.High = r.Value, r.Low, r.High
	for _, t := range tables {
		v.Doubtful = v.Doubtful || t.Key == g.Key && t.doubtful()
	}
	meets := func(limit float64) bool {
		if g.Less {
			return r.Value <= limit
		}
		return r.Value >= limit
	}
	switch {
	case meets(g.Aim):
		v.Result = aimReached
		if g.Aim == g.Least {
			v.Result = reached
		}
	case math.IsInf(g.Least, 0):
		v.Result = "aim not reached"
	case meets(g.Least):
		v.Result = reached
	default:
		v.Result = notReached
	}
	return v
}

func (g goal) measured(tables []*table) (ratio, bool) {
	for _, t := range tables {
		c := t.caseOf(g.Case)
		if t.Key != g.Key || c < 0 {
			continue
		}
		vs := t.values(c, varve, g.Of)
		switch g.Over {
		case overKafka:
			return ratioOf(t.values(c, kafka, g.Of), vs)
		case overFloor:
			f, ok := t.floor(c, g.Of)
			if !ok {
				return ratio{}, false
			}
			return ratioOf(repeat(f, len(vs)), vs)
		case overCase:
			o := t.caseOf(g.OverCase)
			if o < 0 {
				return ratio{}, false
			}
			return ratioOf(t.values(o, varve, g.Of), vs)
		default:
			return ratioOf(repeat(1, len(vs)), vs)
		}
	}
	return ratio{}, false
}

func repeat(v float64, n int) []float64 {
	out := make([]float64, n)
	for i := range out {
		out[i] = v
	}
	return out
}
