package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/varve/varve/internal/child"
)

// kcat produces the corpus, a run per partition: its -H gives every message of a run the same headers.
func (h *harness) kcatProduce(ctx context.Context, corpus []record) {
	for _, t := range topicsOf("kcat") {
		done := h.check("kcat", "produces / "+t.Codec, func() error {
			for p := range int32(corpusPartitions) {
				args := []string{"-P", "-b", h.boot, "-t", t.Topic, "-p", strconv.Itoa(int(p)), "-z", t.Codec, "-Z", "-K", `\x02`, "-D", `\x01`, "-X", "linger.ms=20"}
				if t.Codec == "lz4" {
					args = append(args, "-X", "enable.idempotence=true")
				}
				for _, hd := range kcatHeaders(p) {
					s := hd.name()
					if hd[1] != nil {
						s += "=" + string(hd.value())
					}
					args = append(args, "-H", s)
				}
				var in strings.Builder
				for _, r := range corpus {
					if r.Partition == p {
						fmt.Fprintf(&in, "%s\x02%s\x01", r.Key, r.Value)
					}
				}
				if _, err := h.exec(ctx, in.String(), h.installed.kcat, args...); err != nil {
					return err
				}
			}
			return nil
		})
		if !done {
			h.lack("kcat", "produces / "+t.Codec)
		}
	}
}

func (h *harness) kcatConsume(ctx context.Context, corpora map[string][]record, topics []planTopic) {
	for _, t := range topics {
		h.check("kcat", "reads "+t.By+" / "+t.Codec, func() error {
			out, err := h.exec(ctx, "", h.installed.kcat, "-C", "-b", h.boot, "-t", t.Topic, "-o", "beginning", "-e", "-q", "-X", "check.crcs=true",
				"-f", `%p %o %T %K %S %k%s%h\x01`)
			if err != nil {
				return err
			}
			want := map[int32][]record{}
			for _, r := range corpora[t.Corpus] {
				want[r.Partition] = append(want[r.Partition], r)
			}
			return compareKcat([]byte(out), want, h.started)
		})
	}
}

// compareKcat walks through kcat's output by what must stand there: values hold any byte.
func compareKcat(out []byte, want map[int32][]record, started int64) error {
	length := func(b []byte) int {
		if b == nil {
			return -1
		}
		return len(b)
	}
	next := map[int32]int{}
	for len(out) > 0 {
		var p int32
		var offset, ts int64
		var klen, vlen int
		if _, err := fmt.Sscanf(string(out[:min(len(out), 100)]), "%d %d %d %d %d", &p, &offset, &ts, &klen, &vlen); err != nil {
			return fmt.Errorf("unexpected output %.100q: %w", out, err)
		}
		i := next[p]
		next[p]++
		if i >= len(want[p]) {
			return fmt.Errorf("partition %d: more than %d records", p, len(want[p]))
		}
		r := want[p][i]
		if offset != int64(i) || klen != length(r.Key) || vlen != length(r.Value) {
			return fmt.Errorf("partition %d: offset %d, key of %d, value of %d bytes; want offset %d, key of %d, value of %d", p, offset, klen, vlen, i, length(r.Key), length(r.Value))
		}
		if r.Timestamp != nil && ts != *r.Timestamp || r.Timestamp == nil && (ts < started-1000 || ts > time.Now().UnixMilli()+1000) {
			return fmt.Errorf("partition %d offset %d: timestamp %d", p, i, ts)
		}
		line := fmt.Appendf(nil, "%d %d %d %d %d %s%s", p, offset, ts, klen, vlen, r.Key, r.Value)
		for j, hd := range r.Headers {
			if j > 0 {
				line = append(line, ',')
			}
			line = append(append(line, hd.name()...), '=')
			if hd[1] == nil {
				line = append(line, "NULL"...)
			}
			// kcat prints a header's value as a C string.
			value, _, _ := bytes.Cut(hd.value(), []byte{0})
			line = append(line, value...)
		}
		line = append(line, 1)
		if !bytes.HasPrefix(out, line) {
			return fmt.Errorf("partition %d offset %d: got %.200q, want %.200q", p, i, out, line)
		}
		out = out[len(line):]
	}
	for p, rs := range want {
		if next[p] != len(rs) {
			return fmt.Errorf("partition %d: %d records, want %d", p, next[p], len(rs))
		}
	}
	return nil
}

