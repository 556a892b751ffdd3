package broker

import "time"

// Events are called beside the path, never in it: logs and metrics listen.
// Every field may be nil. They are called from many goroutines and must not
// block.
type Events struct {
	Connections          func(open int)
	ConnectionRefused    func()
	Response             func(key int16, bytes int, took time.Duration)
	Produced             func(records int32, bytes int)
	ProduceFailed        func(code int16)
	AppendRefused        func() // the log is at its bound
	Fetched              func(bytes int64)
	ColdReadFailed       func()
	LocalReadFailed      func() // the local log could not give what it should have
	BadInput             func(err error)
	Panic                func()
	RestartedAtRemoteEnd func()
	GroupRebalanced      func(protocol string) // classic, consumer
	TransactionEnded     func(outcome string)  // commit, abort, fenced, timeout
	// Of the partitions of a coordinator's state that this broker leads; which: group, transaction.
	CoordinatorLoaded     func(which string, records, bytes int64, took time.Duration)
	CoordinatorLoadFailed func(which string) // and is tried again
	CoordinatorRefused    func(which string) // a request, because a bound was reached
	CoordinatorBadRecord  func(which string) // was passed over
	PeerRefused           func()             // a connection said to be a broker's, and was not
	Copied                func(bytes int)    // from a leader, durable now
	CorruptCopy           func()             // a leader sent what cannot be right
	LeaderStarted         func()
	LeaderStopped         func()
}

// fill replaces what nobody listens to.
func (e *Events) fill() {
	set := func(f *func()) {
		if *f == nil {
			*f = func() {}
		}
	}
	set(&e.ConnectionRefused)
	set(&e.AppendRefused)
	set(&e.ColdReadFailed)
	set(&e.LocalReadFailed)
	set(&e.Panic)
	set(&e.RestartedAtRemoteEnd)
	set(&e.PeerRefused)
	set(&e.CorruptCopy)
	set(&e.LeaderStarted)
	set(&e.LeaderStopped)
	if e.Connections == nil {
		e.Connections = func(int) {}
	}
	if e.Response == nil {
		e.Response = func(int16, int, time.Duration) {}
	}
	if e.Produced == nil {
		e.Produced = func(int32, int) {}
	}
	if e.ProduceFailed == nil {
		e.ProduceFailed = func(int16) {}
	}
	if e.Copied == nil {
		e.Copied = func(int) {}
	}
	if e.Fetched == nil {
		e.Fetched = func(int64) {}
	}
	if e.GroupRebalanced == nil {
		e.GroupRebalanced = func(string) {}
	}
	if e.TransactionEnded == nil {
		e.TransactionEnded = func(string) {}
	}
	if e.CoordinatorLoaded == nil {
		e.CoordinatorLoaded = func(string, int64, int64, time.Duration) {}
	}
	for _, f := range []*func(string){&e.CoordinatorLoadFailed, &e.CoordinatorRefused, &e.CoordinatorBadRecord} {
		if *f == nil {
			*f = func(string) {}
		}
	}
	if e.BadInput == nil {
		e.BadInput = func(error) {}
	}
}
