package broker_test

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/cmd/varve/servertest"
	"github.com/varve/varve/metadata/controller"
)

// caller goes through the handshake among brokers step by step.
type caller struct {
	*client
	secret   []byte
	from, to int32
	own      []byte
}

func (c *caller) begin() {
	c.t.Helper()
	if resp := c.do(at(1, &kmsg.SASLHandshakeRequest{Mechanism: "VARVE-BROKER"})).(*kmsg.SASLHandshakeResponse); resp.ErrorCode != 0 {
		c.t.Fatalf("handshake: error %d", resp.ErrorCode)
	}
}

func (c *caller) authenticate(m []byte) *kmsg.SASLAuthenticateResponse {
	c.t.Helper()
	return c.do(at(2, &kmsg.SASLAuthenticateRequest{SASLAuthBytes: m})).(*kmsg.SASLAuthenticateResponse)
}

func (c *caller) hello() []byte {
	c.own = make([]byte, 16)
	rand.Read(c.own)
	return bytes.Join([][]byte{{1}, be32(c.from), be32(c.to), c.own}, nil)
}

func (c *caller) proof(theirs []byte) []byte {
	h := hmac.New(sha256.New, c.secret)
	h.Write(bytes.Join([][]byte{[]byte("calls"), be32(c.from), be32(c.to), c.own, theirs}, nil))
	return h.Sum(nil)
}

// prove is the whole handshake, as it should be.
func (c *caller) prove() {
	c.t.Helper()
	c.begin()
	answer := c.authenticate(c.hello())
	if answer.ErrorCode != 0 || len(answer.SASLAuthBytes) != 48 {
		c.t.Fatalf("hello: %+v", answer)
	}
	if resp := c.authenticate(c.proof(answer.SASLAuthBytes[:16])); resp.ErrorCode != 0 {
		c.t.Fatalf("proof: %+v", resp)
	}
}

