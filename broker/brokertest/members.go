package brokertest

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/interop/chaos/history"
)

// Groups with members that join, beat, commit, stall until they are taken for dead and go on as if nothing had been, leave,
// and vanish. One group is of the classic protocol, one of the consumer protocol.
//
// What may not be: two owners of a partition, a commit of a member whose time was over when it was sent (a zombie), an offset
// that goes back (history).

const (
	groupMembers  = 3
	memberSession = 2 * time.Second
	memberBeats   = 300 * time.Millisecond
)

// groupIDs are the groups that there are.
func (w *workload) groupIDs() []string {
	g := []string{processGroup, readerGroup}
	for _, name := range []string{classic, consumer} {
		if w.features.has(name) {
			g = append(g, name)
		}
	}
	return g
}

// owners are who was told to own what. Guarded by the workload's lock.
type owners struct {
	// Of the classic protocol: who owns a partition in a generation, and when the first was told of a generation.
	members     map[ownership]string
	generations map[int32]int64
	// Of the consumer protocol: who has a partition.
	holders map[history.Partition]holder
}

type ownership struct {
	generation int32
	p          history.Partition
}

// holder is who was told that a partition is its own.
type holder struct {
	member string
	told   int64     // on the history's clock
	until  time.Time // it may be given to others then: its session ends, or has ended for it
}

func newOwners() owners {
	return owners{members: map[ownership]string{}, generations: map[int32]int64{}, holders: map[history.Partition]holder{}}
}

// groupMember is what both protocols have in common.
type groupMember struct {
	w      *workload
	k      *client
	group  string
	reader int
	topic  [16]byte // the id of the one that is read
	id     string
	epoch  int32 // generation, or member epoch
	at     map[history.Partition]int64
	beat   time.Time // the last
}

func (w *workload) groupMember(group string, i int) *groupMember {
	name := fmt.Sprintf("%s member %d", group, i)
	m := &groupMember{w: w, k: w.client(name), group: group, reader: w.reader(history.Reader{Name: name, Committed: true}), at: map[history.Partition]int64{}}
	if t := w.c.image().Topic(topicIn); t != nil {
		m.topic = t.ID
	}
	return m
}

// own has the member begin with partitions where the group is. False: that is not to be found out.
func (m *groupMember) own(partitions []history.Partition) bool {
	if len(partitions) == 0 {
		return true
	}
	for end := time.Now().Add(memberSession / 2); time.Now().Before(end); m.k.pause() {
		if offsets, err := m.w.groupOffsets(m.k, m.group, partitions); err == nil {
			for _, p := range partitions {
				m.at[p] = max(offsets[p], 0)
			}
			return true
		}
	}
	return false
}

// work reads what the member has, and commits. False: it is to find out what its group does.
func (m *groupMember) work(accepted func(p history.Partition, began int64)) bool {
	for _, p := range sortedPartitions(m.at) {
		l, ok := m.k.leader(p)
		if !ok {
			continue
		}
		f, err := m.k.fetch(l.id, p, l.epoch, m.at[p], true, "", 50*time.Millisecond, 64<<10)
		if err != nil {
			m.k.forget(p)
			continue
		}
		m.w.shown(m.reader, f, false)
		if f.next == m.at[p] {
			continue
		}
		began := m.w.time()
		if err := m.commit(p, f.next); err != nil {
			return retriable(err) // it is not known to have happened, and is done again with what comes next
		}
		m.at[p] = f.next
		accepted(p, began)
		m.w.mu.Lock()
		m.w.h.Commits = append(m.w.h.Commits, history.Commit{Partition: p, Group: m.group, At: m.w.now(), Offset: f.next})
		m.w.mu.Unlock()
	}
	return true
}

func sortedPartitions(m map[history.Partition]int64) []history.Partition {
	return slices.SortedFunc(maps.Keys(m), func(a, b history.Partition) int { return int(a.Index - b.Index) })
}

