package group

import (
	"fmt"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// BenchmarkJoinStorm is the cost of a JoinGroup to a group that has so many members already.
func BenchmarkJoinStorm(b *testing.B) {
	for _, n := range []int{100, 1000, 10_000} {
		b.Run(fmt.Sprintf("members=%d", n), func(b *testing.B) {
			s := NewShard(Config{InitialRebalanceDelay: time.Hour})
			now := time.UnixMilli(1 << 40)
			token := uint64(0)
			join := func() Result {
				token++
				req := kmsg.NewPtrJoinGroupRequest()
				req.Version, req.Group, req.SessionTimeoutMillis, req.ProtocolType = 3, "g", 10_000, "consumer"
				req.Protocols = []kmsg.JoinGroupRequestProtocol{{Name: "range", Metadata: metadata("sub/t")}, {Name: "sticky", Metadata: metadata("sub/t")}}
				return s.Handle(now, &Join{Token: token, Req: req, ClientID: "c", Suffix: fmt.Sprint(token)})
			}
			for range n {
				s.Settle(now, join())
			}
			b.ResetTimer()
			for b.Loop() {
				join()
				s.Deadline("g")
			}
		})
	}
}

// BenchmarkCommitted is what a scrape of the metrics costs a shard: the first thousand of so many offsets.
func BenchmarkCommitted(b *testing.B) {
	for _, n := range []int{1000, 100_000} {
		b.Run(fmt.Sprintf("groups=%d", n), func(b *testing.B) {
			s := NewShard(Config{})
			for i := range n {
				for p := range int32(10) {
					if err := s.Apply(offsetRecord(fmt.Sprint("group-", i), "topic", p, Offset{Offset: 1})); err != nil {
						b.Fatal(err)
					}
				}
			}
			for b.Loop() {
				if len(s.Committed(1000, 249)) != 1000 {
					b.Fatal("not a thousand")
				}
			}
		})
	}
}
