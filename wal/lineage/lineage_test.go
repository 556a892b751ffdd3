package lineage

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
)

// datadriven has the flag -rewrite; ours does the same for binary files.
func rewriting() bool {
	f := flag.Lookup("rewrite")
	return f != nil && f.Value.String() == "true"
}

func show(l Lineage) string {
	if len(l) == 0 {
		return "nothing\n"
	}
	var s strings.Builder
	for _, e := range l {
		fmt.Fprintf(&s, "epoch %d from %d\n", e.Epoch, e.Start)
	}
	return s.String()
}

func TestStories(t *testing.T) {
	datadriven.Walk(t, "testdata/stories", func(t *testing.T, path string) {
		var l Lineage
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			arg := func(key string) (v int64) {
				d.ScanArgs(t, key, &v)
				return v
			}
			before := slices.Clone(l)
			old := l
			out := ""
			switch d.Cmd {
			case "new":
				l = nil
			case "assign":
				l = l.Assign(int32(arg("epoch")), arg("start"))
			case "truncate-end":
				l = l.TruncateEnd(arg("offset"))
			case "truncate-start":
				l = l.TruncateStart(arg("offset"))
			case "end-offset":
				e, o := l.EndOffset(int32(arg("epoch")), arg("log-end"))
				out = fmt.Sprintf("epoch %d ends at %d\n", e, o)
			case "epoch-at":
				out = fmt.Sprintf("%d\n", l.EpochAt(arg("offset")))
			case "range":
				out = show(l.Range(arg("from"), arg("to")))
			default:
				d.Fatalf(t, "unknown command %s", d.Cmd)
			}
			if !old.Equal(before) {
				d.Fatalf(t, "%s changed the lineage it was given", d.Cmd)
			}
			if out == "" {
				out = show(l)
			}
			return out
		})
	})
}

// model is a log as a list of epochs, one per offset.
func TestAgainstModel(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		var l Lineage
		var log []int32 // epoch of each offset
		epoch := int32(0)
		for range 30 {
			switch rng.IntN(4) {
			case 0:
				epoch += int32(rng.IntN(3)) + 1
				l = l.Assign(epoch, int64(len(log)))
			case 1, 2:
				if len(l) == 0 {
					continue
				}
				for range rng.IntN(4) {
					last, _ := l.Latest()
					log = append(log, last.Epoch)
				}
			case 3:
				n := rng.IntN(len(log) + 1)
				if n < len(log) {
					log = log[:n]
					l = l.TruncateEnd(int64(n))
				}
			}
			for i := 1; i < len(l); i++ {
				if l[i].Epoch <= l[i-1].Epoch || l[i].Start <= l[i-1].Start {
					t.Fatalf("not ascending: %v", l)
				}
			}
			for o, e := range log {
				if got := l.EpochAt(int64(o)); got != e {
					t.Fatalf("epoch at %d is %d, lineage says %d: %v", o, e, got, l)
				}
			}
			// For every epoch that wrote something, its end is the offset after its last one.
			for _, e := range l {
				end := int64(len(log))
				for o := range log {
					if log[o] > e.Epoch {
						end = int64(o)
						break
					}
				}
				if latest, _ := l.Latest(); latest.Start > int64(len(log)) {
					t.Fatalf("begins after the end: %v, log of %d", l, len(log))
				} else if latest.Epoch > e.Epoch {
					end = min(end, latest.Start)
				}
				if f, o := l.EndOffset(e.Epoch, int64(len(log))); f != e.Epoch || o != end {
					t.Fatalf("epoch %d ends at %d, lineage says %d/%d: %v", e.Epoch, end, f, o, l)
				}
			}
			got, err := Decode(l.Encode())
			if err != nil || !got.Equal(l) {
				t.Fatal(err, got, l)
			}
			from, to := rng.Int64N(int64(len(log)+1)), rng.Int64N(int64(len(log)+1))
			if from < to {
				r := l.Range(from, to)
				for o := from; o < to; o++ {
					if r.EpochAt(o) != log[o] {
						t.Fatalf("range [%d, %d) of %v is %v", from, to, l, r)
					}
				}
				if r[0].Start != from {
					t.Fatalf("range [%d, %d) of %v is %v", from, to, l, r)
				}
			}
		}
	}
}

func TestSampleFile(t *testing.T) {
	l := Lineage{{0, 0}, {3, 17}, {4, 1 << 40}, {math.MaxInt32, math.MaxInt64}}
	path := filepath.Join("testdata", "v1.lineage")
	if rewriting() {
		if err := os.WriteFile(path, l.Encode(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Decode(b)
	if err != nil || !got.Equal(l) {
		t.Fatal(got, err)
	}
	if !bytes.Equal(b, l.Encode()) {
		t.Error("version 1 is written differently now: that needs a version 2")
	}
}

func TestDecodeRefuses(t *testing.T) {
	good := Lineage{{1, 5}, {2, 9}}.Encode()
	for i := range good {
		for bit := range 8 {
			b := bytes.Clone(good)
			b[i] ^= 1 << bit
			if _, err := Decode(b); !errors.Is(err, ErrCorrupt) {
				t.Fatalf("bit %d of byte %d flipped: %v", bit, i, err)
			}
		}
		if _, err := Decode(good[:i]); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("cut to %d: %v", i, err)
		}
	}
	if _, err := Decode(append(bytes.Clone(good), 0)); !errors.Is(err, ErrCorrupt) {
		t.Error(err)
	}
	if l, err := Decode(Lineage(nil).Encode()); err != nil || len(l) != 0 {
		t.Error(l, err)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(Lineage{{1, 5}, {2, 9}}.Encode(), int32(1), int64(3))
	f.Add(Lineage(nil).Encode(), int32(0), int64(0))
	f.Fuzz(func(t *testing.T, b []byte, epoch int32, offset int64) {
		l, err := Decode(b)
		if err != nil {
			return
		}
		if !bytes.Equal(l.Encode(), b) {
			// Varints have longer forms of the same number; the meaning must be the same.
			if m, err := Decode(l.Encode()); err != nil || !m.Equal(l) {
				t.Fatal(err)
			}
		}
		l.EndOffset(epoch, offset)
		l.EpochAt(offset)
		_ = l.TruncateEnd(offset)
		_ = l.TruncateStart(offset)
		if epoch >= 0 && offset >= 0 {
			n := l.Assign(epoch, offset)
			if latest, ok := n.Latest(); !ok || latest.Epoch != epoch || latest.Start > offset {
				t.Fatalf("%v after assigning %d from %d", n, epoch, offset)
			}
		}
	})
}