func (m *groupMember) commit(p history.Partition, offset int64) error {
	req := kmsg.NewPtrOffsetCommitRequest()
	req.Version, req.Group, req.Generation, req.MemberID = 9, m.group, m.epoch, m.id
	t, rp := kmsg.NewOffsetCommitRequestTopic(), kmsg.NewOffsetCommitRequestTopicPartition()
	t.Topic, rp.Partition, rp.Offset = p.Topic, p.Index, offset
	t.Partitions = append(t.Partitions, rp)
	req.Topics = append(req.Topics, t)
	_, err := m.k.askCoordinator(0, m.group, req, func(r kmsg.Response) int16 {
		return r.(*kmsg.OffsetCommitResponse).Topics[0].Partitions[0].ErrorCode
	})
	return err
}

// whim is what a member does next, beside its work.
type whim int

const (
	goOn whim = iota
	leave
	vanish
)

func (m *groupMember) whim() whim {
	switch n := m.k.rnd.IntN(150); {
	case n < 5: // and is taken for dead, or not
		time.Sleep(memberSession/2 + time.Duration(m.k.rnd.IntN(int(2*memberSession))))
	case n < 7:
		return leave
	case n < 9:
		return vanish
	}
	time.Sleep(time.Duration(20+m.k.rnd.IntN(100)) * time.Millisecond)
	return goOn
}

// classicMember is a member by JoinGroup, SyncGroup and Heartbeat.
func (w *workload) classicMember(i int) {
	m := w.groupMember(classic, i)
	defer m.k.close()
	for !w.groups.Load() {
		mine, err := m.join()
		if errors.Is(err, kerr.UnknownMemberID) {
			m.id = ""
		}
		if err != nil {
			m.k.pause()
			continue
		}
		clear(m.at)
		if !m.own(mine) {
			continue
		}
		m.beat = time.Now()
		next := goOn
		for next == goOn && !w.groups.Load() {
			if !m.work(m.classicAccepted) {
				break
			}
			if time.Since(m.beat) >= memberBeats {
				m.beat = time.Now()
				if err := m.classicBeat(); err != nil && !retriable(err) {
					break
				}
			}
			next = m.whim()
		}
		if next == leave {
			m.classicLeave()
		}
		if next != goOn {
			m.id = ""
		}
	}
	m.classicLeave()
}

// join takes part in a rebalance; it returns what the member has in the generation.
func (m *groupMember) join() (mine []history.Partition, err error) {
	req := kmsg.NewPtrJoinGroupRequest()
	req.Version, req.Group, req.MemberID, req.ProtocolType = 5, m.group, m.id, "consumer"
	req.SessionTimeoutMillis, req.RebalanceTimeoutMillis = int32(memberSession.Milliseconds()), 1500
	meta := kmsg.NewConsumerMemberMetadata()
	meta.Topics = []string{topicIn}
	p := kmsg.NewJoinGroupRequestProtocol()
	p.Name, p.Metadata = "range", meta.AppendTo(nil)
	req.Protocols = append(req.Protocols, p)
	resp, err := m.k.askCoordinator(0, m.group, req, func(r kmsg.Response) int16 { return r.(*kmsg.JoinGroupResponse).ErrorCode })
	if errors.Is(err, kerr.MemberIDRequired) {
		m.id = resp.(*kmsg.JoinGroupResponse).MemberID
	}
	if err != nil {
		return nil, err
	}
	j := resp.(*kmsg.JoinGroupResponse)
	m.id, m.epoch = j.MemberID, j.Generation
	sync := kmsg.NewPtrSyncGroupRequest()
	sync.Version, sync.Group, sync.Generation, sync.MemberID = 3, m.group, m.epoch, m.id
	if j.LeaderID == m.id {
		var ids []string
		for _, o := range j.Members {
			ids = append(ids, o.MemberID)
		}
		slices.Sort(ids)
		for i, id := range ids {
			a := kmsg.NewConsumerMemberAssignment()
			t := kmsg.NewConsumerMemberAssignmentTopic()
			t.Topic = topicIn
			for p := range m.w.partitions {
				if (int(p)+int(m.epoch))%len(ids) == i {
					t.Partitions = append(t.Partitions, p)
				}
			}
			a.Topics = append(a.Topics, t)
			g := kmsg.NewSyncGroupRequestGroupAssignment()
			g.MemberID, g.MemberAssignment = id, a.AppendTo(nil)
			sync.GroupAssignment = append(sync.GroupAssignment, g)
		}
	}
	if resp, err = m.k.askCoordinator(0, m.group, sync, func(r kmsg.Response) int16 { return r.(*kmsg.SyncGroupResponse).ErrorCode }); err != nil {
		return nil, err
	}
	a := kmsg.NewConsumerMemberAssignment()
	if b := resp.(*kmsg.SyncGroupResponse).MemberAssignment; len(b) == 0 {
		// Its leader has forgotten it.
	} else if err := a.ReadFrom(b); err != nil {
		m.w.c.fail("group %s: assignment of member %s: %v", m.group, m.id, err)
		return nil, err
	}
	w := m.w
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.owners.generations[m.epoch] == 0 {
		w.owners.generations[m.epoch] = w.now()
	}
	for _, t := range a.Topics {
		for _, i := range t.Partitions {
			o := ownership{m.epoch, history.Partition{Topic: t.Topic, Index: i}}
			if other, ok := w.owners.members[o]; ok && other != m.id {
				w.c.fail("group %s: %s-%d has two owners in generation %d: %s and %s", m.group, o.p.Topic, i, m.epoch, other, m.id)
			}
			w.owners.members[o] = m.id
			mine = append(mine, o.p)
		}
	}
	return mine, nil
}

