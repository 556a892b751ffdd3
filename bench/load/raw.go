package load

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/wal/batch"
)

// rawFetch is the version of Fetch that raw consumers speak: one that every broker serves, and the floor.
const rawFetch = 11

var rawFormatter = kmsg.NewRequestFormatter(kmsg.FormatterClientID("varve-bench-raw"))

// rawConsumer reads partitions with plain Fetch requests and looks at their batches only: headers, checksums. What a
// client library makes of the records costs as much as the broker does, and is not what a replay is to show.
type rawConsumer struct {
	r    *run
	conn net.Conn
	in   *bufio.Reader
	body []byte
	corr uint32
	next map[int32]int64
	todo []int32 // partitions to read, the one that has waited longest first
}

// replayRaw reads every partition to the offset at hand with Consumers goroutines for each leader.
func (r *run) replayRaw(ctx context.Context, left map[int32]int64) error {
	cl, err := kgo.NewClient(r.options("varve-bench-raw")...)
	if err != nil {
		return fmt.Errorf("load: consumer: %w", err)
	}
	defer cl.Close()
	req := kmsg.NewPtrMetadataRequest()
	topic := kmsg.NewMetadataRequestTopic()
	topic.Topic = &r.spec.Topic
	req.Topics = append(req.Topics, topic)
	meta, err := req.RequestWith(ctx, cl)
	if err != nil {
		return fmt.Errorf("load: metadata of %s: %w", r.spec.Topic, err)
	}
	addr := map[int32]string{}
	for _, b := range meta.Brokers {
		addr[b.NodeID] = net.JoinHostPort(b.Host, strconv.Itoa(int(b.Port)))
	}
	type owner struct {
		consumer int
		leader   int32
	}
	parts := map[owner][]int32{}
	led := 0
	for _, t := range meta.Topics {
		for _, p := range t.Partitions {
			if _, ok := left[p.Partition]; ok && addr[p.Leader] != "" {
				o := owner{int(p.Partition) % r.spec.Consumers, p.Leader}
				parts[o] = append(parts[o], p.Partition)
				led++
			}
		}
	}
	if led != len(left) {
		return fmt.Errorf("load: %d of %d partitions of %s have a leader", led, len(left), r.spec.Topic)
	}
	errs := make(chan error, len(parts))
	for o, list := range parts {
		slices.Sort(list)
		go func() {
			errs <- r.rawRead(ctx, addr[o.leader], list, left)
		}()
	}
	for range parts {
		if e := <-errs; e != nil && err == nil {
			err = e
		}
	}
	return err
}

func (r *run) rawRead(ctx context.Context, addr string, parts []int32, left map[int32]int64) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return fmt.Errorf("load: %w", err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	c := &rawConsumer{r: r, conn: conn, in: bufio.NewReader(conn), todo: parts, next: map[int32]int64{}}
	for _, p := range parts {
		c.next[p] = r.extents[p].Start
	}
	for len(c.todo) > 0 {
		if err := c.fetch(left); err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return fmt.Errorf("load: fetch from %s: %w", addr, err)
		}
	}
	return nil
}

// fetch asks once for all that is left to read, and takes the answer.
func (c *rawConsumer) fetch(left map[int32]int64) error {
	req := kmsg.NewFetchRequest()
	req.SetVersion(rawFetch)
	req.MaxWaitMillis, req.MinBytes, req.MaxBytes = int32(c.r.spec.FetchMaxWait/time.Millisecond), int32(max(c.r.spec.FetchMinBytes, 1)), int32(c.r.spec.FetchMaxBytes)
	req.SessionEpoch = -1
	topic := kmsg.NewFetchRequestTopic()
	topic.Topic = c.r.spec.Topic
	for _, p := range c.todo {
		part := kmsg.NewFetchRequestTopicPartition()
		part.Partition, part.FetchOffset, part.PartitionMaxBytes = p, c.next[p], int32(c.r.spec.PartitionMaxBytes)
		part.CurrentLeaderEpoch = -1
		topic.Partitions = append(topic.Partitions, part)
	}
	req.Topics = append(req.Topics, topic)
	c.corr++
	b := rawFormatter.AppendRequest(nil, &req, int32(c.corr))
	c.conn.SetDeadline(time.Now().Add(30*time.Second + c.r.spec.FetchMaxWait))
	if _, err := c.conn.Write(b); err != nil {
		return err
	}
	var size [4]byte
	if _, err := io.ReadFull(c.in, size[:]); err != nil {
		return err
	}
	n := int(binary.BigEndian.Uint32(size[:]))
	if n < 4 || n > 2*c.r.spec.FetchMaxBytes+(16<<20) {
		return fmt.Errorf("an answer of %d bytes", n)
	}
	if cap(c.body) < n {
		c.body = make([]byte, n+n/4)
	}
	body := c.body[:n]
	if _, err := io.ReadFull(c.in, body); err != nil {
		return err
	}
	if got := binary.BigEndian.Uint32(body); got != c.corr {
		return fmt.Errorf("the answer is that of request %d, not %d", got, c.corr)
	}
	resp := kmsg.NewFetchResponse()
	resp.SetVersion(rawFetch)
	if err := resp.ReadFrom(body[4:]); err != nil {
		return err
	}
	if resp.ErrorCode != 0 {
		return fmt.Errorf("error %d", resp.ErrorCode)
	}
	c.r.consumed.requests.Add(1)
	c.r.consumed.wire.Add(int64(n + 4))
	for _, t := range resp.Topics {
		for i := range t.Partitions {
			if err := c.take(&t.Partitions[i], left); err != nil {
				return err
			}
		}
	}
	return nil
}

// take counts what an answer has of a partition. The last batch may be cut off, as Kafka sends them.
func (c *rawConsumer) take(p *kmsg.FetchResponseTopicPartition, left map[int32]int64) error {
	if p.ErrorCode != 0 {
		return fmt.Errorf("partition %d: error %d", p.Partition, p.ErrorCode)
	}
	at := slices.Index(c.todo, p.Partition)
	if at < 0 {
		return fmt.Errorf("partition %d was not asked for", p.Partition)
	}
	next := c.next[p.Partition]
	counted := &c.r.consumed
	err := batch.Walk(p.RecordBatches, func(h batch.Header, b []byte) error {
		if h.NextOffset() <= next {
			return nil
		}
		if err := batch.VerifyCRC(b); err != nil {
			return fmt.Errorf("partition %d at offset %d: %w", p.Partition, h.BaseOffset, err)
		}
		next = h.NextOffset()
		counted.records.Add(int64(h.RecordCount))
		counted.bytes.Add(int64(len(b) - batch.HeaderSize))
		counted.batches.Add(1)
		counted.batchRecords.Add(int64(h.RecordCount))
		counted.batchBytes.Add(int64(len(b)))
		return nil
	})
	if err != nil && !(errors.Is(err, batch.ErrShort) && next > c.next[p.Partition]) {
		return err
	}
	if next == c.next[p.Partition] {
		return nil
	}
	c.next[p.Partition] = next
	c.todo = slices.Delete(c.todo, at, at+1)
	if next < left[p.Partition] {
		c.todo = append(c.todo, p.Partition)
	}
	return nil
}
