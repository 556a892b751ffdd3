package txn

import (
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// TestFilterIsBounded sends filters that cost as much as a request can make them: what is looked at for each id must not
// grow with the number of producer ids that are asked for, and patterns are bounded and none of the shard's business.
func TestFilterIsBounded(t *testing.T) {
	s := NewShard(Config{})
	for id, producer := range map[string]int64{"a": 1, "b": 2} {
		m := metadata{producerID: producer, nextID: -1, last: -1, timeout: 1000, started: -1}
		if err := s.Apply(recordOf(id, m, 2)); err != nil {
			t.Fatal(err)
		}
	}
	req := kmsg.NewPtrListTransactionsRequest()
	req.DurationFilterMillis, req.TransactionalIDPattern = -1, kmsg.StringPtr("b")
	for range 1000 {
		req.ProducerIDFilters = append(req.ProducerIDFilters, 7, 1, 2)
	}
	f, _, code := NewFilter(req)
	if code != codeNone || len(f.ids) != 3 {
		t.Errorf("code %d, %d ids", code, len(f.ids))
	}
	list := s.List(time.Now(), f)
	if len(list) != 2 || list[0].TransactionalID != "a" || list[1].TransactionalID != "b" {
		t.Errorf("%+v", list)
	}
	if f.Matches("a") || !f.Matches("b") {
		t.Error("the pattern does not count")
	}
	req.TransactionalIDPattern = kmsg.StringPtr(strings.Repeat(`\pL{1000}`, 400))
	if _, _, code := NewFilter(req); code != codeInvalidRegularExpression {
		t.Errorf("a pattern of %d bytes that makes half a million instructions: code %d", len(*req.TransactionalIDPattern), code)
	}
}