// classicAccepted checks that a commit was in time: nobody had been told of a later generation before it was sent.
func (m *groupMember) classicAccepted(p history.Partition, began int64) {
	w := m.w
	w.mu.Lock()
	defer w.mu.Unlock()
	for g, told := range w.owners.generations {
		if g > m.epoch && told < began {
			w.c.fail("group %s: a commit of %s for %s-%d in generation %d was accepted, and generation %d was known before it was sent", m.group, m.id, p.Topic, p.Index, m.epoch, g)
			return
		}
	}
}

func (m *groupMember) classicBeat() error {
	req := kmsg.NewPtrHeartbeatRequest()
	req.Version, req.Group, req.Generation, req.MemberID = 3, m.group, m.epoch, m.id
	_, err := m.k.askCoordinator(0, m.group, req, func(r kmsg.Response) int16 { return r.(*kmsg.HeartbeatResponse).ErrorCode })
	return err
}

func (m *groupMember) classicLeave() {
	req := kmsg.NewPtrLeaveGroupRequest()
	req.Version, req.Group, req.MemberID = 2, m.group, m.id
	m.k.askCoordinator(0, m.group, req, func(r kmsg.Response) int16 { return r.(*kmsg.LeaveGroupResponse).ErrorCode })
}

// consumerMember is a member by ConsumerGroupHeartbeat (KIP-848).
func (w *workload) consumerMember(i int) {
	m := w.groupMember(consumer, i)
	defer m.k.close()
	for n := 0; !w.groups.Load(); n++ {
		m.id, m.epoch = fmt.Sprintf("%s-%d", m.k.name, n), 0
		clear(m.at)
		what := goOn
		for due := true; what == goOn && !w.groups.Load(); what = m.whim() {
			// First, so that who was taken for dead tries to commit before it is told.
			if !m.work(m.consumerAccepted) {
				due = true
			}
			if due || time.Since(m.beat) >= memberBeats {
				m.beat = time.Now()
				changed, err := m.consumerBeat(due)
				if err != nil && !retriable(err) {
					break // it is fenced, and joins anew
				}
				due = changed || err != nil
			}
		}
		if what == leave {
			m.consumerLeave()
		}
		if what != vanish { // who vanishes is waited for
			m.release(sortedPartitions(m.at))
		}
	}
	m.consumerLeave()
}

