package controller

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/varve/varve/metadata/image"
)

// CreateTopics creates topics; with ValidateOnly it only says what would happen.
type CreateTopics struct {
	Topics       []NewTopic
	ValidateOnly bool
}

// NewTopic is a topic to be created. Partitions and ReplicationFactor are -1
// for the defaults, and must be -1 with Assignments.
type NewTopic struct {
	Name string
	// ID of the topic, drawn at random by the caller. A command that is
	// handled again recognises its own topic by it.
	ID                [16]byte
	Partitions        int32
	ReplicationFactor int16
	Assignments       []Assignment
	Configs           []ConfigEntry
}

// Assignment places one partition's replicas; the first is the preferred leader.
type Assignment struct {
	Partition int32
	Replicas  []int32
}

// ConfigEntry is a setting and its value; nil is null.
type ConfigEntry struct {
	Name  string
	Value *string
}

// IsInternal says whether a topic of that name belongs to the broker itself.
func IsInternal(name string) bool {
	switch name {
	case "__consumer_offsets", "__transaction_state", "__share_group_state":
		return true
	}
	return false
}

// ValidateName checks a topic name by Kafka's rules.
func ValidateName(name string) error {
	switch {
	case name == "":
		return refusal("Topic name is invalid: the empty string is not allowed")
	case name == "." || name == "..":
		return refusal("Topic name is invalid: '.' or '..' is not allowed")
	case len(name) > 249:
		return refuse("Topic name is invalid: the length of %d is longer than the max allowed length 249", len(name))
	}
	for i := 0; i < len(name); i++ {
		c := name[i]
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '.' || c == '_' || c == '-') {
			return refuse("Topic name is invalid: %q contains one or more characters other than ASCII alphanumerics, '.', '_' and '-'", name)
		}
	}
	return nil
}

// collisionKey is equal for names that differ only in '.' against '_': metric
// names cannot tell such topics apart.
func collisionKey(name string) string { return strings.ReplaceAll(name, ".", "_") }

func (c CreateTopics) handle(im *image.Image, env Env) ([]image.Change, Reply) {
	seen := make(map[string]int, len(c.Topics))
	for _, t := range c.Topics {
		seen[t.Name]++
	}
	var changes []image.Change
	results := make([]Result, 0, len(c.Topics))
	p := newPlacer(im)
	// Names that a new one may collide with, computed once and only if some
	// new name has such a character.
	var collisions map[string]string
	budget := min(env.MaxPartitionsPerRequest, env.MaxPartitions-im.NumPartitions())
	for _, t := range c.Topics {
		r := Result{Name: t.Name, ID: t.ID}
		if seen[t.Name] > 1 {
			results = append(results, r.fail(codeInvalidRequest, "Duplicate topic name."))
			continue
		}
		if err := ValidateName(t.Name); err != nil {
			results = append(results, r.fail(codeInvalidTopic, err.Error()))
			continue
		}
		if t.Name == "__cluster_metadata" {
			results = append(results, r.fail(codeInvalidRequest, "Creation of internal topic __cluster_metadata is prohibited."))
			continue
		}
		if gone := im.Tombstone(t.ID); gone != nil && env.Retry {
			// It was made, and deleted before the command came again. No id has two lives.
			r.Partitions, r.ReplicationFactor = gone.Partitions, -1 // nobody knows any more
			results = append(results, r)
			continue
		}
		if old := im.Topic(t.Name); old != nil {
			if env.Retry && old.ID == t.ID {
				r.Partitions, r.ReplicationFactor = int32(len(old.Partitions)), replicationFactor(old)
				results = append(results, r)
				continue
			}
			r.ID = [16]byte{}
			results = append(results, r.fail(codeTopicAlreadyExists, fmt.Sprintf("Topic '%s' already exists.", t.Name)))
			continue
		}
		if strings.ContainsAny(t.Name, "._") {
			if collisions == nil {
				collisions = make(map[string]string)
				for old := range im.AllTopics() {
					if strings.ContainsAny(old.Name, "._") {
						collisions[collisionKey(old.Name)] = old.Name
					}
				}
			}
			if other, ok := collisions[collisionKey(t.Name)]; ok {
				results = append(results, r.fail(codeInvalidTopic, fmt.Sprintf("Topic '%s' collides with existing topic: %s", t.Name, other)))
				continue
			}
		}
		r, made := t.create(im, env, p, budget, r)
		results = append(results, r)
		if r.ErrorCode != codeNone {
			continue
		}
		budget -= int(r.Partitions)
		if collisions != nil {
			collisions[collisionKey(t.Name)] = t.Name
		}
		if !c.ValidateOnly {
			changes = append(changes, made...)
		}
	}
	return changes, Reply{Results: results}
}

