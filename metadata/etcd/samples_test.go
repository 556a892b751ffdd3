package etcd

import (
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/varve/varve/metadata/image"
)

// The values of format version 1 that v1_keys.txt has no sample of: those that came later, and those that no image is made of. What reads them
// reads what was written, and what is written now are the same bytes. The file is never to be written again.
func TestFormatVersion1More(t *testing.T) {
	raw := must[[]byte](t)(os.ReadFile(filepath.Join("testdata", "v1_more.txt")))
	s := New(Options{Client: client(t), Prefix: "/test/v1-more/"})
	stored := map[string]string{}
	for line := range strings.Lines(string(raw)) {
		key, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		stored[key] = value
		must[*clientv3.PutResponse](t)(s.client.Put(bg, s.keys.prefix+key, value))
	}
	// same compares what was read, and what is written of it.
	same := func(key string, got, want any, written string) {
		t.Helper()
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: read as %+v, want %+v", key, got, want)
		}
		if written != stored[key] {
			t.Errorf("%s: format version 1 is\n%s\nwritten now:\n%s", key, stored[key], written)
		}
		delete(stored, key)
	}

	const token = "00112233445566778899aabb"
	same("bucket", must[string](t)(s.Probe(bg)), token, encode(bucketValue{formatVersion, token}))

	secret := make([]byte, secretBytes)
	for i := range secret {
		secret[i] = byte(i)
	}
	same("secret", must[[]byte](t)(s.EnsureSecret(bg)), secret, encode(secretValue{formatVersion, secret}))

	claim := "claim/01000000000000000000000000000001/0000001"
	c := Claim{Worker: "host/1", Tag: [4]byte{1, 2, 3, 4}}
	same(claim, must[Claim](t)(decodeClaim(claim, []byte(stored[claim]))), c, c.value())

	pass := &ScrubPass{V: 1, Worker: "host/1", Began: 1000, Ended: 2000, Partitions: 3, Objects: 4, Bytes: 5, Findings: map[string]int{"missing": 1}}
	same("scrub/last", must[*ScrubPass](t)(s.LastScrub(bg)), pass, encode(*pass))
	unnamed := map[[12]byte]int64{{1}: 1000, {0xfe, 11: 0xff}: 1000, {2}: 5}
	if got := must[map[[12]byte]int64](t)(s.Unnamed(bg)); !maps.Equal(got, unnamed) {
		t.Errorf("scrub/unnamed: read as %v, want %v", got, unnamed)
	}
	same("scrub/unnamed", nil, nil, encodeUnnamed(unnamed))
	same("scrub/running", nil, nil, encode(scrubbingValue{formatVersion, "host/1", 7})) // compared as it is, never read

	changed := func(key string) image.Change {
		t.Helper()
		return must[image.Change](t)(s.keys.change(s.keys.prefix+key, []byte(stored[key]), 1))
	}
	b := image.Broker{ID: 2, Epoch: 4, Incarnation: id(0xc), WAL: id(0xd), ShuttingDown: true, Unresponsive: true,
		Endpoints: []image.Endpoint{{Listener: "PLAINTEXT", Host: "host", Port: 9092, Protocol: "PLAINTEXT"}}}
	same("image/broker/0000000002", changed("image/broker/0000000002"), image.SetBroker{Broker: b}, encodeBroker(b))
	old := image.Broker{ID: 3, Epoch: 5, Incarnation: id(0xe), WAL: id(0xf), Stale: true, Endpoints: b.Endpoints}
	same("image/broker/0000000003", changed("image/broker/0000000003"), image.SetBroker{Broker: old}, encodeBroker(old))
	session := image.Session{ID: 2, Incarnation: id(0xc), WAL: id(0xd), Lease: 7, InterBroker: "INSIDE",
		Endpoints: []image.Endpoint{{Listener: "INSIDE", Host: "host", Port: 9092, Protocol: "PLAINTEXT"}}}
	same("image/session/0000000002", changed("image/session/0000000002"), image.SetSession{Session: session}, encodeSession(session))
	p := image.SetPartition{PartitionRef: image.PartitionRef{TopicID: id(3)}, State: image.Partition{Leader: 1, LeaderEpoch: 5, PartitionEpoch: 7,
		Replicas: []int32{1, 2, 3}, ISR: []int32{1}, Recovering: true, Adding: []int32{3}, Removing: []int32{2}}}
	const partition = "image/partition/03000000000000000000000000000003/0000000"
	same(partition, changed(partition), p, encodePartition(&p.State))
	if len(stored) != 0 {
		t.Errorf("samples that nothing reads: %v", stored)
	}
}
