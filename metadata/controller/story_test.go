package controller

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"

	"github.com/varve/varve/metadata/image"
)

// world is an image with the names that stories use.
type world struct {
	im     *image.Image
	env    Env
	rev    int64
	topics int
	probes *Probes
}

func newWorld() *world {
	return &world{im: image.Empty(), env: Env{
		DeleteTopics: true,
		ValidateTopic: func(m map[string]string) error {
			for k, v := range m {
				if k == "bad" {
					return errors.New("Unknown topic config name: bad")
				}
				if n, err := strconv.Atoi(v); k == "retention.ms" && (err != nil || n < -1) {
					return fmt.Errorf("Invalid value %s for configuration retention.ms", v)
				}
			}
			return nil
		},
	}}
}

func (w *world) apply(changes ...image.Change) {
	if len(changes) > 0 {
		w.rev++
		w.im = w.im.Apply(image.Delta{Revision: w.rev, Changes: changes})
	}
}

func name16(s string) (id [16]byte) { copy(id[:], s); return id }
func text(id [16]byte) string       { return strings.TrimRight(string(id[:]), "\x00") }

func (w *world) topicName(id [16]byte) string {
	if t := w.im.TopicByID(id); t != nil {
		return t.Name
	}
	return text(id)
}

func (w *world) show(c image.Change) string {
	switch c := c.(type) {
	case image.SetBroker:
		b := c.Broker
		s := fmt.Sprintf("broker %d epoch=%d incarnation=%s wal=%s", b.ID, b.Epoch, text(b.Incarnation), text(b.WAL))
		if b.Fenced {
			s += " fenced"
		}
		if b.ShuttingDown {
			s += " shutting-down"
		}
		if b.Unresponsive {
			s += " unresponsive"
		}
		if b.Stale {
			s += " stale"
		}
		return s
	case image.SetTopic:
		s := fmt.Sprintf("topic %s partitions=%d", c.Name, c.Partitions)
		if c.Internal {
			s += " internal"
		}
		return s + showConfig(c.Config)
	case image.BuryTopic:
		return fmt.Sprintf("bury topic %s partitions=%d", c.Tombstone.Name, c.Tombstone.Partitions)
	case image.SetPartition:
		return fmt.Sprintf("%s-%d %s", w.topicName(c.TopicID), c.Index, showPartition(&c.State))
	case image.DropBroker:
		return fmt.Sprintf("drop broker %d", c.ID)
	case image.DropPartition:
		return fmt.Sprintf("drop %s-%d", w.topicName(c.TopicID), c.Index)
	case image.SetConfig:
		return fmt.Sprintf("config %d/%q%s", c.Type, c.Name, showConfig(c.Values))
	case image.DropConfig:
		return fmt.Sprintf("drop config %d/%q", c.Type, c.Name)
	}
	return fmt.Sprintf("%+v", c)
}

func showPartition(p *image.Partition) string {
	s := fmt.Sprintf("leader=%d epoch=%d/%d replicas=%v isr=%v", p.Leader, p.LeaderEpoch, p.PartitionEpoch, p.Replicas, p.ISR)
	if len(p.ELR) > 0 {
		s += fmt.Sprintf(" elr=%v", p.ELR)
	}
	if p.Recovering {
		s += " recovering"
	}
	if len(p.Cut) > 0 {
		s += fmt.Sprintf(" cut=%v", p.Cut)
	}
	if p.Reassigning() {
		s += fmt.Sprintf(" adding=%v removing=%v", p.Adding, p.Removing)
	}
	return s
}

func showConfig(m map[string]string) string {
	var keys []string
	for k, v := range m {
		keys = append(keys, fmt.Sprintf(" %s=%s", k, v))
	}
	slices.Sort(keys)
	return strings.Join(keys, "")
}

func ids(s string) (out []int32) {
	for _, f := range strings.Split(s, ",") {
		n, _ := strconv.Atoi(f)
		out = append(out, int32(n))
	}
	return out
}

// args reads "word k=v k=v flag" into the word and a map.
func args(line string) (word string, m map[string]string) {
	m = map[string]string{}
	for i, f := range strings.Fields(line) {
		k, v, _ := strings.Cut(f, "=")
		if i == 0 && !strings.Contains(f, "=") {
			word = f
			continue
		}
		m[k] = v
	}
	if word == `""` {
		word = ""
	}
	return word, m
}