func (t NewTopic) create(im *image.Image, env Env, p *placer, budget int, r Result) (Result, []image.Change) {
	var assigned [][]int32
	if len(t.Assignments) > 0 {
		if t.ReplicationFactor != -1 {
			return r.fail(codeInvalidRequest, "A manual partition assignment was specified, but replication factor was not set to -1."), nil
		}
		if t.Partitions != -1 {
			return r.fail(codeInvalidRequest, "A manual partition assignment was specified, but numPartitions was not set to -1."), nil
		}
		if len(t.Assignments) > budget {
			return r.fail(tooMany(env, budget, len(t.Assignments))), nil
		}
		assigned = make([][]int32, len(t.Assignments))
		for _, a := range t.Assignments {
			if a.Partition < 0 || int(a.Partition) >= len(assigned) {
				return r.fail(codeInvalidReplicaAssignment, "partitions should be a consecutive 0-based integer sequence"), nil
			}
			if assigned[a.Partition] != nil {
				return r.fail(codeInvalidReplicaAssignment, fmt.Sprintf("Found multiple manual partition assignments for partition %d", a.Partition)), nil
			}
			if err := cmp.Or(checkAssignment(im, a, len(assigned[0])), checkCordoned(im, a.Replicas)); err != nil {
				return r.fail(codeInvalidReplicaAssignment, err.Error()), nil
			}
			assigned[a.Partition] = a.Replicas
		}
		for i, a := range assigned {
			if len(a) != len(assigned[0]) {
				return r.fail(codeInvalidReplicaAssignment, inconsistent(len(a), len(assigned[0]))), nil
			}
			if !slices.ContainsFunc(a, im.Active) {
				return r.fail(codeInvalidReplicaAssignment, fmt.Sprintf(
					"All brokers specified in the manual partition assignment for partition %d are fenced or in controlled shutdown.", i)), nil
			}
		}
		r.Partitions, r.ReplicationFactor = int32(len(assigned)), int16(len(assigned[0]))
	} else {
		r.Partitions, r.ReplicationFactor = t.Partitions, t.ReplicationFactor
		if r.Partitions == -1 {
			r.Partitions = env.DefaultPartitions
		}
		if r.ReplicationFactor == -1 {
			r.ReplicationFactor = env.DefaultReplicationFactor
		}
		if r.Partitions <= 0 {
			return r.fail(codeInvalidPartitions, "Number of partitions was set to an invalid non-positive value."), nil
		}
		if r.ReplicationFactor <= 0 {
			return r.fail(codeInvalidReplicationFactor, "Replication factor was set to an invalid non-positive value."), nil
		}
		if int(r.Partitions) > budget {
			return r.fail(tooMany(env, budget, int(r.Partitions))), nil
		}
	}

	overrides := make(map[string]string, len(t.Configs))
	for _, e := range t.Configs {
		if e.Value == nil {
			return r.fail(codeInvalidConfig, fmt.Sprintf("Null value not supported for topic configs: %s", e.Name)), nil
		}
		if old, ok := overrides[e.Name]; ok && old != *e.Value {
			return r.fail(codeInvalidConfig, fmt.Sprintf("Setting %s is given twice with different values.", e.Name)), nil
		}
		overrides[e.Name] = *e.Value
	}
	if err := validateTopicConfig(env, overrides); err != nil {
		return r.fail(codeInvalidConfig, err.Error()), nil
	}

	if assigned == nil {
		var err error
		if assigned, err = p.place(int(r.Partitions), int(r.ReplicationFactor), 0, t.ID); err != nil {
			return r.fail(codeInvalidReplicationFactor, err.Error()), nil
		}
	}
	if len(overrides) == 0 {
		overrides = nil
	}
	changes := make([]image.Change, 0, len(assigned)+1)
	for i, replicas := range assigned {
		changes = append(changes, image.SetPartition{
			PartitionRef: image.PartitionRef{TopicID: t.ID, Index: int32(i)},
			State:        newPartition(im, replicas),
		})
	}
	changes = append(changes, image.SetTopic{
		ID: t.ID, Name: t.Name, Internal: IsInternal(t.Name), Partitions: r.Partitions, Config: overrides,
	})
	return r, changes
}

func tooMany(env Env, budget, want int) (int16, string) {
	return codePolicyViolation, fmt.Sprintf("Excessively large number of partitions: %d, where this request may add %d more (at most %d per request, %d in the cluster).",
		want, max(budget, 0), env.MaxPartitionsPerRequest, env.MaxPartitions)
}

