// Package image is the cluster's metadata as one immutable value.
//
// An Image is what a broker knows at one revision of the metadata store. It is
// published behind an atomic pointer by metadata.Node; whoever needs metadata
// takes the pointer once and reads one consistent state to the end. Nothing
// reachable from an Image is ever written after it was published: callers must
// not modify what its methods return.
//
// Image.Apply is the only way from one image to the next, at start, from the
// watch, and inside the controller, which applies what it decided to see the
// effect of one command before it decides the next.
package image

import (
	"bytes"
	"cmp"
	"iter"
	"slices"
	"strconv"
	"strings"
)

// Config resource types, as the protocol numbers them.
const (
	TopicResource         int8 = 2
	BrokerResource        int8 = 4
	ClientMetricsResource int8 = 16
	GroupResource         int8 = 32
)

// NoLeader is the leader of a partition that nobody leads, and the controller
// of a cluster without one.
const NoLeader int32 = -1

// MaxPartitionIndex bounds the index that a stored partition key may have, so
// that a damaged key cannot make an image allocate without bound.
const MaxPartitionIndex = 1<<20 - 1

// Image is the cluster's metadata at one revision.
type Image struct {
	// Revision of the store that this image shows.
	Revision int64
	// ClusterID is the cluster's identity: 22 characters, URL-safe base64 of 16 bytes.
	ClusterID string
	// Controller is the broker that holds the election, NoLeader if none does.
	Controller int32
	// ControllerEpoch grows with every election: the revision at which the
	// controller's key was created.
	ControllerEpoch int64

	brokers  table[int32, *Broker]
	sessions table[int32, *Session]
	byID     table[[16]byte, *Topic]
	byName   table[string, *Topic]
	parts    table[[16]byte, []*Partition]
	configs  table[ConfigKey, *Config]
	deleted  table[[16]byte, *Tombstone]

	partitions int // of visible topics
	unsettled  int // of those: without a leader, being reassigned, or with a replica whose log was cut
	loose      int // partitions that no topic shows; see Loose
}

// Endpoint is one advertised listener of a broker.
type Endpoint struct {
	Listener string
	Host     string
	Port     int32
	Protocol string // PLAINTEXT, SSL, SASL_PLAINTEXT, SASL_SSL
}

// Broker is a member of the cluster as the controller admitted it. It outlives
// the broker's session: a broker that is away stays known, fenced.
type Broker struct {
	ID int32
	// Epoch is the revision of the registration that was admitted; it grows
	// with every registration. Not positive, together with Fenced, while an
	// admission is not complete.
	Epoch int64
	// Incarnation is drawn by each process at its start. A process leads
	// nothing unless the image names its own incarnation, unfenced.
	Incarnation [16]byte
	Rack        string
	Endpoints   []Endpoint
	// WAL is the identity of the broker's log directory: another value means
	// another disk, hence a broker that lost what it had.
	WAL    [16]byte
	Fenced bool
	// ShuttingDown says that this incarnation is about to end: it is not
	// elected, does not join an ISR and is given no new replica, and hands over
	// what it leads. The next incarnation begins without it.
	ShuttingDown bool
	// Unresponsive says that this incarnation has a session and does not answer:
	// it leads only what nobody else can, does not join an ISR and is given no new
	// replica until it answers again.
	Unresponsive bool
	// Stale says that this incarnation was admitted with an old copy of its log
	// directory (Session.Stale), and that the copy is not known to have a mark of its own:
	// it joins no ISR. The directory that it is a copy of would pass for it.
	Stale bool

	Revision int64 // at which it was last written
}

// Endpoint returns the endpoint of a listener.
func (b *Broker) Endpoint(listener string) (Endpoint, bool) {
	for _, e := range b.Endpoints {
		if e.Listener == listener {
			return e, true
		}
	}
	return Endpoint{}, false
}

// Session is a broker's registration, bound to its lease: it vanishes when the
// broker stops heartbeating. The controller turns sessions into Brokers.
type Session struct {
	ID          int32
	Incarnation [16]byte
	Rack        string
	Endpoints   []Endpoint
	InterBroker string // the listener of Endpoints on which it serves other brokers; "" of a process that did not say
	WAL         [16]byte
	Lease       int64
	// AcceptLoss asks that partitions of which nobody is known to have everything be led by
	// this broker, from their remote end. It is heeded when the process is admitted first.
	AcceptLoss bool
	// Place names the log directory on its machine: of two processes that show the
	// same place, one has ended. "" if it is not known.
	Place string
	// Stale says that the log directory is known to have come further than it has:
	// it is a copy, or was restored, and lacks what came since.
	Stale bool
	// Cut says that the end of the log was cut off when it was opened, as a block
	// that had been begun.
	Cut bool

	Revision int64 // becomes the broker's epoch
}

// Topic is a topic with all its partitions; Partitions[i] is partition i and
// never nil.
type Topic struct {
	ID         [16]byte
	Name       string
	Internal   bool
	Partitions []*Partition
	Config     map[string]string // overrides only; nil if none

	Revision int64 // at which name, count or config was last written
}

