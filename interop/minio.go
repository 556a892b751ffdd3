package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/internal/child"
)

const (
	tieredTopic     = "interop-tiered"
	tieredParts     = 4
	tieredRecords   = 20_000    // of about 1 KiB
	tieredLogBytes  = 128 << 20 // of the broker's log
	tierPatience    = 2 * time.Minute
	outageRecords   = 200 // a second
	outageInSeconds = "VARVE_INTEROP_OUTAGE_SECONDS"
)

// tierStatus is what `varve tier status -o json` says of a partition.
type tierStatus struct {
	Topic         string `json:"topic"`
	Partition     int32  `json:"partition"`
	LogStart      int64  `json:"log_start"`
	LocalStart    int64  `json:"local_start"`
	RemoteEnd     int64  `json:"remote_end"`
	HighWatermark int64  `json:"high_watermark"`
	Objects       int64  `json:"objects"`
	Bytes         int64  `json:"bytes"`
	UploadLagMs   int64  `json:"upload_lag_ms"`
}

// tiered is a broker on a real MinIO server, and what the checks before have left for the next.
type tiered struct {
	*harness
	varve        string
	dir          string
	minioAddr    string
	server       *child.Process
	broker       *child.Varve
	cl           *kgo.Client
	adm          *kadm.Client
	local        [][]byte // per partition: the batches as they were on local disk
	sent         [][]string
	cacheMissing int64 // chunks that the first replay had to download
}

// minio runs the checks of object storage. Each needs the one before it.
func (h *harness) minio(ctx context.Context, varve string) {
	t := &tiered{harness: h, varve: varve, dir: filepath.Join(h.work, "minio"), sent: make([][]string, tieredParts)}
	defer t.close()
	for _, c := range []struct {
		name string
		f    func(context.Context) error
	}{
		{"a broker on a bucket of a MinIO server", t.start},
		{"both client libraries pass the acceptance test of buckets", t.accept},
		{"records are acknowledged and read back from local disk", t.produceLocally},
		{"they are uploaded and leave local disk", t.tier},
		{"the replay from object storage has the same bytes", t.replay},
		{"a second replay is served from the chunk cache", t.replayAgain},
		{"while MinIO is away, producing goes on", t.outage},
		{"with the log at its bound, producers are told to try again, and nothing else breaks", t.bound},
		{"when it is back, the backlog drains by itself", t.drain},
		{"every record is there, once, in order", t.everything},
		{"SIGTERM drains and exits 0", func(context.Context) error { return t.broker.Stop() }},
	} {
		if !h.check("minio", c.name, func() error { return c.f(ctx) }) {
			if t.broker != nil {
				h.skip("minio", "the rest", "each check needs the one before; "+t.broker.Tail())
			}
			return
		}
	}
}

// accept runs the acceptance test of buckets, which `make test` runs against a server in process, against this one.
func (t *tiered) accept(ctx context.Context) error {
	const test = "TestAcceptRealMinio"
	cmd := exec.CommandContext(ctx, "go", "test", "-count=1", "-v", "-run", "^"+test+"$", "github.com/varve/varve/tiering/objstore")
	cmd.Env = append(os.Environ(), "VARVE_TEST_MINIO="+t.minioAddr, "AWS_ACCESS_KEY_ID="+child.MinIOUser, "AWS_SECRET_ACCESS_KEY="+child.MinIOPassword,
		"MINIO_ROOT_USER="+child.MinIOUser, "MINIO_ROOT_PASSWORD="+child.MinIOPassword)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	for _, library := range []string{"minio", "s3"} {
		if !bytes.Contains(out, []byte("--- PASS: "+test+"/"+library)) {
			return fmt.Errorf("the test says nothing of %s:\n%s", library, out)
		}
	}
	return nil
}

func (t *tiered) close() {
	if t.cl != nil {
		t.adm.Close()
	}
	if t.broker != nil {
		t.broker.Stop()
	}
	if t.server != nil {
		t.server.Kill()
	}
}

func (t *tiered) startMinio(ctx context.Context) (err error) {
	t.server, err = child.StartMinIO(ctx, t.installed.minio, t.dir, t.minioAddr)
	return err
}