// consumerBeat tells what the member has, if all is to be told, and does what it is told. It says whether it has something else
// then.
func (m *groupMember) consumerBeat(all bool) (changed bool, err error) {
	w := m.w
	req := kmsg.NewPtrConsumerGroupHeartbeatRequest()
	req.Version, req.Group, req.MemberID, req.MemberEpoch, req.RebalanceTimeoutMillis = 1, m.group, m.id, m.epoch, -1
	if all {
		req.RebalanceTimeoutMillis, req.SubscribedTopicNames = 5000, []string{topicIn}
		req.Topics = []kmsg.ConsumerGroupHeartbeatRequestTopic{}
		t := kmsg.NewConsumerGroupHeartbeatRequestTopic()
		t.TopicID = m.topic
		for _, p := range sortedPartitions(m.at) {
			t.Partitions = append(t.Partitions, p.Index)
		}
		if len(t.Partitions) > 0 {
			req.Topics = append(req.Topics, t)
		}
	}
	sent := time.Now()
	resp, err := m.k.askCoordinator(0, m.group, req, func(r kmsg.Response) int16 { return r.(*kmsg.ConsumerGroupHeartbeatResponse).ErrorCode })
	if err != nil {
		return false, err
	}
	if time.Since(sent) >= memberSession {
		return false, kerr.FencedMemberEpoch // it may have been, since that was answered
	}
	r := resp.(*kmsg.ConsumerGroupHeartbeatResponse)
	m.epoch = r.MemberEpoch
	w.mu.Lock()
	for p := range m.at {
		if h := w.owners.holders[p]; h.member == m.id {
			h.until = sent.Add(memberSession)
			w.owners.holders[p] = h
		}
	}
	w.mu.Unlock()
	if r.Assignment == nil {
		return false, nil
	}
	has := map[history.Partition]bool{}
	for _, t := range r.Assignment.Topics {
		for _, i := range t.Partitions {
			has[history.Partition{Topic: topicIn, Index: i}] = true
		}
	}
	var gone, came []history.Partition
	for _, p := range w.all(topicIn) {
		_, had := m.at[p]
		switch {
		case had && !has[p]:
			gone = append(gone, p)
			delete(m.at, p)
		case !had && has[p]:
			came = append(came, p)
		}
	}
	m.release(gone)
	m.hold(came, sent.Add(memberSession))
	if !m.own(came) {
		m.release(came) // and says that it does not have them; it is told again
	}
	return len(gone)+len(came) > 0, nil
}

// hold notes that the member was told to own partitions, which nobody else may do.
func (m *groupMember) hold(partitions []history.Partition, until time.Time) {
	w := m.w
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, p := range partitions {
		if h, ok := w.owners.holders[p]; ok && h.member != m.id && time.Now().Before(h.until) {
			w.c.fail("group %s: %s is told to own %s-%d, which %s owns for %s still", m.group, m.id, p.Topic, p.Index, h.member, time.Until(h.until))
		}
		w.owners.holders[p] = holder{m.id, w.now(), until}
	}
}

// release notes that the member owns partitions no more, and is about to say so, or need not.
func (m *groupMember) release(partitions []history.Partition) {
	w := m.w
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, p := range partitions {
		if h := w.owners.holders[p]; h.member == m.id {
			h.until = time.Time{}
			w.owners.holders[p] = h
		}
	}
}

// consumerAccepted checks that a commit was in time: nobody else had been told to own the partition before it was sent.
func (m *groupMember) consumerAccepted(p history.Partition, began int64) {
	w := m.w
	w.mu.Lock()
	defer w.mu.Unlock()
	if h := w.owners.holders[p]; h.member != m.id && h.told < began {
		w.c.fail("group %s: a commit of %s for %s-%d was accepted, and %s had been told to own it before it was sent", m.group, m.id, p.Topic, p.Index, h.member)
	}
}

func (m *groupMember) consumerLeave() {
	m.release(sortedPartitions(m.at)) // it may take effect, answered or not
	req := kmsg.NewPtrConsumerGroupHeartbeatRequest()
	req.Version, req.Group, req.MemberID, req.MemberEpoch, req.RebalanceTimeoutMillis = 1, m.group, m.id, -1, -1
	m.k.askCoordinator(0, m.group, req, func(r kmsg.Response) int16 { return r.(*kmsg.ConsumerGroupHeartbeatResponse).ErrorCode })
}
