package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strings"
	"time"
)

// report is everything about a run.
type report struct {
	Cluster  bool              `json:"cluster,omitempty"` // of workloads of clusters only
	Began    time.Time         `json:"began"`
	Took     string            `json:"took"`
	Machine  machineInfo       `json:"machine"`
	Commands []string          `json:"commands"`
	Form     string            `json:"form"` // sides, blocks, warm-up
	Profiles map[string]string `json:"kafka_profiles"`
	Varve    map[string]string `json:"varve_settings"`
	Goals    []verdict         `json:"goals"`
	Tables   []*table          `json:"tables"`
	Notes    []string          `json:"notes"`
}

// joined is one report of several, whose workloads are in the order of the matrix.
func joined(reports []*report) (*report, error) {
	all := *reports[0]
	all.Commands, all.Tables, all.Notes = nil, nil, nil
	all.Profiles, all.Varve = map[string]string{}, map[string]string{}
	var took time.Duration
	for _, r := range reports {
		if r.Machine.Varve != all.Machine.Varve || r.Machine.Kafka != all.Machine.Kafka || r.Cluster != all.Cluster {
			return nil, fmt.Errorf("the runs are not of the same programs: %s and %s, Kafka %s and %s", all.Machine.Varve, r.Machine.Varve, all.Machine.Kafka, r.Machine.Kafka)
		}
		d, err := time.ParseDuration(r.Took)
		if err != nil {
			return nil, err
		}
		took += d
		if !strings.Contains(all.Form, r.Form) {
			all.Form += " " + r.Form
		}
		if r.Began.Before(all.Began) {
			all.Began = r.Began
		}
		maps.Copy(all.Profiles, r.Profiles)
		maps.Copy(all.Varve, r.Varve)
		for _, list := range []struct{ to, of *[]string }{{&all.Commands, &r.Commands}, {&all.Notes, &r.Notes}} {
			for _, line := range *list.of {
				if !slices.Contains(*list.to, line) {
					*list.to = append(*list.to, line)
				}
			}
		}
		all.Tables = append(all.Tables, r.Tables...)
	}
	all.Took = took.String()
	if len(reports) > 1 {
		all.Notes = append(all.Notes, fmt.Sprintf("%d runs of the same programs, put together. Each started its brokers anew.", len(reports)))
	}
	place := map[string]int{}
	for i, w := range matrix() {
		place[w.Key] = i
	}
	slices.SortStableFunc(all.Tables, func(a, b *table) int { return place[a.Key] - place[b.Key] })
	all.evaluate()
	return &all, nil
}

// evaluate holds the goals against the tables.
func (r *report) evaluate() {
	r.Goals = nil
	for _, g := range goals {
		if workloadOf(g.Key).Cluster != r.Cluster {
			continue
		}
		r.Goals = append(r.Goals, g.evaluate(r.Tables))
	}
}

func (r *report) writeJSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(r)
}

// writer keeps the first error of many writes.
type writer struct {
	w   io.Writer
	err error
}

func (w *writer) line(format string, args ...any) {
	if w.err == nil {
		_, w.err = fmt.Fprintf(w.w, format+"\n", args...)
	}
}

func (w *writer) row(cells ...string) {
	for i := range cells {
		cells[i] = strings.ReplaceAll(strings.ReplaceAll(cells[i], "|", "\\|"), "\n", " ")
	}
	w.line("| %s |", strings.Join(cells, " | "))
}

func (w *writer) head(cells ...string) {
	w.row(cells...)
	w.line("|%s", strings.Repeat("---|", len(cells)))
}

// writeMarkdown writes the report for people.
func (r *report) writeMarkdown(out io.Writer) error {
	w := &writer{w: out}
	target := "make bench-kafka"
	if r.Cluster {
		target = "make bench-cluster"
		w.line("# Varve beside Apache Kafka: three brokers")
	} else {
		w.line("# Varve beside Apache Kafka")
	}
	w.line("")
	w.line("Measured on %s in %s, by a program: %s writes this page anew.", r.Began.UTC().Format("2006-01-02 15:04 UTC"), r.Took, "`"+target+"`")
	w.line("Both ran on the same machine in the same run, on the same file system. %s", r.Form)
	w.line("")
	r.writeMachine(w)
	r.writeGoals(w)
	w.line("## How to read the tables")
	w.line("")
	for _, n := range append(slices.Clone(howToRead), r.Notes...) {
		w.line("- %s", n)
	}
	w.line("")
	for _, t := range r.Tables {
		t.write(w)
	}
	return w.err
}