func inconsistent(n, first int) string {
	return fmt.Sprintf("The manual partition assignment includes a partition with %d replica(s), but this is not "+
		"consistent with previous partitions, which have %d replica(s).", n, first)
}

func checkAssignment(im *image.Image, a Assignment, want int) error {
	if len(a.Replicas) == 0 {
		return refusal("The manual partition assignment includes an empty replica list.")
	}
	if want > 0 && len(a.Replicas) != want {
		return refusal(inconsistent(len(a.Replicas), want))
	}
	for i, b := range a.Replicas {
		if im.Broker(b) == nil {
			return refuse("The manual partition assignment includes broker %d, but no such broker is registered.", b)
		}
		if slices.Contains(a.Replicas[:i], b) {
			return refuse("The manual partition assignment includes the broker %d more than once.", b)
		}
	}
	return nil
}

func checkCordoned(im *image.Image, replicas []int32) error {
	if at := slices.IndexFunc(replicas, im.Cordoned); at >= 0 {
		return refuse("The manual partition assignment includes broker %d, which is cordoned (%s).", replicas[at], image.CordonedSetting)
	}
	return nil
}

// newPartition is the first state of a partition: everyone who may join an ISR is in
// sync, since there is nothing to be behind on; if nobody may, everyone active.
func newPartition(im *image.Image, replicas []int32) image.Partition {
	p := image.Partition{Leader: image.NoLeader, Replicas: slices.Clone(replicas)}
	for _, can := range []func(int32) bool{im.MayJoin, im.Active} {
		for _, b := range replicas {
			if can(b) {
				p.ISR = append(p.ISR, b)
			}
		}
		if len(p.ISR) > 0 {
			break
		}
	}
	if len(p.ISR) > 0 {
		p.Leader = p.ISR[0]
	}
	slices.Sort(p.ISR)
	return p
}

func replicationFactor(t *image.Topic) int16 {
	if len(t.Partitions) == 0 {
		return 0
	}
	return int16(len(t.Partitions[0].Assigned()))
}

// DeleteTopics deletes topics by name or id.
type DeleteTopics struct{ Topics []TopicRef }

// TopicRef names a topic by Name or by ID.
type TopicRef struct {
	Name string
	ID   [16]byte
}

func (c DeleteTopics) handle(im *image.Image, env Env) ([]image.Change, Reply) {
	seen := make(map[[16]byte]int, len(c.Topics))
	find := func(ref TopicRef) *image.Topic {
		if ref.Name != "" {
			return im.Topic(ref.Name)
		}
		return im.TopicByID(ref.ID)
	}
	named := make(map[TopicRef]int, len(c.Topics))
	for _, ref := range c.Topics {
		named[ref]++
		if t := find(ref); t != nil {
			seen[t.ID]++
		}
	}
	var changes []image.Change
	results := make([]Result, 0, len(c.Topics))
	for _, ref := range c.Topics {
		r := Result{Name: ref.Name, ID: ref.ID}
		t := find(ref)
		switch {
		case !env.DeleteTopics:
			r = r.fail(codeTopicDeletionDisabled, "Topic deletion is disabled (delete.topic.enable).")
		case ref.Name != "" && ref.ID != [16]byte{}:
			r = r.fail(codeInvalidRequest, "You may not specify both topic name and topic id.")
		case ref.Name == "" && ref.ID == [16]byte{}:
			r = r.fail(codeInvalidRequest, "Neither topic name nor id were specified.")
		case named[ref] > 1:
			r = r.fail(codeInvalidRequest, "Duplicate topic name or id.")
		case t == nil && env.Retry && buried(im, ref):
			// deleted by an earlier attempt
		case t == nil && ref.Name != "":
			r = r.fail(codeUnknownTopicOrPartition, "This server does not host this topic-partition.")
		case t == nil:
			r = r.fail(codeUnknownTopicID, "This server does not host this topic ID.")
		case seen[t.ID] > 1:
			r = r.fail(codeInvalidRequest, "Duplicate topic name or id.")
		default:
			r.Name, r.ID = t.Name, t.ID
			changes = append(changes, image.BuryTopic{Tombstone: image.Tombstone{ID: t.ID, Name: t.Name, Partitions: int32(len(t.Partitions))}})
		}
		results = append(results, r)
	}
	return changes, Reply{Results: results}
}

func buried(im *image.Image, ref TopicRef) bool {
	if ref.Name == "" {
		return im.Tombstone(ref.ID) != nil
	}
	for _, t := range im.Deleted() {
		if t.Name == ref.Name {
			return true
		}
	}
	return false
}

