// Package history is what clients of a cluster were told and shown, and the check of it against what the cluster
// promises: nothing acknowledged is lost, nothing comes twice, everybody sees the same record at an offset for ever,
// transactions are whole or not there, and the offsets of groups do not go back. Of a compacted topic each key's newest
// record is there, and what was deleted does not come back.
//
// A check has no opinion on what a client was not told: a record whose fate is unknown may be there or not, and a
// transaction whose commit was not answered may have happened, but then all of it has.
package history

// History is everything that was noted. Times are counted by whoever notes: what ended before something else began has
// the lower number.
type History struct {
	Produces []Produce       `json:"produces"`
	Txns     map[string]*Txn `json:"txns"` // by name
	Readers  []Reader        `json:"readers"`
	Reads    []Read          `json:"reads"`
	Commits  []Commit        `json:"commits"`
	Offsets  []Offset        `json:"offsets"`
	Derived  []Derived       `json:"derived"`
	// Compacted topics lose records of a key that has newer ones, and tombstones some time later. Their batches are made anew.
	Compacted []string `json:"compacted"`
	// Starts are where the logs of partitions start that records were deleted of, when all is over: final readers begin there.
	// A partition that is not named starts at 0.
	Starts []Start `json:"starts,omitempty"`
}

// Start is the offset at which a partition's log starts: nothing below need be there any more.
type Start struct {
	Partition
	Offset int64 `json:"offset"`
}

// Partition is one of a topic.
type Partition struct {
	Topic string `json:"topic"`
	Index int32  `json:"partition"`
}

// Record is what a record says of itself.
type Record struct {
	// Producer and Number name it: the numbers of a producer count up in every partition. They are what is to come out
	// once and in order, whichever transaction carries it there.
	Producer  string `json:"producer,omitempty"`
	Number    int64  `json:"number"`
	Txn       string `json:"txn,omitempty"`       // the transaction that it was sent in
	Control   bool   `json:"control,omitempty"`   // a transaction's marker, which nobody sent
	Key       string `json:"key,omitempty"`       // in a compacted topic
	Tombstone bool   `json:"tombstone,omitempty"` // it deletes its key
	Sum       uint32 `json:"sum"`                 // checksum of all of it
}

// Outcome is what a client knows of what it has asked for.
type Outcome uint8

const (
	Unknown Outcome = iota // it was not answered, or by an error that leaves it open
	Done                   // acknowledged, committed
	Not                    // refused, aborted: it has not happened and never will
)

// Produce is a record that was sent.
type Produce struct {
	Partition
	Record
	Outcome Outcome `json:"outcome"`
	Offset  int64   `json:"offset"` // if it was acknowledged
}

// Txn is a transaction.
type Txn struct {
	Outcome Outcome `json:"outcome"`
	Asked   int64   `json:"asked"` // when its commit was asked for, just before; 0: it never was
}

// Reader is one who reads records.
type Reader struct {
	Name      string `json:"name"`
	Committed bool   `json:"committed"` // at read_committed
	// Steady readers go from offset to offset, without a group that takes partitions away and gives them back.
	Steady bool `json:"steady"`
	// Final readers read everything there is when all faults are over, from offset 0 to the end.
	Final bool `json:"final"`
}

// Read is a record that a reader was shown.
type Read struct {
	Partition
	Record
	Reader int    `json:"reader"` // of Readers
	At     int64  `json:"at"`
	Offset int64  `json:"offset"`
	Epoch  int32  `json:"epoch"` // leader epoch; -1: the client does not tell
	Batch  uint32 `json:"batch"` // checksum of the whole batch as it came; 0: the client does not tell
}

// Commit is a group's offset that was acknowledged.
type Commit struct {
	Partition
	Group  string `json:"group"`
	At     int64  `json:"at"` // when the acknowledgement was there
	Offset int64  `json:"offset"`
}

// Offset is a group's offset that somebody was told.
type Offset struct {
	Partition
	Group  string `json:"group"`
	Began  int64  `json:"began"` // when it was asked for
	Offset int64  `json:"offset"`
}

// Derived says that every record of In, visible at read_committed, is to be in the same partition of Out, where its
// producer is Producer and its number the offset that it has in In.
type Derived struct {
	In       string `json:"in"`
	Out      string `json:"out"`
	Producer string `json:"producer"`
}