var howToRead = []string{
	"Varve has every record on disk (fdatasync) before it acknowledges it. Kafka acknowledges what is in the page cache, except where a row says `flush.messages=1`.",
	"A block is each case on Kafka, then on Varve, and all of it backwards (A-B-B-A). Figures are medians over the sides of the blocks that count. A ratio is Varve's median over Kafka's; in brackets the least and the greatest ratio of two sides that were measured side by side.",
	"The floor is a bare server that does the least that can be called durable: the same framing, a checksum, one shared file, group commit with fdatasync, an answer. It writes around the page cache and serves what it has in memory. It runs under the same load before each block and after the last. A block whose floor lies more than 20 % from the others of its row does not count; one is measured again where there is time. What does not count is listed.",
	"Varve uploads nothing here but in W2-uploads and W11, as Kafka with its defaults has no remote storage. With its own defaults a broker pays what W2-uploads shows.",
	"Where the work is no load (W11, W14, W18), the floor is a bare program that does the same, run beside each side of Varve: it sends what parallel GETs bring to as many readers; it holds or takes as many connections; it reads both ends of every segment and all of the newest one. These are shown and not judged.",
	"Load, broker and floor share this machine's cores, so throughput is what is left over when the load has taken its part. CPU time of the broker's process for each GB is the fairer comparison.",
	"Where a load sends as fast as records are taken, its latency is the length of the client's buffer and no property of the broker: only the rows with a rate (W3, W5, W6, W11-tail) say how fast a broker answers.",
	"Latencies are of this machine and this load. They say nothing about another.",
	"Bytes to the disk are those that the device was given while the side ran, by anybody. Kafka leaves that to the kernel: what it still owes when the side ends is not in them.",
	"Memory is the resident set. Kafka's contains the pages of its mapped index files and a heap of fixed size; Varve's the caches that it fills up to `memory.max.bytes`. A row's brokers have run the rows before it that share their setup, in the order of this page.",
	"\"Cores of others\" is what neither the load nor the broker used: the kernel writing back pages, the other broker that idles, neighbours.",
}

func (r *report) writeMachine(w *writer) {
	m := r.Machine
	w.line("## Machine and commands")
	w.line("")
	w.head("what", "")
	for _, x := range [][2]string{
		{"CPU", fmt.Sprintf("%s, %d cores", m.CPU, m.Cores)}, {"memory", m.MemoryGB}, {"kernel", m.Kernel}, {"file system of both brokers' data", m.FileSystem},
		{"Varve", m.Varve + " (built by " + m.Go + ")"}, {"Apache Kafka", m.Kafka}, {"Java", m.Java},
	} {
		w.row(x[0], x[1])
	}
	for _, name := range sorted(r.Profiles) {
		w.row("Kafka, "+name, r.Profiles[name])
	}
	for _, name := range sorted(r.Varve) {
		w.row("Varve, "+name, r.Varve[name])
	}
	w.line("")
	w.line("```")
	for _, c := range r.Commands {
		w.line("%s", c)
	}
	w.line("```")
	w.line("")
}

// writeGoals leaves goals out of the page of rows on which none rests.
func (r *report) writeGoals(w *writer) {
	if !slices.ContainsFunc(r.Goals, func(g verdict) bool { return g.Result != notMeasured }) {
		return
	}
	w.line("## Goals")
	w.line("")
	w.head("goal", "asked", "measured", "spread", "result")
	for _, g := range r.Goals {
		if g.Result == notMeasured {
			w.row(g.What, g.Asked, "-", "-", g.Result)
			continue
		}
		result := g.Result
		if g.Doubtful {
			result += " (but the floor moved in every block)"
		}
		w.row(g.What, g.Asked, short(g.Measured)+" "+g.Unit, short(g.Low)+" - "+short(g.High), result)
	}
	w.line("")
}

