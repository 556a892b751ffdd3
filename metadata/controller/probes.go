package controller

import (
	"cmp"
	"slices"
	"time"

	"github.com/varve/varve/metadata/image"
)

// Probes is what an elected controller knows of whether brokers answer. A broker's
// session says that its process reaches etcd; whether it serves anybody is another
// matter: its listeners, its network to the others, its request path or its disk may
// be stuck with the session alive. So the controller asks each broker, over the
// listener on which brokers ask each other, all the time:
//
//	Ask    what is to be asked now, of whom
//	Told   what came of it
//	Hint   somebody's connection to a broker broke: it is asked at once
//	Judge  what follows
//
// A broker is unresponsive when it has not answered for Patience, not three times
// running, and another broker that was asked to try finds the same; or when it says
// itself that its log has been stuck for that long. And only while the controller and
// those who answer it are most of the brokers: one that is cut off has no opinion. It
// knows that it is cut off from that, or from others who say that it does not answer
// them; then another should be the controller.
//
// A process that has just begun is given Grace to answer for the first time: it
// registers before it listens. One that was unresponsive must answer for a while
// before it counts as responsive again, twice as long each time.
//
// It is a value as the rest of this package: times are the caller's.
type Probes struct {
	ProbeOptions
	brokers map[int32]*probed
	turn    int32     // who was last asked whether this broker answers
	turnAt  time.Time // when
	own     ownState
}

// ProbeOptions of Probes.
type ProbeOptions struct {
	Self     int32
	Started  time.Time     // this process; zero: long ago
	Every    time.Duration // between two questions to a broker that answers
	Patience time.Duration
	Grace    time.Duration
	// Known is since when a process is known; zero: since long ago.
	Known func(id int32, incarnation [16]byte) time.Time
}

// Question is to be put to broker To: whether it answers, or, if About is another,
// whether that one answers it.
type Question struct{ To, About int32 }

// Outcome of a question.
type Outcome int8

// Refused is a connection refused: there is no such process. Nothing is what
// is not known.
const (
	Nothing Outcome = iota
	Answered
	Unanswered
	Refused
)

// Answer is what came of a question.
type Answer struct {
	Question
	Incarnation [16]byte // of About, as of the question
	Probed
}

// Probed is what a broker answered, if it did.
type Probed struct {
	Outcome Outcome
	// Stalled is for how long it has been waiting for its log's disk.
	Stalled time.Duration
	// Said is what came of asking another, if that was the question.
	Said Outcome
}

// Response is what is thought of a process.
type Response struct {
	Incarnation [16]byte
	// Unresponsive, or else well for long enough.
	Unresponsive bool
}

// Judgement is what follows from the answers.
type Judgement struct {
	Responds map[int32]Response
	// Gone are the processes that have ended, by their addresses: their sessions
	// need not run out.
	Gone map[int32][16]byte
	// CutOff says why this broker is no good controller; "" if it is one.
	CutOff string
}

// probed is what is known of one process.
type probed struct {
	incarnation [16]byte
	known       time.Time // since when anybody knows it,
	begun       time.Time // and since when it is asked
	asking      bool
	due         time.Time // of the next question
	heard       time.Time // when it last answered at all; zero: never
	answered    time.Time // and when its log was well, too
	well        time.Time // since when without a gap; zero: it is not
	missed      int       // questions in a row
	refused     int
	stalled     time.Duration
	said        map[int32]*statement // what others find when they ask it

	unresponsive bool
	times        int // it has become so
}

type statement struct {
	asking bool
	due    time.Time
	at     time.Time
	what   Outcome
}

type ownState struct {
	lonely, unreached, reached time.Time // since when; zero: it is not
	said                       map[int32]*statement
}

const (
	// enough questions in a row have to be missed.
	enough = 3
	// maxWitnesses bounds who is asked about a broker.
	maxWitnesses = 3
)

// NewProbes begins without knowing anybody.
func NewProbes(o ProbeOptions) *Probes {
	return &Probes{ProbeOptions: o, brokers: map[int32]*probed{}, own: ownState{said: map[int32]*statement{}}}
}

// follow takes over who there is.
func (p *Probes) follow(now time.Time, im *image.Image) {
	for id, b := range p.brokers {
		if !p.asked(im, id) || im.Broker(id).Incarnation != b.incarnation {
			delete(p.brokers, id)
		}
	}
	for _, b := range im.Brokers() {
		if p.asked(im, b.ID) && p.brokers[b.ID] == nil {
			n := &probed{incarnation: b.Incarnation, known: p.Known(b.ID, b.Incarnation), begun: now, due: now, said: map[int32]*statement{}, unresponsive: b.Unresponsive}
			if b.Unresponsive {
				n.times = 1 // of an earlier controller
			}
			p.brokers[b.ID] = n
		}
	}
}

