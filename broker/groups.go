package broker

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/broker/coordinator"
	"github.com/varve/varve/broker/group"
	"github.com/varve/varve/broker/partition"
	"github.com/varve/varve/broker/protocol"
	"github.com/varve/varve/metadata/image"
	"github.com/varve/varve/wal"
	"github.com/varve/varve/wal/batch"
)

// The group APIs: FindCoordinator (10), JoinGroup (11), Heartbeat (12),
// LeaveGroup (13), SyncGroup (14), DescribeGroups (15), ListGroups (16),
// OffsetCommit (8), OffsetFetch (9), DeleteGroups (42), OffsetDelete (47);
// TxnOffsetCommit (28), ConsumerGroupHeartbeat (68) and ConsumerGroupDescribe (69)
// are in files of their own.
//
// Behavior: what a group is and does is decided in packages group and
// coordinator. Here requests are routed to them, and topic ids are turned into
// names and back, which only the broker can.

func (b *Broker) registerGroupAPIs() {
	t := &b.apis
	t.handle(kmsg.OffsetCommit.Int16(), b.offsetCommit)
	t.handle(kmsg.TxnOffsetCommit.Int16(), b.txnOffsetCommit)
	t.handle(kmsg.OffsetFetch.Int16(), b.offsetFetch)
	t.handle(kmsg.FindCoordinator.Int16(), b.findCoordinator)
	t.handle(kmsg.JoinGroup.Int16(), func(ctx context.Context, r *request, in kmsg.Request) kmsg.Response {
		return b.groups.JoinGroup(ctx, in.(*kmsg.JoinGroupRequest), r.clientID(), r.clientHost())
	})
	t.handle(kmsg.Heartbeat.Int16(), func(ctx context.Context, _ *request, in kmsg.Request) kmsg.Response {
		return b.groups.Heartbeat(ctx, in.(*kmsg.HeartbeatRequest))
	})
	t.handle(kmsg.LeaveGroup.Int16(), func(ctx context.Context, _ *request, in kmsg.Request) kmsg.Response {
		return b.groups.LeaveGroup(ctx, in.(*kmsg.LeaveGroupRequest))
	})
	t.handle(kmsg.SyncGroup.Int16(), func(ctx context.Context, _ *request, in kmsg.Request) kmsg.Response {
		return b.groups.SyncGroup(ctx, in.(*kmsg.SyncGroupRequest))
	})
	t.handle(kmsg.DescribeGroups.Int16(), func(ctx context.Context, _ *request, in kmsg.Request) kmsg.Response {
		req := in.(*kmsg.DescribeGroupsRequest)
		if tooMany(&req.Groups) {
			resp := req.ResponseKind().(*kmsg.DescribeGroupsResponse)
			for _, id := range req.Groups {
				g := kmsg.NewDescribeGroupsResponseGroup()
				g.Group, g.ErrorCode, g.ErrorMessage = id, protocol.CodeInvalidRequest, tooManyNamed
				resp.Groups = append(resp.Groups, g)
			}
			return resp
		}
		req.Groups = distinct(req.Groups, func(g string) any { return g })
		resp := b.groups.DescribeGroups(ctx, req)
		if req.IncludeAuthorizedOperations {
			for i := range resp.Groups {
				if resp.Groups[i].ErrorCode == protocol.CodeNone {
					resp.Groups[i].AuthorizedOperations = groupOperations
				}
			}
		}
		return resp
	})
	t.handle(kmsg.ListGroups.Int16(), func(ctx context.Context, _ *request, in kmsg.Request) kmsg.Response {
		return b.groups.ListGroups(ctx, in.(*kmsg.ListGroupsRequest))
	})
	t.handle(kmsg.DeleteGroups.Int16(), func(ctx context.Context, _ *request, in kmsg.Request) kmsg.Response {
		req := in.(*kmsg.DeleteGroupsRequest)
		if tooMany(&req.Groups) {
			resp := req.ResponseKind().(*kmsg.DeleteGroupsResponse)
			for _, id := range req.Groups {
				g := kmsg.NewDeleteGroupsResponseGroup()
				g.Group, g.ErrorCode = id, protocol.CodeInvalidRequest
				resp.Groups = append(resp.Groups, g)
			}
			return resp
		}
		return b.groups.DeleteGroups(ctx, req)
	})
	t.handle(kmsg.ConsumerGroupHeartbeat.Int16(), b.consumerGroupHeartbeat)
	t.handle(kmsg.ConsumerGroupDescribe.Int16(), b.consumerGroupDescribe)
	t.handle(kmsg.OffsetDelete.Int16(), b.offsetDelete)
}