func partition(s string) (topic string, index int32) {
	at := strings.LastIndex(s, "-")
	return s[:at], int32(num(s[at+1:], 0))
}

func num(s string, d int) int {
	if n, err := strconv.Atoi(s); err == nil {
		return n
	}
	return d
}

func scan(t *testing.T, d *datadriven.TestData, name string) (n int) {
	d.ScanArgs(t, name, &n)
	return n
}

func TestStories(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		w := newWorld()
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			return w.run(t, d)
		})
	})
}

func (w *world) run(t *testing.T, d *datadriven.TestData) string {
	var out strings.Builder
	flag := func(name string) bool { return d.HasArg(name) }
	lines := strings.Split(strings.TrimSpace(d.Input), "\n")
	if d.Input == "" {
		lines = nil
	}
	print := func(changes []image.Change, reply Reply) {
		if reply.ErrorCode != 0 {
			fmt.Fprintf(&out, "error %d: %s\n", reply.ErrorCode, reply.Message)
		}
		for _, r := range reply.Results {
			switch {
			case r.ErrorCode != 0:
				fmt.Fprintf(&out, "%s: error %d: %s\n", r.Name, r.ErrorCode, r.Message)
			case r.Partitions > 0:
				fmt.Fprintf(&out, "%s: ok partitions=%d rf=%d\n", r.Name, r.Partitions, r.ReplicationFactor)
			default:
				fmt.Fprintf(&out, "%s: ok\n", r.Name)
			}
		}
		for _, r := range reply.Partitions {
			topic := r.Topic
			if topic == "" {
				topic = w.topicName(r.TopicID)
			}
			if r.ErrorCode != 0 {
				fmt.Fprintf(&out, "%s-%d: error %d: %s\n", topic, r.Partition, r.ErrorCode, r.Message)
			} else {
				fmt.Fprintf(&out, "%s-%d: ok\n", topic, r.Partition)
			}
		}
		for _, e := range reply.Events {
			fmt.Fprintf(&out, "%s: %s\n", e.Kind, e.Message)
		}
		for i, c := range changes {
			if i == 12 {
				fmt.Fprintf(&out, "  ... %d changes\n", len(changes))
				break
			}
			fmt.Fprintf(&out, "  %s\n", w.show(c))
		}
		w.apply(changes...)
	}
	env := w.env
	env.Retry = flag("retry")
	env.Hold = flag("hold")

	switch d.Cmd {
	case "env":
		for _, a := range d.CmdArgs {
			n := num(strings.Join(a.Vals, ","), 0)
			switch a.Key {
			case "partitions":
				w.env.DefaultPartitions = int32(n)
			case "rf":
				w.env.DefaultReplicationFactor = int16(n)
			case "min-isr":
				w.env.MinISR = n
			case "max-request":
				w.env.MaxPartitionsPerRequest = n
			case "max":
				w.env.MaxPartitions = n
			case "no-delete":
				w.env.DeleteTopics = false
			case "unclean":
				w.env.Unclean = true
			default:
				d.Fatalf(t, "unknown %s", a.Key)
			}
		}
	case "session":
		for _, l := range lines {
			word, m := args(l)
			s := image.Session{ID: int32(num(word, 0)), Incarnation: name16(m["incarnation"]), WAL: name16(m["wal"]), Rack: m["rack"]}
			_, s.AcceptLoss = m["accept-loss"]
			_, s.Stale = m["stale"]
			_, s.Cut = m["cut"]
			w.apply(image.SetSession{Session: s})
		}
	case "responds": // 1 no | 1 yes | 1 incarnation=x no
		w.env.Responds = map[int32]Response{}
		for _, l := range lines {
			word, m := args(l)
			id := int32(num(word, 0))
			_, no := m["no"]
			r := Response{Unresponsive: no}
			if b := w.im.Broker(id); b != nil {
				r.Incarnation = b.Incarnation
			}
			if m["incarnation"] != "" {
				r.Incarnation = name16(m["incarnation"])
			}
			w.env.Responds[id] = r
		}
	case "probes", "ask", "told", "hint", "judge":
		out.WriteString(w.probe(t, d, lines))
	case "end":
		for _, l := range lines {
			w.apply(image.DropSession{ID: int32(num(l, 0))})
		}
	case "reconcile":
		// crash-after=N: only the first N changes are written.
		crash := -1
		if flag("crash-after") {
			d.ScanArgs(t, "crash-after", &crash)
		}
		for {
			changes, events := Reconcile(w.im, env)
			if len(changes) == 0 {
				break
			}
			if crash >= 0 {
				changes, events = changes[:min(crash, len(changes))], nil
			}
			for _, e := range events {
				fmt.Fprintf(&out, "%s: %s\n", e.Kind, e.Message)
			}
			print(changes, Reply{})
			if crash >= 0 {
				break
			}
		}
	case "create":
		c := CreateTopics{ValidateOnly: flag("validate-only")}
		for _, l := range lines {
			word, m := args(l)
			nt := NewTopic{Name: word, Partitions: int32(num(m["partitions"], -1)), ReplicationFactor: int16(num(m["rf"], -1))}
			if m["name"] != "" {
				nt.Name = strings.Repeat(m["name"], num(m["times"], 1))
			}
			w.topics++
			nt.ID = name16(fmt.Sprintf("%04d", w.topics))
			if m["id"] != "" {
				nt.ID = name16(m["id"])
			}
			if m["assign"] != "" { // 0:1,2/1:2,3
				for _, a := range strings.Split(m["assign"], "/") {
					p, r, _ := strings.Cut(a, ":")
					as := Assignment{Partition: int32(num(p, 0))}
					if r != "" {
						as.Replicas = ids(r)
					}
					nt.Assignments = append(nt.Assignments, as)
				}
			}
			for k, v := range m {
				if k, ok := strings.CutPrefix(k, "config:"); ok {
					e := ConfigEntry{Name: k, Value: &v}
					if v == "null" {
						e.Value = nil
					}
					nt.Configs = append(nt.Configs, e)
				}
			}
			c.Topics = append(c.Topics, nt)
		}
		print(Handle(w.im, env, c))
	case "delete":
		var c DeleteTopics
		for _, l := range lines {
			word, m := args(l)
			ref := TopicRef{Name: word}
			if m["id"] != "" {
				ref.ID = name16(m["id"])
			}
			c.Topics = append(c.Topics, ref)
		}
		print(Handle(w.im, env, c))
	case "grow":
		c := CreatePartitions{ValidateOnly: flag("validate-only")}
		for _, l := range lines {
			word, m := args(l)
			g := Growth{Name: word, Count: int32(num(m["count"], 0))}
			if a, ok := m["assign"]; ok { // 1,2/2,3
				g.Assignments = [][]int32{}
				for _, r := range strings.Split(a, "/") {
					g.Assignments = append(g.Assignments, ids(r))
				}
			}
			c.Topics = append(c.Topics, g)
		}
		print(Handle(w.im, env, c))
	case "alter":
		c := AlterConfigs{Incremental: !flag("replace"), ValidateOnly: flag("validate-only")}
		for _, l := range lines {
			f := strings.Fields(l)
			typ, name, _ := strings.Cut(f[0], "/")
			res := AlterResource{Type: int8(num(typ, 0)), Name: name}
			for _, step := range f[1:] { // +list=x -list=x !delete set=x
				k, v, has := strings.Cut(step, "=")
				op := ConfigOp{Value: &v}
				switch k[0] {
				case '+':
					op.Op, k = Append, k[1:]
				case '-':
					op.Op, k = Subtract, k[1:]
				case '!':
					op.Op, k = Delete, k[1:]
				case '?':
					op.Op, k = 9, k[1:]
				}
				if !has {
					op.Value = nil
				}
				if v == "1MB" {
					v = strings.Repeat("x", 1<<20)
				}
				op.Name = k
				res.Ops = append(res.Ops, op)
			}
			c.Resources = append(c.Resources, res)
		}
		print(Handle(w.im, env, c))
	case "propose":
		var c AlterPartition
		c.Broker = int32(scan(t, d, "broker"))
		if b := w.im.Broker(c.Broker); b != nil {
			c.BrokerEpoch = b.Epoch
		}
		if flag("broker-epoch") {
			c.BrokerEpoch = int64(scan(t, d, "broker-epoch"))
		}
		for _, l := range lines { // a-0 epoch=1/2 isr=1,2@7; without an epoch: as it is
			word, m := args(l)
			at := strings.LastIndex(word, "-")
			p := Proposal{TopicID: name16(word[:at]), Partition: int32(num(word[at+1:], 0))}
			if tp := w.im.Topic(word[:at]); tp != nil {
				p.TopicID = tp.ID
			}
			le, pe, _ := strings.Cut(m["epoch"], "/")
			p.LeaderEpoch, p.PartitionEpoch = int32(num(le, 0)), int32(num(pe, 0))
			if now := w.im.Partition(p.TopicID, p.Partition); m["epoch"] == "" && now != nil {
				p.LeaderEpoch, p.PartitionEpoch = now.LeaderEpoch, now.PartitionEpoch
			}
			for _, member := range strings.Split(m["isr"], ",") {
				id, e, _ := strings.Cut(member, "@")
				p.ISR = append(p.ISR, ISRMember{int32(num(id, 0)), int64(num(e, -1))})
			}
			c.Partitions = append(c.Partitions, p)
		}
		print(Handle(w.im, env, c))
	case "give-up": // broker=1, then partitions
		c := GiveUp{Broker: int32(scan(t, d, "broker"))}
		if b := w.im.Broker(c.Broker); b != nil {
			c.Incarnation = b.Incarnation
		}
		if flag("incarnation") {
			var s string
			d.ScanArgs(t, "incarnation", &s)
			c.Incarnation = name16(s)
		}
		for _, l := range lines {
			at := strings.LastIndex(l, "-")
			ref := image.PartitionRef{Index: int32(num(l[at+1:], 0))}
			if tp := w.im.Topic(l[:at]); tp != nil {
				ref.TopicID = tp.ID
			}
			c.Partitions = append(c.Partitions, ref)
		}
		print(Handle(w.im, env, c))
	case "accept-loss":
		var c AcceptLoss
		c.Broker = int32(scan(t, d, "broker"))
		print(Handle(w.im, env, c))
	case "reassign": // t-0 1,2,3 | t-0 cancel | t-0 none
		c := AlterReassignments{KeepReplicationFactor: flag("keep-rf")}
		for _, l := range lines {
			word, target, _ := strings.Cut(l, " ")
			a := Reassignment{Replicas: []int32{}}
			a.Topic, a.Partition = partition(word)
			switch target {
			case "cancel":
				a.Replicas = nil
			case "none":
			default:
				a.Replicas = ids(target)
			}
			c.Partitions = append(c.Partitions, a)
		}
		print(Handle(w.im, env, c))
	case "elect":
		c := ElectLeaders{Unclean: flag("unclean"), All: flag("all")}
		if flag("leader") {
			id := int32(scan(t, d, "leader"))
			c.Leader = &id
		}
		for _, l := range lines { // u-0, or with what replicas have, by leader epoch and log end: u-0 1=5/100 2=4/200
			word, m := args(l)
			var name PartitionName
			name.Topic, name.Partition = partition(word)
			c.Partitions = append(c.Partitions, name)
			logs := PartitionLogs{PartitionName: name}
			for id, has := range m {
				epoch, end, _ := strings.Cut(has, "/")
				end, damaged := strings.CutSuffix(end, "/damaged")
				logs.Logs = append(logs.Logs, ReplicaLog{int32(num(id, 0)), int32(num(epoch, 0)), int64(num(end, 0)), damaged})
			}
			if len(logs.Logs) > 0 {
				c.Logs = append(c.Logs, logs)
			}
		}
		print(Handle(w.im, env, c))
	case "balance":
		print(Handle(w.im, env, Balance{Percentage: scan(t, d, "percentage"), Limit: scan(t, d, "limit")}))
	case "shutdown":
		c := BeginShutdown{Broker: int32(scan(t, d, "broker"))}
		if b := w.im.Broker(c.Broker); b != nil {
			c.Incarnation = b.Incarnation
		}
		if flag("incarnation") {
			var s string
			d.ScanArgs(t, "incarnation", &s)
			c.Incarnation = name16(s)
		}
		print(Handle(w.im, env, c))
		fmt.Fprintf(&out, "still to hand over: %d\n", Leading(w.im, c.Broker))
	case "marked":
		c := Marked{Broker: int32(scan(t, d, "broker"))}
		if b := w.im.Broker(c.Broker); b != nil {
			c.BrokerEpoch = b.Epoch
		}
		print(Handle(w.im, env, c))
	case "leading":
		fmt.Fprintf(&out, "%d\n", Leading(w.im, int32(scan(t, d, "broker"))))
	case "unregister":
		changes, reply := Handle(w.im, env, UnregisterBroker{int32(scan(t, d, "broker"))})
		print(changes, reply)
	case "loose": // a partition that a crashed creation left
		w.apply(image.SetPartition{PartitionRef: image.PartitionRef{TopicID: name16("gone"), Index: 3}})
	case "state":
		for _, b := range w.im.Brokers() {
			fmt.Fprintln(&out, w.show(image.SetBroker{Broker: *b}))
		}
		for tp := range w.im.AllTopics() {
			fmt.Fprintf(&out, "%s%s\n", tp.Name, showConfig(tp.Config))
			for i, p := range tp.Partitions {
				if i == 12 {
					fmt.Fprintf(&out, "  ... %d partitions\n", len(tp.Partitions))
					break
				}
				fmt.Fprintf(&out, "  %d %s\n", i, showPartition(p))
			}
		}
	default:
		d.Fatalf(t, "unknown command %s", d.Cmd)
	}
	if out.Len() == 0 {
		return "ok\n"
	}
	return out.String()
}

