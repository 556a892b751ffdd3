package group

import (
	"slices"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/broker/group/assignor"
)

// reconcile moves a member a step towards its target, as far as it can go: see consumers. It returns the same member if
// that is nowhere.
//
//	left   it has left topics that it has partitions of, and the target does not know that yet
//	owned  what the member says that it has; nil if it did not say
//	owner  who has a partition, "" nobody
func reconcile(m *consumerMember, epoch int32, target assignor.Assignment, left bool, owned []kmsg.ConsumerGroupHeartbeatRequestTopic, owner func(topicID, int32) string) *consumerMember {
	switch m.state {
	case memberStable:
		if m.epoch == epoch && !left {
			return m
		}
	case memberUnrevoked:
		if ownsAny(owned, m.revoking) {
			return m
		}
	}
	next := *m
	next.previous = m.epoch
	next.assigned, next.revoking = holding{}, holding{}
	missing, unreleased := holding{}, false
	for t, ps := range m.assigned {
		var keep, drop []held
		for _, p := range ps {
			if _, ok := slices.BinarySearch(target[t], p.partition); ok {
				keep = append(keep, p)
			} else {
				drop = append(drop, p)
			}
		}
		if keep != nil {
			next.assigned[t] = keep
		}
		if drop != nil {
			next.revoking[t] = drop
		}
	}
	for t, ps := range target {
		for _, p := range ps {
			if _, ok := m.assigned.has(t, p); ok {
				continue
			}
			// What it has just given up itself may be its own again at once.
			if o := owner(t, p); o != "" && o != m.id {
				unreleased = true
				continue
			}
			missing[t] = append(missing[t], held{p, epoch})
		}
	}
	if len(next.revoking) > 0 && ownsAny(owned, next.revoking) {
		next.state = memberUnrevoked // stays at its epoch, and gets nothing new
		return changed(m, &next)
	}
	// What had to go is not among what it has: it had left it out already.
	next.revoking = holding{}
	for t, ps := range missing {
		all := append(slices.Clone(next.assigned[t]), ps...)
		slices.SortFunc(all, func(a, b held) int { return int(a.partition) - int(b.partition) })
		next.assigned[t] = all
	}
	next.epoch = epoch
	next.state = memberStable
	if unreleased {
		next.state = memberUnreleased
	}
	return changed(m, &next)
}

func changed(m, next *consumerMember) *consumerMember {
	if m.epoch == next.epoch && m.previous == next.previous && m.state == next.state && sameHolding(m.assigned, next.assigned) && sameHolding(m.revoking, next.revoking) {
		return m
	}
	return next
}

// ownsAny says whether what a member has may include any of these. A member that did not say may have all.
func ownsAny(owned []kmsg.ConsumerGroupHeartbeatRequestTopic, of holding) bool {
	if owned == nil {
		return true
	}
	for _, t := range owned {
		for _, p := range t.Partitions {
			if _, ok := of.has(t.TopicID, p); ok {
				return true
			}
		}
	}
	return false
}

// ownsOnly says whether what a member says that it has is among these.
func ownsOnly(owned []kmsg.ConsumerGroupHeartbeatRequestTopic, of holding) bool {
	if owned == nil {
		return false
	}
	for _, t := range owned {
		for _, p := range t.Partitions {
			if _, ok := of.has(t.TopicID, p); !ok {
				return false
			}
		}
	}
	return true
}
