package etcd

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/varve/varve/metadata/image"
)

// formatVersion is the version that every value carries. A reader refuses a
// value with another one: it was written by a Varve that it does not know.
const formatVersion = 1

// ErrFormat is returned for a stored key or value that cannot be read: damaged,
// or of a version that this program does not know.
var ErrFormat = errors.New("metadata: unreadable entry")

// keys builds and takes apart the key names below a cluster's prefix.
type keys struct{ prefix string }

const (
	imagePart     = "image/"
	clusterPart   = "image/cluster"
	electedPart   = "image/controller"
	barrierPart   = "image/barrier"
	sessionPart   = "image/session/"
	brokerPart    = "image/broker/"
	topicPart     = "image/topic/"
	partitionPart = "image/partition/"
	configPart    = "image/config/"
	deletedPart   = "image/deleted/"
	namePart      = "name/"
	epochPart     = "epoch/"
	manifestPart  = "manifest/"
	claimPart     = "claim/"
	scrubbingPart = "scrub/running"
	scrubbedPart  = "scrub/last"
	unnamedPart   = "scrub/unnamed"
	producerPart  = "producer-ids"
	secretPart    = "secret"
	bucketPart    = "bucket"
	markPart      = "mark/"
)

func (k keys) image() string            { return k.prefix + imagePart }
func (k keys) cluster() string          { return k.prefix + clusterPart }
func (k keys) controller() string       { return k.prefix + electedPart }
func (k keys) barrier() string          { return k.prefix + barrierPart }
func (k keys) session(id int32) string  { return fmt.Sprintf("%s%s%010d", k.prefix, sessionPart, id) }
func (k keys) broker(id int32) string   { return fmt.Sprintf("%s%s%010d", k.prefix, brokerPart, id) }
func (k keys) topic(id [16]byte) string { return k.prefix + topicPart + hex.EncodeToString(id[:]) }
func (k keys) name(name string) string  { return k.prefix + namePart + name }
func (k keys) deleted(id [16]byte) string {
	return k.prefix + deletedPart + hex.EncodeToString(id[:])
}
func (k keys) allDeleted() string { return k.prefix + deletedPart }
func (k keys) config(c image.ConfigKey) string {
	return fmt.Sprintf("%s%s%03d/%s", k.prefix, configPart, c.Type, c.Name)
}
func (k keys) mark(id int32) string { return fmt.Sprintf("%s%s%010d", k.prefix, markPart, id) }
func (k keys) producerIDs() string  { return k.prefix + producerPart }
func (k keys) secret() string       { return k.prefix + secretPart }
func (k keys) bucket() string       { return k.prefix + bucketPart }

func (k keys) partition(id [16]byte, index int32) string {
	return k.below(partitionPart, id) + fmt.Sprintf("%07d", index)
}
func (k keys) partitions(id [16]byte) string { return k.below(partitionPart, id) }
func (k keys) epoch(id [16]byte, index int32) string {
	return k.below(epochPart, id) + fmt.Sprintf("%07d", index)
}
func (k keys) epochs(id [16]byte) string { return k.below(epochPart, id) }
func (k keys) manifest(id [16]byte, index int32) string {
	return k.below(manifestPart, id) + fmt.Sprintf("%07d", index)
}
func (k keys) claim(id [16]byte, index int32) string {
	return k.below(claimPart, id) + fmt.Sprintf("%07d", index)
}
func (k keys) claims() string               { return k.prefix + claimPart }
func (k keys) claimsOf(id [16]byte) string  { return k.below(claimPart, id) }
func (k keys) scrubbing() string            { return k.prefix + scrubbingPart }
func (k keys) scrubbed() string             { return k.prefix + scrubbedPart }
func (k keys) unnamed() string              { return k.prefix + unnamedPart }
func (k keys) manifests(id [16]byte) string { return k.below(manifestPart, id) }
func (k keys) allManifests() string         { return k.prefix + manifestPart }

func (k keys) below(part string, id [16]byte) string {
	return k.prefix + part + hex.EncodeToString(id[:]) + "/"
}

