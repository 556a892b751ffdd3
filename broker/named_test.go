package broker_test

import (
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/broker/protocol"
)

// TestManyNamed: how many groups or transactional ids a request names, the answer
// is bounded and nothing is done beyond the bound (B30).
func TestManyNamed(t *testing.T) {
	b := startQuiet(t)
	y := newBystander(t, b)
	names := func(n int) []string {
		list := make([]string, n)
		for i := range list {
			list[i] = fmt.Sprintf("%06d", i)
		}
		return list
	}
	ask := func(api string, list []string) []int16 {
		var codes []int16
		switch api {
		case "FindCoordinator":
			req := kmsg.NewPtrFindCoordinatorRequest()
			req.CoordinatorKeys = list
			for _, x := range y.do(at(4, req)).(*kmsg.FindCoordinatorResponse).Coordinators {
				codes = append(codes, x.ErrorCode)
			}
		case "DescribeGroups":
			req := kmsg.NewPtrDescribeGroupsRequest()
			req.Groups = list
			for _, x := range y.do(at(5, req)).(*kmsg.DescribeGroupsResponse).Groups {
				codes = append(codes, x.ErrorCode)
			}
		case "DeleteGroups":
			req := kmsg.NewPtrDeleteGroupsRequest()
			req.Groups = list
			for _, x := range y.do(at(2, req)).(*kmsg.DeleteGroupsResponse).Groups {
				codes = append(codes, x.ErrorCode)
			}
		case "OffsetFetch":
			req := kmsg.NewPtrOffsetFetchRequest()
			for _, g := range list {
				// With short names so many closes the connection: what they would take, decoded, is out of proportion.
				req.Groups = append(req.Groups, kmsg.OffsetFetchRequestGroup{Group: g + strings.Repeat("x", 60), MemberEpoch: -1})
			}
			for _, x := range y.do(at(8, req)).(*kmsg.OffsetFetchResponse).Groups {
				codes = append(codes, x.ErrorCode)
			}
		case "DescribeTransactions":
			req := kmsg.NewPtrDescribeTransactionsRequest()
			req.TransactionalIDs = list
			for _, x := range y.do(at(0, req)).(*kmsg.DescribeTransactionsResponse).TransactionStates {
				codes = append(codes, x.ErrorCode)
			}
		case "ConsumerGroupDescribe":
			req := kmsg.NewPtrConsumerGroupDescribeRequest()
			req.Groups = list
			for _, x := range y.do(at(0, req)).(*kmsg.ConsumerGroupDescribeResponse).Groups {
				codes = append(codes, x.ErrorCode)
			}
		}
		return codes
	}
	const bound = 100_000
	few, many := names(3), names(2*bound)
	for _, api := range []string{"FindCoordinator", "DescribeGroups", "DeleteGroups", "OffsetFetch", "DescribeTransactions", "ConsumerGroupDescribe"} {
		for _, code := range ask(api, few) {
			if code == protocol.CodeInvalidRequest {
				t.Errorf("%s of %d: %s", api, len(few), protocol.Name(code))
			}
		}
		var codes []int16
		total, _ := allocated(func() { codes = ask(api, many) })
		if len(codes) != bound {
			t.Errorf("%s of %d names is answered with %d", api, len(many), len(codes))
		}
		for _, code := range codes {
			if code != protocol.CodeInvalidRequest {
				t.Fatalf("%s of %d names: %s", api, len(many), protocol.Name(code))
			}
		}
		if total > 400<<20 {
			t.Errorf("%s: a request of a few MB took %d MB", api, total>>20)
		}
		y.unharmed(api)
	}

	add := kmsg.NewPtrAddPartitionsToTxnRequest()
	for _, id := range many {
		// With a shorter id so many would be out of proportion, decoded.
		add.Transactions = append(add.Transactions, kmsg.AddPartitionsToTxnRequestTransaction{TransactionalID: id + strings.Repeat("x", 60)})
	}
	if r := y.do(at(5, add)).(*kmsg.AddPartitionsToTxnResponse); r.ErrorCode != protocol.CodeInvalidRequest || len(r.Transactions) != 0 {
		t.Errorf("AddPartitionsToTxn of %d: %s, %d transactions", len(many), protocol.Name(r.ErrorCode), len(r.Transactions))
	}

	// Partitions: the same of one topic, or spread over groups.
	fetch := func(version int16, groups, partitions int) (codes []int16, size int) {
		req := kmsg.NewPtrOffsetFetchRequest()
		req.Group = "g"
		req.Topics = []kmsg.OffsetFetchRequestTopic{{Topic: "t", Partitions: make([]int32, partitions)}}
		for i := range groups {
			req.Groups = append(req.Groups, kmsg.OffsetFetchRequestGroup{Group: few[i], MemberEpoch: -1,
				Topics: []kmsg.OffsetFetchRequestGroupTopic{{Topic: "t", Partitions: make([]int32, partitions/groups)}}})
		}
		r := y.do(at(version, req)).(*kmsg.OffsetFetchResponse)
		codes = append(codes, r.ErrorCode)
		for _, g := range r.Groups {
			codes = append(codes, g.ErrorCode)
		}
		return codes, len(r.AppendTo(nil))
	}
	const invalid = protocol.CodeInvalidRequest
	for _, tc := range []struct {
		version int16
		codes   []int16
	}{{2, []int16{invalid}}, {7, []int16{invalid}}, {8, []int16{0, invalid, invalid}}, {9, []int16{0, invalid, invalid}}} {
		codes, size := fetch(tc.version, 2, 3_000_000)
		if !slices.Equal(codes, tc.codes) || size > 1000 {
			t.Errorf("OffsetFetch %d of 3,000,000 partitions: %v, %d bytes", tc.version, codes, size)
		}
		if codes, size := fetch(tc.version, 2, 100_000); slices.Contains(codes, invalid) || size < 1_000_000 {
			t.Errorf("OffsetFetch %d of 100,000 partitions: %v, %d bytes", tc.version, codes, size)
		}
	}
	if _, size := fetch(1, 1, 3_000_000); size > 1000 {
		t.Errorf("OffsetFetch 1 of 3,000,000 partitions: %d bytes", size)
	}
	y.unharmed("OffsetFetch")
}

