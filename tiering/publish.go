package tiering

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"maps"
	"sort"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/varve/varve/tiering/objstore"
)

// Publishing. A bucket alone is enough to find everything that was uploaded, for
// the heads are in it too: those that changed every minute, all of them now and
// then. Of several publications of one head the highest revision counts.
//
//	cluster                                    whose bucket this is
//	state/full/<revision>-<broker>-<suffix>    all heads as of one moment
//	state/delta/<revision>-<broker>-<suffix>   heads that changed, topics that were deleted
//
// The revision in a name is the highest of the heads in it; for a full one also of
// the deltas that were there before it was made. A delta whose revision is not
// above a full one's is covered by that one. Deleted topics are in deltas of
// their own, of revision 0, which are always read.
//
// Content: "VARVPUB" 1; cluster id; broker; created ms; heads {topic id,
// partition, name, revision, head}; deleted topics {topic id, name}; CRC32C.
const (
	clusterKey  = "cluster"
	fullPrefix  = "state/full/"
	deltaPrefix = "state/delta/"
	pubMagic    = "VARVPUB\x01"

	maxPublication = 256 << 20
)

// PublishedHead is a head found in the bucket.
type PublishedHead struct {
	StoredHead
	Topic string // its name, if the publisher knew it
}

// Publication is one published state.
type Publication struct {
	ClusterID string
	BrokerID  int32
	Created   int64 // ms
	Heads     []PublishedHead
	Deleted   []Tombstone
}

func (p *Publication) rev() (rev int64) {
	for _, h := range p.Heads {
		rev = max(rev, h.Rev)
	}
	return rev
}

// Encode returns the publication as stored.
func (p *Publication) Encode() []byte {
	b := []byte(pubMagic)
	str := func(s []byte) {
		b = binary.AppendUvarint(b, uint64(len(s)))
		b = append(b, s...)
	}
	str([]byte(p.ClusterID))
	b = binary.AppendUvarint(b, uint64(p.BrokerID))
	b = binary.AppendVarint(b, p.Created)
	b = binary.AppendUvarint(b, uint64(len(p.Heads)))
	for _, h := range p.Heads {
		b = append(b, h.TopicID[:]...)
		b = binary.AppendUvarint(b, uint64(h.Partition))
		str([]byte(h.Topic))
		b = binary.AppendUvarint(b, uint64(h.Rev))
		str(h.Head)
	}
	b = binary.AppendUvarint(b, uint64(len(p.Deleted)))
	for _, d := range p.Deleted {
		b = append(b, d.TopicID[:]...)
		b = binary.AppendUvarint(b, uint64(d.Partitions))
		str([]byte(d.Name))
	}
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// DecodePublication reads what Encode wrote; anything else is ErrCorrupt.
func DecodePublication(b []byte) (*Publication, error) {
	n := len(b) - 4
	if n < len(pubMagic) || string(b[:len(pubMagic)-1]) != pubMagic[:len(pubMagic)-1] {
		return nil, fmt.Errorf("%w: no publication", ErrCorrupt)
	}
	if b[len(pubMagic)-1] != pubMagic[len(pubMagic)-1] {
		return nil, fmt.Errorf("%w: publication of version %d", ErrCorrupt, b[len(pubMagic)-1])
	}
	if crc32.Checksum(b[:n], castagnoli) != binary.BigEndian.Uint32(b[n:]) {
		return nil, fmt.Errorf("%w: publication checksum", ErrCorrupt)
	}
	d := &decoder{b: b[len(pubMagic):n]}
	p := &Publication{ClusterID: string(d.bytes(d.count(1))), BrokerID: d.int32(), Created: d.int()}
	for range d.count(16 + 4) {
		var h PublishedHead
		h.TopicID, h.Partition = [16]byte(d.bytes(16)), d.int32()
		h.Topic = string(d.bytes(d.count(1)))
		h.Rev = d.uint()
		h.Head = d.bytes(d.count(1))
		p.Heads = append(p.Heads, h)
	}
	for range d.count(16 + 2) {
		p.Deleted = append(p.Deleted, Tombstone{TopicID: [16]byte(d.bytes(16)), Partitions: d.int32(), Name: string(d.bytes(d.count(1)))})
	}
	if d.err == nil && len(d.b) > 0 {
		d.fail("bytes behind the end")
	}
	if d.err != nil {
		return nil, fmt.Errorf("publication: %w", d.err)
	}
	return p, nil
}

type publisher struct {
	mu    sync.Mutex
	revs  map[partitionKey]int64         // of led partitions: published
	own   map[partitionKey]PublishedHead // of a worker: what it committed and has not published
	began time.Time                      // of the last publication that succeeded, or had nothing to say
	tombs map[[16]byte]bool
	full  time.Time // last time this process saw or made a full publication
}

func (p *publisher) init() {
	p.revs = make(map[partitionKey]int64)
	p.own = make(map[partitionKey]PublishedHead)
	p.tombs = make(map[[16]byte]bool)
}

// since tells whether what was committed for led partitions before a moment is
// published.
func (p *publisher) since(then time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.began.After(then)
}

func (p *publisher) buried(topic [16]byte) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.tombs[topic]
}

