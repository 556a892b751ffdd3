package protocol

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// listener answers every request with an empty response after checking it. It knows one topic, with itself as the leader,
// which is enough for clients to send requests of every kind they have.
type listener struct {
	t        *testing.T
	net      net.Listener
	refused  []string
	seen     map[string]bool
	mu       sync.Mutex
	handlers sync.WaitGroup
}

func listen(t *testing.T) *listener {
	l := &listener{t: t, seen: map[string]bool{}}
	var err error
	if l.net, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	l.handlers.Go(func() {
		for {
			c, err := l.net.Accept()
			if err != nil {
				return
			}
			l.handlers.Go(func() { l.serve(c) })
		}
	})
	t.Cleanup(func() {
		l.net.Close()
		l.handlers.Wait()
		for _, r := range l.refused {
			t.Error(r)
		}
		var seen []string
		for s := range l.seen {
			seen = append(seen, s)
		}
		slices.Sort(seen)
		t.Logf("%d kinds of requests: %s", len(seen), strings.Join(seen, ", "))
	})
	return l
}

func (l *listener) serve(c net.Conn) {
	defer c.Close()
	for {
		// A client that the test has forgotten does not keep it waiting.
		c.SetDeadline(time.Now().Add(3 * time.Second))
		var size [4]byte
		if _, err := io.ReadFull(c, size[:]); err != nil {
			return
		}
		frame := make([]byte, binary.BigEndian.Uint32(size[:]))
		if _, err := io.ReadFull(c, frame); err != nil {
			return
		}
		h, body, err := ParseHeader(frame)
		if err == nil {
			err = Check(h.Key, h.Version, body)
		}
		l.mu.Lock()
		l.seen[fmt.Sprintf("%s v%d", kmsg.NameForKey(h.Key), h.Version)] = true
		if err != nil {
			l.refused = append(l.refused, fmt.Sprintf("%v\n%x", err, frame))
		}
		l.mu.Unlock()
		if err != nil {
			return
		}
		req := kmsg.RequestForKey(h.Key)
		req.SetVersion(h.Version)
		if err := req.ReadFrom(body); err != nil {
			l.t.Error(err)
		}
		if _, err := c.Write(AppendResponse(nil, h, l.answer(req))); err != nil {
			return
		}
	}
}

func (l *listener) answer(req kmsg.Request) kmsg.Response {
	port := int32(l.net.Addr().(*net.TCPAddr).Port)
	switch r := req.ResponseKind().(type) {
	case *kmsg.ApiVersionsResponse:
		for _, v := range Supported() {
			r.ApiKeys = append(r.ApiKeys, kmsg.ApiVersionsResponseApiKey{ApiKey: v.Key, MinVersion: v.AdvertisedMin, MaxVersion: v.Max})
		}
		return r
	case *kmsg.MetadataResponse:
		r.ControllerID = 0
		r.Brokers = []kmsg.MetadataResponseBroker{{NodeID: 0, Host: "127.0.0.1", Port: port}}
		r.Topics = []kmsg.MetadataResponseTopic{{
			Topic: kmsg.StringPtr("a-topic"), TopicID: [16]byte{1},
			Partitions: []kmsg.MetadataResponseTopicPartition{{Replicas: []int32{0}, ISR: []int32{0}}},
		}}
		return r
	case *kmsg.FindCoordinatorResponse:
		r.Host, r.Port = "127.0.0.1", port
		for _, k := range req.(*kmsg.FindCoordinatorRequest).CoordinatorKeys {
			r.Coordinators = append(r.Coordinators, kmsg.FindCoordinatorResponseCoordinator{Key: k, Host: "127.0.0.1", Port: port})
		}
		return r
	case *kmsg.JoinGroupResponse:
		r.Protocol = kmsg.StringPtr("range")
		r.LeaderID, r.MemberID = "m", "m"
		return r
	default:
		return r
	}
}