// findCoordinator answers who hosts a group or a transactional id: the leader
// of its partition of the offsets topic, or of that of transaction state, which
// is created when the first client asks.
func (b *Broker) findCoordinator(ctx context.Context, r *request, in kmsg.Request) kmsg.Response {
	req := in.(*kmsg.FindCoordinatorRequest)
	resp := req.ResponseKind().(*kmsg.FindCoordinatorResponse)
	if req.Version < 4 {
		c := b.coordinatorOf(ctx, r, req.CoordinatorType, req.CoordinatorKey)
		resp.ErrorCode, resp.ErrorMessage, resp.NodeID, resp.Host, resp.Port = c.ErrorCode, c.ErrorMessage, c.NodeID, c.Host, c.Port
		return resp
	}
	refused := tooMany(&req.CoordinatorKeys)
	for _, key := range req.CoordinatorKeys {
		if refused {
			c := kmsg.NewFindCoordinatorResponseCoordinator()
			c.Key, c.NodeID, c.Port, c.ErrorCode, c.ErrorMessage = key, -1, -1, protocol.CodeInvalidRequest, tooManyNamed
			resp.Coordinators = append(resp.Coordinators, c)
			continue
		}
		resp.Coordinators = append(resp.Coordinators, b.coordinatorOf(ctx, r, req.CoordinatorType, key))
	}
	return resp
}

// maxNamed bounds the groups, or transactional ids, that one request may name.
// Each is a turn of a coordinator, and a name of four bytes asks for an answer
// of hundreds.
const maxNamed = 100_000

var tooManyNamed = kmsg.StringPtr("too many names in one request")

// tooMany says whether a request names more than it may. Then the first of them
// are answered INVALID_REQUEST, nothing is done for any, and the others are
// dropped: as many answers as there are names would be what is to be avoided.
func tooMany[T any](named *[]T) bool {
	if len(*named) <= maxNamed {
		return false
	}
	*named = (*named)[:maxNamed]
	return true
}

// tooManyPartitions is tooMany for the partitions of topics, of which a request may name as many as a Fetch. That it names too many
// is told of the first ones only: clients name no more than a cluster can have.
func tooManyPartitions[T, P any](topics []T, of func(*T) *[]P) bool {
	n := 0
	for i := range topics {
		n += len(*of(&topics[i]))
	}
	if n <= protocol.MaxPartitions {
		return false
	}
	left := 1000
	for i := range topics {
		list := of(&topics[i])
		*list = (*list)[:min(len(*list), left)]
		left -= len(*list)
	}
	return true
}

// Coordinator types of FindCoordinator.
const (
	groupCoordinator = 0
	txnCoordinator   = 1
	shareCoordinator = 2
)

func (b *Broker) coordinatorOf(ctx context.Context, r *request, kind int8, key string) kmsg.FindCoordinatorResponseCoordinator {
	c := kmsg.NewFindCoordinatorResponseCoordinator()
	c.Key, c.NodeID, c.Port = key, -1, -1
	fail := func(code int16, message string) kmsg.FindCoordinatorResponseCoordinator {
		c.ErrorCode, c.ErrorMessage = code, kmsg.StringPtr(message)
		return c
	}
	topic := offsetsTopic
	switch kind {
	case groupCoordinator:
	case txnCoordinator:
		topic = txnTopic
		if key == "" {
			return fail(protocol.CodeInvalidRequest, "a transactional id is not empty")
		}
	default:
		return fail(protocol.CodeInvalidRequest, "no coordinator of this kind is served")
	}
	index, err := b.partitionFor(ctx, topic, key)
	if err != nil {
		return fail(protocol.CodeCoordinatorNotAvailable, err.Error())
	}
	im := b.meta.Image()
	var p *image.Partition
	if t := im.Topic(topic); t != nil && int(index) < len(t.Partitions) {
		p = t.Partitions[index]
	}
	if p == nil {
		return fail(protocol.CodeCoordinatorNotAvailable, "the topic of the coordinator's state has just been deleted")
	}
	br := im.Broker(p.Leader)
	if br == nil || br.Fenced {
		return fail(protocol.CodeCoordinatorNotAvailable, fmt.Sprintf("partition %d of %s has no leader", index, topic))
	}
	ep, ok := br.Endpoint(r.c.listener.name)
	if !ok {
		return fail(protocol.CodeCoordinatorNotAvailable, "the coordinator has no listener of this name")
	}
	c.NodeID, c.Host, c.Port = br.ID, ep.Host, ep.Port
	return c
}