// The values. JSON, so that etcdctl shows what the cluster believes; short
// names, because etcd keeps all of it in memory.
type (
	clusterValue struct {
		V       int    `json:"v"`
		ID      string `json:"id"`
		Created int64  `json:"created"` // ms
	}
	secretValue struct {
		V      int    `json:"v"`
		Secret []byte `json:"secret"`
	}
	bucketValue struct {
		V     int    `json:"v"`
		Probe string `json:"probe"`
	}
	controllerValue struct {
		V           int    `json:"v"`
		Broker      int32  `json:"broker"`
		Incarnation string `json:"incarnation"`
	}
	endpointValue struct {
		Listener string `json:"listener"`
		Host     string `json:"host"`
		Port     int32  `json:"port"`
		Protocol string `json:"protocol"`
	}
	sessionValue struct {
		V           int             `json:"v"`
		Incarnation string          `json:"incarnation"`
		Rack        string          `json:"rack,omitempty"`
		Endpoints   []endpointValue `json:"endpoints"`
		WAL         string          `json:"wal"`
		Lease       int64           `json:"lease"`
		AcceptLoss  bool            `json:"acceptLoss,omitempty"`
		Place       string          `json:"place,omitempty"`
		Stale       bool            `json:"stale,omitempty"`
		Cut         bool            `json:"cut,omitempty"`
		InterBroker string          `json:"interBroker,omitempty"`
	}
	markValue struct {
		V    int    `json:"v"`
		WAL  string `json:"wal"`
		Mark string `json:"mark"`
	}
	brokerValue struct {
		V           int             `json:"v"`
		Epoch       int64           `json:"epoch"`
		Incarnation string          `json:"incarnation"`
		Rack        string          `json:"rack,omitempty"`
		Endpoints   []endpointValue `json:"endpoints"`
		WAL         string          `json:"wal"`
		Fenced      bool            `json:"fenced,omitempty"`
		Stopping    bool            `json:"shuttingDown,omitempty"`
		Silent      bool            `json:"unresponsive,omitempty"`
		Stale       bool            `json:"stale,omitempty"`
	}
	topicValue struct {
		V          int               `json:"v"`
		Name       string            `json:"name"`
		Internal   bool              `json:"internal,omitempty"`
		Partitions int32             `json:"partitions"`
		Config     map[string]string `json:"config,omitempty"`
	}
	partitionValue struct {
		V              int     `json:"v"`
		Leader         int32   `json:"leader"`
		LeaderEpoch    int32   `json:"epoch"`
		PartitionEpoch int32   `json:"pepoch"`
		Replicas       []int32 `json:"replicas"`
		ISR            []int32 `json:"isr"`
		ELR            []int32 `json:"elr,omitempty"`
		Recovering     bool    `json:"recovering,omitempty"`
		Adding         []int32 `json:"adding,omitempty"`
		Removing       []int32 `json:"removing,omitempty"`
		Cut            []int32 `json:"cut,omitempty"`
	}
	nameValue struct {
		V  int    `json:"v"`
		ID string `json:"id"`
	}
	configValue struct {
		V      int               `json:"v"`
		Values map[string]string `json:"values"`
	}
	tombstoneValue struct {
		V          int    `json:"v"`
		Name       string `json:"name"`
		Partitions int32  `json:"partitions"`
	}
	claimValue struct {
		V      int    `json:"v"`
		Worker string `json:"worker"`
		Tag    string `json:"tag"` // hex
	}
	producerValue struct {
		V    int   `json:"v"`
		Next int64 `json:"next"`
	}
)

// epochValue is the leader epoch as stored under its own key. Manifest commits
// compare these bytes, so there is exactly one way to write an epoch.
// epochRecord is what epochValue writes.
type epochRecord struct {
	V     int   `json:"v"`
	Epoch int32 `json:"epoch"`
}

func epochValue(epoch int32) string { return fmt.Sprintf(`{"v":%d,"epoch":%d}`, formatVersion, epoch) }

func encode(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("metadata: encode %T: %v", v, err)) // only plain structs come here
	}
	return string(b)
}