// TestPeers: who has not proved to be a broker of this cluster is served nothing
// that brokers ask of each other; a client that forges a follower would move the
// high watermark (CVE-2018-1288), and one that forges a command would be the
// controller's master.
func TestPeers(t *testing.T) {
	b := servertest.StartCluster(t, 1, servertest.Options{})[0]
	b.CreateTopic("t", 1)
	newCaller := func() *caller { return &caller{client: dial(t, b), secret: b.Secret(), from: 2, to: 1} }
	const authorization, authentication, state, mechanism, unknownEpoch = 31, 58, 34, 33, 75

	command, err := controller.EncodeCommand(controller.CreateTopics{Topics: []controller.NewTopic{{Name: "made", Partitions: 1, ReplicationFactor: 1, ID: [16]byte{5}}}}, false)
	if err != nil {
		t.Fatal(err)
	}
	envelope := func(c *client) int16 {
		t.Helper()
		return c.do(at(0, &kmsg.EnvelopeRequest{RequestData: command, ClientHostAddress: []byte{}})).(*kmsg.EnvelopeResponse).ErrorCode
	}
	topic := dial(t, b).do(at(12, &kmsg.MetadataRequest{Topics: []kmsg.MetadataRequestTopic{{Topic: kmsg.StringPtr("t")}}})).(*kmsg.MetadataResponse).Topics[0].TopicID
	// follow fetches as a follower, and returns the error for the request or its partition.
	follow := func(c *client, id int32) int16 {
		t.Helper()
		req := kmsg.NewPtrFetchRequest()
		req.Version = 17
		req.ReplicaState.ID, req.ReplicaState.Epoch, req.SessionEpoch = id, 1, -1
		rt, rp := kmsg.NewFetchRequestTopic(), kmsg.NewFetchRequestTopicPartition()
		rt.TopicID, rp.PartitionMaxBytes = topic, 1<<20
		rt.Partitions = append(rt.Partitions, rp)
		req.Topics = append(req.Topics, rt)
		resp := c.do(req).(*kmsg.FetchResponse)
		if resp.ErrorCode != 0 || len(resp.Topics) == 0 {
			return resp.ErrorCode
		}
		return resp.Topics[0].Partitions[0].ErrorCode
	}

	// told asks what the broker has of a partition, and returns what it is told beside what a client is.
	told := func(c *client) (tags int) {
		t.Helper()
		const logTag = 0x7665
		req := kmsg.NewPtrOffsetForLeaderEpochRequest()
		req.Version = 4
		rt, rp := kmsg.NewOffsetForLeaderEpochRequestTopic(), kmsg.NewOffsetForLeaderEpochRequestTopicPartition()
		rt.Topic = "t"
		rp.UnknownTags.Set(logTag, nil)
		rt.Partitions = append(rt.Partitions, rp)
		req.Topics = append(req.Topics, rt)
		p := c.do(req).(*kmsg.OffsetForLeaderEpochResponse).Topics[0].Partitions[0]
		return p.UnknownTags.Len()
	}
	t.Run("without a word", func(t *testing.T) {
		c := dial(t, b)
		if code := envelope(c); code != authorization {
			t.Errorf("a command: error %d", code)
		}
		if code := follow(c, 2); code != authorization {
			t.Errorf("a follower's fetch: error %d", code)
		}
		if told(c) != 0 {
			t.Error("it is told what a replica has")
		}
	})
	t.Run("another mechanism", func(t *testing.T) {
		resp := dial(t, b).do(at(1, &kmsg.SASLHandshakeRequest{Mechanism: "PLAIN"})).(*kmsg.SASLHandshakeResponse)
		if resp.ErrorCode != mechanism {
			t.Errorf("error %d", resp.ErrorCode)
		}
	})
	for name, tc := range map[string]struct {
		do   func(c *caller) *kmsg.SASLAuthenticateResponse
		want int16
	}{
		"no handshake": {func(c *caller) *kmsg.SASLAuthenticateResponse { return c.authenticate(c.hello()) }, state},
		"nothing":      {func(c *caller) *kmsg.SASLAuthenticateResponse { c.begin(); return c.authenticate(nil) }, authentication},
		"another version": {func(c *caller) *kmsg.SASLAuthenticateResponse {
			c.begin()
			return c.authenticate(append([]byte{2}, c.hello()[1:]...))
		}, authentication},
		"another broker": {func(c *caller) *kmsg.SASLAuthenticateResponse { c.begin(); c.to = 3; return c.authenticate(c.hello()) }, authentication},
		"the proof before": {func(c *caller) *kmsg.SASLAuthenticateResponse {
			c.begin()
			c.hello()
			return c.authenticate(c.proof(make([]byte, 16)))
		}, authentication},
		"another secret": {func(c *caller) *kmsg.SASLAuthenticateResponse {
			c.secret = bytes.Repeat([]byte{1}, 32)
			c.begin()
			return c.authenticate(c.proof(c.authenticate(c.hello()).SASLAuthBytes[:16]))
		}, authentication},
		"a proof of another connection": {func(c *caller) *kmsg.SASLAuthenticateResponse {
			other := newCaller()
			other.begin()
			theirs := other.authenticate(other.hello()).SASLAuthBytes[:16]
			c.begin()
			c.authenticate(c.hello())
			return c.authenticate(other.proof(theirs))
		}, authentication},
		"the server's own proof": {func(c *caller) *kmsg.SASLAuthenticateResponse {
			c.begin()
			return c.authenticate(c.authenticate(c.hello()).SASLAuthBytes[16:])
		}, authentication},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCaller()
			c.t = t
			if resp := tc.do(c); resp.ErrorCode != tc.want {
				t.Errorf("error %d, want %d", resp.ErrorCode, tc.want)
			}
			c.ends(name)
		})
	}
	t.Run("a broker", func(t *testing.T) {
		c := newCaller()
		c.t = t
		c.prove()
		if code := follow(c.client, 3); code != authorization {
			t.Errorf("a fetch as another broker: error %d", code)
		}
		// A follower that has heard of its replica before the leader: it is told to say again where it stands, for nothing of that was noted.
		for range 2 {
			if code := follow(c.client, 2); code != unknownEpoch {
				t.Errorf("a follower's fetch: error %d", code)
			}
		}
		if told(c.client) != 1 {
			t.Error("it is not told what a replica has")
		}
		if code := envelope(c.client); code != 0 {
			t.Errorf("a command: error %d", code)
		}
		if m := dial(t, b).do(at(9, &kmsg.MetadataRequest{Topics: []kmsg.MetadataRequestTopic{{Topic: kmsg.StringPtr("made")}}})).(*kmsg.MetadataResponse); m.Topics[0].ErrorCode != 0 {
			t.Errorf("the command had no effect: error %d", m.Topics[0].ErrorCode)
		}
	})
}