func (b *Broker) offsetCommit(ctx context.Context, _ *request, in kmsg.Request) kmsg.Response {
	return b.commitOffsets(in.(*kmsg.OffsetCommitRequest), func(req *kmsg.OffsetCommitRequest) *kmsg.OffsetCommitResponse {
		return b.groups.OffsetCommit(ctx, req)
	})
}

// commitOffsets has offsets committed of partitions that exist, and answers for
// the others. It turns the topic ids of version 10 into names for the
// coordinator, which knows topics by name as its records do.
func (b *Broker) commitOffsets(req *kmsg.OffsetCommitRequest, commit func(*kmsg.OffsetCommitRequest) *kmsg.OffsetCommitResponse) *kmsg.OffsetCommitResponse {
	im := b.meta.Image()
	known := req.Topics[:0:0]
	var refused []kmsg.OffsetCommitResponseTopic
	for _, t := range req.Topics {
		it, code := im.Topic(t.Topic), protocol.CodeUnknownTopicOrPartition
		if req.Version >= 10 {
			it, code = im.TopicByID(t.TopicID), protocol.CodeUnknownTopicID
		}
		if it == nil {
			refused = append(refused, refusedCommit(t, t.Partitions, code))
			continue
		}
		t.Topic, t.TopicID = it.Name, it.ID
		// An offset of a partition that does not exist would be kept for good.
		var exist, missing []kmsg.OffsetCommitRequestTopicPartition
		for _, p := range t.Partitions {
			if p.Partition < 0 || int(p.Partition) >= len(it.Partitions) {
				missing = append(missing, p)
			} else {
				exist = append(exist, p)
			}
		}
		if len(missing) > 0 {
			refused = append(refused, refusedCommit(t, missing, protocol.CodeUnknownTopicOrPartition))
			if len(exist) == 0 {
				continue
			}
		}
		t.Partitions = exist
		known = append(known, t)
	}
	req.Topics = known
	resp := commit(req)
	place := make(map[string]int, len(resp.Topics))
	for i := range resp.Topics {
		t := &resp.Topics[i]
		place[t.Topic] = i
		if it := im.Topic(t.Topic); it != nil && req.Version >= 10 {
			t.TopicID = it.ID
		}
	}
	// A topic comes once: clients count topics, or keep only the last of a name.
	for _, t := range refused {
		if i, ok := place[t.Topic]; ok {
			resp.Topics[i].Partitions = append(resp.Topics[i].Partitions, t.Partitions...)
			continue
		}
		resp.Topics = append(resp.Topics, t)
	}
	return resp
}

func refusedCommit(t kmsg.OffsetCommitRequestTopic, partitions []kmsg.OffsetCommitRequestTopicPartition, code int16) kmsg.OffsetCommitResponseTopic {
	out := kmsg.NewOffsetCommitResponseTopic()
	out.Topic, out.TopicID = t.Topic, t.TopicID
	for _, p := range partitions {
		rp := kmsg.NewOffsetCommitResponseTopicPartition()
		rp.Partition, rp.ErrorCode = p.Partition, code
		out.Partitions = append(out.Partitions, rp)
	}
	return out
}