// asked says whether a broker is one that should answer.
func (p *Probes) asked(im *image.Image, id int32) bool {
	return id != p.Self && running(im, id) && !im.Broker(id).ShuttingDown
}

// ids of those who are asked, ascending.
func (p *Probes) ids() []int32 {
	ids := make([]int32, 0, len(p.brokers))
	for id := range p.brokers {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, cmp.Compare[int32])
	return ids
}

// wellOnes are those who answer, ascending.
func (p *Probes) wellOnes() []int32 {
	return slices.DeleteFunc(p.ids(), func(id int32) bool { return p.brokers[id].well.IsZero() })
}

// Ask returns the questions that are due, each of which must be followed by Told, and
// when to ask again at the latest.
func (p *Probes) Ask(now time.Time, im *image.Image) (ask []Question, next time.Time) {
	p.follow(now, im)
	next = now.Add(p.Every)
	sooner := func(t time.Time) {
		if t.Before(next) {
			next = t
		}
	}
	well := p.wellOnes()
	witness := func(to, about int32, said map[int32]*statement) {
		st := said[to]
		if st == nil {
			st = &statement{due: now}
			said[to] = st
		}
		switch {
		case st.asking:
		case now.Before(st.due):
			sooner(st.due)
		default:
			st.asking = true
			ask = append(ask, Question{to, about})
		}
	}
	for _, id := range p.ids() {
		b := p.brokers[id]
		switch {
		case b.asking:
		case now.Before(b.due):
			sooner(b.due)
		default:
			b.asking = true
			ask = append(ask, Question{id, id})
		}
		if b.missed == 0 {
			continue
		}
		n := 0
		for _, w := range well {
			if w != id && n < maxWitnesses {
				n++
				witness(w, id, b.said)
			}
		}
	}
	// This broker itself: one other at a time says whether it answers, and all of
	// them when it does not.
	if len(well) > 0 {
		no, _ := p.said(now, p.own.said, time.Time{})
		switch {
		case no > 0:
			for _, w := range well {
				witness(w, p.Self, p.own.said)
			}
		case now.Sub(p.turnAt) >= p.Patience/2:
			at := slices.IndexFunc(well, func(id int32) bool { return id > p.turn })
			if at < 0 {
				at = 0
			}
			p.turn, p.turnAt = well[at], now
			witness(p.turn, p.Self, p.own.said)
		}
	}
	return ask, next
}

// Told takes in what came of a question.
func (p *Probes) Told(now time.Time, a Answer) {
	if a.To != a.About {
		said := p.own.said
		if a.About != p.Self {
			b := p.brokers[a.About]
			if b == nil || b.incarnation != a.Incarnation {
				return
			}
			said = b.said
		}
		if st := said[a.To]; st != nil {
			st.asking, st.due = false, now.Add(p.Every)
			if a.Outcome == Answered && a.Said != Nothing {
				st.at, st.what = now, a.Said
			}
		}
		return
	}
	b := p.brokers[a.To]
	if b == nil || b.incarnation != a.Incarnation {
		return
	}
	b.asking, b.due = false, now.Add(p.Every)
	switch a.Outcome {
	case Answered:
		b.heard, b.missed, b.refused, b.stalled = now, 0, 0, a.Stalled
		clear(b.said)
		if a.Stalled >= p.Patience {
			b.well = time.Time{}
			return
		}
		b.answered = now
		if b.well.IsZero() {
			b.well = now
		}
	default:
		b.missed++
		b.refused++
		if a.Outcome != Refused {
			b.refused = 0
		}
		b.well = time.Time{}
		// Soon again, and not in a tight loop where the answer is quick.
		b.due = now.Add(min(p.Every, 20*time.Millisecond<<min(b.missed, 10)))
	}
}

// Hint says that somebody's connection to a process broke.
func (p *Probes) Hint(now time.Time, id int32, incarnation [16]byte) {
	if b := p.brokers[id]; b != nil && b.incarnation == incarnation && !b.asking {
		b.due = now
	}
}

// said counts what others have found lately, after a time: how many were not
// answered, and how many were.
func (p *Probes) said(now time.Time, said map[int32]*statement, after time.Time) (no, yes int) {
	for _, st := range said {
		switch {
		case st.at.IsZero() || now.Sub(st.at) >= p.Patience || !st.at.After(after):
		case st.what == Answered:
			yes++
		default:
			no++
		}
	}
	return no, yes
}

