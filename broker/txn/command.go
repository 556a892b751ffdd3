package txn

import (
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// Command is something that happens to one transactional id. Requests carry a token, not 0, under which they are answered.
type Command interface{ TransactionalID() string }

type (
	// Init is an InitProducerId request with a transactional id.
	Init struct {
		Token uint64
		Req   *kmsg.InitProducerIDRequest

		// Fields of version 6 (KIP-939), of which nothing is supported but saying so.
		Enable2PC, KeepPreparedTxn bool
	}
	// AddPartitions is one transaction of an AddPartitionsToTxn request: all of versions 0-3, one of many of versions 4
	// and 5, by which brokers ask for their clients. Its reply is a response with this transaction alone. That the
	// partitions exist and that the client may write to them was found out before.
	AddPartitions struct {
		Token   uint64
		Version int16 // of the request
		Txn     kmsg.AddPartitionsToTxnRequestTransaction
	}
	// AddOffsets is an AddOffsetsToTxn request, with the group's partition of __consumer_offsets.
	AddOffsets struct {
		Token     uint64
		Req       *kmsg.AddOffsetsToTxnRequest
		Partition int32
	}
	// End is an EndTxn request.
	End struct {
		Token uint64
		Req   *kmsg.EndTxnRequest
	}
	// MarkersWritten says that partitions have the marker which a Markers asked for, or need none since they exist no more.
	MarkersWritten struct {
		ID     string
		Order  uint64 // as in Markers
		Topics []Topic
	}
	// Completed is MarkersWritten with AddPartitions and AddOffsets that have waited for the last marker. If the transaction
	// is complete with it, what they begin is appended together with that, rather than after it. Otherwise they are
	// answered as they would be alone.
	Completed struct {
		MarkersWritten
		Then []Command
	}
	// Tick is due at the id's Deadline. While markers are out it asks again for those that are missing.
	Tick struct{ ID string }
	// Expire is the regular search for ids that nobody has used for transactional.id.expiration.ms.
	Expire struct{ ID string }
	// Supplied repeats a command whose result said NeedProducerID, with a producer id that nobody else has. Should the
	// command need it no more, the id is lost.
	Supplied struct {
		Command
		ProducerID int64
	}
)

// TransactionalID is the id that the command is about.
func (c *Init) TransactionalID() string {
	if c.Req.TransactionalID == nil {
		return ""
	}
	return *c.Req.TransactionalID
}
func (c *AddPartitions) TransactionalID() string  { return c.Txn.TransactionalID }
func (c *AddOffsets) TransactionalID() string     { return c.Req.TransactionalID }
func (c *End) TransactionalID() string            { return c.Req.TransactionalID }
func (c *MarkersWritten) TransactionalID() string { return c.ID }
func (c *Tick) TransactionalID() string           { return c.ID }
func (c *Expire) TransactionalID() string         { return c.ID }

// Access is which commands of one id may be under way together. Handle decides on what is committed; a decision must still
// hold when its records are.
type Access int8

const (
	// Free commands may be handled at any time.
	Free Access = iota
	// Exclusive commands wait while anything of the id is being appended. Kafka answers CONCURRENT_TRANSACTIONS instead,
	// and clients ask again after a while.
	Exclusive
)

// AccessOf says how a command goes with others of its id. Only a verification is free: the partition that asks for it looks
// again when it appends.
func AccessOf(c Command) Access {
	if s, ok := c.(*Supplied); ok {
		c = s.Command
	}
	if a, ok := c.(*AddPartitions); ok && a.verifies() {
		return Free
	}
	return Exclusive
}

func (c *AddPartitions) verifies() bool { return c.Version >= 4 && c.Txn.VerifyOnly }

// Result is what a command leads to.
type Result struct {
	ID      string
	Records []Record // to be appended together; none: nothing to wait for
	Replies []Reply  // to be sent once the records are committed
	Markers *Markers // to be written once the records are committed; nil: none
	Notes   []Note   // what an operator may want to know, once the records are committed

	// NeedProducerID says that the command was not handled: it is to be repeated as Supplied.
	NeedProducerID bool

	cmd     Command
	version int
	settles bool
	last    int16   // the epoch before the current one
	marked  []Topic // have their markers
	ongoing bool
}

// Moves says whether the id's Deadline may have come closer.
func (r *Result) Moves() bool { return r.ongoing }

// Reply is the answer to the request with that token.
type Reply struct {
	Token    uint64
	Response kmsg.Response
}

// Markers asks for a marker in each of the partitions. It is to be tried until it is done or the partition is gone, for as
// long as this coordinator leads: there is no other way on for the transaction.
//
// A partition may get the same marker twice, but none may still be on its way to it when MarkersWritten says that it has
// it: the next transaction of a producer that keeps its epoch begins right after, and would be ended by it.
//
// Order tells transactions apart; producer id and epoch do not, as long as a producer keeps them. It means something to
// this shard alone. Of one transaction it is always the same.
type Markers struct {
	ID                 string
	Order              uint64 // set by Settle
	ProducerID         int64
	ProducerEpoch      int16
	CoordinatorEpoch   int32 // set by Settle
	Commit             bool
	TransactionVersion int8 // from 2 on the epoch is above that of the transaction's records, and leaders may insist on it
	Topics             []Topic
}

// NoteKind is what a Note is about.
type NoteKind int8

// The notes.
const (
	NoteInitialized NoteKind = iota // a producer got its id and epoch
	NoteBegun                       // a transaction began
	NoteCommitting                  // a transaction is committed
	NoteAborting                    // a transaction is aborted by its producer
	NoteFenced                      // a transaction is aborted since another producer took over the transactional id
	NoteTimedOut                    // a transaction is aborted since it took longer than its timeout
	NoteComplete                    // all markers are written
	NoteExpired                     // the id was not used for long
	NoteRefused                     // a bound refused partitions
)

// Note is an event of a transactional id.
type Note struct {
	Kind       NoteKind
	ID         string
	ProducerID int64
	Epoch      int16
	Partitions int
	Age        time.Duration // of the transaction; 0: none, or it has just begun
	Reason     string
}