// kcatMember is a balanced consumer (-G) that runs until it is told to end.
type kcatMember struct {
	cmd   *exec.Cmd
	wg    sync.WaitGroup
	mu    sync.Mutex
	parts string         // the latest assignment it printed
	got   map[string]int // values
}

func (h *harness) kcatMember(group, topic string) (*kcatMember, error) {
	m := &kcatMember{got: map[string]int{}}
	m.cmd = exec.Command(h.installed.kcat, "-b", h.boot, "-u", "-f", `%s\n`, "-X", "auto.offset.reset=earliest", "-X", "session.timeout.ms=10000", "-X", "heartbeat.interval.ms=300",
		"-G", group, topic)
	out, err := m.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	errs, err := m.cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := m.cmd.Start(); err != nil {
		return nil, err
	}
	m.wg.Go(func() {
		for sc := bufio.NewScanner(out); sc.Scan(); {
			m.mu.Lock()
			m.got[sc.Text()]++
			m.mu.Unlock()
		}
	})
	m.wg.Go(func() {
		for sc := bufio.NewScanner(errs); sc.Scan(); {
			// % Group NAME rebalanced (memberid ...): assigned: topic [0], topic [1]
			if _, parts, found := strings.Cut(sc.Text(), "): assigned: "); found {
				m.mu.Lock()
				m.parts = parts
				m.mu.Unlock()
			} else if strings.Contains(sc.Text(), "revoked: ") {
				m.mu.Lock()
				m.parts = ""
				m.mu.Unlock()
			}
		}
	})
	return m, nil
}

func (m *kcatMember) assigned() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return strings.Count(m.parts, "[")
}

// stop ends it as ctrl-c does: it commits what it has read and leaves the group.
func (m *kcatMember) stop() error {
	m.cmd.Process.Signal(syscall.SIGINT)
	timer := time.AfterFunc(30*time.Second, func() { m.cmd.Process.Kill() })
	defer timer.Stop()
	m.wg.Wait()
	return m.cmd.Wait()
}

