// Package controller decides what the elected controller writes.
//
// Everything here is a function of an image, a command and an environment: no
// clock, no store, no lock, no randomness, and the same answer every time. Two
// entry points:
//
//	Handle     (image, env, command) -> changes and a reply, for what somebody asked
//	Reconcile  (image, env)          -> changes and events, for what the image itself calls for:
//	           admitting brokers that registered, fencing brokers that left, electing leaders,
//	           emptying brokers that shut down or do not answer, finishing reassignments
//
// The runtime (metadata.Node) applies the changes to a copy of the image to
// decide the next command upon it, writes them in order in transactions of the
// store, and replies when the image that shows them is published. The order of
// changes matters: a crash leaves a prefix of them, so each function puts its
// commit point last and what comes before must be harmless without it. The
// commit points:
//
//	create, grow topics   SetTopic, after the partitions it shows
//	delete topics         BuryTopic, one transaction with everything it removes
//	admit a broker        SetBroker with the session's epoch, after the leader epochs are raised
//	fence a broker        SetBroker fenced, after its partitions got other leaders
//	shut a broker down    SetBroker shutting down, before its partitions get other leaders: in
//	                      between nobody may elect it again
//	relieve a broker that SetBroker unresponsive, before its partitions get other leaders
//	does not answer
//	reassign a partition  SetPartition with adding and removing; it ends with the SetPartition
//	                      without them
//
// A broker that shuts down keeps that mark in its record until its next
// incarnation is admitted: also over a lost session, and over another
// controller, which goes on moving what it leads.
package controller

import (
	"fmt"

	"github.com/varve/varve/metadata/image"
)

// Kafka's error codes, as far as the controller answers with them.
const (
	codeNone                     int16 = 0
	codeUnknownTopicOrPartition  int16 = 3
	codeInvalidTopic             int16 = 17
	codeTopicAlreadyExists       int16 = 36
	codeInvalidPartitions        int16 = 37
	codeInvalidReplicationFactor int16 = 38
	codeInvalidReplicaAssignment int16 = 39
	codeInvalidConfig            int16 = 40
	codeNotController            int16 = 41
	codeInvalidRequest           int16 = 42
	codePolicyViolation          int16 = 44
	codePreferredNotAvailable    int16 = 80
	codeEligibleNotAvailable     int16 = 83
	codeElectionNotNeeded        int16 = 84
	codeNoReassignment           int16 = 85
	codeTopicDeletionDisabled    int16 = 73
	codeFencedLeaderEpoch        int16 = 74
	codeStaleBrokerEpoch         int16 = 77
	codeInvalidUpdateVersion     int16 = 95
	codeUnknownTopicID           int16 = 100
	codeBrokerIDNotRegistered    int16 = 102
	codeIneligibleReplica        int16 = 107
)

// Env is what decisions depend on besides the image and the command.
type Env struct {
	// DefaultPartitions and DefaultReplicationFactor stand in for -1.
	DefaultPartitions        int32
	DefaultReplicationFactor int16
	// MinISR is min.insync.replicas where neither the topic nor the cluster's
	// dynamic config says it.
	MinISR int
	// Unclean is unclean.leader.election.enable where neither the topic nor the
	// cluster's dynamic config says it.
	Unclean bool
	// DeleteTopics is delete.topic.enable.
	DeleteTopics bool
	// ValidateTopic checks a topic's overrides, all together; nil accepts.
	ValidateTopic func(overrides map[string]string) error
	// ValidateResource checks the config of another resource; nil accepts.
	ValidateResource func(resourceType int8, name string, values map[string]string) error
	// IsList says whether a setting is a list, which APPEND and SUBTRACT need;
	// nil knows cleanup.policy and the throttled replica lists.
	IsList func(resourceType int8, setting string) bool
	// DefaultValue is the value that APPEND and SUBTRACT start from if the
	// resource has none of its own; nil starts from the empty list.
	DefaultValue func(resourceType int8, setting string) string

	// Responds is what the controller found when it asked brokers whether they
	// answer; see Probes.
	Responds map[int32]Response
	// Hold says that brokers without a session must not be fenced yet: the
	// store was away, and they may be about to register again.
	Hold bool
	// Retry says that this command was handled before with an unknown outcome:
	// what it would do may already be done, which is success and not a
	// conflict with itself.
	Retry bool

	// MaxPartitionsPerRequest bounds the partitions that one request creates,
	// MaxPartitions those of the cluster, MaxConfigBytes the names and values
	// of one resource's config, MaxConfigs the resources of one type that have
	// a config. Zero means the defaults below.
	MaxPartitionsPerRequest int
	MaxPartitions           int
	MaxConfigBytes          int
	MaxConfigs              int
}