// What sarama sends, at the versions it chooses for old and new brokers, passes the check.
func TestSaramaPassesTheCheck(t *testing.T) {
	sarama.Logger = log.New(io.Discard, "", 0)
	l := listen(t)
	for _, version := range []sarama.KafkaVersion{sarama.V2_1_0_0, sarama.V2_8_0_0, sarama.MaxVersion} {
		conf := sarama.NewConfig()
		conf.Version = version
		conf.ApiVersionsRequest = version == sarama.MaxVersion
		conf.Admin.Retry.Max, conf.Producer.Retry.Max, conf.Metadata.Retry.Max = 0, 0, 0
		conf.Producer.Return.Successes = true
		conf.Net.DialTimeout, conf.Net.ReadTimeout = time.Second, time.Second
		client, err := sarama.NewClient([]string{l.net.Addr().String()}, conf)
		if err != nil {
			t.Fatal(err)
		}
		a, err := sarama.NewClusterAdminFromClient(client)
		if err != nil {
			t.Fatal(err)
		}
		// What the calls return is of no interest: the listener's answers are empty.
		value := "v"
		topic := sarama.ConfigResource{Type: sarama.TopicResource, Name: "a-topic", ConfigNames: []string{"retention.ms"}}
		acl := sarama.Acl{Principal: "User:a", Host: "*", Operation: sarama.AclOperationRead, PermissionType: sarama.AclPermissionAllow}
		resource := sarama.Resource{ResourceType: sarama.AclResourceTopic, ResourceName: "a-topic", ResourcePatternType: sarama.AclPatternLiteral}
		_ = a.CreateTopic("a-topic", &sarama.TopicDetail{NumPartitions: 1, ReplicationFactor: 1, ConfigEntries: map[string]*string{"retention.ms": &value}}, false)
		_, _ = a.ListTopics()
		_, _ = a.DescribeTopics([]string{"a-topic"})
		_ = a.CreatePartitions("a-topic", 2, [][]int32{{0}}, true)
		_ = a.CreatePartitions("a-topic", 2, nil, true)
		_ = a.AlterPartitionReassignments("a-topic", [][]int32{{0}, nil})
		_, _ = a.ListPartitionReassignments("a-topic", []int32{0})
		_ = a.DeleteRecords("a-topic", map[int32]int64{0: 5})
		_, _ = a.DescribeConfigs([]*sarama.ConfigResource{&topic, {Type: sarama.TopicResource, Name: "all-of-them"}}, sarama.DescribeConfigsOptions{IncludeSynonyms: true})
		_, _ = a.DescribeConfigs([]*sarama.ConfigResource{{Type: sarama.BrokerResource, Name: "0"}}, sarama.DescribeConfigsOptions{})
		_ = a.AlterConfig(sarama.TopicResource, "a-topic", map[string]*string{"a": &value, "b": nil}, false)
		_ = a.IncrementalAlterConfig(sarama.TopicResource, "a-topic", map[string]sarama.IncrementalAlterConfigsEntry{"a": {Value: &value}, "b": {Operation: 1}}, false)
		_ = a.CreateACLs([]*sarama.ResourceAcls{{Resource: resource, Acls: []*sarama.Acl{&acl}}})
		_, _ = a.ListAcls(sarama.AclFilter{ResourceType: sarama.AclResourceAny, ResourcePatternTypeFilter: sarama.AclPatternAny, Operation: sarama.AclOperationAny, PermissionType: sarama.AclPermissionAny})
		_, _ = a.DeleteACL(sarama.AclFilter{ResourceType: sarama.AclResourceTopic, ResourceName: &value, Operation: sarama.AclOperationAny, PermissionType: sarama.AclPermissionAny}, false)
		_, _ = a.ElectLeaders(sarama.PreferredElection, map[string][]int32{"a-topic": {0}})
		_, _ = a.ListConsumerGroups()
		_, _ = a.DescribeConsumerGroups([]string{"g"})
		_, _ = a.ListConsumerGroupOffsets("g", map[string][]int32{"a-topic": {0}})
		_, _ = a.ListConsumerGroupOffsets("g", nil)
		_, _ = a.ListConsumerGroupOffsetsBatch(map[string]map[string][]int32{"g": {"a-topic": {0}}, "h": nil})
		_, _ = a.ListOffsets(map[string]map[int32]int64{"a-topic": {0: -1}}, &sarama.ListOffsetsOptions{})
		_, _ = a.AlterConsumerGroupOffsets("g", map[string]map[int32]sarama.OffsetAndMetadata{"a-topic": {0: {Offset: 1, Metadata: "m"}}}, nil)
		_ = a.DeleteConsumerGroupOffset("g", "a-topic", 0)
		_ = a.DeleteConsumerGroup("g")
		_, _, _ = a.DescribeCluster()
		_, _ = a.DescribeLogDirs([]int32{0})
		_, _ = a.DescribeUserScramCredentials([]string{"u"})
		_, _ = a.DescribeUserScramCredentials(nil)
		_, _ = a.UpsertUserScramCredentials([]sarama.AlterUserScramCredentialsUpsert{{Name: "u", Mechanism: sarama.SCRAM_MECHANISM_SHA_256, Iterations: 4096, Salt: []byte("s"), Password: []byte("p")}})
		_, _ = a.DescribeClientQuotas([]sarama.QuotaFilterComponent{{EntityType: sarama.QuotaEntityUser, MatchType: sarama.QuotaMatchDefault}}, false)
		_ = a.AlterClientQuotas([]sarama.QuotaEntityComponent{{EntityType: sarama.QuotaEntityUser, MatchType: sarama.QuotaMatchDefault}}, sarama.ClientQuotasOp{Key: "k", Value: 1}, true)
		_, _ = a.RemoveMemberFromConsumerGroup("g", []string{"i"})
		_ = a.DeleteTopic("a-topic")

		if p, err := sarama.NewSyncProducerFromClient(client); err == nil {
			_, _, _ = p.SendMessage(&sarama.ProducerMessage{Topic: "a-topic", Value: sarama.StringEncoder("v")})
			_ = p.Close()
		}
		if c, err := sarama.NewConsumerFromClient(client); err == nil {
			if pc, err := c.ConsumePartition("a-topic", 0, 0); err == nil {
				select {
				case <-pc.Messages():
				case <-pc.Errors():
				case <-time.After(50 * time.Millisecond):
				}
				pc.AsyncClose()
			}
			_ = c.Close()
		}
		if g, err := sarama.NewConsumerGroupFromClient("g", client); err == nil {
			ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
			_ = g.Consume(ctx, []string{"a-topic"}, nopGroup{})
			cancel()
			_ = g.Close()
		}
		if om, err := sarama.NewOffsetManagerFromClient("g", client); err == nil {
			if pom, err := om.ManagePartition("a-topic", 0); err == nil {
				pom.MarkOffset(10, "m")
				om.Commit()
				pom.AsyncClose()
			}
			_ = om.Close()
		}
		_ = client.Close()
	}
}