// offsetDelete has offsets deleted of partitions that exist, and answers for the
// others, of which no offset is kept. The group is asked also if no partition is
// left: that there is none comes before that, as in Kafka 4.4.
func (b *Broker) offsetDelete(ctx context.Context, _ *request, in kmsg.Request) kmsg.Response {
	req := in.(*kmsg.OffsetDeleteRequest)
	im := b.meta.Image()
	known := req.Topics[:0:0]
	var refused []kmsg.OffsetDeleteResponseTopic
	for _, t := range req.Topics {
		it := im.Topic(t.Topic)
		out := kmsg.NewOffsetDeleteResponseTopic()
		out.Topic = t.Topic
		var exist []kmsg.OffsetDeleteRequestTopicPartition
		for _, p := range t.Partitions {
			if it != nil && p.Partition >= 0 && int(p.Partition) < len(it.Partitions) {
				exist = append(exist, p)
				continue
			}
			rp := kmsg.NewOffsetDeleteResponseTopicPartition()
			rp.Partition, rp.ErrorCode = p.Partition, protocol.CodeUnknownTopicOrPartition
			out.Partitions = append(out.Partitions, rp)
		}
		if len(out.Partitions) > 0 || it == nil {
			refused = append(refused, out)
		}
		if len(exist) > 0 {
			t.Partitions = exist
			known = append(known, t)
		}
	}
	req.Topics = known
	resp := b.groups.OffsetDelete(ctx, req)
	if resp.ErrorCode != protocol.CodeNone {
		return resp
	}
	place := make(map[string]int, len(resp.Topics))
	for i, t := range resp.Topics {
		place[t.Topic] = i
	}
	for _, t := range refused { // a topic comes once, as in commitOffsets
		if i, ok := place[t.Topic]; ok {
			resp.Topics[i].Partitions = append(resp.Topics[i].Partitions, t.Partitions...)
			continue
		}
		resp.Topics = append(resp.Topics, t)
	}
	return resp
}

// offsetFetch is offsetCommit's counterpart.
func (b *Broker) offsetFetch(ctx context.Context, _ *request, in kmsg.Request) kmsg.Response {
	req := in.(*kmsg.OffsetFetchRequest)
	if tooMany(&req.Groups) || namedPartitions(req) > protocol.MaxPartitions {
		resp := req.ResponseKind().(*kmsg.OffsetFetchResponse)
		if req.Version < 8 {
			resp.ErrorCode = protocol.CodeInvalidRequest // version 1 has no place for it: it answers with no partitions
		}
		for _, of := range req.Groups {
			g := kmsg.NewOffsetFetchResponseGroup()
			g.Group, g.ErrorCode = of.Group, protocol.CodeInvalidRequest
			resp.Groups = append(resp.Groups, g)
		}
		return resp
	}
	req.Groups = distinct(req.Groups, func(g kmsg.OffsetFetchRequestGroup) any { return g.Group })
	im := b.meta.Image()
	type refusal struct {
		group int
		topic kmsg.OffsetFetchResponseGroupTopic
	}
	var refused []refusal
	if req.Version >= 10 {
		for g := range req.Groups {
			gr := &req.Groups[g]
			if gr.Topics == nil {
				continue
			}
			known := make([]kmsg.OffsetFetchRequestGroupTopic, 0, len(gr.Topics))
			for _, t := range gr.Topics {
				if it := im.TopicByID(t.TopicID); it != nil {
					t.Topic = it.Name
					known = append(known, t)
					continue
				}
				out := kmsg.NewOffsetFetchResponseGroupTopic()
				out.TopicID = t.TopicID
				for _, p := range t.Partitions {
					rp := kmsg.NewOffsetFetchResponseGroupTopicPartition()
					rp.Partition, rp.Offset, rp.Metadata, rp.ErrorCode = p, -1, kmsg.StringPtr(""), protocol.CodeUnknownTopicID
					out.Partitions = append(out.Partitions, rp)
				}
				refused = append(refused, refusal{g, out})
			}
			gr.Topics = known
		}
	}
	resp := b.groups.OffsetFetch(ctx, req)
	if resp == nil || req.Version < 10 {
		return resp
	}
	for g := range resp.Groups {
		kept := resp.Groups[g].Topics[:0]
		for _, t := range resp.Groups[g].Topics {
			it := im.Topic(t.Topic)
			if it == nil {
				continue // deleted since: it has no id to be named by
			}
			t.TopicID = it.ID
			kept = append(kept, t)
		}
		resp.Groups[g].Topics = kept
	}
	for _, x := range refused {
		if x.group < len(resp.Groups) {
			resp.Groups[x.group].Topics = append(resp.Groups[x.group].Topics, x.topic)
		}
	}
	return resp
}