// ms is a moment of a story.
func ms(n int) time.Time { return time.UnixMilli(1_000_000 + int64(n)) }

// probe are the commands of stories about Probes; at=MS is when.
func (w *world) probe(t *testing.T, d *datadriven.TestData, lines []string) string {
	var out strings.Builder
	now := ms(0)
	if d.HasArg("at") {
		now = ms(scan(t, d, "at"))
	}
	names := map[Outcome]string{Nothing: "nothing", Answered: "answered", Unanswered: "unanswered", Refused: "refused"}
	outcome := func(m map[string]string) Outcome {
		for o, name := range names {
			if _, ok := m[name]; ok {
				return o
			}
		}
		return Nothing
	}
	switch d.Cmd {
	case "probes": // self=1, then processes that are new: 3 known=MS
		known := map[int32]time.Time{}
		for _, l := range lines {
			word, m := args(l)
			known[int32(num(word, 0))] = ms(num(m["known"], 0))
		}
		w.probes = NewProbes(ProbeOptions{
			Self: int32(scan(t, d, "self")), Every: 500 * time.Millisecond, Patience: 3 * time.Second, Grace: 16 * time.Second,
			Known: func(id int32, _ [16]byte) time.Time { return known[id] },
		})
		return ""
	case "ask":
		ask, next := w.probes.Ask(now, w.im)
		for _, q := range ask {
			if q.To == q.About {
				fmt.Fprintf(&out, "%d\n", q.To)
			} else {
				fmt.Fprintf(&out, "%d about %d\n", q.To, q.About)
			}
		}
		fmt.Fprintf(&out, "next in %s\n", next.Sub(now))
	case "told": // 2 answered | 2 answered stalled=MS | 2 about=3 unanswered (answered by 2) | 2 about=3 fails
		for _, l := range lines {
			word, m := args(l)
			a := Answer{Question: Question{To: int32(num(word, 0))}}
			a.About = int32(num(m["about"], int(a.To)))
			if b := w.im.Broker(a.About); b != nil {
				a.Incarnation = b.Incarnation
			}
			if m["incarnation"] != "" {
				a.Incarnation = name16(m["incarnation"])
			}
			a.Outcome, a.Stalled = outcome(m), time.Duration(num(m["stalled"], 0))*time.Millisecond
			if _, fails := m["fails"]; a.About != a.To && !fails {
				a.Outcome, a.Said = Answered, a.Outcome
			}
			w.probes.Told(now, a)
		}
	case "hint":
		for _, l := range lines {
			id := int32(num(l, 0))
			w.probes.Hint(now, id, w.im.Broker(id).Incarnation)
		}
	case "judge":
		j := w.probes.Judge(now, w.im, time.Duration(num(argOf(t, d, "stalled"), 0))*time.Millisecond)
		for _, id := range slices.Sorted(maps.Keys(j.Responds)) {
			if j.Responds[id].Unresponsive {
				fmt.Fprintf(&out, "%d is unresponsive\n", id)
			}
		}
		for _, id := range slices.Sorted(maps.Keys(j.Gone)) {
			fmt.Fprintf(&out, "%d is gone\n", id)
		}
		if j.CutOff != "" {
			fmt.Fprintf(&out, "cut off: %s\n", j.CutOff)
		}
		w.env.Responds = j.Responds
	}
	return out.String()
}

func argOf(t *testing.T, d *datadriven.TestData, name string) (v string) {
	if d.HasArg(name) {
		d.ScanArgs(t, name, &v)
	}
	return v
}
