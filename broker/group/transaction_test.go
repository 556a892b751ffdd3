package group

import (
	"fmt"
	"runtime"
	"testing"
)

// TestPendingBytes: what is counted for offsets that are pending, by which they are bounded, is about what they take.
func TestPendingBytes(t *testing.T) {
	for _, c := range []struct{ txns, groups, topics, partitions int }{{20_000, 1, 1, 1}, {1, 1, 1, 20_000}, {1, 200, 10, 10}, {20, 10, 10, 10}, {200, 1, 1, 100}} {
		t.Run(fmt.Sprintf("%+v", c), func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			s := NewShard(Config{})
			for x := range c.txns {
				for g := range c.groups {
					for topic := range c.topics {
						for p := range c.partitions {
							r := offsetRecord(fmt.Sprint("group-", g), fmt.Sprint("topic-", topic), int32(p), Offset{Offset: 1, Expires: -1})
							if err := s.ApplyTxn(r, Txn{ProducerID: int64(x)}); err != nil {
								t.Fatal(err)
							}
						}
					}
				}
			}
			runtime.GC()
			runtime.ReadMemStats(&after)
			real, counted := int64(after.HeapAlloc)-int64(before.HeapAlloc), s.Bytes()
			if counted < real/2 || counted > 2*real {
				t.Errorf("%d bytes are counted, %d are in use", counted, real)
			}
			for x := range c.txns {
				s.ApplyMarker(Txn{ProducerID: int64(x)}, false)
			}
			if s.Bytes() != 0 || len(s.groups) != 0 {
				t.Errorf("%d bytes and %d groups are left", s.Bytes(), len(s.groups))
			}
		})
	}
}