// TestManyPartitionsNamed: requests that name more partitions than a cluster may have are refused, and told so for the first of them.
func TestManyPartitionsNamed(t *testing.T) {
	b := startQuiet(t)
	y := newBystander(t, b)
	ask := func(api string, n int) (codes []int16) {
		switch api {
		case "ListOffsets":
			req := kmsg.NewPtrListOffsetsRequest()
			req.Topics = []kmsg.ListOffsetsRequestTopic{{Topic: "none", Partitions: make([]kmsg.ListOffsetsRequestTopicPartition, n)}}
			for i := range n {
				req.Topics[0].Partitions[i] = kmsg.ListOffsetsRequestTopicPartition{Partition: int32(i), CurrentLeaderEpoch: -1, Timestamp: -1}
			}
			for _, p := range y.do(at(5, req)).(*kmsg.ListOffsetsResponse).Topics[0].Partitions {
				codes = append(codes, p.ErrorCode)
			}
		case "OffsetForLeaderEpoch":
			req := kmsg.NewPtrOffsetForLeaderEpochRequest()
			req.Topics = []kmsg.OffsetForLeaderEpochRequestTopic{{Topic: "none", Partitions: make([]kmsg.OffsetForLeaderEpochRequestTopicPartition, n)}}
			for i := range n {
				req.Topics[0].Partitions[i] = kmsg.OffsetForLeaderEpochRequestTopicPartition{Partition: int32(i), CurrentLeaderEpoch: -1}
			}
			for _, p := range y.do(at(3, req)).(*kmsg.OffsetForLeaderEpochResponse).Topics[0].Partitions {
				codes = append(codes, p.ErrorCode)
			}
		case "DeleteRecords":
			req := kmsg.NewPtrDeleteRecordsRequest()
			req.TimeoutMillis = 1000
			req.Topics = []kmsg.DeleteRecordsRequestTopic{{Topic: "none", Partitions: make([]kmsg.DeleteRecordsRequestTopicPartition, n)}}
			for i := range n {
				req.Topics[0].Partitions[i].Partition = int32(i)
			}
			for _, p := range y.do(at(1, req)).(*kmsg.DeleteRecordsResponse).Topics[0].Partitions {
				codes = append(codes, p.ErrorCode)
			}
		}
		return codes
	}
	const most = 200_000
	for _, api := range []string{"ListOffsets", "OffsetForLeaderEpoch", "DeleteRecords"} {
		if codes := ask(api, most); len(codes) != most || slices.Contains(codes, protocol.CodeInvalidRequest) {
			t.Errorf("%s of %d partitions: %d answers, the first %s", api, most, len(codes), protocol.Name(codes[0]))
		}
		if codes := ask(api, most+1); len(codes) != 1000 || slices.ContainsFunc(codes, func(code int16) bool { return code != protocol.CodeInvalidRequest }) {
			t.Errorf("%s of %d partitions: %d answers, the first %s", api, most+1, len(codes), protocol.Name(codes[0]))
		}
		y.unharmed(api)
	}
}