func (t *tiered) start(ctx context.Context) (err error) {
	if err := os.MkdirAll(t.dir, 0o755); err != nil {
		return err
	}
	if t.minioAddr, err = child.FreeAddr(); err != nil {
		return err
	}
	if err := t.startMinio(ctx); err != nil {
		return err
	}
	// The broker takes MinIO's credentials from a file.
	creds := filepath.Join(t.dir, "credentials")
	if err := child.WriteCredentials(creds); err != nil {
		return err
	}
	if t.broker, err = startVarve(ctx, t.varve, filepath.Join(t.dir, "broker"),
		"remote.storage.url=minio://"+t.minioAddr+"/interop/log?create=true&credentials_file="+creds,
		"wal.max.bytes="+strconv.Itoa(tieredLogBytes)); err != nil {
		return err
	}
	if t.cl, err = kgo.NewClient(kgo.SeedBrokers(t.broker.Addr), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.RecordDeliveryTimeout(time.Minute), kgo.ProducerBatchCompression(kgo.Lz4Compression(), kgo.NoCompression())); err != nil {
		return err
	}
	t.adm = kadm.NewClient(t.cl)
	created, err := t.adm.CreateTopics(ctx, tieredParts, 1, nil, tieredTopic)
	if err == nil {
		err = created.Error()
	}
	return err
}

// send produces n records to partition p and remembers their values.
func (t *tiered) send(ctx context.Context, p int32, values []string) error {
	errs := make(chan error, len(values))
	var failed atomic.Int64
	for i, v := range values {
		r := &kgo.Record{Topic: tieredTopic, Partition: p, Key: []byte(strconv.Itoa(i % 100)), Value: []byte(v)}
		t.cl.Produce(ctx, r, func(_ *kgo.Record, err error) {
			if err != nil {
				failed.Add(1)
			}
			errs <- err
		})
	}
	var first error
	for range values {
		if err := <-errs; err != nil && first == nil {
			first = err
		}
	}
	if first != nil {
		return fmt.Errorf("%d of %d records of partition %d were not acknowledged: %w", failed.Load(), len(values), p, first)
	}
	t.sent[p] = append(t.sent[p], values...)
	return nil
}

func (t *tiered) produceLocally(ctx context.Context) (err error) {
	rng := rand.New(rand.NewPCG(3, 4))
	for p := range int32(tieredParts) {
		values := make([]string, tieredRecords/tieredParts)
		for i := range values {
			noise := make([]byte, 400+rng.IntN(400))
			for j := range noise {
				noise[j] = byte(rng.Uint32())
			}
			values[i] = fmt.Sprintf("%d/%d %s %x", p, i, noise, noise[:100])
		}
		if err := t.send(ctx, p, values); err != nil {
			return err
		}
	}
	t.local, err = t.raw(ctx)
	return err
}

// status asks as a user would, and calls done for each partition of the topic until it is content with all.
func (t *tiered) status(ctx context.Context, done func(tierStatus) error) error {
	return child.Eventually(ctx, tierPatience, func() error {
		cmd := exec.CommandContext(ctx, t.varve, "tier", "status", tieredTopic, "-o", "json", "--admin-url", t.broker.Admin)
		var errs bytes.Buffer
		cmd.Stderr = &errs
		out, err := cmd.Output()
		if err != nil {
			return fmt.Errorf("varve tier status: %w: %s", err, errs.String())
		}
		var list []tierStatus
		if err := json.Unmarshal(out, &list); err != nil {
			return fmt.Errorf("varve tier status: %w", err)
		}
		if len(list) != tieredParts {
			return fmt.Errorf("varve tier status names %d partitions, want %d: %s", len(list), tieredParts, out)
		}
		for _, s := range list {
			if err := done(s); err != nil {
				return fmt.Errorf("%w: %+v", err, s)
			}
		}
		return nil
	})
}

func (t *tiered) allRemote(s tierStatus) error {
	switch {
	case s.HighWatermark != int64(len(t.sent[s.Partition])):
		return fmt.Errorf("high watermark is not %d", len(t.sent[s.Partition]))
	case s.RemoteEnd != s.HighWatermark:
		return errors.New("not all is uploaded")
	case s.LocalStart != s.RemoteEnd:
		return errors.New("not all that is uploaded has left local disk")
	case s.LogStart != 0 || s.Objects == 0 || s.Bytes == 0:
		return errors.New("not what was sent")
	}
	return nil
}

func (t *tiered) tier(ctx context.Context) error {
	changed, err := t.adm.AlterTopicConfigs(ctx, []kadm.AlterConfig{{Op: kadm.SetConfig, Name: "local.retention.bytes", Value: kadm.StringPtr("1")}}, tieredTopic)
	if err != nil {
		return err
	}
	for _, c := range changed {
		if c.Err != nil {
			return c.Err
		}
	}
	return t.status(ctx, t.allRemote)
}

func (t *tiered) replay(ctx context.Context) error {
	_, missed, err := t.cache()
	if err != nil {
		return err
	}
	if err := t.sameBytes(ctx); err != nil {
		return err
	}
	_, after, err := t.cache()
	t.cacheMissing = after - missed
	if err == nil && t.cacheMissing == 0 {
		err = errors.New("no chunk was downloaded: was this a replay from object storage?")
	}
	return err
}