// Partition is the state of one partition.
type Partition struct {
	Leader         int32 // NoLeader if none
	LeaderEpoch    int32 // raised with every change of leader or leader incarnation
	PartitionEpoch int32 // raised with every write of this state
	Replicas       []int32
	ISR            []int32 // ascending; in sync, clean to elect
	ELR            []int32 // ascending; out of the ISR but known to hold all that is committed (KIP-966)
	// Recovering says that the leader was not in sync when it was elected, and is
	// not known to have compared its log with what is in the bucket (Kafka's
	// LeaderRecoveryState).
	Recovering bool
	// Cut are members of ISR and ELR, ascending, whose log was cut at its end when
	// they started: a block that had been begun and not acknowledged, unless the
	// disk has changed it since. They are elected after the others, until they have
	// joined the ISR anew; with none but them left, nobody is among them.
	Cut []int32
	// While the partition is reassigned (KIP-455), Replicas are those of the
	// target, in its order, and then those of the present assignment that are to
	// go. Adding are those of the target alone, Removing those to go.
	Adding   []int32
	Removing []int32

	Revision int64 // at which it was last written
}

// Reassigning says that the partition is on its way to another assignment.
func (p *Partition) Reassigning() bool { return len(p.Adding)+len(p.Removing) > 0 }

// Assigned returns the assignment that a reassignment under way began with, or
// else the only one there is.
func (p *Partition) Assigned() []int32 { return minus(p.Replicas, p.Adding) }

// Target returns the assignment that the partition is to have.
func (p *Partition) Target() []int32 { return minus(p.Replicas, p.Removing) }

// MinISR is how many replicas must be in sync to commit, where
// min.insync.replicas is setting: not more than there are of the assignment.
// Replicas that are being added count when they are all there, so that a
// partition is not held to more than it has while it grows.
func (p *Partition) MinISR(setting int) int {
	return max(1, min(setting, len(p.Replicas)-len(p.Adding)))
}

// minus returns the members of a that are not in b, sharing a if that is all.
func minus(a, b []int32) []int32 {
	if len(b) == 0 {
		return a
	}
	var out []int32
	for _, id := range a {
		if !slices.Contains(b, id) {
			out = append(out, id)
		}
	}
	return out
}

// Tombstone remembers a deleted topic until its objects are gone from the
// bucket.
type Tombstone struct {
	ID         [16]byte
	Name       string
	Partitions int32

	Revision int64
}

// ConfigKey names what a config belongs to. Topic configs live in the Topic.
type ConfigKey struct {
	Type int8
	Name string
}

// Config is the dynamic config of a broker, of all brokers (broker with an
// empty name), of a group or of a client metrics subscription.
type Config struct {
	ConfigKey
	Values map[string]string

	Revision int64
}

// Empty returns an image with nothing in it.
func Empty() *Image {
	return &Image{
		Controller: NoLeader,
		brokers:    newTable[int32, *Broker](cmp.Compare[int32]),
		sessions:   newTable[int32, *Session](cmp.Compare[int32]),
		byID:       newTable[[16]byte, *Topic](compareID),
		byName:     newTable[string, *Topic](strings.Compare),
		parts:      newTable[[16]byte, []*Partition](compareID),
		configs:    newTable[ConfigKey, *Config](compareConfigKey),
		deleted:    newTable[[16]byte, *Tombstone](compareID),
	}
}

func compareID(a, b [16]byte) int { return bytes.Compare(a[:], b[:]) }

func compareConfigKey(a, b ConfigKey) int {
	return cmp.Or(cmp.Compare(a.Type, b.Type), strings.Compare(a.Name, b.Name))
}

// Broker returns the broker with that id, nil if it was never admitted.
func (im *Image) Broker(id int32) *Broker { b, _ := im.brokers.get(id); return b }

// Brokers returns all brokers, fenced ones too, by ascending id.
func (im *Image) Brokers() []*Broker { return values(im.brokers) }

// Alive says whether the broker is admitted and not fenced.
func (im *Image) Alive(id int32) bool { b := im.Broker(id); return b != nil && !b.Fenced }

// Active says whether the broker is alive, answers, and is not about to end: it may
// be given something to do.
func (im *Image) Active(id int32) bool {
	b := im.Broker(id)
	return b != nil && !b.Fenced && !b.ShuttingDown && !b.Unresponsive
}

// MayJoin says whether a broker may join an ISR.
func (im *Image) MayJoin(id int32) bool { return im.Active(id) && !im.Broker(id).Stale }

// The settings of a broker that say what it is not to be given.
const (
	CordonedSetting   = "cordoned.log.dirs" // KIP-1066
	LeadershipSetting = "leadership.enable"
)

// Cordoned says whether a broker is to be given no new replicas: a broker has one
// log directory, and it is among its cordoned ones.
func (im *Image) Cordoned(id int32) bool {
	return im.Config(BrokerResource, strconv.Itoa(int(id)))[CordonedSetting] != ""
}