func (t *Tier) publishLoop() {
	for sleep(t.ctx, t.o.PublishInterval) {
		err := t.publish(t.ctx)
		if err == nil && time.Since(t.pub.full) >= t.o.FullInterval {
			err = t.publishFull(t.ctx)
		}
		if t.ctx.Err() == nil {
			t.outcome(Publish, err)
		}
	}
}

// publish writes the heads of led partitions that changed since they were
// published last, and what topics were deleted.
func (t *Tier) publish(ctx context.Context) error {
	began := time.Now()
	c, cancel := context.WithTimeout(ctx, t.o.RequestTimeout)
	deleted, err := t.store.Deleted(c)
	cancel()
	if err != nil {
		return fmt.Errorf("deleted topics: %w", err)
	}
	p := &Publication{ClusterID: t.o.ClusterID, BrokerID: t.o.BrokerID, Created: time.Now().UnixMilli()}
	led := make(map[partitionKey]bool)
	leaders := t.leaders()
	t.pub.mu.Lock()
	for _, l := range leaders {
		led[l.key] = true
		v := l.view.Load()
		if v.rev > t.pub.revs[l.key] {
			p.Heads = append(p.Heads, PublishedHead{StoredHead{l.key.topic, l.key.index, v.head.Encode(), v.rev}, l.name})
		}
	}
	for k := range t.pub.revs {
		if !led[k] {
			delete(t.pub.revs, k)
		}
	}
	for _, h := range t.pub.own {
		p.Heads = append(p.Heads, h)
	}
	present := make(map[[16]byte]bool)
	for _, d := range deleted {
		present[d.TopicID] = true
		if !t.pub.tombs[d.TopicID] {
			p.Deleted = append(p.Deleted, d)
		}
	}
	for id := range t.pub.tombs {
		if !present[id] {
			delete(t.pub.tombs, id)
		}
	}
	t.pub.mu.Unlock()
	if len(p.Deleted) > 0 {
		gone := *p
		gone.Heads = nil
		if err := t.putState(ctx, deltaPrefix, 0, &gone); err != nil {
			return err
		}
	}
	if len(p.Heads) > 0 {
		changed := *p
		changed.Deleted = nil
		if err := t.putState(ctx, deltaPrefix, p.rev(), &changed); err != nil {
			return err
		}
	}
	t.pub.mu.Lock()
	for _, h := range p.Heads {
		k := partitionKey{h.TopicID, h.Partition}
		t.pub.revs[k] = h.Rev
		if t.pub.own[k].Rev == h.Rev {
			delete(t.pub.own, k)
		}
	}
	for _, d := range p.Deleted {
		t.pub.tombs[d.TopicID] = true
	}
	t.pub.began = began
	t.pub.mu.Unlock()
	return nil
}

