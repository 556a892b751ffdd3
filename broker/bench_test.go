package broker_test

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/cmd/varve/servertest"
	"github.com/varve/varve/wal/batch"
	"github.com/varve/varve/wal/vfs"
)

// What a request costs from socket to socket: time and allocations of the
// client, which only writes a prepared frame and skips the answer, are in it.
// The log's syncs are skipped (unsyncedFS), so that what is measured is the
// code and not the disk of whoever runs it; `go run ./bench/wire` measures with
// them, beside a bare server that does the same.

// unsyncedFS is the operating system's file system without its fsyncs.
type unsyncedFS struct{ vfs.OS }

func (u unsyncedFS) Create(name string) (vfs.File, error) {
	f, err := u.OS.Create(name)
	return unsyncedFile{f}, err
}

func (u unsyncedFS) Open(name string) (vfs.File, error) {
	f, err := u.OS.Open(name)
	return unsyncedFile{f}, err
}

type unsyncedFile struct{ vfs.File }

func (unsyncedFile) Sync() error { return nil }

func benchBroker(b *testing.B, partitions int) *servertest.Broker {
	br := servertest.Start(b, servertest.Options{FS: unsyncedFS{}, Settings: map[string]string{
		"remote.flush.interval.ms": "3600000", "remote.object.bytes": "1073741824", "wal.segment.bytes": "67108864",
		"num.partitions": fmt.Sprint(partitions), "message.max.bytes": "16777216", "local.retention.bytes": "1",
		"wal.max.bytes": "8589934592",
	}})
	br.CreateTopic("bench", int32(partitions))
	return br
}

func benchBatch(size int) []byte {
	bb := batch.NewBuilder()
	value := make([]byte, 1000)
	for i := range value {
		value[i] = byte(i * 7)
	}
	for bb.Len() == 0 || bb.Size()+1010 <= size {
		bb.Add(1_790_000_000_000, nil, value[:max(1, min(len(value), size-bb.Size()-20))])
	}
	raw, err := bb.Build()
	if err != nil {
		panic(err)
	}
	return raw
}

func benchFrame(req kmsg.Request) []byte {
	return kmsg.NewRequestFormatter(kmsg.FormatterClientID("bench")).AppendRequest(nil, req, 1)
}

// pipeline sends b.N frames over a connection, depth of them under way.
func pipeline(b *testing.B, addr string, depth int, frame func(i int) []byte) {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	slots := make(chan struct{}, depth)
	done := make(chan error, 1)
	go func() {
		br := bufio.NewReaderSize(c, 64<<10)
		var size [4]byte
		for range b.N {
			if _, err := io.ReadFull(br, size[:]); err != nil {
				done <- err
				return
			}
			if _, err := br.Discard(int(binary.BigEndian.Uint32(size[:]))); err != nil {
				done <- err
				return
			}
			<-slots
		}
		done <- nil
	}()
	for i := range b.N {
		slots <- struct{}{}
		if _, err := c.Write(frame(i)); err != nil {
			b.Fatal(err)
		}
	}
	if err := <-done; err != nil {
		b.Fatal(err)
	}
}

func BenchmarkProduce(b *testing.B) {
	for _, size := range []int{1 << 10, 16 << 10, 1 << 20} {
		for _, partitions := range []int{1, 100} {
			b.Run(fmt.Sprintf("%dB/%dpartitions", size, partitions), func(b *testing.B) {
				br := benchBroker(b, partitions)
				raw := benchBatch(size)
				frames := make([][]byte, partitions)
				for p := range frames {
					req := kmsg.NewPtrProduceRequest()
					req.SetVersion(9)
					req.Acks, req.TimeoutMillis = -1, 30000
					req.Topics = []kmsg.ProduceRequestTopic{{Topic: "bench", Partitions: []kmsg.ProduceRequestTopicPartition{{Partition: int32(p), Records: raw}}}}
					frames[p] = benchFrame(req)
				}
				b.SetBytes(int64(len(raw)))
				b.ReportAllocs()
				b.ResetTimer()
				pipeline(b, br.Addr(), 32, func(i int) []byte { return frames[i%partitions] })
				b.StopTimer()
			})
		}
	}
}

func BenchmarkFetch(b *testing.B) {
	for _, size := range []int{1 << 10, 16 << 10, 1 << 20} {
		b.Run(fmt.Sprintf("%dB", size), func(b *testing.B) {
			br := benchBroker(b, 1)
			req := kmsg.NewPtrProduceRequest()
			req.SetVersion(9)
			req.Acks, req.TimeoutMillis = -1, 30000
			req.Topics = []kmsg.ProduceRequestTopic{{Topic: "bench", Partitions: []kmsg.ProduceRequestTopicPartition{{Records: benchBatch(size)}}}}
			put := benchFrame(req)
			c, err := net.Dial("tcp", br.Addr())
			if err != nil {
				b.Fatal(err)
			}
			defer c.Close()
			for range 8 {
				c.Write(put)
				var n [4]byte
				if _, err := io.ReadFull(c, n[:]); err != nil {
					b.Fatal(err)
				}
				io.CopyN(io.Discard, c, int64(binary.BigEndian.Uint32(n[:])))
			}
			get := kmsg.NewPtrFetchRequest()
			get.SetVersion(12)
			get.ReplicaID, get.MaxWaitMillis, get.MinBytes, get.MaxBytes, get.SessionEpoch = -1, 100, 1, int32(size), -1
			get.Topics = []kmsg.FetchRequestTopic{{Topic: "bench", Partitions: []kmsg.FetchRequestTopicPartition{{PartitionMaxBytes: int32(size), CurrentLeaderEpoch: -1, LastFetchedEpoch: -1}}}}
			frame := benchFrame(get)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			b.ResetTimer()
			pipeline(b, br.Addr(), 4, func(int) []byte { return frame })
			b.StopTimer()
		})
	}
}