// CreatePartitions grows topics.
type CreatePartitions struct {
	Topics       []Growth
	ValidateOnly bool
}

// Growth raises a topic's number of partitions to Count. Assignments, if any,
// place the new partitions in order.
type Growth struct {
	Name        string
	Count       int32
	Assignments [][]int32
}

func (c CreatePartitions) handle(im *image.Image, env Env) ([]image.Change, Reply) {
	seen := make(map[string]int, len(c.Topics))
	for _, g := range c.Topics {
		seen[g.Name]++
	}
	var changes []image.Change
	results := make([]Result, 0, len(c.Topics))
	budget := min(env.MaxPartitionsPerRequest, env.MaxPartitions-im.NumPartitions())
	p := newPlacer(im)
	for _, g := range c.Topics {
		r := Result{Name: g.Name}
		if seen[g.Name] > 1 {
			results = append(results, r.fail(codeInvalidRequest, "Duplicate topic name."))
			continue
		}
		r, made := g.grow(im, env, p, budget, r)
		results = append(results, r)
		if r.ErrorCode == codeNone && len(made) > 0 {
			budget -= len(made) - 1
			if !c.ValidateOnly {
				changes = append(changes, made...)
			}
		}
	}
	return changes, Reply{Results: results}
}

func (g Growth) grow(im *image.Image, env Env, p *placer, budget int, r Result) (Result, []image.Change) {
	t := im.Topic(g.Name)
	if t == nil {
		return r.fail(codeUnknownTopicOrPartition, "This server does not host this topic-partition."), nil
	}
	r.ID, r.Partitions, r.ReplicationFactor = t.ID, g.Count, replicationFactor(t)
	have := len(t.Partitions)
	if t.Internal && int(g.Count) != have {
		// Kafka lets it happen, and the groups are lost.
		return r.fail(codeInvalidRequest, fmt.Sprintf("The number of partitions of %s cannot be changed: which of them holds a group "+
			"or a transactional id follows from it, so what exists would not be found again. Delete the topic to begin with another number.", g.Name)), nil
	}
	switch more := int(g.Count) - have; {
	case more == 0 && env.Retry:
		return r, nil // by an earlier attempt
	case more == 0:
		return r.fail(codeInvalidPartitions, fmt.Sprintf("Topic already has %d partition(s).", have)), nil
	case more < 0:
		return r.fail(codeInvalidPartitions, fmt.Sprintf("The topic %s currently has %d partition(s); %d would not be an increase.",
			g.Name, have, g.Count)), nil
	case more > budget:
		return r.fail(tooMany(env, budget, more)), nil
	}
	more := int(g.Count) - have
	assigned := g.Assignments
	if assigned != nil {
		if len(assigned) != more {
			return r.fail(codeInvalidReplicaAssignment, fmt.Sprintf(
				"Attempted to add %d additional partition(s), but only %d assignment(s) were specified.", more, len(assigned))), nil
		}
		for i, replicas := range assigned {
			if err := cmp.Or(checkAssignment(im, Assignment{int32(have + i), replicas}, int(r.ReplicationFactor)), checkCordoned(im, replicas)); err != nil {
				return r.fail(codeInvalidReplicaAssignment, err.Error()), nil
			}
			if !slices.ContainsFunc(replicas, im.Active) {
				return r.fail(codeInvalidReplicaAssignment, fmt.Sprintf(
					"All brokers specified in the manual partition assignment for partition %d are fenced or in controlled shutdown.", have+i)), nil
			}
		}
	} else {
		var err error
		if assigned, err = p.place(more, int(r.ReplicationFactor), have, t.ID); err != nil {
			return r.fail(codeInvalidReplicationFactor, err.Error()), nil
		}
	}
	changes := make([]image.Change, 0, more+1)
	for i, replicas := range assigned {
		changes = append(changes, image.SetPartition{
			PartitionRef: image.PartitionRef{TopicID: t.ID, Index: int32(have + i)},
			State:        newPartition(im, replicas),
		})
	}
	changes = append(changes, image.SetTopic{ID: t.ID, Name: t.Name, Internal: t.Internal, Partitions: g.Count, Config: t.Config})
	return r, changes
}

const minISRName = "min.insync.replicas"

// minISR is the topic's min.insync.replicas; see image.Partition.MinISR.
func minISR(im *image.Image, env Env, t *image.Topic) int {
	n := env.MinISR
	for _, values := range []map[string]string{im.Config(image.BrokerResource, ""), t.Config} {
		if v, err := strconv.Atoi(strings.TrimSpace(values[minISRName])); err == nil && v > 0 {
			n = v
		}
	}
	return n
}