// namedPartitions counts the partitions that a request names, however often: of
// each there are 20 bytes in the answer for 4 in the request, and more while it
// is made.
func namedPartitions(req *kmsg.OffsetFetchRequest) int {
	n := 0
	for _, t := range req.Topics {
		n += len(t.Partitions)
	}
	for _, g := range req.Groups {
		for _, t := range g.Topics {
			n += len(t.Partitions)
		}
	}
	return n
}

// newGroups makes the group coordinator; its shards come and go with the
// leaderships of the offsets topic.
func (b *Broker) newGroups() *coordinator.Coordinator {
	partitions := int32(0)
	if t := b.meta.Image().Topic(offsetsTopic); t != nil {
		partitions = int32(len(t.Partitions))
	}
	c := b.conf()
	events := b.coordinatorEvents("group")
	events.Group = b.groupNote
	policy := c.GroupConsumerMigrationPolicy
	if !b.offersConsumerProtocol() {
		policy = "disabled" // nobody could join as a member of the other protocol; and what has become of it stays
	}
	return coordinator.New(coordinator.Options{
		Log: topicLog{b, offsetsTopic}, Logger: b.log,
		Groups: group.Config{
			MinSessionTimeout: c.GroupMinSessionTimeout, MaxSessionTimeout: c.GroupMaxSessionTimeout,
			InitialRebalanceDelay: c.GroupInitialRebalanceDelay, MaxSize: c.GroupMaxSize,
			OffsetMetadataMax: c.OffsetMetadataMaxBytes, OffsetsRetention: c.OffsetsRetention,
			ConsumerMaxSize: c.GroupConsumerMaxSize, ConsumerAssignors: c.GroupConsumerAssignors, MigrationPolicy: policy,
			Of: b.groupSettings,
		},
		Topics: func() group.Topics { return b.topics.Load() },
		Codec:  batch.Codec(c.OffsetsTopicCodec), ReplyTimeout: c.OffsetsCommitTimeout, ExpiryInterval: c.OffsetsRetentionCheckInterval,
		MaxBytes: b.opts.GroupBytes, Events: events,
	}, partitions)
}

// coordinatorEvents tells who listens how a coordinator does.
func (b *Broker) coordinatorEvents(which string) *coordinator.Events {
	return &coordinator.Events{
		Loaded: func(_ int32, _ int, records, bytes int64, took time.Duration) {
			b.ev.CoordinatorLoaded(which, records, bytes, took)
		},
		LoadFailed: func(int32, error) { b.ev.CoordinatorLoadFailed(which) },
		Refused:    func(int32, int16) { b.ev.CoordinatorRefused(which) },
		BadRecord:  func(int32, int64, error) { b.ev.CoordinatorBadRecord(which) },
	}
}

// groupSettings is what holds for a group of the consumer protocol: what it has
// set for itself, else what the broker has.
func (b *Broker) groupSettings(id string) group.Settings {
	s := b.conf().Group(b.meta.Image().Config(image.GroupResource, id))
	return group.Settings{Session: s.SessionTimeout, Interval: s.HeartbeatInterval, AssignmentInterval: s.AssignmentInterval}
}

// groupNote tells who listens what happens to groups.
func (b *Broker) groupNote(_ int32, n group.Note) {
	if n.Kind != group.NoteRebalance {
		return
	}
	protocol := "classic"
	if n.Consumer {
		protocol = "consumer"
	}
	b.ev.GroupRebalanced(protocol)
}

// GroupStats are what this broker coordinates.
func (b *Broker) GroupStats() coordinator.Stats { return b.groups.Stats() }

// GroupLag is how many records a group has to read of a partition: from what it has committed to the high watermark.
type GroupLag struct {
	Group, Topic string
	Partition    int32
	Records      int64
}

// GroupLags are the lags of the groups that this broker coordinates.
type GroupLags struct {
	Known   []GroupLag // in order of group, topic, partition
	Unknown int        // partitions that have no leader, whose leader did not answer, or that are gone
	Beyond  int        // partitions that were not looked at
}

// maxLagGroupName is how long the name of a group may be for its lag to be looked at: a name may have 32 KiB, and comes
// with every partition.
const maxLagGroupName = 249

