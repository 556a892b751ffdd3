package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/varve/varve/bench/load"
)

// workload is a line of the matrix: cases that are measured side by side, on
// brokers of one or several setups. Another workload is another value in the
// list below.
type workload struct {
	Key    string // "W5", or "W5-more" for further rows of W5
	Title  string
	Setup  string  // of its cases, if they do not say otherwise
	Goal   bool    // has a goal: three blocks rather than one
	Scale  float64 // of a side's length; 0: 1
	Blocks int     // 0: three with a goal, one without
	Once   bool    // one way only: it is dear, or a detail
	Full   bool    // not in the quick form
	Long   bool    // only where it is asked for: further rows without a goal, and what takes minutes
	// Cluster workloads are of three brokers, and have a page of their own.
	Cluster bool
	Cases   []kase
	Notes   []string
	// Derive adds what is computed from several sides.
	Derive func(*table)
}

// kase is one load, or another measurement, of a workload.
type kase struct {
	Name       string
	Setup      string
	Partitions int
	Replicas   int // 0: as many as the setup has brokers
	Spec       load.Spec
	RateOf     func(context.Context, *runner) (float64, error)
	Floor      bool        // has a floor: the same load against the bare server
	Only       string      // only on this broker
	Measure    measurement // rather than Spec
	Full       bool        // not in the quick form
}

func (w workload) ID() string {
	id, _, _ := strings.Cut(w.Key, "-")
	return id
}

func (w workload) scale() float64 {
	if w.Scale == 0 {
		return 1
	}
	return w.Scale
}

func (w workload) blocks(quick bool) int {
	switch {
	case quick:
		return 1
	case w.Blocks > 0:
		return w.Blocks
	case w.Goal:
		return 3
	}
	return 1
}

// back is whether a block goes back the way it came. The quick form does so
// only where a goal is held against it.
func (w workload) back(quick bool) bool { return !w.Once && (w.Goal || !quick) }