func (t *Tier) putState(ctx context.Context, prefix string, rev int64, p *Publication) error {
	var b body
	defer b.release()
	b.Write(p.Encode())
	key := fmt.Sprintf("%s%020d-%d-%x", prefix, rev, t.o.BrokerID, newSuffix())
	if err := t.put(ctx, key, &b, 0); err != nil {
		return fmt.Errorf("publish: %w", err)
	}
	t.ev.Published(len(p.Heads))
	return nil
}

// publishFull writes all heads, unless another broker has done so lately, and
// deletes the publications that two full ones cover.
func (t *Tier) publishFull(ctx context.Context) error {
	if err := t.adopt(ctx); err != nil { // so that what was published is known before it is covered
		return err
	}
	fulls, err := listAll(ctx, t.prompt(), fullPrefix)
	if err != nil {
		return err
	}
	for _, f := range fulls {
		if age := time.Since(f.Modified); age < t.o.FullInterval*9/10 {
			t.pub.full = time.Now().Add(-age)
			return nil
		}
	}
	deltas, err := listAll(ctx, t.prompt(), deltaPrefix)
	if err != nil {
		return err
	}
	// What is in a delta that is there now was committed before, so the heads
	// read next are that or newer.
	rev := int64(0)
	for _, d := range deltas {
		rev = max(rev, stateRev(d.Key, deltaPrefix))
	}
	p := &Publication{ClusterID: t.o.ClusterID, BrokerID: t.o.BrokerID, Created: time.Now().UnixMilli()}
	names := make(map[partitionKey]string)
	for _, l := range t.leaders() {
		names[l.key] = l.name
	}
	t.mu.Lock()
	seen := maps.Clone(t.seen)
	t.mu.Unlock()
	c, cancel := context.WithTimeout(ctx, t.o.UploadTimeout)
	err = t.store.Range(c, func(h StoredHead) error {
		p.Heads = append(p.Heads, PublishedHead{h, names[partitionKey{h.TopicID, h.Partition}]})
		return nil
	})
	cancel()
	if err != nil {
		return fmt.Errorf("publish all heads: %w", err)
	}
	c, cancel = context.WithTimeout(ctx, t.o.RequestTimeout)
	p.Deleted, err = t.store.Deleted(c)
	cancel()
	if err != nil {
		return fmt.Errorf("deleted topics: %w", err)
	}
	if err := t.complete(ctx, p, seen); err != nil {
		return err
	}
	if err := t.putState(ctx, fullPrefix, max(rev, p.rev()), p); err != nil {
		return err
	}
	t.pub.full = time.Now()
	if len(fulls) < 2 {
		return nil
	}
	// The one just written is not in the list: it and the newest listed remain, and
	// what the latter covers is no longer needed.
	keep := fulls[len(fulls)-1]
	var old []string
	for _, f := range fulls[:len(fulls)-1] {
		old = append(old, f.Key)
	}
	for _, d := range deltas {
		r := stateRev(d.Key, deltaPrefix)
		if r == 0 && d.Modified.Before(keep.Modified.Add(-t.o.Grace)) || r != 0 && r <= stateRev(keep.Key, fullPrefix) {
			old = append(old, d.Key)
		}
	}
	return t.remove(ctx, old)
}