func (t *tiered) replayAgain(ctx context.Context) error {
	hits, missed, err := t.cache()
	if err != nil {
		return err
	}
	if err := t.sameBytes(ctx); err != nil {
		return err
	}
	hitsAfter, missedAfter, err := t.cache()
	if err == nil && (missedAfter != missed || hitsAfter == hits) {
		err = fmt.Errorf("%d chunks downloaded (the first replay: %d), %d found in the cache", missedAfter-missed, t.cacheMissing, hitsAfter-hits)
	}
	return err
}

// sameBytes compares the batches of each partition with those that were read before any was uploaded.
func (t *tiered) sameBytes(ctx context.Context) error {
	remote, err := t.raw(ctx)
	if err != nil {
		return err
	}
	for p := range remote {
		if !bytes.Equal(remote[p], t.local[p]) {
			return fmt.Errorf("partition %d: %d bytes from object storage, %d from local disk, and they differ", p, len(remote[p]), len(t.local[p]))
		}
	}
	return nil
}

// cache reads the broker's own counters of chunks found and downloaded.
func (t *tiered) cache() (hits, misses int64, err error) {
	resp, err := http.Get(t.broker.Admin + "/metrics")
	if err != nil {
		return 0, 0, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, 0, err
	}
	found := 0
	for line := range strings.Lines(string(b)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		f, _ := strconv.ParseFloat(value, 64)
		switch name {
		case "varve_cache_hits_total":
			hits, found = int64(f), found+1
		case "varve_cache_misses_total":
			misses, found = int64(f), found+1
		}
	}
	if found != 2 {
		err = errors.New("/metrics has no varve_cache_hits_total and varve_cache_misses_total")
	}
	return hits, misses, err
}

// outage stops MinIO and produces for a while.
func (t *tiered) outage(ctx context.Context) error {
	t.server.Kill()
	seconds := 60
	if s := os.Getenv(outageInSeconds); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			return fmt.Errorf("%s: %w", outageInSeconds, err)
		}
		seconds = n
	}
	for i := range seconds {
		started := time.Now()
		for p := range int32(tieredParts) {
			values := make([]string, outageRecords/tieredParts)
			for j := range values {
				values[j] = fmt.Sprintf("outage %d/%d/%d", p, i, j)
			}
			if err := t.send(ctx, p, values); err != nil {
				return err
			}
		}
		time.Sleep(time.Until(started.Add(time.Second)))
	}
	return t.status(ctx, func(s tierStatus) error {
		if s.RemoteEnd >= s.HighWatermark || s.UploadLagMs == 0 {
			return errors.New("uploaded to a server that is not there")
		}
		return nil
	})
}

// bound fills the log until nothing is taken any more, however small.
func (t *tiered) bound(ctx context.Context) error {
	const p = 0
	cl, err := kgo.NewClient(kgo.SeedBrokers(t.broker.Addr), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.DisableIdempotentWrite(), kgo.RecordRetries(0), kgo.ProducerBatchCompression(kgo.NoCompression()))
	if err != nil {
		return err
	}
	defer cl.Close()
	before, taken := len(t.sent[p]), 0
	for size := 500_000; size > 0; size /= 4 {
		for {
			v := fmt.Sprintf("bound %d %s", len(t.sent[p]), strings.Repeat("x", size))
			err := cl.ProduceSync(ctx, &kgo.Record{Topic: tieredTopic, Partition: p, Value: []byte(v)}).FirstErr()
			if err == nil {
				t.sent[p] = append(t.sent[p], v)
				if taken += size; taken > 2*tieredLogBytes {
					return fmt.Errorf("%d bytes taken by a log that may have %d", taken, tieredLogBytes)
				}
				continue
			}
			if !errors.Is(err, kerr.NotEnoughReplicas) || !kerr.IsRetriable(kerr.NotEnoughReplicas) {
				return fmt.Errorf("after %d bytes: %w, want NOT_ENOUGH_REPLICAS", taken, err)
			}
			break
		}
	}
	if taken < tieredLogBytes/4 {
		return fmt.Errorf("refused after %d bytes; the log may have %d", taken, tieredLogBytes)
	}
	// What was taken is read, topics are made, and groups commit.
	in, err := kgo.NewClient(kgo.SeedBrokers(t.broker.Addr), kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{tieredTopic: {p: kgo.NewOffset().At(int64(before))}}))
	if err != nil {
		return err
	}
	defer in.Close()
	ctx, cancel := context.WithTimeout(ctx, tierPatience)
	defer cancel()
	for n := before; n < len(t.sent[p]); {
		fs := in.PollFetches(ctx)
		if err := fs.Err(); err != nil {
			return fmt.Errorf("read at the bound, offset %d of %d: %w", n, len(t.sent[p]), err)
		}
		for it := fs.RecordIter(); !it.Done(); n++ {
			if r := it.Next(); r.Offset != int64(n) || string(r.Value) != t.sent[p][n] {
				return fmt.Errorf("%.60q at offset %d, which is not record %d", r.Value, r.Offset, n)
			}
		}
	}
	if _, err := t.adm.CreateTopic(ctx, 1, 1, nil, tieredTopic+"-more"); err != nil {
		return fmt.Errorf("a topic at the bound: %w", err)
	}
	var offsets kadm.Offsets
	offsets.Add(kadm.Offset{Topic: tieredTopic, Partition: p, At: 1, LeaderEpoch: -1})
	committed, err := t.adm.CommitOffsets(ctx, tieredTopic, offsets)
	if err == nil {
		err = committed.Error()
	}
	if err != nil {
		return fmt.Errorf("commit of offsets at the bound: %w", err)
	}
	return nil
}

