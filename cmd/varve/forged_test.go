package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/broker/protocol"
	"github.com/varve/varve/internal/cluster"
	"github.com/varve/varve/metadata/controller"
	"github.com/varve/varve/metadata/etcd"
	"github.com/varve/varve/metadata/image"
)

// forger is a connection to a broker that sends what no client library would.
type forger struct {
	t    *testing.T
	nc   net.Conn
	in   *bufio.Reader
	form *kmsg.RequestFormatter
	next int32
}

func forge(t *testing.T, addr string) *forger {
	t.Helper()
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	nc.SetDeadline(time.Now().Add(time.Minute)) // whoever hangs is found out
	return &forger{t: t, nc: nc, in: bufio.NewReader(nc), form: kmsg.NewRequestFormatter(kmsg.FormatterClientID("forger"))}
}

// ask sends a request and returns what is answered, or io.EOF where the broker closes the connection instead.
func (f *forger) ask(version int16, req kmsg.Request) (kmsg.Response, error) {
	f.t.Helper()
	req.SetVersion(version)
	f.next++
	if _, err := f.nc.Write(f.form.AppendRequest(nil, req, f.next)); err != nil {
		f.t.Fatal(err)
	}
	var size [4]byte
	if _, err := io.ReadFull(f.in, size[:]); err != nil {
		if !errors.Is(err, io.EOF) {
			f.t.Fatalf("%s v%d: %v", kmsg.NameForKey(req.Key()), version, err)
		}
		return nil, io.EOF
	}
	b := make([]byte, binary.BigEndian.Uint32(size[:]))
	if _, err := io.ReadFull(f.in, b); err != nil {
		f.t.Fatal(err)
	}
	if id := int32(binary.BigEndian.Uint32(b)); id != f.next {
		f.t.Fatalf("%s v%d: an answer to request %d, when %d was asked", kmsg.NameForKey(req.Key()), version, id, f.next)
	}
	b = b[4:]
	resp := req.ResponseKind()
	resp.SetVersion(version)
	if resp.IsFlexible() && req.Key() != int16(kmsg.ApiVersions) {
		b = b[1:] // no tags
	}
	if err := resp.ReadFrom(b); err != nil {
		f.t.Fatalf("%s v%d: %v", kmsg.NameForKey(req.Key()), version, err)
	}
	return resp, nil
}

// must is ask where there has to be an answer.
func (f *forger) must(version int16, req kmsg.Request) kmsg.Response {
	f.t.Helper()
	resp, err := f.ask(version, req)
	if err != nil {
		f.t.Fatalf("%s v%d: %v", kmsg.NameForKey(req.Key()), version, err)
	}
	return resp
}

// ends waits for the broker to close the connection.
func (f *forger) ends(what string) {
	f.t.Helper()
	if n, err := io.Copy(io.Discard, f.in); err != nil || n > 0 {
		f.t.Errorf("%s: the connection has %d more bytes, and ends with %v", what, n, err)
	}
}

// prove goes through the handshake among brokers as the broker from, towards the broker to, and returns the last answer's
// error code.
func (f *forger) prove(secret []byte, from, to int32) int16 {
	f.t.Helper()
	const mechanism = "VARVE-BROKER"
	if resp := f.must(1, &kmsg.SASLHandshakeRequest{Mechanism: mechanism}).(*kmsg.SASLHandshakeResponse); resp.ErrorCode != 0 {
		f.t.Fatalf("handshake: error %d", resp.ErrorCode)
	}
	ids := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, uint32(from)), uint32(to))
	own := make([]byte, 16)
	rand.Read(own)
	hello := f.must(2, &kmsg.SASLAuthenticateRequest{SASLAuthBytes: slices.Concat([]byte{1}, ids, own)}).(*kmsg.SASLAuthenticateResponse)
	if hello.ErrorCode != 0 || len(hello.SASLAuthBytes) != 16+sha256.Size {
		f.t.Fatalf("hello: %+v", hello)
	}
	mac := hmac.New(sha256.New, secret)
	mac.Write(slices.Concat([]byte("calls"), ids, own, hello.SASLAuthBytes[:16]))
	return f.must(2, &kmsg.SASLAuthenticateRequest{SASLAuthBytes: mac.Sum(nil)}).(*kmsg.SASLAuthenticateResponse).ErrorCode
}