// MayLead says whether a broker may lead what others can lead as well.
func (im *Image) MayLead(id int32) bool {
	may, err := strconv.ParseBool(strings.TrimSpace(im.Config(BrokerResource, strconv.Itoa(int(id)))[LeadershipSetting]))
	return may || err != nil
}

// Session returns the session of a broker, nil if it has none.
func (im *Image) Session(id int32) *Session { s, _ := im.sessions.get(id); return s }

// Sessions returns all sessions by ascending broker id.
func (im *Image) Sessions() []*Session { return values(im.sessions) }

// Topic returns the topic of that name, nil if there is none.
func (im *Image) Topic(name string) *Topic { t, _ := im.byName.get(name); return t }

// TopicByID returns the topic with that id, nil if there is none.
func (im *Image) TopicByID(id [16]byte) *Topic { t, _ := im.byID.get(id); return t }

// Topics returns all topics by ascending name. It allocates the slice; AllTopics does not.
func (im *Image) Topics() []*Topic { return values(im.byName) }

// AllTopics iterates over all topics by ascending name.
func (im *Image) AllTopics() iter.Seq[*Topic] {
	return func(yield func(*Topic) bool) {
		im.byName.each(func(_ string, t *Topic) bool { return yield(t) })
	}
}

// NumTopics is the number of topics.
func (im *Image) NumTopics() int { return im.byName.len() }

// NumPartitions is the number of partitions of all topics.
func (im *Image) NumPartitions() int { return im.partitions }

// Unsettled is the number of partitions that have no leader, are being reassigned,
// or have a replica whose log was cut.
func (im *Image) Unsettled() int { return im.unsettled }

// Partition returns a partition of the topic with that id, nil if there is none.
func (im *Image) Partition(id [16]byte, index int32) *Partition {
	t := im.TopicByID(id)
	if t == nil || index < 0 || int(index) >= len(t.Partitions) {
		return nil
	}
	return t.Partitions[index]
}

// Config returns the dynamic config of a resource, nil if it has none: of a
// topic by name, of a broker by decimal id, of all brokers by "", of a group
// or a client metrics subscription by name.
func (im *Image) Config(resourceType int8, name string) map[string]string {
	if resourceType == TopicResource {
		if t := im.Topic(name); t != nil {
			return t.Config
		}
		return nil
	}
	if c := im.ConfigEntry(resourceType, name); c != nil {
		return c.Values
	}
	return nil
}

// ConfigEntry is Config with its revision, for resources other than topics.
func (im *Image) ConfigEntry(resourceType int8, name string) *Config {
	c, _ := im.configs.get(ConfigKey{resourceType, name})
	return c
}

// Configs returns all configs of a type other than topics, by ascending name.
func (im *Image) Configs(resourceType int8) []*Config {
	var out []*Config
	im.configs.each(func(k ConfigKey, c *Config) bool {
		if k.Type == resourceType {
			out = append(out, c)
		}
		return k.Type <= resourceType
	})
	return out
}

// Deleted returns the tombstones of deleted topics by ascending id. The leader
// epoch keys of these topics are gone: no manifest of theirs can be committed
// any more.
func (im *Image) Deleted() []Tombstone {
	out := make([]Tombstone, 0, im.deleted.len())
	im.deleted.each(func(_ [16]byte, t *Tombstone) bool { out = append(out, *t); return true })
	return out
}

// Tombstone returns the tombstone of a deleted topic, nil if there is none.
func (im *Image) Tombstone(id [16]byte) *Tombstone { t, _ := im.deleted.get(id); return t }

// PartitionRef names a partition.
type PartitionRef struct {
	TopicID [16]byte
	Index   int32
}

// Loose returns up to limit partitions that are stored but that no topic
// shows: a topic's key is written after its partitions and is what makes them
// exist, so these are the remains of a creation that did not finish.
func (im *Image) Loose(limit int) []PartitionRef {
	if im.loose == 0 {
		return nil
	}
	var out []PartitionRef
	im.parts.each(func(id [16]byte, ps []*Partition) bool {
		from := 0
		if t := im.TopicByID(id); t != nil {
			from = len(t.Partitions)
		}
		for i := from; i < len(ps) && len(out) < limit; i++ {
			if ps[i] != nil {
				out = append(out, PartitionRef{id, int32(i)})
			}
		}
		return len(out) < limit
	})
	return out
}

// StoredPartition returns the partition as stored, whether or not its topic
// shows it; nil if it is not stored. The controller compares its revision
// before it writes.
func (im *Image) StoredPartition(id [16]byte, index int32) *Partition {
	ps, _ := im.parts.get(id)
	if index < 0 || int(index) >= len(ps) {
		return nil
	}
	return ps[index]
}

func values[K, V any](t table[K, V]) []V {
	out := make([]V, 0, t.len())
	t.each(func(_ K, v V) bool { out = append(out, v); return true })
	return out
}