// GroupLags looks at the first committed offsets, as many as metrics.group.lag.max.partitions says; the order is always
// the same, so that it is the same partitions every time. Of partitions that are led elsewhere their leaders are asked, each
// once.
func (b *Broker) GroupLags(ctx context.Context) GroupLags {
	committed, total := b.groups.Committed(ctx, b.conf().GroupLagMaxPartitions, maxLagGroupName)
	l := GroupLags{Known: make([]GroupLag, 0, len(committed)), Beyond: total - len(committed)}
	ends, elsewhere := map[partitionNamed]int64{}, map[int32]map[partitionNamed]struct{}{}
	for _, c := range committed {
		at := partitionNamed{c.Topic, c.Partition}
		if _, known := ends[at]; known {
			continue
		}
		if r := b.replicas.find(c.Topic, c.Partition); r != nil {
			if v := r.view.Load(); v.Role == partition.Leader {
				ends[at] = v.HighWatermark
				continue
			}
		}
		if to, _ := b.leaderElsewhere(c.Topic, c.Partition); to != nil {
			if elsewhere[to.ID] == nil {
				elsewhere[to.ID] = map[partitionNamed]struct{}{}
			}
			elsewhere[to.ID][at] = struct{}{}
		}
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	for id, of := range elsewhere {
		wg.Go(func() {
			got := b.endsElsewhere(ctx, id, of)
			mu.Lock()
			defer mu.Unlock()
			maps.Copy(ends, got)
		})
	}
	wg.Wait()
	for _, c := range committed {
		end, known := ends[partitionNamed{c.Topic, c.Partition}]
		if !known {
			l.Unknown++
			continue
		}
		// The commit may be beyond it for a moment after an election.
		l.Known = append(l.Known, GroupLag{c.Group, c.Topic, c.Partition, max(0, end-c.Offset)})
	}
	return l
}

// partitionNamed is a partition by its topic's name.
type partitionNamed struct {
	topic string
	index int32
}

// endsAskTimeout is how long a leader may take to tell its high watermarks: a
// scrape waits for it.
const endsAskTimeout = time.Second

// endsElsewhere are the high watermarks of partitions that another broker leads,
// as far as it tells them.
func (b *Broker) endsElsewhere(ctx context.Context, id int32, of map[partitionNamed]struct{}) map[partitionNamed]int64 {
	to := b.meta.Image().Broker(id)
	if to == nil || to.Fenced {
		return nil
	}
	byTopic := map[string][]kmsg.ListOffsetsRequestTopicPartition{}
	for at := range of {
		p := kmsg.NewListOffsetsRequestTopicPartition()
		p.Partition, p.CurrentLeaderEpoch, p.Timestamp = at.index, -1, latestOffset
		byTopic[at.topic] = append(byTopic[at.topic], p)
	}
	req := kmsg.NewPtrListOffsetsRequest()
	req.Version, req.ReplicaID = 7, -1
	for topic, ps := range byTopic {
		t := kmsg.NewListOffsetsRequestTopic()
		t.Topic, t.Partitions = topic, ps
		req.Topics = append(req.Topics, t)
	}
	resp := req.ResponseKind().(*kmsg.ListOffsetsResponse)
	if err := b.peers.ask(ctx, to, req, resp, endsAskTimeout, true); err != nil {
		b.log.Debug("a leader did not tell the ends of partitions that groups read", "broker", id, "err", err)
		return nil
	}
	ends := map[partitionNamed]int64{}
	for _, t := range resp.Topics {
		for _, p := range t.Partitions {
			if p.ErrorCode == protocol.CodeNone && p.Offset >= 0 {
				ends[partitionNamed{t.Topic, p.Partition}] = p.Offset
			}
		}
	}
	return ends
}

// topicLog is the topic of a coordinator's state as it sees it (coordinator.Log).
type topicLog struct {
	b     *Broker
	topic string
}

func (l topicLog) find(index int32) *replica { return l.b.replicas.find(l.topic, index) }

// Append queues a batch; done is told its offset once it is committed.
func (l topicLog) Append(index, leaderEpoch int32, run []byte, done func(base int64, err error)) {
	l.append(index, leaderEpoch, &appendArgs{bytes: run, class: wal.ClassInternal}, done)
}

func (l topicLog) append(index, leaderEpoch int32, a *appendArgs, done func(base int64, err error)) {
	r := l.find(index)
	if r == nil || r.view.Load().Role != partition.Leader || r.view.Load().Epoch != leaderEpoch {
		done(-1, codeError(protocol.CodeNotCoordinator))
		return
	}
	// And again when the batch gets its place: the wait for room may outlast the
	// leadership, and the next one would have loaded the partition without it.
	a.term = &leaderEpoch
	ctx, cancel := context.WithTimeout(l.b.ctx, internalAppendTimeout)
	defer cancel()
	r.appendOwn(ctx, a, func(base int64, code int16) {
		if code != 0 {
			done(-1, codeError(code))
			return
		}
		done(base, nil)
	})
}

// internalAppendTimeout bounds the wait for room in the log's queue.
const internalAppendTimeout = 5 * time.Second

// Read returns batches from offset on, wherever they are, up to the log's end:
// what was appended in an earlier epoch is part of the state, committed or not.
func (l topicLog) Read(ctx context.Context, index int32, offset int64, maxBytes int) (chunks [][]byte, next int64, release func(), err error) {
	r := l.find(index)
	if r == nil {
		return nil, 0, nil, codeError(protocol.CodeNotCoordinator)
	}
	v := r.view.Load()
	if offset >= v.LogEnd {
		return nil, offset, func() {}, nil
	}
	// What has been compacted is much less to read. While the bucket is away,
	// what is here does as well; but then up to its end: of what was read here
	// the bucket may have no tombstone any more.
	if local := r.localStart(); offset < local || offset < r.servedStart() && (offset == 0 || offset != r.readHere.Load()) {
		run, err := l.b.tier.Read(ctx, r.topicID, r.index, offset, maxBytes)
		if err == nil {
			return run.Chunks, run.Next, run.Release, nil
		}
		if offset < local {
			return nil, 0, nil, err
		}
	}
	run, err := l.b.log_.Read(r.localID(), offset, maxBytes, v.LogEnd)
	if err != nil {
		return nil, 0, nil, err
	}
	r.readHere.Store(run.Next)
	return run.Chunks, run.Next, run.Release, nil
}

// Extent returns the offsets that a load has to read: [start, end).
func (l topicLog) Extent(index int32) (start, end int64) {
	r := l.find(index)
	if r == nil {
		return 0, 0
	}
	v := r.view.Load()
	return v.LogStart, v.LogEnd
}

// Committed waits until everything below end is committed: the followers that
// are in sync have it, and there are enough of them (coordinator.CommittedLog).
// After an election that takes a round of their fetches.
func (l topicLog) Committed(ctx context.Context, index int32, end int64) error {
	for again := committedSoon; ; again = min(2*again, committedLater) {
		r := l.find(index)
		if r == nil {
			return codeError(protocol.CodeNotCoordinator)
		}
		switch v := r.view.Load(); {
		case v.Role != partition.Leader:
			return codeError(protocol.CodeNotCoordinator)
		case v.HighWatermark >= end:
			return nil
		}
		select {
		case <-time.After(again):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// How often the high watermark is looked at: soon at first, later while the
// partition has fewer replicas in sync than min.insync.replicas.
const (
	committedSoon  = time.Millisecond
	committedLater = 100 * time.Millisecond
)

var _ coordinator.CommittedLog = topicLog{}

// codeError is a Kafka error code as an error.
type codeError int16

func (e codeError) Error() string { return protocol.Name(int16(e)) + ": " + protocol.Message(int16(e)) }

// Code is what callers outside this package see of it.
func (e codeError) Code() int16 { return int16(e) }

// leaderStarted tells the coordinators what this broker leads now. It is called
// with r.mu held and does not wait.
func (b *Broker) leaderStarted(r *replica, epoch int32) {
	b.ev.LeaderStarted()
	switch r.topic {
	case offsetsTopic:
		b.groups.Elected(r.index, epoch)
	case txnTopic:
		b.txns.Elected(r.index, epoch)
	}
}

// leaderStopped tells them what it does not lead any more, in the same way.
func (b *Broker) leaderStopped(r *replica, _ int32) {
	b.ev.LeaderStopped()
	switch r.topic {
	case offsetsTopic:
		b.groups.Resigned(r.index)
	case txnTopic:
		b.txns.Resigned(r.index)
	}
}
