package controller

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/varve/varve/metadata/image"
)

// AlterConfigs changes dynamic configs: incrementally, or (the legacy API)
// replacing all of a resource's settings by those given. Each resource is
// changed whole or not at all.
type AlterConfigs struct {
	Resources    []AlterResource
	Incremental  bool
	ValidateOnly bool
}

// AlterResource is a resource and what to do to its settings: of a topic by
// name, a broker by decimal id, all brokers by "", a group or a client metrics
// subscription by name.
type AlterResource struct {
	Type int8
	Name string
	Ops  []ConfigOp
}

// ConfigOp is one step; Op is ignored when not incremental.
type ConfigOp struct {
	Name  string
	Op    Op
	Value *string
}

// Op is an operation on a setting, numbered as in the protocol.
type Op int8

// sharedSettings are settings of brokers that somebody goes by for all of them, and who that is.
var sharedSettings = map[string]string{
	uncleanName: "the controller", "log.cleaner.threads": "the compaction worker", "log.cleaner.dedupe.buffer.size": "the compaction worker",
	"log.cleaner.io.buffer.size": "the compaction worker", "log.cleaner.io.buffer.load.factor": "the compaction worker",
	"log.cleaner.io.max.bytes.per.second": "the compaction worker",
}

const (
	Set      Op = 0
	Delete   Op = 1
	Append   Op = 2
	Subtract Op = 3
)

func (c AlterConfigs) handle(im *image.Image, env Env) ([]image.Change, Reply) {
	seen := make(map[image.ConfigKey]int, len(c.Resources))
	for _, r := range c.Resources {
		seen[image.ConfigKey{Type: r.Type, Name: r.Name}]++
	}
	var changes []image.Change
	results := make([]Result, 0, len(c.Resources))
	added := map[int8]int{}
	after := im // of what comes before in the request: two of them together may lower what none does alone
	for _, res := range c.Resources {
		r := Result{Type: res.Type, Name: res.Name}
		if seen[image.ConfigKey{Type: res.Type, Name: res.Name}] > 1 {
			results = append(results, r.fail(codeInvalidRequest, "Each resource must appear at most once."))
			continue
		}
		r, change := res.alter(im, env, c.Incremental, added, r)
		results = append(results, r)
		if change != nil && !c.ValidateOnly {
			made := append(lowerMinISR(after, env, change), change)
			after = after.Apply(image.Delta{Changes: made})
			changes = append(changes, made...)
		}
	}
	return changes, Reply{Results: results}
}

func (res AlterResource) alter(im *image.Image, env Env, incremental bool, added map[int8]int, r Result) (Result, image.Change) {
	var topic *image.Topic
	switch res.Type {
	case image.TopicResource:
		if topic = im.Topic(res.Name); topic == nil {
			if err := ValidateName(res.Name); err != nil {
				return r.fail(codeInvalidTopic, err.Error()), nil
			}
			return r.fail(codeUnknownTopicOrPartition, fmt.Sprintf("The topic '%s' does not exist.", res.Name)), nil
		}
		r.ID = topic.ID
	case image.BrokerResource:
		if res.Name != "" {
			id, err := strconv.ParseInt(res.Name, 10, 32)
			if err != nil || strconv.FormatInt(id, 10) != res.Name {
				return r.fail(codeInvalidRequest, fmt.Sprintf("Broker id must be an integer, but it is: %s", res.Name)), nil
			}
			if im.Broker(int32(id)) == nil {
				return r.fail(codeInvalidRequest, fmt.Sprintf("No broker with id %d is registered.", id)), nil
			}
		}
	case image.GroupResource, image.ClientMetricsResource:
		if res.Name == "" || len(res.Name) > 249 {
			return r.fail(codeInvalidRequest, "The resource name must have 1 to 249 bytes."), nil
		}
	default:
		return r.fail(codeInvalidRequest, fmt.Sprintf("Unsupported resource type %d.", res.Type)), nil
	}

	old := im.Config(res.Type, res.Name)
	next, code, message := res.apply(env, old, incremental)
	if code != codeNone {
		return r.fail(code, message), nil
	}
	if maps.Equal(old, next) {
		return r, nil
	}
	if res.Type == image.TopicResource {
		if err := validateTopicConfig(env, next); err != nil {
			return r.fail(codeInvalidConfig, err.Error()), nil
		}
		if len(next) == 0 {
			next = nil
		}
		return r, image.SetTopic{ID: topic.ID, Name: topic.Name, Internal: topic.Internal,
			Partitions: int32(len(topic.Partitions)), Config: next}
	}
	if err := checkSize(env, next); err != nil {
		return r.fail(codeInvalidConfig, err.Error()), nil
	}
	if _, there := next[minISRName]; there && res.Type == image.BrokerResource && res.Name != "" {
		// A leader that needs fewer replicas than the controller thinks would
		// commit records without those that the controller may elect. Kafka
		// refuses it too, for the same reason.
		return r.fail(codeInvalidConfig, "min.insync.replicas cannot differ between brokers: set it for all of them, or for a topic."), nil
	}
	if res.Type == image.BrokerResource && res.Name != "" {
		for _, name := range slices.Sorted(maps.Keys(sharedSettings)) {
			if v, there := next[name]; there && v != old[name] {
				return r.fail(codeInvalidConfig, fmt.Sprintf("%s cannot differ between brokers, as %s goes by it for all of them: set it for all.", name, sharedSettings[name])), nil
			}
		}
	}
	if env.ValidateResource != nil {
		if err := env.ValidateResource(res.Type, res.Name, next); err != nil {
			return r.fail(codeInvalidConfig, err.Error()), nil
		}
	}
	key := image.ConfigKey{Type: res.Type, Name: res.Name}
	if len(next) == 0 {
		return r, image.DropConfig{ConfigKey: key}
	}
	if len(old) == 0 {
		if len(im.Configs(res.Type))+added[res.Type] >= env.MaxConfigs {
			return r.fail(codePolicyViolation, fmt.Sprintf("Already %d resources of this type have a config.", env.MaxConfigs)), nil
		}
		added[res.Type]++
	}
	return r, image.SetConfig{ConfigKey: key, Values: next}
}