// Judge returns what follows from what is known. stalled is for how long this
// broker has been waiting for its own log's disk.
func (p *Probes) Judge(now time.Time, im *image.Image, stalled time.Duration) Judgement {
	p.follow(now, im)
	j := Judgement{Responds: map[int32]Response{}, Gone: map[int32][16]byte{}}
	all, lost := 1+len(p.brokers), 0
	most := 2*(1+len(p.wellOnes())) > all
	for id, b := range p.brokers {
		if b.well.IsZero() && p.grown(now, b) {
			lost++
		}
		silent, certain := p.silent(now, b)
		switch {
		case !b.unresponsive && most && certain:
			b.unresponsive = true
			b.times++
		case b.unresponsive && !silent && !b.well.IsZero() && now.Sub(b.well) >= p.rest(b):
			b.unresponsive = false
		}
		j.Responds[id] = Response{Incarnation: b.incarnation, Unresponsive: b.unresponsive}
		if b.refused >= enough && (all == 2 || p.refusedToo(now, b)) {
			j.Gone[id] = b.incarnation
		}
	}

	for w := range p.own.said {
		if p.brokers[w] == nil {
			delete(p.own.said, w)
		}
	}
	// With one other there is nobody to tell whose fault it is.
	p.note(now, &p.own.lonely, all > 2 && 2*lost >= all)
	no, yes := p.said(now, p.own.said, time.Time{})
	p.note(now, &p.own.unreached, all > 2 && no > yes && now.Sub(p.Started) >= p.Grace)
	// An earlier controller may have found this broker unresponsive: the others say when it answers.
	p.note(now, &p.own.reached, (all == 1 || yes > no) && stalled < p.Patience)
	if me := im.Broker(p.Self); me != nil && me.Unresponsive {
		j.Responds[p.Self] = Response{Incarnation: me.Incarnation, Unresponsive: !p.lasts(now, p.own.reached)}
	}
	switch {
	case stalled >= p.Patience && all > 1 && most:
		j.CutOff = "its log's disk does not answer"
	case p.lasts(now, p.own.lonely):
		j.CutOff = "it reaches no majority of the brokers"
	case p.lasts(now, p.own.unreached):
		j.CutOff = "it does not answer the others"
	}
	return j
}

// silent says whether a process does not answer, or says that it cannot do
// anything; certain: another broker finds the same, or it said so itself.
func (p *Probes) silent(now time.Time, b *probed) (silent, certain bool) {
	if !b.heard.IsZero() && b.missed == 0 && b.stalled >= p.Patience {
		return true, true
	}
	since := b.answered
	if since.IsZero() {
		since = b.begun
	}
	if b.missed < enough || now.Sub(since) < p.Patience || !p.grown(now, b) {
		return false, false
	}
	no, yes := p.said(now, b.said, since)
	return true, no > 0 && no >= yes
}

// grown says whether a process should answer by now.
func (p *Probes) grown(now time.Time, b *probed) bool {
	return !b.heard.IsZero() || now.Sub(b.known) >= p.Grace
}

// refusedToo says whether another's connection was refused as well.
func (p *Probes) refusedToo(now time.Time, b *probed) bool {
	for _, st := range b.said {
		if st.what == Refused && now.Sub(st.at) < p.Patience {
			return true
		}
	}
	return false
}

// rest is for how long a process that was unresponsive has to answer.
func (p *Probes) rest(b *probed) time.Duration { return p.Patience << min(max(b.times-1, 0), 6) }

func (p *Probes) note(now time.Time, since *time.Time, so bool) {
	switch {
	case !so:
		*since = time.Time{}
	case since.IsZero():
		*since = now
	}
}

func (p *Probes) lasts(now, since time.Time) bool {
	return !since.IsZero() && now.Sub(since) >= p.Patience
}

// respond marks a broker that does not answer, or takes the mark back. What it
// leads is given to others that can, and it leaves ISRs that can do without it
// (settle): it is not fenced, for what nobody else can lead is no worse off with it.
func respond(b *image.Broker, unresponsive bool) ([]image.Change, []Event) {
	next := *b
	next.Unresponsive = unresponsive
	e := Event{Kind: "responsive", Broker: b.ID, Message: "the broker answers again"}
	if unresponsive {
		e.Kind, e.Message = "unresponsive", "the broker has a session and does not answer, neither the controller nor another broker, or its log's disk hangs: others lead what they can"
	}
	return []image.Change{image.SetBroker{Broker: next}}, []Event{e}
}

// Suspect is a broker's word that its connection to another broke. It changes
// nothing by itself: the controller asks that one at once.
type Suspect struct {
	Broker      int32
	Incarnation [16]byte
}

func (c Suspect) handle(*image.Image, Env) ([]image.Change, Reply) { return nil, Reply{} }
