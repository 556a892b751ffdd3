package image

// Changes is what differs between two images; see Diff.
type Changes struct {
	// Topics, ascending by topic id.
	Topics []TopicChange
	// Brokers whose record was added, changed or removed, ascending.
	Brokers []int32
	// Configs of resources other than topics that were added, changed or removed.
	Configs []ConfigKey
	// Tombstones that were added or removed, by topic id.
	Tombstones [][16]byte
	// Controller changed hands, came or went.
	Controller bool
}

// TopicChange is a topic that differs: Prev is nil for a new one, Next for one
// that is gone.
type TopicChange struct {
	Prev, Next *Topic
	// Partitions whose state differs, ascending; all of them when the topic
	// came or went.
	Partitions []int32
	// Config says that the topic's own entry was written: its config or its
	// number of partitions may differ.
	Config bool
}

// Diff compares two images. What they share is skipped by pointer, so between
// neighbouring revisions the cost follows the change and not the cluster. What
// was read anew but has the same revision counts as the same, so an image that
// was loaded whole after a gap in the watch differs only where the store does.
func Diff(prev, next *Image) Changes {
	var out Changes
	if prev == next {
		return out
	}
	diffTables(prev.byID, next.byID, func(_ [16]byte, a, b *Topic) {
		c := TopicChange{Prev: a, Next: b}
		switch {
		case a == nil:
			c.Config = true
			c.Partitions = upTo(len(b.Partitions))
		case b == nil:
			c.Partitions = upTo(len(a.Partitions))
		default:
			c.Config = a.Revision != b.Revision
			for i := 0; i < max(len(a.Partitions), len(b.Partitions)); i++ {
				if i >= len(a.Partitions) || i >= len(b.Partitions) || a.Partitions[i].Revision != b.Partitions[i].Revision {
					c.Partitions = append(c.Partitions, int32(i))
				}
			}
			if !c.Config && len(c.Partitions) == 0 {
				return
			}
		}
		out.Topics = append(out.Topics, c)
	})
	diffTables(prev.brokers, next.brokers, func(id int32, a, b *Broker) {
		if a == nil || b == nil || a.Revision != b.Revision {
			out.Brokers = append(out.Brokers, id)
		}
	})
	diffTables(prev.configs, next.configs, func(k ConfigKey, a, b *Config) {
		if a == nil || b == nil || a.Revision != b.Revision {
			out.Configs = append(out.Configs, k)
		}
	})
	diffTables(prev.deleted, next.deleted, func(id [16]byte, a, b *Tombstone) {
		if a == nil || b == nil {
			out.Tombstones = append(out.Tombstones, id)
		}
	})
	out.Controller = prev.Controller != next.Controller || prev.ControllerEpoch != next.ControllerEpoch
	return out
}

func upTo(n int) []int32 {
	out := make([]int32, n)
	for i := range out {
		out[i] = int32(i)
	}
	return out
}