// lowerMinISR returns what must be written before a config that lowers
// min.insync.replicas. Replicas outside of the ISR are eligible because nothing
// is committed without them while the ISR is below the minimum; under a lower
// one the leader commits without them as soon as it reads the config.
func lowerMinISR(im *image.Image, env Env, change image.Change) (changes []image.Change) {
	after := im.Apply(image.Delta{Changes: []image.Change{change}})
	clear := func(t *image.Topic) {
		for i, p := range t.Partitions {
			if len(p.ELR) > 0 && len(p.ISR) >= p.MinISR(minISR(after, env, after.TopicByID(t.ID))) {
				next := *p
				next.ELR = nil
				changes = append(changes, setPartition(t.ID, i, next))
			}
		}
	}
	switch c := change.(type) {
	case image.SetTopic:
		clear(im.TopicByID(c.ID))
	case image.SetConfig:
		if c.Type == image.BrokerResource && c.Name == "" {
			for t := range im.AllTopics() {
				clear(t)
			}
		}
	case image.DropConfig:
		if c.Type == image.BrokerResource && c.Name == "" {
			for t := range im.AllTopics() {
				clear(t)
			}
		}
	}
	return changes
}

// apply returns the settings after the steps.
func (res AlterResource) apply(env Env, old map[string]string, incremental bool) (map[string]string, int16, string) {
	next := make(map[string]string)
	if incremental {
		maps.Copy(next, old)
	}
	seen := make(map[string]bool, len(res.Ops))
	for _, op := range res.Ops {
		if op.Name == "" {
			return nil, codeInvalidRequest, "The name of a setting must not be empty."
		}
		if seen[op.Name] {
			return nil, codeInvalidRequest, fmt.Sprintf("Error due to duplicate config keys: %s", op.Name)
		}
		seen[op.Name] = true
		kind := op.Op
		if !incremental {
			kind = Set
		}
		if op.Value == nil && kind != Delete {
			return nil, codeInvalidRequest, fmt.Sprintf("Null value not supported for : %s", op.Name)
		}
		switch kind {
		case Set:
			next[op.Name] = *op.Value
		case Delete:
			delete(next, op.Name)
		case Append, Subtract:
			if !isList(env, res.Type, op.Name) {
				return nil, codeInvalidConfig, fmt.Sprintf("Can't %s to key %s because its type is not LIST.",
					map[Op]string{Append: "APPEND", Subtract: "SUBTRACT"}[kind], op.Name)
			}
			current, ok := next[op.Name]
			if !ok && env.DefaultValue != nil {
				current = env.DefaultValue(res.Type, op.Name)
			}
			list := split(current)
			for _, v := range split(*op.Value) {
				switch at := slices.Index(list, v); {
				case kind == Append && at < 0:
					list = append(list, v)
				case kind == Subtract && at >= 0:
					list = slices.Delete(list, at, at+1)
				}
			}
			next[op.Name] = strings.Join(list, ",")
		default:
			return nil, codeInvalidRequest, fmt.Sprintf("Unknown operation %d on setting %s.", op.Op, op.Name)
		}
	}
	return next, codeNone, ""
}

func split(s string) []string {
	var out []string
	for _, v := range strings.Split(s, ",") {
		if v = strings.TrimSpace(v); v != "" {
			out = append(out, v)
		}
	}
	return out
}

func isList(env Env, resourceType int8, name string) bool {
	if env.IsList != nil {
		return env.IsList(resourceType, name)
	}
	switch name {
	case "cleanup.policy", "log.cleanup.policy", "leader.replication.throttled.replicas", "follower.replication.throttled.replicas":
		return true
	}
	return false
}

func checkSize(env Env, values map[string]string) error {
	n := 0
	for k, v := range values {
		n += len(k) + len(v)
	}
	if n > env.MaxConfigBytes {
		return refuse("The config has %d bytes, allowed are %d.", n, env.MaxConfigBytes)
	}
	return nil
}

func validateTopicConfig(env Env, overrides map[string]string) error {
	if err := checkSize(env, overrides); err != nil {
		return err
	}
	if env.ValidateTopic != nil {
		if err := env.ValidateTopic(overrides); err != nil {
			return err
		}
	}
	return nil
}