// Default bounds; see Env.
const (
	DefaultMaxPartitionsPerRequest = 10_000 // as Kafka's controller
	DefaultMaxPartitions           = 200_000
	DefaultMaxConfigBytes          = 32 << 10
	DefaultMaxConfigs              = 10_000
)

func (e Env) withDefaults() Env {
	set := func(p *int, d int) {
		if *p == 0 {
			*p = d
		}
	}
	set(&e.MaxPartitionsPerRequest, DefaultMaxPartitionsPerRequest)
	set(&e.MaxPartitions, DefaultMaxPartitions)
	set(&e.MaxConfigBytes, DefaultMaxConfigBytes)
	set(&e.MaxConfigs, DefaultMaxConfigs)
	set(&e.MinISR, 1)
	if e.DefaultPartitions == 0 {
		e.DefaultPartitions = 1
	}
	if e.DefaultReplicationFactor == 0 {
		e.DefaultReplicationFactor = 1
	}
	return e
}

// Command is one of CreateTopics, DeleteTopics, CreatePartitions, AlterConfigs,
// AlterPartition, AlterReassignments, ElectLeaders, GiveUp, Balance,
// BeginShutdown, AcceptLoss, Marked, UnregisterBroker, Suspect.
type Command interface {
	handle(im *image.Image, env Env) ([]image.Change, Reply)
}

// Reply is the answer to a command: Results for what concerns topics, one per
// item in the order of the request; Partitions for what concerns partitions.
type Reply struct {
	ErrorCode  int16 // of the whole request
	Message    string
	Results    []Result
	Partitions []PartitionResult
	// Events are for the controller's own log, not for who asked.
	Events []Event `json:"-"`
}

// Result is the outcome of one item of an admin command.
type Result struct {
	Name string // topic name, or resource name
	Type int8   // resource type, for configs
	ID   [16]byte

	ErrorCode int16
	Message   string

	// Of a created topic, or of one that would be.
	Partitions        int32
	ReplicationFactor int16
}

// Handle decides a command upon an image. The changes are to be written in
// order; those of a result with an error are none.
func Handle(im *image.Image, env Env, c Command) ([]image.Change, Reply) {
	return c.handle(im, env.withDefaults())
}

// refusal is what a client reads, in Kafka's words where Kafka has them: a
// sentence, unlike the errors of a program.
type refusal string

func (r refusal) Error() string { return string(r) }

func refuse(format string, args ...any) error { return refusal(fmt.Sprintf(format, args...)) }

func (r Result) fail(code int16, message string) Result {
	r.ErrorCode, r.Message = code, message
	return r
}

// Fail is the reply to a command that could not be carried out at all: the
// error for each item, and for the request.
func Fail(c Command, code int16, message string) Reply {
	reply := Reply{ErrorCode: code, Message: message}
	add := func(r Result) { reply.Results = append(reply.Results, r.fail(code, message)) }
	switch c := c.(type) {
	case CreateTopics:
		for _, t := range c.Topics {
			add(Result{Name: t.Name})
		}
	case DeleteTopics:
		for _, t := range c.Topics {
			add(Result{Name: t.Name, ID: t.ID})
		}
	case CreatePartitions:
		for _, t := range c.Topics {
			add(Result{Name: t.Name})
		}
	case AlterConfigs:
		for _, r := range c.Resources {
			add(Result{Name: r.Name, Type: r.Type})
		}
	case AlterPartition:
		for _, p := range c.Partitions {
			reply.Partitions = append(reply.Partitions, PartitionResult{TopicID: p.TopicID, Partition: p.Partition, ErrorCode: code, Message: message})
		}
	case AlterReassignments:
		for _, p := range c.Partitions {
			reply.Partitions = append(reply.Partitions, PartitionResult{Topic: p.Topic, Partition: p.Partition, ErrorCode: code, Message: message})
		}
	case GiveUp:
		for _, p := range c.Partitions {
			reply.Partitions = append(reply.Partitions, PartitionResult{TopicID: p.TopicID, Partition: p.Index, ErrorCode: code, Message: message})
		}
	case ElectLeaders:
		for _, p := range c.Partitions {
			reply.Partitions = append(reply.Partitions, PartitionResult{Topic: p.Topic, Partition: p.Partition, ErrorCode: code, Message: message})
		}
	}
	return reply
}