func (t *tiered) drain(ctx context.Context) error {
	if err := t.startMinio(ctx); err != nil {
		return err
	}
	return t.status(ctx, t.allRemote)
}

// everything reads all records as a consumer does.
func (t *tiered) everything(ctx context.Context) error {
	cl, err := kgo.NewClient(kgo.SeedBrokers(t.broker.Addr), kgo.ConsumeTopics(tieredTopic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		return err
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(ctx, tierPatience)
	defer cancel()
	next, total := make([]int, tieredParts), 0
	for _, s := range t.sent {
		total += len(s)
	}
	for n := 0; n < total; {
		fs := cl.PollFetches(ctx)
		if err := fs.Err(); err != nil {
			return fmt.Errorf("after %d of %d records: %w", n, total, err)
		}
		for it := fs.RecordIter(); !it.Done(); n++ {
			r := it.Next()
			i := next[r.Partition]
			if i >= len(t.sent[r.Partition]) || r.Offset != int64(i) || string(r.Value) != t.sent[r.Partition][i] {
				return fmt.Errorf("partition %d: %.60q at offset %d, which is not record %d", r.Partition, r.Value, r.Offset, i)
			}
			next[r.Partition]++
		}
	}
	return nil
}

// raw fetches the batches of every partition from the first offset to the high watermark, as bytes.
func (t *tiered) raw(ctx context.Context) ([][]byte, error) {
	meta, err := t.adm.ListTopics(ctx, tieredTopic)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, tierPatience)
	defer cancel()
	out := make([][]byte, tieredParts)
	for p := range int32(tieredParts) {
		for next, end := int64(0), int64(len(t.sent[p])); next < end; {
			req := kmsg.NewPtrFetchRequest()
			req.MaxWaitMillis, req.MinBytes, req.MaxBytes, req.SessionEpoch = 1000, 1, 8<<20, -1
			rt := kmsg.NewFetchRequestTopic()
			rt.Topic, rt.TopicID = tieredTopic, meta[tieredTopic].ID
			rp := kmsg.NewFetchRequestTopicPartition()
			rp.Partition, rp.FetchOffset, rp.PartitionMaxBytes, rp.CurrentLeaderEpoch = p, next, 4<<20, -1
			rt.Partitions = append(rt.Partitions, rp)
			req.Topics = append(req.Topics, rt)
			kresp, err := t.cl.Broker(int(meta[tieredTopic].Partitions[p].Leader)).RetriableRequest(ctx, req)
			if err != nil {
				return nil, err
			}
			resp := kresp.(*kmsg.FetchResponse)
			if err := kerr.ErrorForCode(resp.ErrorCode); err != nil {
				return nil, err
			}
			if len(resp.Topics) != 1 || len(resp.Topics[0].Partitions) != 1 {
				return nil, fmt.Errorf("partition %d is not in the answer", p)
			}
			part := resp.Topics[0].Partitions[0]
			if err := kerr.ErrorForCode(part.ErrorCode); err != nil {
				return nil, fmt.Errorf("partition %d at %d: %w", p, next, err)
			}
			// Whole batches: base offset, length, and at byte 23 the offset delta of the last record.
			for b := part.RecordBatches; len(b) >= 61; {
				size := 12 + int(binary.BigEndian.Uint32(b[8:]))
				if size > len(b) {
					break
				}
				if base := int64(binary.BigEndian.Uint64(b)); base != next {
					return nil, fmt.Errorf("partition %d: a batch at %d, want %d", p, base, next)
				}
				next += int64(binary.BigEndian.Uint32(b[23:])) + 1
				out[p] = append(out[p], b[:size]...)
				b = b[size:]
			}
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
		}
	}
	return out, nil
}