// TestForgedBrokers: a client that says it is a follower, or asks what brokers ask of each other, is refused by the broker's
// process, on the clients' listener and on that of the brokers alike (B24). Both followers stand still, so that the leader has records
// which are not committed: a fetch that it took for a follower's would move the high watermark (CVE-2018-1288), and a
// producer would be told that its record is safe while there is one copy of it.
//
// What Kafka's brokers serve to clients as well is answered as to any client: WriteTxnMarkers, by which an admin ends a
// transaction that hangs; AddPartitionsToTxn in the versions of brokers, which without an authorizer Kafka does not refuse
// either; ListOffsets and OffsetForLeaderEpoch, whoever the request says that it is from.
func TestForgedBrokers(t *testing.T) {
	c := cluster.Start(t, processes(cluster.Options{Etcd: 1, Set: []string{
		"default.replication.factor=3", "min.insync.replicas=2", "remote.flush.interval.ms=3600000",
		// Who stands still is missed by nobody.
		"broker.session.timeout.ms=120000", "replica.lag.time.max.ms=600000",
	}}))
	client, err := etcd.Dial(t.Context(), etcd.DialOptions{Endpoints: []string{c.Describe().Etcd[0].Client}})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	store := etcd.New(etcd.Options{Client: client, Prefix: "/varve"})
	secret, err := store.EnsureSecret(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	look := func() *image.Image {
		t.Helper()
		im, err := store.Load(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return im
	}
	brief := kgo.RequestTimeoutOverhead(time.Second) // of two brokers there will be no answer
	cl := c.Client(t, brief, kgo.MetadataMinAge(50*time.Millisecond), kgo.DefaultProduceTopic("t"))
	adm := kadm.NewClient(cl)
	topic, err := adm.CreateTopic(t.Context(), 1, -1, nil, "t")
	if err != nil {
		t.Fatal(err)
	}
	put := func(cl *kgo.Client) {
		t.Helper()
		if err := cl.ProduceSync(t.Context(), &kgo.Record{Value: []byte("x")}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, func() error {
		if p := look().Partition(topic.ID, 0); p == nil || len(p.ISR) != 3 {
			return fmt.Errorf("%+v", p)
		}
		return nil
	})
	for range 10 {
		put(cl)
	}
	im := look()
	leader := im.Partition(topic.ID, 0).Leader
	followers := slices.DeleteFunc([]int32{1, 2, 3}, func(id int32) bool { return id == leader })
	// The two listeners of a broker.
	type door struct {
		name, addr string
		among      bool
	}
	doors := func(id int32) []door {
		t.Helper()
		ep, ok := im.Broker(id).Endpoint("INTERNAL")
		if !ok {
			t.Fatalf("broker %d does not say where brokers find it", id)
		}
		return []door{{"of clients", c.Broker(id).Addr, false}, {"of brokers", net.JoinHostPort(ep.Host, strconv.Itoa(int(ep.Port))), true}}
	}

	// A command for the controller, to all brokers while they run.
	command, err := controller.EncodeCommand(controller.CreateTopics{Topics: []controller.NewTopic{{Name: "made", Partitions: 1, ReplicationFactor: 1, ID: [16]byte{5}}}}, false)
	if err != nil {
		t.Fatal(err)
	}
	envelope := func() kmsg.Request { return &kmsg.EnvelopeRequest{RequestData: command, ClientHostAddress: []byte{}} }
	for _, b := range c.Brokers {
		for _, d := range doors(b.ID) {
			if resp, err := forge(t, d.addr).ask(0, envelope()); d.among && (err != nil || resp.(*kmsg.EnvelopeResponse).ErrorCode != protocol.CodeClusterAuthorizationFailed) {
				t.Errorf("a command at the listener %s of broker %d: %+v, %v", d.name, b.ID, resp, err)
			} else if !d.among && err == nil {
				t.Errorf("a command at the listener %s of broker %d is answered: %+v", d.name, b.ID, resp)
			}
		}
	}
	if look().Topic("made") != nil {
		t.Error("the command was carried out")
	}

	for _, id := range followers {
		if err := c.Broker(id).Pause(); err != nil {
			t.Fatal(err)
		}
	}
	one := c.Client(t, brief, kgo.DefaultProduceTopic("t"), kgo.RequiredAcks(kgo.LeaderAck()), kgo.DisableIdempotentWrite())
	for range 10 {
		put(one)
	}
	safe := make(chan error, 1)
	waiting, cancel := context.WithCancel(t.Context())
	defer cancel()
	cl.Produce(waiting, &kgo.Record{Value: []byte("x")}, func(_ *kgo.Record, err error) { safe <- err })
	const committed, end = 10, 21
	// offsets asks for the high watermark, as whom it is told to.
	offsets := func(f *forger, version int16, replica int32) int64 {
		t.Helper()
		req := &kmsg.ListOffsetsRequest{ReplicaID: replica}
		rt := kmsg.NewListOffsetsRequestTopic()
		rt.Topic = "t"
		rp := kmsg.NewListOffsetsRequestTopicPartition()
		rp.Timestamp = -1
		rt.Partitions = append(rt.Partitions, rp)
		req.Topics = append(req.Topics, rt)
		p := f.must(version, req).(*kmsg.ListOffsetsResponse).Topics[0].Partitions[0]
		if err := kerr.ErrorForCode(p.ErrorCode); err != nil {
			t.Fatalf("ListOffsets v%d: %v", version, err)
		}
		return p.Offset
	}
	atLeader := doors(leader)
	eventually(t, func() error { // the last record, the eleventh of its producer, has reached the leader
		all, err := adm.DescribeProducers(t.Context(), kadm.TopicsSet{"t": {0: {}}})
		if err != nil {
			return err
		}
		for _, p := range all["t"].Partitions[0].ActiveProducers {
			if p.LastSequence == 10 {
				return nil
			}
		}
		return fmt.Errorf("producers %+v", all["t"].Partitions[0])
	})
	before := fmt.Sprintf("%+v", *look().Partition(topic.ID, 0))
	unchanged := func(after string) {
		t.Helper()
		if hw := offsets(forge(t, atLeader[0].addr), 11, -1); hw != committed {
			t.Errorf("%s: the high watermark is %d, and %d was committed", after, hw, committed)
		}
		if now := fmt.Sprintf("%+v", *look().Partition(topic.ID, 0)); now != before {
			t.Errorf("%s: the partition is\n%s, and was\n%s", after, now, before)
		}
		select {
		case err := <-safe:
			t.Fatalf("%s: a record that one broker has is acknowledged (%v)", after, err)
		default:
		}
	}
	unchanged("before")

	// follow is what a follower would send that has everything the leader has, and so says that it is safe.
	follow := func(version int16, as int32) *kmsg.FetchRequest {
		req := kmsg.NewPtrFetchRequest()
		req.MaxBytes, req.SessionEpoch = 1<<20, -1
		if req.ReplicaID = as; version >= 15 {
			req.ReplicaID = -1
			req.ReplicaState.ID, req.ReplicaState.Epoch = as, 1
			if b := im.Broker(as); b != nil {
				req.ReplicaState.Epoch = b.Epoch
			}
		}
		rt, rp := kmsg.NewFetchRequestTopic(), kmsg.NewFetchRequestTopicPartition()
		rt.Topic, rt.TopicID = "t", topic.ID
		rp.FetchOffset, rp.PartitionMaxBytes, rp.CurrentLeaderEpoch, rp.LogStartOffset = end, 1<<20, -1, 0
		rt.Partitions = append(rt.Partitions, rp)
		req.Topics = append(req.Topics, rt)
		return req
	}
	refused := func(f *forger, version int16, req *kmsg.FetchRequest) error {
		t.Helper()
		resp := f.must(version, req).(*kmsg.FetchResponse)
		switch {
		case resp.ErrorCode == protocol.CodeClusterAuthorizationFailed:
			return nil
		case resp.ErrorCode != 0 || len(resp.Topics) != 1 || len(resp.Topics[0].Partitions) != 1:
			return fmt.Errorf("error %d, %d topics", resp.ErrorCode, len(resp.Topics))
		}
		if p := resp.Topics[0].Partitions[0]; p.ErrorCode != protocol.CodeClusterAuthorizationFailed || len(p.RecordBatches) > 0 {
			return fmt.Errorf("error %d, %d bytes of records", p.ErrorCode, len(p.RecordBatches))
		}
		return nil
	}
	fetches, _ := protocol.Served(kmsg.Fetch.Int16())
	lists, _ := protocol.Served(kmsg.ListOffsets.Int16())
	epochs, _ := protocol.Served(kmsg.OffsetForLeaderEpoch.Int16())
	for _, d := range atLeader {
		f := forge(t, d.addr)
		for version := fetches.Min; version <= fetches.Max; version++ {
			for _, as := range append([]int32{leader, 0, 1<<31 - 1}, followers...) {
				if err := refused(f, version, follow(version, as)); err != nil {
					t.Errorf("the listener %s, Fetch v%d as %d: %v", d.name, version, as, err)
				}
			}
		}
		unchanged("fetches at the listener " + d.name)
		// In a session that began as a consumer's.
		req := follow(17, -1)
		req.ReplicaState.Epoch, req.SessionEpoch, req.Topics[0].Partitions[0].FetchOffset = -1, 0, committed
		session := f.must(17, req).(*kmsg.FetchResponse)
		if session.ErrorCode != 0 || session.SessionID == 0 {
			t.Fatalf("a consumer's session: %+v", session)
		}
		req = follow(17, followers[0])
		req.SessionID, req.SessionEpoch = session.SessionID, 1
		if err := refused(f, 17, req); err != nil {
			t.Errorf("the listener %s, in a session: %v", d.name, err)
		}
		for version := lists.Min; version <= lists.Max; version++ {
			if at := offsets(f, version, followers[0]); at != committed {
				t.Errorf("the listener %s, ListOffsets v%d as a follower: %d, and %d is committed", d.name, version, at, committed)
			}
		}
		for version := epochs.Min; version <= epochs.Max; version++ {
			req := &kmsg.OffsetForLeaderEpochRequest{ReplicaID: followers[0]}
			rt, rp := kmsg.NewOffsetForLeaderEpochRequestTopic(), kmsg.NewOffsetForLeaderEpochRequestTopicPartition()
			rt.Topic, rp.CurrentLeaderEpoch = "t", -1
			rp.UnknownTags.Set(0x7665, nil) // what another broker asks for the log by
			rt.Partitions = append(rt.Partitions, rp)
			req.Topics = append(req.Topics, rt)
			if p := f.must(version, req).(*kmsg.OffsetForLeaderEpochResponse).Topics[0].Partitions[0]; p.UnknownTags.Len() > 0 {
				t.Errorf("the listener %s, OffsetForLeaderEpoch v%d tells what a replica has", d.name, version)
			}
		}
		// Everything else that brokers, controllers and coordinators of Kafka ask of each other, and Varve's own. The
		// connection ends, as Kafka's does for what a listener does not serve.
		listed := f.must(3, &kmsg.ApiVersionsRequest{ClientSoftwareName: "forger", ClientSoftwareVersion: "1"}).(*kmsg.ApiVersionsResponse)
		tried := 0
		for key := int16(0); key <= kmsg.MaxKey; key++ {
			req := kmsg.RequestForKey(key)
			if req == nil || slices.ContainsFunc(listed.ApiKeys, func(k kmsg.ApiVersionsResponseApiKey) bool { return k.ApiKey == key }) {
				continue
			}
			if d.among && slices.Contains([]kmsg.Key{kmsg.SASLHandshake, kmsg.SASLAuthenticate, kmsg.Envelope}, kmsg.Key(key)) {
				continue // below
			}
			tried++
			if resp, err := forge(t, d.addr).ask(req.MaxVersion(), req); err == nil {
				t.Errorf("the listener %s answers %s: %+v", d.name, kmsg.NameForKey(key), resp)
			}
		}
		if tried < 20 {
			t.Errorf("the listener %s: %d requests of brokers tried", d.name, tried)
		}
		unchanged("requests of brokers at the listener " + d.name)
	}
	among := atLeader[1].addr
	for _, mechanism := range []string{"PLAIN", "SCRAM-SHA-512", "", "varve-broker"} {
		f := forge(t, among)
		if resp := f.must(1, &kmsg.SASLHandshakeRequest{Mechanism: mechanism}).(*kmsg.SASLHandshakeResponse); resp.ErrorCode != protocol.CodeUnsupportedSASLMechanism {
			t.Errorf("mechanism %q: error %d", mechanism, resp.ErrorCode)
		}
		if err := refused(f, 17, follow(17, followers[0])); err != nil {
			t.Errorf("mechanism %q: %v", mechanism, err)
		}
	}
	for what, wrong := range map[string][]byte{"another": bytes.Repeat([]byte{1}, len(secret)), "none": nil, "a part of the": secret[:len(secret)/2]} {
		f := forge(t, among)
		if code := f.prove(wrong, followers[0], leader); code != protocol.CodeSASLAuthenticationFailed {
			t.Errorf("%s secret: error %d", what, code)
		}
		f.ends(what + " secret")
	}
	// The half of a handshake, and then what would follow the whole.
	f := forge(t, among)
	f.must(1, &kmsg.SASLHandshakeRequest{Mechanism: "VARVE-BROKER"})
	if err := refused(f, 17, follow(17, followers[0])); err != nil {
		t.Errorf("after half of a handshake: %v", err)
	}
	unchanged("wrong secrets")

	// With the secret, the very same requests are what they say.
	for _, id := range followers {
		f := forge(t, among)
		if code := f.prove(secret, id, leader); code != 0 {
			t.Fatalf("the cluster's secret: error %d", code)
		}
		if resp := f.must(17, follow(17, id)).(*kmsg.FetchResponse); resp.ErrorCode != 0 {
			t.Errorf("a fetch with the cluster's secret: error %d", resp.ErrorCode)
		}
	}
	if err := <-safe; err != nil {
		t.Error(err)
	}
	if hw := offsets(forge(t, atLeader[0].addr), 11, -1); hw != end {
		t.Errorf("followers that have everything: the high watermark is %d, want %d", hw, end)
	}
	for _, id := range followers {
		if err := c.Broker(id).Resume(); err != nil {
			t.Fatal(err)
		}
	}
	for _, b := range c.Brokers {
		from := b.ID%3 + 1
		f := forge(t, doors(b.ID)[1].addr)
		if code := f.prove(secret, from, b.ID); code != 0 {
			t.Fatalf("the cluster's secret: error %d", code)
		}
		if resp := f.must(0, envelope()).(*kmsg.EnvelopeResponse); resp.ErrorCode != 0 {
			t.Errorf("a command with the cluster's secret: error %d", resp.ErrorCode)
		}
	}
	if look().Topic("made") == nil {
		t.Error("a command with the cluster's secret is not carried out")
	}
	put(cl)
	log, err := os.ReadFile(c.Broker(leader).Log())
	if err != nil || !bytes.Contains(log, []byte("a connection to the inter-broker listener is not another broker's")) {
		t.Errorf("the leader's log does not say that somebody tried: %v", err)
	}
	if bytes.Contains(log, []byte("panic")) {
		t.Error("a handler failed")
	}
}