func decode[T any](key string, b []byte) (T, error) {
	var head struct {
		V int `json:"v"`
	}
	var v T
	if err := json.Unmarshal(b, &v); err != nil {
		// A later version may have changed a field's type: say that rather
		// than "cannot unmarshal".
		if json.Unmarshal(b, &head) == nil && head.V != formatVersion {
			return v, fmt.Errorf("%w: %q has version %d, this program knows %d", ErrFormat, key, head.V, formatVersion)
		}
		return v, fmt.Errorf("%w: %q: %v", ErrFormat, key, err)
	}
	if got := version(v); got != formatVersion {
		return v, fmt.Errorf("%w: %q has version %d, this program knows %d", ErrFormat, key, got, formatVersion)
	}
	return v, nil
}

func version(v any) int {
	switch v := v.(type) {
	case clusterValue:
		return v.V
	case claimValue:
		return v.V
	case ScrubPass:
		return v.V
	case unnamedValue:
		return v.V
	case secretValue:
		return v.V
	case bucketValue:
		return v.V
	case controllerValue:
		return v.V
	case sessionValue:
		return v.V
	case markValue:
		return v.V
	case brokerValue:
		return v.V
	case topicValue:
		return v.V
	case partitionValue:
		return v.V
	case nameValue:
		return v.V
	case configValue:
		return v.V
	case tombstoneValue:
		return v.V
	case producerValue:
		return v.V
	case epochRecord:
		return v.V
	}
	panic(fmt.Sprintf("metadata: no version in %T", v))
}

func encodePartition(p *image.Partition) string {
	return encode(partitionValue{formatVersion, p.Leader, p.LeaderEpoch, p.PartitionEpoch,
		p.Replicas, p.ISR, p.ELR, p.Recovering, p.Adding, p.Removing, p.Cut})
}

func encodeBroker(b image.Broker) string {
	return encode(brokerValue{formatVersion, b.Epoch, hex.EncodeToString(b.Incarnation[:]), b.Rack,
		encodeEndpoints(b.Endpoints), hex.EncodeToString(b.WAL[:]), b.Fenced, b.ShuttingDown, b.Unresponsive, b.Stale})
}

func encodeSession(s image.Session) string {
	return encode(sessionValue{formatVersion, hex.EncodeToString(s.Incarnation[:]), s.Rack,
		encodeEndpoints(s.Endpoints), hex.EncodeToString(s.WAL[:]), s.Lease, s.AcceptLoss, s.Place, s.Stale, s.Cut, s.InterBroker})
}

func encodeEndpoints(es []image.Endpoint) []endpointValue {
	out := make([]endpointValue, len(es))
	for i, e := range es {
		out[i] = endpointValue(e)
	}
	return out
}

func decodeEndpoints(es []endpointValue) []image.Endpoint {
	out := make([]image.Endpoint, len(es))
	for i, e := range es {
		out[i] = image.Endpoint(e)
	}
	return out
}