// TestManyDescribed: resources that need not be there are described with all their settings, which is many times what names them: so
// many of them, and no more.
func TestManyDescribed(t *testing.T) {
	b := startQuiet(t)
	y := newBystander(t, b)
	for _, kind := range []kmsg.ConfigResourceType{kmsg.ConfigResourceTypeGroupConfig, kmsg.ConfigResourceTypeClientMetrics} {
		req := kmsg.NewPtrDescribeConfigsRequest()
		req.IncludeSynonyms, req.IncludeDocumentation = true, true
		for i := range 100_000 {
			req.Resources = append(req.Resources, kmsg.DescribeConfigsRequestResource{ResourceType: kind, ResourceName: fmt.Sprint(i)})
		}
		described, refused := 0, 0
		var size, most int
		total, _ := allocated(func() {
			r := y.do(at(4, req)).(*kmsg.DescribeConfigsResponse)
			for i := range r.Resources {
				x := &r.Resources[i]
				switch {
				case x.ErrorCode == protocol.CodeInvalidRequest && len(x.Configs) == 0:
					refused++
				case x.ErrorCode == 0:
					described++
					most = max(most, len(x.Configs))
					size += len(x.Configs)
				default:
					t.Fatalf("%+v", x)
				}
			}
		})
		if described != 2000 || refused != 98_000 || size != 2000*most || most == 0 {
			t.Errorf("%d described with %d settings at most, %d in all; %d refused", described, most, size, refused)
		}
		if total > 400<<20 { // of the test's own decoding, too
			t.Errorf("%d MiB allocated", total>>20)
		}
		y.unharmed("DescribeConfigs")
	}
}

// TestHeavyRequests: requests that name millions of partitions at the same time are
// decoded and answered one after the other, and others are served meanwhile.
func TestHeavyRequests(t *testing.T) {
	b := startQuiet(t, "memory.max.bytes", "2147483648")
	y := newBystander(t, b)
	const partitions, atOnce = 2_000_000, 8
	req := kmsg.NewPtrAddPartitionsToTxnRequest()
	req.TransactionalID = "many"
	req.Topics = []kmsg.AddPartitionsToTxnRequestTopic{{Topic: "none", Partitions: make([]int32, partitions)}}
	first := dial(t, b)
	frame, _ := first.frame(at(3, req))
	req.Topics = nil
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	before, most := m.HeapAlloc, uint64(0)
	var wg sync.WaitGroup
	done := make(chan struct{})
	for i := range atOnce {
		c := first
		if i > 0 {
			c = dial(t, b)
		}
		wg.Go(func() {
			c.send(frame)
			got, err := c.answer()
			if err != nil || len(got) < 6*partitions {
				t.Errorf("%d bytes, %v", len(got), err)
			}
		})
	}
	go func() {
		wg.Wait()
		close(done)
	}()
	for running := true; running; {
		select {
		case <-done:
			running = false
		case <-time.After(5 * time.Millisecond):
		}
		runtime.ReadMemStats(&m)
		most = max(most, m.HeapAlloc)
	}
	// Together they would take about 1000.
	if more := (most - before) >> 20; more > 600 {
		t.Errorf("%d requests took %d MiB at a time", atOnce, more)
	}
	y.unharmed("heavy requests")
}

// TestTransactionOfTransactionState: no partition of __transaction_state gets a marker, and so none may be in a transaction, whoever
// asks for it and in whatever version.
func TestTransactionOfTransactionState(t *testing.T) {
	y := newBystander(t, startQuiet(t))
	find := kmsg.NewPtrFindCoordinatorRequest()
	find.CoordinatorType, find.CoordinatorKeys = 1, []string{"x"}
	if c := y.do(at(4, find)).(*kmsg.FindCoordinatorResponse).Coordinators[0]; c.ErrorCode != 0 {
		t.Fatal(protocol.Name(c.ErrorCode))
	}
	const topic = "__transaction_state"
	old := kmsg.NewPtrAddPartitionsToTxnRequest()
	old.TransactionalID, old.ProducerID = "x", 1
	old.Topics = []kmsg.AddPartitionsToTxnRequestTopic{{Topic: topic, Partitions: []int32{0}}}
	if code := y.do(at(3, old)).(*kmsg.AddPartitionsToTxnResponse).Topics[0].Partitions[0].ErrorCode; code != protocol.CodeTopicAuthorizationFailed {
		t.Errorf("version 3: %s", protocol.Name(code))
	}
	add := kmsg.NewPtrAddPartitionsToTxnRequest()
	add.Transactions = []kmsg.AddPartitionsToTxnRequestTransaction{{TransactionalID: "x", ProducerID: 1,
		Topics: []kmsg.AddPartitionsToTxnRequestTransactionTopic{{Topic: topic, Partitions: []int32{0}}}}}
	if code := y.do(at(5, add)).(*kmsg.AddPartitionsToTxnResponse).Transactions[0].Topics[0].Partitions[0].ErrorCode; code != protocol.CodeTopicAuthorizationFailed {
		t.Errorf("version 5: %s", protocol.Name(code))
	}
}