// write writes a workload's table and everything that speaks against it.
func (t *table) write(w *writer) {
	w.line("## %s: %s", t.Key, t.Title)
	w.line("")
	for _, n := range t.Notes {
		w.line("%s", n)
		w.line("")
	}
	for _, c := range t.Cases {
		if c.Load != "" {
			w.line("- %s: %s", c.Name, c.Load)
		}
	}
	if len(t.Cases) > 0 && t.Cases[0].Load != "" {
		w.line("")
	}
	if t.Length != "" {
		w.line("%s", t.Length)
		w.line("")
	}
	if t.Failed != "" {
		w.line("**Not complete:** %s", oneLine(t.Failed))
		w.line("")
	}
	if len(t.Sides) == 0 {
		return
	}
	w.head("case", "what", kafka, varve, "Varve / Kafka", "the floor", "Varve / floor")
	for c := range t.Cases {
		t.writeCase(w, c)
	}
	w.line("")
	w.line("%s", t.doubts())
	w.line("")
}

func (t *table) writeCase(w *writer, c int) {
	name := t.Cases[c].Name
	for _, m := range metrics {
		k, v := t.values(c, kafka, m.Name), t.values(c, varve, m.Name)
		f, floored := t.floor(c, m.Name)
		if len(k)+len(v) == 0 || m.Name == mErrors && median(append(slices.Clone(k), v...)) == 0 && slices.Max(append(slices.Clone(k), v...)) == 0 {
			continue
		}
		cells := []string{name, m.Name, shown(m, k), shown(m, v), "", "", ""}
		if x, ok := ratioOf(k, v); ok && !m.Plain {
			cells[4] = fmt.Sprintf("%s (%s - %s)", short(x.Value), short(x.Low), short(x.High))
		}
		if floored && m.Name != mErrors {
			cells[5] = fmt.Sprintf(m.Format, f)
			if len(v) > 0 && !m.Plain && f != 0 {
				cells[6] = short(median(v) / f)
			}
		}
		w.row(cells...)
		name = ""
	}
}

// doubts is what to know before believing the table.
func (t *table) doubts() string {
	var p []string
	counted := 0
	for i, b := range t.Blocks {
		if b.Counts {
			counted++
		}
		if b.Because != "" {
			p = append(p, fmt.Sprintf("block %d: %s (by %.0f %%)", i+1, b.Because, 100*b.Moved))
		}
	}
	head := fmt.Sprintf("%d of %d blocks count.", counted, len(t.Blocks))
	for _, s := range t.Sides {
		if s.Error != "" {
			p = append(p, fmt.Sprintf("block %d, %s on %s failed: %s", s.Block+1, t.Cases[s.Case].Name, s.Broker, oneLine(s.Error)))
		} else if n := s.Sample[mErrors]; n > 0 {
			p = append(p, fmt.Sprintf("block %d, %s on %s: %.0f records or fetches failed", s.Block+1, t.Cases[s.Case].Name, s.Broker, n))
		}
	}
	for _, f := range t.Floors {
		if f.Error != "" {
			p = append(p, fmt.Sprintf("floor %d of %s failed: %s", f.At+1, t.Cases[f.Case].Name, oneLine(f.Error)))
		}
	}
	var late []string
	for c := range t.Cases {
		for _, b := range []string{kafka, varve} {
			if vs := t.values(c, b, mOfRate); len(vs) > 0 && median(vs) < 0.98 {
				late = append(late, fmt.Sprintf("%s did not keep up with the rate of %s", b, t.Cases[c].Name))
			}
		}
	}
	p = append(p, late...)
	if len(p) == 0 {
		return head
	}
	return head + " " + strings.Join(p, "; ") + "."
}

func shown(m metric, vs []float64) string {
	if len(vs) == 0 {
		return "-"
	}
	return fmt.Sprintf(m.Format, median(vs))
}

// short is a number with three digits, as far as they say anything.
func short(v float64) string {
	switch a := math.Abs(v); {
	case math.IsNaN(v) || math.IsInf(v, 0):
		return "-"
	case a >= 100:
		return fmt.Sprintf("%.0f", v)
	case a >= 10:
		return fmt.Sprintf("%.1f", v)
	default:
		return fmt.Sprintf("%.2f", v)
	}
}

func oneLine(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	if len(s) > 300 {
		s = s[:300] + "..."
	}
	return s
}

func sorted(m map[string]string) []string {
	var out []string
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}