func (w workload) setups() []string {
	var out []string
	for i := range w.Cases {
		if s := w.Cases[i].setup(w); !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

func (c *kase) setup(w workload) string {
	if c.Setup != "" {
		return c.Setup
	}
	return w.Setup
}

func (c *kase) describe() string {
	if c.Measure != nil {
		return ""
	}
	s := c.Spec
	s.Partitions = c.Partitions
	text := s.String()
	if c.RateOf != nil {
		text = s.Rated()
	}
	if c.Replicas > 0 {
		text += fmt.Sprintf(", replication factor %d", c.Replicas)
	}
	return text
}

// setup is a pair of brokers.
type setup struct {
	Name  string
	Kafka *profile
	Varve []string // settings; nil: no Varve
	// Before starts what Varve needs beside it, and returns further settings.
	Before func(context.Context, *runner, *setupRun) ([]string, error)
	// Prepare makes what is measured.
	Prepare func(context.Context, *runner, *setupRun) error
	Manual  bool     // the measurements start the brokers themselves
	Brokers int      // of each; 0: one, without a cluster
	Spare   int      // brokers that are added by a measurement
	Notes   []string // what of the settings depends on the run, in words
}

var setups = []setup{
	{Name: "default", Kafka: &kafkaDefault, Varve: noUploads},
	{Name: "tuned", Kafka: &kafkaTuned, Varve: noUploads},
	{Name: "fsync", Kafka: &kafkaFsync, Varve: noUploads},
	{Name: "uploads", Varve: []string{"wal.max.bytes=12884901888"}, Before: tmpfsBucket,
		Notes: []string{"a file bucket on tmpfs, remote.flush.interval.ms=60000"}},
	// As young as the pair that it is compared with.
	{Name: "16", Kafka: &kafkaDefault, Varve: noUploads},
	{Name: "1k", Kafka: &kafkaDefault, Varve: noUploads, Prepare: thousands(1_000)},
	{Name: "4k", Kafka: &kafkaDefault, Varve: noUploads, Prepare: thousands(4_000)},
	{Name: "10k", Kafka: &kafkaDefault, Varve: noUploads, Prepare: thousands(10_000)},
	{Name: "20k", Kafka: &kafkaDefault, Varve: noUploads, Prepare: thousands(20_000)},
	{Name: "tiered", Kafka: &kafkaTiered, Varve: []string{}, Before: startBucket, Prepare: fillReplay,
		Notes: []string{"a bucket of a MinIO server, remote.flush.interval.ms=10000, remote.cache.memory.bytes a third of what is replayed, the topics with local.retention.bytes=1"}},
	{Name: "fresh", Kafka: &kafkaDefault, Varve: noUploads, Manual: true},
	{Name: "crash", Kafka: &kafkaDefault, Varve: noUploads, Manual: true},
	{Name: "rf3", Kafka: &kafkaCluster, Varve: noUploads, Brokers: 3, Notes: clusterSettings},
	{Name: "grow", Kafka: &kafkaCluster, Varve: []string{"remote.flush.interval.ms=5000"}, Brokers: 3, Spare: 1, Notes: clusterSettings},
}

// tmpfsBucket is object storage that costs as little as there is: what is
// measured is what uploading costs the broker.
func tmpfsBucket(ctx context.Context, r *runner, run *setupRun) ([]string, error) {
	dir, err := os.MkdirTemp("/dev/shm", "varve-bench-")
	if err != nil {
		return nil, fmt.Errorf("a bucket on tmpfs: %w", err)
	}
	run.stop = func() { os.RemoveAll(dir) }
	return []string{
		"remote.storage.url=file://" + filepath.ToSlash(dir),
		"remote.flush.interval.ms=60000",
		// Memory is short: what is deleted leaves it at once.
		"remote.delete.grace.ms=1000", "log.segment.delete.delay.ms=1000",
	}, nil
}

// The loads that the workloads are variations of.
var (
	headline = load.Spec{Producers: 4, RecordBytes: 1 << 10, Payload: load.Random, BatchBytes: 1 << 20, Linger: 10 * time.Millisecond, Codec: "none", Acks: "all"}
	usual    = load.Spec{Producers: 8, RecordBytes: 1 << 10, Payload: load.Random, BatchBytes: 16 << 10, Codec: "none", Acks: "all"}
)

// with is a load with something changed.
func with(s load.Spec, change func(*load.Spec)) load.Spec {
	change(&s)
	return s
}

func codec(s load.Spec, name string) load.Spec {
	return with(s, func(s *load.Spec) { s.Codec = name })
}

// endToEnd is W3 at a part of what Kafka takes at most.
func endToEnd(part float64, name string) kase {
	return kase{
		Name: name, Partitions: 16, RateOf: share(part),
		Spec: with(usual, func(s *load.Spec) { s.Producers, s.Consumers = 4, 4 }),
	}
}

// producers is W5: the same bytes by ever more clients.
func producers(n int) kase {
	return kase{
		Name: fmt.Sprintf("%d producers", n), Partitions: 288,
		Spec: with(usual, func(s *load.Spec) {
			s.Producers, s.Linger, s.Rate = n, 5*time.Millisecond, 30e6/1024
			s.BufferBytes = max(32<<20*4/n, 1<<20) // as much in all, whoever buffers it
		}),
	}
}

// fanOut is W6: each group reads everything.
func fanOut(groups int) kase {
	name := fmt.Sprintf("%d groups", groups)
	if groups == 1 {
		name = "1 group"
	}
	return kase{
		Name: name, Partitions: 16,
		Spec: with(usual, func(s *load.Spec) {
			s.Producers, s.Consumers, s.Groups, s.Rate = 1, groups, groups, 30e6/1024
			s.Linger = 5 * time.Millisecond
		}),
	}
}

// compressed is W7.
func compressed(name string) kase {
	return kase{
		Name: name, Partitions: 16,
		Spec: load.Spec{Producers: 4, RecordBytes: 1 << 10, Payload: load.JSON, BatchBytes: 64 << 10, Linger: 5 * time.Millisecond, Codec: name, Acks: "all"},
	}
}

// synced is W9: batches of one record, and so many of them unacknowledged.
func synced(partitions, inFlight int) kase {
	n := min(inFlight, 4)
	name := fmt.Sprintf("%d partitions, %d in flight", partitions, inFlight)
	switch partitions {
	case 1:
		name = fmt.Sprintf("1 partition, %d in flight", inFlight)
	case 1000:
		name = fmt.Sprintf("1,000 partitions, %d in flight", inFlight)
	}
	return kase{
		Name: name, Partitions: partitions,
		Spec: load.Spec{
			Producers: n, RecordBytes: 1 << 10, Payload: load.Random, Codec: "none", Acks: "all",
			BatchBytes: 1300, // one record and no other
			InFlight:   inFlight / n, BufferBytes: inFlight / n * (1 << 10),
		},
	}
}

// processed is W13: what is read is written again and committed with its
// offsets. An interval says when, or a number of records.
func processed(name string, every time.Duration, records int, rate float64) kase {
	return kase{
		Name: name, Partitions: 32,
		Spec: with(usual, func(s *load.Spec) {
			s.Producers, s.Processors, s.Consumers, s.Idempotent = 1, 8, 1, true
			s.TxnEvery, s.TxnRecords, s.Rate, s.FetchMaxWait = every, records, rate, 100*time.Millisecond
		}),
	}
}

// transacted is transactions of one record that read nothing: how long the least
// transaction takes, and how many run side by side.
func transacted(name string, partitions, clients int) kase {
	return kase{
		Name: name, Partitions: partitions,
		Spec: with(usual, func(s *load.Spec) {
			s.Producers, s.Processors, s.Consumers, s.TxnRecords = 0, clients, 1, 1
		}),
	}
}

// slowly is a load at another rate, in bytes a second.
func slowly(bytes float64, c kase) kase {
	c.Spec.Rate = bytes / float64(c.Spec.RecordBytes)
	return c
}

func floored(c kase) kase {
	c.Floor = true
	return c
}

func onlyFull(c kase) kase {
	c.Full = true
	return c
}

func on(setup string, c kase) kase {
	c.Setup = setup
	return c
}

// hot is W8: a load on few partitions of a broker that has many.
func hot(name string) kase {
	return kase{Name: name, Partitions: 16, Spec: usual}
}

// many is W8 at another number of partitions: under load, idle, and started.
func many(key, setup, partitions string) workload {
	return workload{Key: key, Title: "the usual load, idle and start with " + partitions, Setup: setup, Long: true, Full: true, Scale: 0.2, Once: true, Blocks: 1, Cases: []kase{
		hot("load on 16 of them"), {Name: "idle", Measure: idle}, {Name: "start", Measure: restart},
	}}
}

// matrix is the workloads in the order in which they run: those that share
// brokers follow each other.
func matrix() []workload {
	return []workload{
		{Key: "W2", Title: "what users run: 16 KiB batches", Setup: "default", Goal: true, Cases: []kase{
			{Name: "linger 0", Partitions: 16, Spec: usual, Floor: true},
		}},
		{Key: "W2-linger", Title: "16 KiB batches, linger 5 ms", Setup: "default", Full: true, Scale: 0.25, Cases: []kase{
			{Name: "linger 5 ms", Partitions: 16, Spec: with(usual, func(s *load.Spec) { s.Linger = 5 * time.Millisecond }), Floor: true},
		}},
		{Key: "W1", Title: "headline: 1 MiB batches", Setup: "default", Goal: true, Cases: []kase{
			{Name: "none", Partitions: 16, Spec: headline, Floor: true},
		}},
		{Key: "W1-lz4", Title: "1 MiB batches, compressed", Setup: "default", Full: true, Scale: 0.25, Cases: []kase{
			{Name: "lz4", Partitions: 16, Spec: with(codec(headline, "lz4"), func(s *load.Spec) { s.Payload = load.JSON }), Floor: true},
		}},
		{Key: "W3", Title: "end to end at a share of the most that Kafka takes in W2", Setup: "default", Goal: true, Scale: 0.4, Cases: []kase{
			floored(endToEnd(0.30, "30 %")),
		}, Notes: []string{"Open loop: latency counts from the moment at which a record should have been sent."}},
		{Key: "W3-more", Title: "end to end at other rates", Setup: "default", Full: true, Scale: 0.2, Once: true, Cases: []kase{
			endToEnd(0.10, "10 %"), endToEnd(0.60, "60 %"), endToEnd(0.80, "80 %"),
		}},
		{Key: "W4", Title: "keyed small records", Setup: "default", Scale: 0.25, Cases: []kase{
			{Name: "200 B, 288 partitions", Partitions: 288, Floor: true, Spec: with(usual, func(s *load.Spec) {
				s.RecordBytes, s.Keys, s.Linger = 200, 2880, 5*time.Millisecond
			})},
		}},
		{Key: "W5", Title: "many producers, the same 30 MB/s", Setup: "default", Goal: true, Scale: 0.25, Cases: []kase{
			floored(producers(4)), producers(400),
		}},
		{Key: "W5-more", Title: "numbers between", Setup: "default", Long: true, Full: true, Scale: 0.2, Once: true, Cases: []kase{
			producers(50), producers(100),
		}},
		{Key: "W6", Title: "fan-out of 30 MB/s", Setup: "default", Goal: true, Derive: fetchAlone, Scale: 0.2, Cases: []kase{
			fanOut(0), floored(fanOut(10)),
		}, Notes: []string{"Fetching alone: the broker's CPU time less what it takes to be produced to as much without a consumer."}},
		{Key: "W6-more", Title: "fan-out, fewer groups", Setup: "default", Full: true, Derive: fetchAlone, Scale: 0.2, Once: true, Cases: []kase{
			fanOut(0), fanOut(1), fanOut(3),
		}},
		{Key: "W6-30", Title: "fan-out of 10 MB/s to thirty groups", Setup: "default", Long: true, Full: true, Derive: fetchAlone, Scale: 0.2, Once: true, Cases: []kase{
			slowly(10e6, fanOut(0)), slowly(10e6, fanOut(30)),
		}, Notes: []string{"A third of the rate of the others: thirty consumers of 30 MB/s take more than two cores by themselves."}},
		{Key: "W7", Title: "compressed batches of 64 KiB, JSON", Setup: "default", Goal: true, Scale: 0.25, Cases: []kase{
			floored(compressed("lz4")),
		}, Notes: []string{"MB are those of the records before compression. The load compresses on the same cores: CPU time for each GB is what to compare, not MB/s."}},
		{Key: "W7-more", Title: "the other codecs", Setup: "default", Full: true, Scale: 0.25, Once: true, Cases: []kase{
			compressed("gzip"), compressed("snappy"), compressed("zstd"),
		}},
		{Key: "W13", Title: "transactions: read, process, write", Setup: "default", Long: true, Full: true, Scale: 0.25, Cases: []kase{
			processed("every 100 ms", 100*time.Millisecond, 0, 5000),
			processed("10 records, back to back", 0, 10, 0),
			transacted("1 record, 1 client", 1, 1),
			transacted("1 record, 8 clients", 32, 8),
		}, Notes: []string{
			"End to end is to a consumer of committed records: with an interval from the intended send time, so that a transaction's own length is in it, and back to back from the transaction's beginning.",
			"The commit is from asking for the transaction's end to the answer; what is not acknowledged yet is waited for in it. Varve has all of it on disk then: the records, the offsets, the decision.",
		}},
		{Key: "groups-commits", Title: "offset commits of 1,000 groups, ten partitions each", Setup: "default", Long: true, Full: true, Scale: 0.2, Cases: []kase{
			{Name: "1 client", Measure: offsetCommits(1)}, {Name: "64 clients", Measure: offsetCommits(64)},
		}, Notes: []string{"Each client has one commit under way. Varve has a commit on disk when it is acknowledged."}},
		{Key: "groups-rebalance", Title: "200 members share 1,000 partitions", Setup: "default", Long: true, Full: true, Blocks: 1, Cases: []kase{
			{Name: "classic, cooperative-sticky", Measure: rebalances("classic")}, {Name: "consumer", Measure: rebalances("consumer")},
		}, Notes: []string{
			"Members are franz-go clients in one process. The time is until each partition has one owner and every member its share, the requests are those about the group that all members sent until then.",
			"Members learn that a rebalance is on with their next heartbeat, every 3 s by the client's default (classic), every 5 s by the brokers' (consumer): that is most of the time, on either broker.",
		}},
		{Key: "W2-uploads", Title: "16 KiB batches with uploads on, to a bucket on tmpfs", Setup: "default", Scale: 0.25, Full: true, Cases: []kase{
			{Name: "no uploads", Partitions: 16, Spec: usual},
			{Name: "uploads", Setup: "uploads", Partitions: 16, Spec: usual, Only: varve},
		}, Notes: []string{"Only Varve uploads here. The bucket's copy is made by the broker itself on the same cores."}},
		{Key: "W8", Title: "the usual load on 16 partitions of a broker that has many", Setup: "16", Goal: true, Scale: 0.2, Cases: []kase{
			floored(hot("16 partitions")), on("10k", hot("10,000 partitions")),
		}},
		{Key: "W8-1k", Title: "the same with 1,000", Setup: "1k", Scale: 0.25, Long: true, Full: true, Cases: []kase{hot("1,000 partitions")}},
		{Key: "W8-idle", Title: "idle with many partitions", Setup: "10k", Goal: true, Blocks: 1, Once: true, Cases: []kase{
			{Name: "10,000 partitions", Measure: idle}, {Name: "16 partitions", Setup: "16", Measure: idle},
		}, Notes: []string{"Over 10 s, in percent of one core."}},
		{Key: "W8-start", Title: "start with many partitions, after an orderly end", Setup: "10k", Goal: true, Blocks: 1, Once: true, Cases: []kase{
			{Name: "10,000 partitions", Measure: restart},
		}, Notes: []string{"From starting the process to the first record produced and fetched."}},
		many("W8-4k", "4k", "4,000 partitions"),
		many("W8-20k", "20k", "20,000 partitions"),
		{Key: "W2-tuned", Title: "16 KiB batches against a tuned Kafka", Setup: "tuned", Scale: 0.25, Full: true, Cases: []kase{
			{Name: "linger 0", Partitions: 16, Spec: usual, Floor: true},
		}},
		{Key: "W1-tuned", Title: "1 MiB batches against a tuned Kafka", Setup: "tuned", Full: true, Scale: 0.25, Cases: []kase{
			{Name: "none", Partitions: 16, Spec: headline, Floor: true},
		}},
		{Key: "W9", Title: "fsync before every acknowledgement, batches of one record", Setup: "fsync", Goal: true, Scale: 0.25, Cases: []kase{
			floored(synced(100, 256)), floored(synced(1000, 256)),
		}, Notes: []string{"Kafka with log.flush.interval.messages=1, so that both do the same. In flight: records that are not acknowledged, of all producers."}},
		{Key: "W9-more", Title: "fewer partitions, fewer in flight", Setup: "fsync", Full: true, Scale: 0.1, Once: true, Cases: []kase{
			synced(1, 1), floored(synced(1, 256)), synced(100, 64), synced(1000, 1),
		}},
		{Key: "W11", Title: "replay from object storage", Setup: "tiered", Goal: true, Once: true, Cases: []kase{
			{Name: "16 partitions, 4 consumers", Measure: replays(manyTopic, 4, true)},
			onlyFull(kase{Name: "the same, by a client library", Measure: replays(manyTopic, 4, false)}),
		}, Notes: []string{
			"Varve reads from MinIO over HTTP on the same cores, Kafka from LocalTieredStorage: files of a directory, no server, no network. That flatters Kafka.",
			"Consumers are plain fetch loops that verify the checksum of every batch and decode no record: object store, broker and consumers share the cores.",
			"The page cache is dropped before, where that is permitted. Varve's chunk cache is smaller than what is replayed.",
		}},
		{Key: "W11-more", Title: "replay from object storage, other numbers of partitions and consumers", Setup: "tiered", Long: true, Full: true, Once: true, Cases: []kase{
			{Name: "16 partitions, 1 consumer", Measure: replays(manyTopic, 1, true)},
			{Name: "1 partition, 1 consumer", Measure: replays(oneTopic, 1, true)},
			{Name: "64 partitions, 1 consumer", Measure: replays(mostTopic, 1, true)},
			{Name: "64 partitions, 4 consumers", Measure: replays(mostTopic, 4, true)},
		}},
		{Key: "W11-tail", Title: "the tail while everything is replayed", Setup: "tiered", Goal: true, Scale: 0.15, Cases: []kase{
			{Name: "alone", Measure: tail(false)}, {Name: "while replaying", Measure: tail(true)},
		}, Notes: []string{"2,000 records/s on another topic; one consumer replays over and over. Load, broker and object store share the cores."}},
		{Key: "W14", Title: "idle connections", Setup: "fresh", Goal: true, Blocks: 1, Once: true, Cases: []kase{
			onlyFull(kase{Name: "1,000 connections", Measure: connections(1_000)}),
			onlyFull(kase{Name: "5,000 connections", Measure: connections(5_000)}),
			{Name: "10,000 connections", Measure: connections(10_000)},
		}, Notes: []string{"The growth of the resident set of a process that has just been started (no warm-up: memory used before would hide it). The JVM's heap hides part of it all the same: what was touched while it started is used again."}},
		{Key: "W14-churn", Title: "connections that come and go", Setup: "fresh", Long: true, Full: true, Blocks: 1, Once: true, Cases: []kase{
			{Name: "200 a second beside 1,000 idle", Measure: churn(200, 1_000)},
		}, Notes: []string{"Each connects, asks for versions and metadata, and leaves. Latency counts from when it should have come to its second answer. Over 10 s."}},
		{Key: "W18", Title: "restart after kill -9", Setup: "crash", Goal: true, Blocks: 1, Once: true, Cases: []kase{
			{Name: "kill -9 under load", Measure: crash(0, 1, 3)},
		}, Notes: []string{"From starting the process to the first record produced and fetched, three times. Nothing of the log is uploaded. The page cache is as the broker left it: warm for Kafka, while Varve's log was written around it. What is on disk has files among it that are prepared or to be used again."}},
		{Key: "W18-10k", Title: "restart after kill -9 with 10,000 partitions more", Setup: "crash", Long: true, Full: true, Blocks: 1, Once: true, Cases: []kase{
			{Name: "kill -9 under load", Measure: crash(10_000, 0.2, 2)},
		}, Notes: []string{"As W18, a fifth of the log, twice. Each of the partitions that nobody uses has one record."}},

		{Key: "RF3", Title: "three brokers, replication factor 3, acks=all, min.insync.replicas=2", Setup: "rf3", Cluster: true, Goal: true, Blocks: 1, Scale: 0.4, Cases: []kase{
			offered(usual, "16 KiB batches, 25 MB/s", 25), offered(headline, "1 MiB batches, 50 MB/s", 50),
			{Name: "16 KiB batches, as fast as taken", Partitions: 16, Spec: usual}, {Name: "1 MiB batches, as fast as taken", Partitions: 16, Spec: headline},
		}, Notes: []string{
			"Varve has every record on disk on two brokers at least before it acknowledges it, Kafka in the page cache of two at least.",
			"Broker CPU is that of the three brokers. Kafka's controllers are in it; what Varve has beside the brokers (three members of etcd, the S3 server) is shown for itself.",
		}},
		{Key: "RF3-tail", Title: "the tail of a topic with replication factor 3, read from its leaders", Setup: "rf3", Cluster: true, Goal: true, Blocks: 1, Scale: 0.4, Derive: fetchAlone, Cases: []kase{
			tailOf(0), tailOf(4),
		}, Notes: []string{"Fetching alone: the brokers' CPU time less what it takes to be produced to as much without a consumer."}},
		{Key: "RF3-cost", Title: "what replication and partitions cost, the same 15 MB/s", Setup: "rf3", Cluster: true, Goal: true, Blocks: 1, Scale: 0.4, Cases: []kase{
			costOf("replication factor 1", 16, 1), costOf("replication factor 3", 16, 3),
			costOf("1 partition", 1, 3), costOf("1,000 partitions", 1000, 3), onlyFull(costOf("10,000 partitions", 10_000, 3)),
		}, Notes: []string{"Batches are of 16 KiB whatever the number of partitions: a producer fills one, and goes to the next partition."}},
		{Key: "W16", Title: "a broker that leads a third of 300 partitions is lost, or restarted, under load", Setup: "rf3", Cluster: true, Goal: true, Blocks: 1, Once: true, Cases: []kase{
			{Name: "kill -9", Measure: lose(killed)}, {Name: "kill -9 of the controller", Measure: lose(killedController)},
			{Name: "restart in good order", Measure: lose(restarted)},
		}, Notes: []string{
			fmt.Sprintf("One record of 1 KiB is in flight to each partition, the next %s after its acknowledgement, which is part of every figure. A partition's time without a write is the longest between two acknowledgements.", failoverPause),
			"Both with their defaults for how long a broker that is silent has (broker.session.timeout.ms). Varve's brokers do not wait for it where the address of the lost one refuses connections.",
		}},
		{Key: "W17", Title: "a broker is added, and a third of 300 partitions is moved to it under load", Setup: "grow", Cluster: true, Goal: true, Blocks: 1, Once: true, Cases: []kase{
			{Name: "300 MB stored", Measure: grow(300e6)},
		}, Notes: []string{
			"The load is that of W16. What is moved is the first replica of each of the partitions, the leader: a third of what is stored. Bytes copied are what the new broker's process has read until the move was over, the load's own records among them.",
			"Varve's history is in the bucket (remote.flush.interval.ms=5000), Kafka's in its logs.",
		}},
		{Key: "W17-size", Title: "a partition is moved between two brokers, by what is stored of it", Setup: "grow", Cluster: true, Goal: true, Blocks: 1, Once: true, Cases: []kase{
			{Name: "one partition, one replica", Measure: moveSizes(map[string][]int64{kafka: {smallMove, middleMove}, varve: {smallMove, middleMove, largeMove}})},
		}, Notes: []string{
			"Six moves of each, in turn, while a record is in flight to the partition; the median, and the longest. Kafka is not given the largest: it copies all of it.",
			"`varve bench reassign` measures the same of any cluster.",
		}},
	}
}

// offered is a load at so many MB/s, of which both take more.
func offered(s load.Spec, name string, mb float64) kase {
	return kase{Name: name, Partitions: 16, Spec: with(s, func(s *load.Spec) { s.Rate, s.Linger = mb*1e6/float64(s.RecordBytes), 5*time.Millisecond })}
}

// tailOf is 15 MB/s that so many groups read.
func tailOf(groups int) kase {
	c := fanOut(groups)
	c.Spec.Rate = 15e6 / 1024
	return c
}

func costOf(name string, partitions, replicas int) kase {
	c := offered(usual, name, 15)
	c.Partitions, c.Replicas, c.Only = partitions, replicas, varve
	return c
}

func workloadOf(key string) workload {
	for _, w := range matrix() {
		if w.Key == key {
			return w
		}
	}
	panic("no workload " + key)
}

// choose picks the workloads that run.
func choose(only string, quick, long, cluster bool) ([]workload, error) {
	var wanted []string
	for name := range strings.SplitSeq(only, ",") {
		if name = strings.TrimSpace(name); name != "" {
			wanted = append(wanted, name)
		}
	}
	for _, name := range wanted {
		if !slices.ContainsFunc(matrix(), func(w workload) bool { return w.Key == name || w.ID() == name }) {
			var keys []string
			for _, w := range matrix() {
				keys = append(keys, w.Key)
			}
			return nil, fmt.Errorf("there is no workload %q; there are: %s", name, strings.Join(keys, ", "))
		}
	}
	var out []workload
	for _, w := range matrix() {
		if len(wanted) > 0 && !slices.Contains(wanted, w.Key) && !slices.Contains(wanted, w.ID()) {
			continue
		}
		if w.Long && !long && !slices.Contains(wanted, w.Key) {
			continue
		}
		if len(wanted) == 0 && w.Cluster != cluster {
			continue
		}
		if quick && w.Full && !slices.Contains(wanted, w.Key) {
			continue
		}
		if quick {
			w.Cases = slices.DeleteFunc(slices.Clone(w.Cases), func(c kase) bool { return c.Full })
		}
		out = append(out, w)
	}
	return out, nil
}