// change turns an entry below image/ into a change of the image. A nil value
// means that the key was deleted. Keys that say nothing about the image (the
// barrier, and parts a later version may add) give nil.
func (k keys) change(key string, value []byte, createRevision int64) (image.Change, error) {
	rest := strings.TrimPrefix(key, k.prefix)
	gone := value == nil
	switch {
	case rest == barrierPart:
		return nil, nil

	case rest == clusterPart:
		if gone {
			return image.SetCluster{}, nil
		}
		v, err := decode[clusterValue](key, value)
		return image.SetCluster{ID: v.ID}, err

	case rest == electedPart:
		if gone {
			return image.DropController{}, nil
		}
		v, err := decode[controllerValue](key, value)
		return image.SetController{Broker: v.Broker, Epoch: createRevision}, err

	case strings.HasPrefix(rest, sessionPart):
		id, err := number(key, rest[len(sessionPart):])
		if gone || err != nil {
			return image.DropSession{ID: id}, err
		}
		v, err := decode[sessionValue](key, value)
		if err != nil {
			return nil, err
		}
		s := image.Session{ID: id, Rack: v.Rack, Endpoints: decodeEndpoints(v.Endpoints), Lease: v.Lease, AcceptLoss: v.AcceptLoss, Place: v.Place, Stale: v.Stale, Cut: v.Cut, InterBroker: v.InterBroker}
		if s.Incarnation, err = unhex(key, v.Incarnation); err != nil {
			return nil, err
		}
		s.WAL, err = unhex(key, v.WAL)
		return image.SetSession{Session: s}, err

	case strings.HasPrefix(rest, brokerPart):
		id, err := number(key, rest[len(brokerPart):])
		if gone || err != nil {
			return image.DropBroker{ID: id}, err
		}
		v, err := decode[brokerValue](key, value)
		if err != nil {
			return nil, err
		}
		b := image.Broker{ID: id, Epoch: v.Epoch, Rack: v.Rack, Endpoints: decodeEndpoints(v.Endpoints), Fenced: v.Fenced, ShuttingDown: v.Stopping, Unresponsive: v.Silent, Stale: v.Stale}
		if b.Incarnation, err = unhex(key, v.Incarnation); err != nil {
			return nil, err
		}
		b.WAL, err = unhex(key, v.WAL)
		return image.SetBroker{Broker: b}, err

	case strings.HasPrefix(rest, topicPart):
		id, err := unhex(key, rest[len(topicPart):])
		if gone || err != nil {
			return image.DropTopic{ID: id}, err
		}
		v, err := decode[topicValue](key, value)
		if err == nil && (v.Partitions < 0 || v.Partitions > image.MaxPartitionIndex+1) {
			err = fmt.Errorf("%w: %q has %d partitions", ErrFormat, key, v.Partitions)
		}
		return image.SetTopic{ID: id, Name: v.Name, Internal: v.Internal, Partitions: v.Partitions, Config: v.Config}, err

	case strings.HasPrefix(rest, partitionPart):
		ref, err := partitionRef(key, rest[len(partitionPart):])
		if gone || err != nil {
			return image.DropPartition{PartitionRef: ref}, err
		}
		v, err := decode[partitionValue](key, value)
		return image.SetPartition{PartitionRef: ref, State: image.Partition{
			Leader: v.Leader, LeaderEpoch: v.LeaderEpoch, PartitionEpoch: v.PartitionEpoch,
			Replicas: v.Replicas, ISR: v.ISR, ELR: v.ELR, Recovering: v.Recovering, Adding: v.Adding, Removing: v.Removing, Cut: v.Cut,
		}}, err

	case strings.HasPrefix(rest, configPart):
		typ, name, ok := strings.Cut(rest[len(configPart):], "/")
		n, err := strconv.ParseInt(typ, 10, 8)
		if err != nil || !ok {
			return nil, fmt.Errorf("%w: key %q", ErrFormat, key)
		}
		ck := image.ConfigKey{Type: int8(n), Name: name}
		if gone {
			return image.DropConfig{ConfigKey: ck}, nil
		}
		v, err := decode[configValue](key, value)
		return image.SetConfig{ConfigKey: ck, Values: v.Values}, err

	case strings.HasPrefix(rest, deletedPart):
		id, err := unhex(key, rest[len(deletedPart):])
		if gone || err != nil {
			return image.DropTombstone{ID: id}, err
		}
		v, err := decode[tombstoneValue](key, value)
		return image.SetTombstone{Tombstone: image.Tombstone{ID: id, Name: v.Name, Partitions: v.Partitions}}, err
	}
	return nil, nil
}

func number(key, s string) (int32, error) {
	n, err := strconv.ParseInt(s, 10, 32)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("%w: key %q", ErrFormat, key)
	}
	return int32(n), nil
}

func unhex(key, s string) (id [16]byte, err error) {
	if n, e := hex.Decode(id[:], []byte(s)[:min(len(s), 32)]); e != nil || n != 16 || len(s) != 32 {
		return id, fmt.Errorf("%w: %q: bad id %q", ErrFormat, key, s)
	}
	return id, nil
}

func partitionRef(key, rest string) (ref image.PartitionRef, err error) {
	id, index, ok := strings.Cut(rest, "/")
	if !ok {
		return ref, fmt.Errorf("%w: key %q", ErrFormat, key)
	}
	if ref.TopicID, err = unhex(key, id); err != nil {
		return ref, err
	}
	ref.Index, err = number(key, index)
	if err == nil && ref.Index > image.MaxPartitionIndex {
		err = fmt.Errorf("%w: key %q", ErrFormat, key)
	}
	return ref, err
}