func (h *harness) kcatGroup(ctx context.Context) {
	const topic, group = "interop-group-kcat", "interop-kcat"
	fill := func(first, last int) error {
		for p := range 6 {
			var in strings.Builder
			for i := first; i < last; i++ {
				if i%6 == p {
					fmt.Fprintf(&in, "k%d:v%d\n", i, i)
				}
			}
			if _, err := h.exec(ctx, in.String(), h.installed.kcat, "-P", "-b", h.boot, "-t", topic, "-p", strconv.Itoa(p), "-K", ":"); err != nil {
				return err
			}
		}
		return nil
	}
	// gather waits for n different values and compares: each once.
	gather := func(first, last int, members ...*kcatMember) error {
		all := map[string]int{}
		err := child.Eventually(ctx, 60*time.Second, func() error {
			clear(all)
			for _, m := range members {
				m.mu.Lock()
				for v, n := range m.got {
					all[v] += n
				}
				m.mu.Unlock()
			}
			if len(all) < last-first {
				return fmt.Errorf("%d of %d records came", len(all), last-first)
			}
			return nil
		})
		if err != nil {
			return err
		}
		for i := first; i < last; i++ {
			if n := all["v"+strconv.Itoa(i)]; n != 1 {
				return fmt.Errorf("record %d came %d times", i, n)
			}
		}
		if len(all) != last-first {
			return fmt.Errorf("%d different records, want %d", len(all), last-first)
		}
		return nil
	}
	h.check("kcat", "two members of a group share the partitions", func() error {
		a, err := h.kcatMember(group, topic)
		if err != nil {
			return err
		}
		b, err := h.kcatMember(group, topic)
		if err != nil {
			return errors.Join(err, a.stop())
		}
		err = child.Eventually(ctx, 60*time.Second, func() error {
			if a.assigned() != 3 || b.assigned() != 3 {
				return fmt.Errorf("%d and %d partitions, want 3 and 3", a.assigned(), b.assigned())
			}
			return nil
		})
		if err == nil {
			err = fill(0, 300)
		}
		if err == nil {
			err = gather(0, 300, a, b)
		}
		return errors.Join(err, a.stop(), b.stop())
	})
	h.check("kcat", "a later member of the group resumes at the committed offsets", func() error {
		if err := fill(300, 360); err != nil {
			return err
		}
		a, err := h.kcatMember(group, topic)
		if err != nil {
			return err
		}
		err = gather(300, 360, a)
		if err := errors.Join(err, a.stop()); err != nil {
			return err
		}
		offsets, err := h.admin.FetchOffsets(ctx, group)
		if err != nil {
			return err
		}
		for p := range int32(6) {
			if o, _ := offsets.Lookup(topic, p); o.At != 60 {
				return fmt.Errorf("committed offset of %d is %d, want 60", p, o.At)
			}
		}
		return nil
	})
}

func (h *harness) kcatQueries(ctx context.Context) {
	topic := topicsOf("kcat")[0].Topic
	h.check("kcat", "metadata (-L)", func() error {
		out, err := h.exec(ctx, "", h.installed.kcat, "-L", "-b", h.boot, "-t", topic, "-J")
		if err != nil {
			return err
		}
		var m struct {
			Brokers []struct {
				ID   int32
				Name string
			}
			Topics []struct {
				Topic      string
				Partitions []struct {
					Partition, Leader int32
					Replicas, Isrs    []struct{ ID int32 }
				}
			}
		}
		if err := json.Unmarshal([]byte(out), &m); err != nil {
			return err
		}
		if len(m.Brokers) != 1 || m.Brokers[0].ID != h.node || len(m.Topics) != 1 || m.Topics[0].Topic != topic || len(m.Topics[0].Partitions) != corpusPartitions {
			return fmt.Errorf("got %s", out)
		}
		for _, p := range m.Topics[0].Partitions {
			if p.Leader != h.node || len(p.Replicas) != 1 || len(p.Isrs) != 1 {
				return fmt.Errorf("got %s", out)
			}
		}
		return nil
	})
	h.check("kcat", "offsets by time (-Q), from the end, from a time, up to a time", func() error {
		for query, want := range map[string]string{
			topic + ":0:-2": "offset 0", topic + ":1:-1": "offset 80",
			topic + ":2:" + strconv.FormatInt(h.started-5000, 10): "offset 0",
		} {
			out, err := h.exec(ctx, "", h.installed.kcat, "-Q", "-b", h.boot, "-t", query)
			if err != nil {
				return err
			}
			if !strings.HasSuffix(strings.TrimSpace(out), want) {
				return fmt.Errorf("%s: got %q, want %s", query, out, want)
			}
		}
		for from, want := range map[string]string{"-5": "75 76 77 78 79", "77": "77 78 79", "s@" + strconv.FormatInt(h.started-5000, 10): "0 1 2"} {
			out, err := h.exec(ctx, "", h.installed.kcat, "-C", "-b", h.boot, "-t", topic, "-p", "0", "-o", from, "-e", "-q", "-c", strconv.Itoa(len(strings.Fields(want))), "-f", `%o `)
			if err != nil {
				return err
			}
			if strings.TrimSpace(out) != want {
				return fmt.Errorf("from %s: offsets %q, want %q", from, out, want)
			}
		}
		return nil
	})
}
