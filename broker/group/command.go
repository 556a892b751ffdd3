package group

import (
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// Command is something that happens to one group. Requests carry a token, not 0, under which they are answered.
// What members offer and leaders assign is kept as it is given, so requests must not alias a buffer that is reused.
type Command interface{ GroupID() string }

type (
	// Join is a JoinGroup request. It may be parked: its reply is then part of a later result.
	Join struct {
		Token                uint64
		Req                  *kmsg.JoinGroupRequest
		ClientID, ClientHost string
		Suffix               string // unique: makes the member id, if one is needed
		Topics               Topics // for members of groups of the consumer protocol; nil: they are refused
		AssignmentInterval   time.Duration
	}
	// Sync is a SyncGroup request. It may be parked.
	Sync struct {
		Token  uint64
		Req    *kmsg.SyncGroupRequest
		Topics Topics // as of Join
	}
	// Heartbeat is a Heartbeat request.
	Heartbeat struct {
		Token uint64
		Req   *kmsg.HeartbeatRequest
	}
	// Leave is a LeaveGroup request.
	Leave struct {
		Token uint64
		Req   *kmsg.LeaveGroupRequest
	}
	// Commit is an OffsetCommit request, or with Txn a TxnOffsetCommit request in the form of the other. Topics are
	// named in every version: ids were resolved before.
	Commit struct {
		Token  uint64
		Req    *kmsg.OffsetCommitRequest
		Topics Topics // for ids of topics that the request only names; may be nil
		Txn    *Txn   // nil: not in a transaction
		Ticket any    // handed on in the result: what the log wants with the records
	}
	// EndTxn has a marker written. Its reply is a *kmsg.WriteTxnMarkersResponse of one partition. It is about all groups:
	// what it decides was decided elsewhere, and only its place in the log counts.
	EndTxn struct {
		Token            uint64
		By               Txn
		CoordinatorEpoch int32
		Commit           bool
		Ticket           any // as of Commit
	}
	// DeleteOffsets is an OffsetDelete request.
	DeleteOffsets struct {
		Token uint64
		Req   *kmsg.OffsetDeleteRequest
	}
	// Delete is one group of a DeleteGroups request. Its reply is a *kmsg.DeleteGroupsResponse of one group.
	Delete struct {
		Token uint64
		Group string
	}
	// DropTopic says that a topic was deleted: its offsets go. Those stay that are later than Until, the Position of the shard when
	// it was heard: they are of another topic of that name. 0: all go.
	DropTopic struct {
		Group, Topic string
		Until        int64
	}
	// Expire is the regular search for offsets whose retention is over.
	Expire struct{ Group string }
	// Tick is due at the group's Deadline.
	Tick struct{ Group string }
	// Shrink makes a group above group.max.size rebalance, so that its last members are refused.
	Shrink struct{ Group string }
)

// GroupID is the group that the command is about.
func (c *Join) GroupID() string          { return c.Req.Group }
func (c *Sync) GroupID() string          { return c.Req.Group }
func (c *Heartbeat) GroupID() string     { return c.Req.Group }
func (c *Leave) GroupID() string         { return c.Req.Group }
func (c *Commit) GroupID() string        { return c.Req.Group }
func (c *DeleteOffsets) GroupID() string { return c.Req.Group }
func (c *EndTxn) GroupID() string        { return "" }
func (c *Delete) GroupID() string        { return c.Group }
func (c *DropTopic) GroupID() string     { return c.Group }
func (c *Expire) GroupID() string        { return c.Group }
func (c *Tick) GroupID() string          { return c.Group }
func (c *Shrink) GroupID() string        { return c.Group }

// Access is which commands of one group may be under way together. Handle decides on what is committed; a decision
// must still hold when its records are.
type Access int8

const (
	// Free commands may be handled at any time.
	Free Access = iota
	// Shared commands may be handled while others of their kind are appended: commits do not depend on each other.
	Shared
	// Member commands change who is in the group. They and the shared ones do not mind each other's order, as long
	// as no exclusive append is under way; if they append, they append exclusively.
	Member
	// Exclusive commands depend on offsets too: nothing else of the group may be under way.
	Exclusive
)

// AccessOf says how a command goes with others of its group:
//
//	under way \ next   Free    Shared   Member   Exclusive
//	nothing            handle  handle   handle   handle
//	Shared append      handle  handle   handle   wait
//	any other append   handle  wait     wait     wait
func AccessOf(c Command) Access {
	switch c.(type) {
	case *Heartbeat:
		return Free
	case *Commit, *EndTxn:
		return Shared
	case *Join, *Sync, *Leave, *Tick, *Shrink, *ConsumerHeartbeat:
		return Member
	}
	return Exclusive
}

// Result is what a command leads to.
type Result struct {
	Group   string
	Records []Record // to be appended together; none: nothing to wait for
	Txn     *Txn     // of whose transaction they are: ApplyTxn is due for them; nil: Apply
	Marker  *EndTxn  // a marker to be appended, in place of records: ApplyMarker is due for it
	Ticket  any      // of the command
	Replies []Reply  // to be sent once the records are committed
	Notes   []Note   // what an operator may want to know, once the records are committed
	More    bool     // the command was bounded and should be repeated

	// NeedMatch is an expression of which the command has to know what it matches: it was not handled, and is to be
	// repeated with ConsumerHeartbeat.Matched.
	NeedMatch string

	token    uint64
	at       time.Time
	version  int
	next     *classic
	sessions []session
	converts bool // a parked JoinGroup whose records make the group one of the classic protocol

	// Of groups of the consumer protocol, whose next state is in the records.
	revokes []revocation
	rejoins []revocation // until when members of the classic protocol have to join or to sync
	seen    []seenRegex
	viewed  int64 // version of the topics of which the hash was looked at; 0 none
	moves   bool
}

// Moves says whether the group's Deadline may have come closer.
func (r *Result) Moves() bool { return r.next != nil || r.moves }

// revocation is until when a member has to give partitions up, unless it has moved on from that epoch. A zero time
// removes it.
type revocation struct {
	member string
	by     time.Time
	epoch  int32
}

// seenRegex says that an expression matches in that version of the topics what it did before.
type seenRegex struct {
	expr    string
	version int64
}

// session moves a member's deadline; a zero time removes it. A touch never moves it closer.
type session struct {
	member string
	by     time.Time
	touch  bool
}

// Reply is the answer to the request with that token.
type Reply struct {
	Token    uint64
	Response kmsg.Response
}

// NoteKind is what a Note is about.
type NoteKind int8

// The notes.
const (
	NoteRebalance     NoteKind = iota // a rebalance begins
	NoteGeneration                    // all members have joined a new generation
	NoteStable                        // the leader's assignment is committed
	NoteEmpty                         // the last member is gone
	NoteMemberExpired                 // a member was removed since it was not heard of
	NoteMemberLeft                    // a member left
	NoteFenced                        // a static member was replaced by a newer process
	NoteRefused                       // a bound refused a member
	NoteCommitted                     // N offsets were committed
	NoteExpired                       // N offsets expired
	NoteDeleted                       // the group was deleted, with N offsets
)

// Note is an event of a group.
type Note struct {
	Kind       NoteKind
	Group      string
	Generation int32
	Members    int
	N          int
	Member     string
	Reason     string
	Consumer   bool // of NoteRebalance: the group is of the consumer protocol
}