// complete makes sure that no head is missing or older than one seen before the
// heads were read: to publish what a wiped or restored metadata store says would bury the only trace
// of what is in the bucket. A head that another broker buried is not published
// any more.
func (t *Tier) complete(ctx context.Context, p *Publication, seen map[partitionKey]int64) error {
	have := make(map[partitionKey]int64, len(p.Heads))
	for _, h := range p.Heads {
		have[partitionKey{h.TopicID, h.Partition}] = h.Rev
	}
	dead := make(map[[16]byte]bool)
	for _, d := range p.Deleted {
		dead[d.TopicID] = true
	}
	var lost []partitionKey
	for k, rev := range seen {
		if rev > have[k] && !dead[k.topic] {
			lost = append(lost, k)
		}
	}
	if len(lost) == 0 {
		return nil
	}
	c, cancel := context.WithTimeout(ctx, 10*t.o.UploadTimeout)
	defer cancel()
	list, err := ReadPublished(c, t.prompt())
	if err != nil {
		return err
	}
	known := make(map[partitionKey]bool)
	for _, h := range list {
		known[partitionKey{h.TopicID, h.Partition}] = true
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, k := range lost {
		if known[k] || t.led[k] != nil {
			return fmt.Errorf("publish all heads: %w: %d are missing or older, one is %s", ErrRegressed, len(lost), k)
		}
		delete(t.seen, k)
	}
	return nil
}

// stateRev is the revision in a publication's name.
func stateRev(key, prefix string) int64 {
	var rev int64
	for _, c := range strings.TrimPrefix(key, prefix) {
		if c < '0' || c > '9' || rev > 1<<58 {
			break
		}
		rev = rev*10 + int64(c-'0')
	}
	return rev
}

func listAll(ctx context.Context, b objstore.Bucket, prefix string) (all []objstore.Info, err error) {
	for after := ""; ; {
		list, more, err := b.List(ctx, prefix, after, objstore.MaxList)
		if err != nil {
			return nil, fmt.Errorf("list %s: %w", prefix, err)
		}
		all = append(all, list...)
		if !more || len(list) == 0 {
			return all, nil
		}
		after = list[len(list)-1].Key
	}
}

// prompt is the bucket for what takes many requests: each has a time of its own,
// or one that hangs would take the time of all.
func (t *Tier) prompt() objstore.Bucket { return promptBucket{t.bucket, t.o.RequestTimeout} }

type promptBucket struct {
	objstore.Bucket
	each time.Duration
}

func (b promptBucket) List(ctx context.Context, prefix, after string, limit int) ([]objstore.Info, bool, error) {
	ctx, cancel := context.WithTimeout(ctx, b.each)
	defer cancel()
	return b.Bucket.List(ctx, prefix, after, limit)
}

func (b promptBucket) GetRange(ctx context.Context, key string, off, length int64) (io.ReadCloser, error) {
	ctx, cancel := context.WithTimeout(ctx, b.each)
	r, err := b.Bucket.GetRange(ctx, key, off, length)
	if err != nil {
		cancel()
		return nil, err
	}
	return promptReader{r, cancel}, nil
}

type promptReader struct {
	io.ReadCloser
	cancel context.CancelFunc
}

func (r promptReader) Close() error {
	defer r.cancel()
	return r.ReadCloser.Close()
}

// ReadPublished collects the published heads of a bucket, sorted by partition,
// without those of deleted topics.
func ReadPublished(ctx context.Context, b objstore.Bucket) ([]PublishedHead, error) {
	fulls, err := listAll(ctx, b, fullPrefix)
	if err != nil {
		return nil, err
	}
	deltas, err := listAll(ctx, b, deltaPrefix)
	if err != nil {
		return nil, err
	}
	var read []objstore.Info
	if n := len(fulls); n > 0 {
		read = append(read, fulls[n-1])
	}
	for _, d := range deltas {
		if len(fulls) == 0 || stateRev(d.Key, deltaPrefix) > stateRev(read[0].Key, fullPrefix) || stateRev(d.Key, deltaPrefix) == 0 {
			read = append(read, d)
		}
	}
	var mu sync.Mutex
	heads := make(map[partitionKey]PublishedHead)
	dead := make(map[[16]byte]bool)
	var g errgroup.Group
	g.SetLimit(8)
	for _, info := range read {
		g.Go(func() error {
			if info.Size > maxPublication {
				return fmt.Errorf("%s: %w: %d bytes", info.Key, ErrCorrupt, info.Size)
			}
			raw, err := objstore.ReadRange(ctx, b, info.Key, 0, info.Size)
			if errors.Is(err, objstore.ErrNotExist) {
				return nil // covered by a newer one, meanwhile
			}
			if err != nil {
				return err
			}
			p, err := DecodePublication(raw)
			if err != nil {
				return fmt.Errorf("%s: %w", info.Key, err)
			}
			mu.Lock()
			defer mu.Unlock()
			for _, h := range p.Heads {
				k := partitionKey{h.TopicID, h.Partition}
				was := heads[k]
				if h.Topic == "" {
					h.Topic = was.Topic
				}
				if h.Rev >= was.Rev {
					heads[k] = h
				} else if was.Topic == "" {
					was.Topic = h.Topic
					heads[k] = was
				}
			}
			for _, d := range p.Deleted {
				dead[d.TopicID] = true
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, fmt.Errorf("read published state: %w", err)
	}
	var out []PublishedHead
	for k, h := range heads {
		if !dead[k.topic] {
			out = append(out, h)
		}
	}
	sort.Slice(out, func(i, j int) bool {
		return partitionKey{out[i].TopicID, out[i].Partition}.compare(partitionKey{out[j].TopicID, out[j].Partition}) < 0
	})
	return out, nil
}

// adopt makes sure, once, that the bucket is this cluster's, the same that others have, and that the heads in
// the metadata store are not older than those published: then it was restored
// from an old backup, and committing or deleting would destroy what is newer.
func (t *Tier) adopt(ctx context.Context) error {
	if t.ours.Load() {
		return nil
	}
	select {
	case <-t.adopting:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { t.adopting <- struct{}{} }()
	if t.ours.Load() {
		return nil
	}
	c, cancel := context.WithTimeout(ctx, t.o.RequestTimeout)
	defer cancel()
	if t.o.Shared != nil {
		if err := t.o.Shared(c); err != nil {
			return err
		}
	}
	if _, err := Mark(c, t.bucket, t.o.ClusterID); err != nil {
		return err
	}
	c, cancel = context.WithTimeout(ctx, 10*t.o.UploadTimeout) // in a large cluster many objects
	defer cancel()
	list, err := ReadPublished(c, t.prompt())
	if err != nil {
		return err
	}
	t.mu.Lock()
	for _, h := range list {
		k := partitionKey{h.TopicID, h.Partition}
		t.seen[k] = max(t.seen[k], h.Rev)
	}
	t.mu.Unlock()
	t.ours.Store(true)
	return nil
}

// Owner reads whose bucket it is: the cluster's id, or "" if nobody has left a mark.
func Owner(ctx context.Context, b objstore.Bucket) (string, error) {
	size, err := b.Head(ctx, clusterKey)
	if errors.Is(err, objstore.ErrNotExist) {
		return "", nil
	}
	var have []byte
	if err == nil {
		have, err = objstore.ReadRange(ctx, b, clusterKey, 0, min(size, 1024))
	}
	if err != nil {
		return "", fmt.Errorf("look whose bucket this is: %w", err)
	}
	id, begins := strings.CutPrefix(string(have), markPrefix)
	id, ends := strings.CutSuffix(id, "\n")
	if !begins || !ends || id == "" {
		return "", fmt.Errorf("%w: its mark is %q", ErrForeign, have)
	}
	return id, nil
}

const markPrefix = "varve cluster 1\n"

// Mark makes a bucket the cluster's, if it is nobody's yet: made. It is ErrForeign if it is another's.
func Mark(ctx context.Context, b objstore.Bucket, clusterID string) (made bool, err error) {
	id, err := Owner(ctx, b)
	if err == nil && id == "" {
		want := markPrefix + clusterID + "\n"
		err = b.Put(ctx, clusterKey, strings.NewReader(want), int64(len(want)), objstore.CRC32C([]byte(want)))
		if err == nil {
			return true, nil
		}
		if !errors.Is(err, objstore.ErrExists) {
			return false, fmt.Errorf("mark the bucket: %w", err)
		}
		id, err = Owner(ctx, b)
	}
	if err != nil {
		return false, err
	}
	if id != clusterID {
		return false, fmt.Errorf("%w: %s is of cluster %q, and this is %q", ErrForeign, b, id, clusterID)
	}
	return false, nil
}

// Unmark takes back what Mark has made.
func Unmark(ctx context.Context, b objstore.Bucket) error {
	return b.Delete(ctx, []string{clusterKey})
}