type nopGroup struct{}

func (nopGroup) Setup(sarama.ConsumerGroupSession) error   { return nil }
func (nopGroup) Cleanup(sarama.ConsumerGroupSession) error { return nil }
func (nopGroup) ConsumeClaim(sarama.ConsumerGroupSession, sarama.ConsumerGroupClaim) error {
	return nil
}

// What kafka-go sends passes the check: each call of its client, with a request that has something in every field.
func TestKafkaGoPassesTheCheck(t *testing.T) {
	l := listen(t)
	client := &kafka.Client{Addr: l.net.Addr(), Timeout: time.Second}
	v := reflect.ValueOf(client)
	f := newFiller(1)
	f.elements = func(*rand.Rand) int { return 1 }
	for i := range v.NumMethod() {
		m := v.Method(i)
		if m.Type().NumIn() != 2 || m.Type().In(1).Kind() != reflect.Pointer {
			continue
		}
		for range 2 {
			req := reflect.New(m.Type().In(1).Elem())
			fillKafkaGo(f, req.Elem())
			func() {
				// Some calls panic on an answer that is empty; by then the request has been sent.
				defer func() { _ = recover() }()
				ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
				defer cancel()
				m.Call([]reflect.Value{reflect.ValueOf(ctx), req})
			}()
		}
	}
	conn, err := kafka.DialLeader(context.Background(), "tcp", l.net.Addr().String(), "a-topic", 0)
	if err == nil {
		_ = conn.SetDeadline(time.Now().Add(time.Second))
		_, _ = conn.WriteMessages(kafka.Message{Value: []byte("v")})
		_, _, _ = conn.ReadOffsets()
		_ = conn.ReadBatch(1, 1000).Close()
		_ = conn.CreateTopics(kafka.TopicConfig{Topic: "a-topic", NumPartitions: 1, ReplicationFactor: 1})
		_ = conn.DeleteTopics("a-topic")
		_ = conn.Close()
	}
	if tr, ok := kafka.DefaultTransport.(*kafka.Transport); ok {
		tr.CloseIdleConnections()
	}
}

// fillKafkaGo fills what a filler can, and leaves addresses, records, and other interfaces alone.
func fillKafkaGo(f *filler, v reflect.Value) {
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Field(i).CanSet() {
				fillKafkaGo(f, v.Field(i))
			}
		}
	case reflect.Pointer, reflect.Interface, reflect.Func, reflect.Chan, reflect.Array, reflect.Bool:
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			v.SetBytes([]byte("bytes"))
			return
		}
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fillKafkaGo(f, v.Index(0))
	case reflect.Map:
		k, e := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		fillKafkaGo(f, k)
		fillKafkaGo(f, e)
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(k, e)
	case reflect.String:
		v.SetString("a-topic")
	case reflect.Float64:
		v.SetFloat(1)
	default:
		if v.CanInt() {
			v.SetInt(0)
		}
	}
}
