package wal

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/varve/varve/wal/lineage"
	"github.com/varve/varve/wal/vfs"
)

var rewriteSamples = flag.Bool("rewrite-samples", false, "write testdata/v2 anew: only when a format version is added")

// sample writes a log with every kind of record into fs, but those of reclaim.
func sample(t *testing.T, fs vfs.FS) {
	o := testOptions(fs)
	o.paged = true
	o.ClusterID, o.BrokerID, o.MaxBytes = "sample", 7, 16*o.SegmentBytes
	l := mustOpen(t, o)
	a := l.Create([16]byte{0xA}, 0, 100, lineage.Lineage{{Epoch: 2, Start: 100}}, []byte("snapshot at 100"), nil)
	b := l.Create([16]byte{0xB}, 3, 0, nil, nil, nil)
	c := l.Create([16]byte{0xC}, 1, 0, nil, nil, nil)
	for i := range int64(20) {
		mustAppend(t, l, a, 100+2*i, 2, 2000+int(i))
		mustAppend(t, l, b, i, 1, 1000)
		if i == 5 {
			l.Epoch(a, 4, 112, nil)
			l.Snapshot(a, 112, []byte("snapshot at 112"), nil)
			l.HighWatermark(a, 110)
			l.Trim(b, 3, nil)
		}
	}
	l.Truncate(b, 18, nil)
	l.Drop(c, nil)
	mustAppend(t, l, b, 18, 1, 500)
	mustClose(t, l)
}

// sampleReclaimed writes a log that gave segments back and carried what was still needed of them: CARRY and RECLAIM
// records, and pieces of copies in a footer.
func sampleReclaimed(t *testing.T, fs vfs.FS) {
	o := testOptions(fs)
	o.ClusterID, o.BrokerID, o.MaxBytes = "sample", 7, 8*o.SegmentBytes
	l := mustOpen(t, o)
	busy := l.Create([16]byte{0xD}, 0, 0, nil, nil, nil)
	slow := l.Create([16]byte{0xE}, 0, 0, nil, []byte("carried along"), nil)
	for i := range int64(4) {
		mustAppend(t, l, slow, i, 1, 300)
	}
	for end := int64(0); l.Stats().Reclaimed < 2 || l.Stats().NewestGenration < l.Stats().OldestGeneration+4; end++ {
		for l.Reserve(context.Background(), ClassClient, 4000) != nil {
			l.SetReclaimable(busy, end)
			time.Sleep(time.Millisecond)
		}
		l.Unreserve(4000)
		mustAppend(t, l, busy, end, 1, 3900)
	}
	if l.Stats().CarriedBytes == 0 {
		t.Fatal("nothing was carried")
	}
	if err := l.SetMarks([16]byte{1}, [16]byte{2}); err != nil {
		t.Fatal(err)
	}
	mustClose(t, l)
}

// openSample brings the files of a sample, or writes them first; write is nil if this program does not write them any more.
func openSample(t *testing.T, name string, write func(t *testing.T, fs vfs.FS)) *vfs.Mem {
	t.Helper()
	dir := filepath.Join("testdata", name)
	if *rewriteSamples && write != nil {
		mem := vfs.NewMem()
		write(t, mem)
		if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o755)); err != nil {
			t.Fatal(err)
		}
		names, _ := mem.List("wal")
		for _, n := range names {
			if !strings.HasSuffix(n, spareSuffix) {
				if err := os.WriteFile(filepath.Join(dir, n), mem.Bytes("wal/"+n), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	es, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	mem := vfs.NewMem()
	for _, e := range es {
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		mem.Put("wal/"+e.Name(), b)
	}
	return mem
}

// TestSampleReclaimed opens logs that have given segments back, and whose directories have marks.
func TestSampleReclaimed(t *testing.T) {
	for name, write := range map[string]func(t *testing.T, fs vfs.FS){"v1-reclaimed": nil, "v2-reclaimed": sampleReclaimed} {
		t.Run(name, func(t *testing.T) { openSampleReclaimed(t, openSample(t, name, write)) })
	}
}

func openSampleReclaimed(t *testing.T, mem *vfs.Mem) {
	o := testOptions(mem)
	o.ClusterID, o.BrokerID, o.MaxBytes = "sample", 7, 8*o.SegmentBytes
	for range 2 {
		l := mustOpen(t, o)
		rec := l.Partitions()
		if len(rec) != 2 || rec[0].Suspect || rec[1].Suspect || string(rec[1].Snapshot) != "carried along" {
			t.Fatalf("%+v", rec)
		}
		if last, next := l.Marks(); last != [16]byte{1} || next != [16]byte{2} || l.CutTail() {
			t.Fatalf("marks %x %x", last, next)
		}
		busy, slow := rec[0], rec[1]
		if busy.Start == 0 || busy.End-busy.Start < 10 || slow.Start != 0 || slow.End != 4 {
			t.Fatalf("%+v", rec)
		}
		p := l.part(slow.ID)
		p.mu.Lock()
		carried := slices.ContainsFunc(p.pieces, func(x piece) bool { return x.carried })
		p.mu.Unlock()
		if !carried || l.Stats().OldestGeneration == 1 {
			t.Fatalf("the sample lacks what it is there for: copies %v, oldest segment %d", carried, l.Stats().OldestGeneration)
		}
		for _, c := range []struct {
			r    Recovered
			size int
		}{{busy, 3900}, {slow, 300}} {
			var want []byte
			for i := c.r.Start; i < c.r.End; i++ {
				want = append(want, mkBatch(i, 1, c.size, 1000+i, byte(i))...)
			}
			if got, err := readAll(l, c.r.ID, c.r.Start, c.r.End, 1<<20); err != nil || !bytes.Equal(got, want) {
				t.Errorf("partition %d: %d bytes, want %d; %v", c.r.ID, len(got), len(want), err)
			}
		}
		mustClose(t, l)
	}
}

// TestSamples opens files of every format version that was ever released; v1 is of before there were marks.
func TestSamples(t *testing.T) {
	for name, write := range map[string]func(t *testing.T, fs vfs.FS){"v1": nil, "v2": sample} {
		t.Run(name, func(t *testing.T) {
			mem := openSample(t, name, write)
			if paged := hasPaged(t, mem); paged != (name == "v2") {
				t.Errorf("there are paged blocks in the sample: %v", paged)
			}
			openSampleOf(t, mem)
		})
	}
}

// hasPaged looks for a paged block in the segments as they lie there.
func hasPaged(t *testing.T, mem *vfs.Mem) (paged bool) {
	t.Helper()
	names, _ := mem.List("wal")
	for _, n := range names {
		b := mem.Bytes("wal/" + n)
		if !strings.HasSuffix(n, segmentSuffix) || len(b) < segmentHeaderSize {
			continue
		}
		at := place{generation: le.Uint64(b[28:])}
		copy(at.uuid[:], b[12:28])
		paged = paged || slices.Contains(pagedOf(b, at), true)
	}
	return paged
}

func openSampleOf(t *testing.T, mem *vfs.Mem) {
	o := testOptions(mem)
	o.ClusterID, o.BrokerID, o.MaxBytes = "sample", 7, 8*o.SegmentBytes
	for range 2 {
		l := mustOpen(t, o)
		rec := l.Partitions()
		if len(rec) != 2 {
			t.Fatalf("%+v", rec)
		}
		if last, next := l.Marks(); last != [16]byte{} || next != [16]byte{} || l.CutTail() {
			t.Fatalf("marks %x %x", last, next)
		}
		a, b := rec[0], rec[1]
		if a.TopicID != [16]byte{0xA} || a.Partition != 0 || a.Start != 100 || a.End != 140 || a.HighWatermark != 110 || a.Suspect ||
			string(a.Snapshot) != "snapshot at 112" || a.SnapshotOffset != 112 || !a.Lineage.Equal(lineage.Lineage{{Epoch: 2, Start: 100}, {Epoch: 4, Start: 112}}) {
			t.Errorf("%+v", a)
		}
		if b.TopicID != [16]byte{0xB} || b.Partition != 3 || b.Start != 3 || b.End != 19 || b.Suspect {
			t.Errorf("%+v", b)
		}
		var want []byte
		for i := range int64(20) {
			want = append(want, mkBatch(100+2*i, 2, 2000+int(i), 1100+2*i, byte(100+2*i))...)
		}
		if got, err := readAll(l, a.ID, 100, 140, 1<<20); err != nil || !bytes.Equal(got, want) {
			t.Errorf("partition a: %d bytes, want %d; %v", len(got), len(want), err)
		}
		want = nil
		for i := int64(3); i < 18; i++ {
			want = append(want, mkBatch(i, 1, 1000, 1000+i, byte(i))...)
		}
		want = append(want, mkBatch(18, 1, 500, 1018, 18)...)
		if got, err := readAll(l, b.ID, 3, 19, 1<<20); err != nil || !bytes.Equal(got, want) {
			t.Errorf("partition b: %d bytes, want %d; %v", len(got), len(want), err)
		}
		mustClose(t, l)
	}
}

// TestUnknownVersion refuses what a later program wrote, and says so.
func TestUnknownVersion(t *testing.T) {
	mem := vfs.NewMem()
	sample(t, mem)
	o := testOptions(mem)
	o.ClusterID, o.BrokerID, o.MaxBytes = "sample", 7, 8*o.SegmentBytes
	names, _ := mem.List("wal")
	i := slices.IndexFunc(names, func(n string) bool { return strings.HasSuffix(n, segmentSuffix) })
	name := "wal/" + names[i]
	b := mem.Bytes(name)
	b[8] = segmentVersion + 1
	mem.Put(name, b)
	if _, err := Open(o); !errors.Is(err, ErrVersion) {
		t.Fatalf("segment of version %d: %v", segmentVersion+1, err)
	}
}

// FuzzSegment opens a log whose newest segment is whatever comes. Nothing panics, and what is allocated is bounded
// by what is there. With fix set, checksums are made right first, so that the fuzzer gets behind them.
func FuzzSegment(f *testing.F) {
	fx := makeFixture(f, 6, true)
	name := fx.newest(f, fx.fs)
	image := fx.fs.Bytes(name)
	id, err := decodeIdentity(fx.fs.Bytes("wal/identity"))
	if err != nil {
		f.Fatal(err)
	}
	at := place{id.uuid, 1}
	for _, fix := range []bool{false, true} {
		f.Add(image[segmentHeaderSize:fx.ends[5]+4096], fix)
		f.Add(image[segmentHeaderSize:fx.ends[1]], fix)
		f.Add(image[segmentHeaderSize+100:], fix)
	}
	f.Fuzz(func(t *testing.T, b []byte, fix bool) {
		if len(b) > len(image) {
			return
		}
		seg := append(bytes.Clone(image[:segmentHeaderSize]), b...)
		seg = append(seg, make([]byte, max(0, len(image)-len(seg)))...)
		if fix {
			for pos := int64(segmentHeaderSize); pos+blockHeaderSize < int64(len(seg)); pos += pageSize {
				fixBlock(seg[pos:], at)
			}
		}
		fs := fx.fs.Clone()
		fs.Put(name, seg)
		o := fx.o
		o.FS = fs
		l, err := Open(o)
		if err != nil {
			return
		}
		for _, r := range l.Partitions() {
			if r.Start > r.End || r.Start < 0 {
				t.Fatalf("%+v", r)
			}
			for at, n := r.Start, 0; at < r.End && n < 20; n++ {
				run, err := l.Read(r.ID, at, 4096, r.End)
				if err != nil || run.Next <= at {
					break
				}
				at = run.Next
				run.Release()
			}
			l.Find(r.ID, 5, r.Start, r.End)
			l.BytesBetween(r.ID, r.Start, r.End)
		}
		l.Close()
	})
}

// FuzzScan feeds the reader of segments alone, which is faster than FuzzSegment. Whatever comes, what it
// returns lies in the segment, in order, and is what the bytes say.
func FuzzScan(f *testing.F) {
	fx := makeFixture(f, 6, true)
	image := fx.fs.Bytes(fx.newest(f, fx.fs))
	id, err := decodeIdentity(fx.fs.Bytes("wal/identity"))
	if err != nil {
		f.Fatal(err)
	}
	at := place{id.uuid, 1}
	for _, fix := range []bool{false, true} {
		f.Add(image[segmentHeaderSize:fx.ends[5]+4096], fix, false)
		f.Add(image[segmentHeaderSize:fx.ends[1]], fix, true)
		f.Add(image[segmentHeaderSize+100:fx.ends[3]], fix, false)
	}
	f.Fuzz(func(t *testing.T, b []byte, fix, newest bool) {
		if len(b) > 64<<10 {
			return
		}
		seg := append(make([]byte, segmentHeaderSize), b...)
		seg = append(seg, make([]byte, int(alignUp(int64(len(seg))))-len(seg)+segmentTailSize)...)
		if fix {
			for pos := int64(segmentHeaderSize); pos+blockHeaderSize < int64(len(seg)); pos += pageSize {
				fixBlock(seg[pos:], at)
			}
		}
		fs := vfs.NewMem()
		fs.Put("segment", seg)
		file, err := fs.Open("segment")
		if err != nil {
			t.Fatal(err)
		}
		l := &Log{id: id, log: slog.New(slog.DiscardHandler)}
		g := l.newSegment(1, file, int64(len(seg)))
		s, err := l.scanSegment(g, newest)
		if err != nil {
			t.Fatal(err)
		}
		if s.last < segmentHeaderSize || s.last > s.end || s.end > g.size-segmentTailSize || s.end%pageSize != 0 {
			t.Fatalf("last block at %d, end %d, of %d bytes", s.last, s.end, g.size)
		}
		after := int64(segmentHeaderSize)
		for _, b := range s.blocks {
			for _, r := range b.recs {
				if r.pos < after || r.pos+int64(r.length) > s.end {
					t.Fatalf("record at %d of %d bytes, after %d, end %d", r.pos, r.length, after, s.end)
				}
				after = r.pos + int64(r.length)
				if checksum(g.seed, seg[r.pos:after]) != r.crc {
					t.Fatalf("record at %d fails its checksum", r.pos)
				}
				if r.kind != kindData && r.kind != kindCarry && !bytes.Equal(r.payload, seg[r.pos:after]) {
					t.Fatalf("record at %d has another payload", r.pos)
				}
			}
		}
	})
}

// fixBlock makes the checksums of what may be a block right.
func fixBlock(b []byte, at place) {
	copy(b[8:24], at.uuid[:])
	le.PutUint64(b[24:], at.generation)
	h, err := decodeBlockHeader(b, at, int64(len(b)))
	if err != nil || h.headSize() > h.size() {
		return
	}
	pos := h.payloadsAt()
	for i := range int64(h.count) {
		d := b[blockHeaderSize+i*descriptorSize:]
		n := int64(le.Uint32(d[40:]))
		if pos+n > h.size() {
			break
		}
		le.PutUint32(d[44:], checksum(at.seed(), b[pos:pos+n]))
		pos += n
	}
	le.PutUint32(b[64:], headChecksum(b[:h.headSize()], at.seed()))
}

// FuzzDecoders feeds every small decoder.
func FuzzDecoders(f *testing.F) {
	at := place{[16]byte{1}, 5}
	m := partitionMap{topicID: [16]byte{1}, start: 1, end: 5, lineage: lineage.Lineage{{Epoch: 1, Start: 1}}, inline: []byte("x")}
	f.Add(m.append(nil))
	f.Add(identity{clusterID: "c", broker: 1}.encode())
	f.Add(encodeTail(at, tail{blocksEnd: 8192, footerAt: 8192, footerLen: 100}))
	foot := make([]byte, footerHeadSize+footerPieceSize+footerRunSize)
	e := footerPiece{partition: 1, base: 1, next: 2, runsAt: footerHeadSize + footerPieceSize, runs: 1}
	r := run{base: 1, next: 2, pos: 4096, length: 61}
	encodeRun(foot[footerHeadSize+footerPieceSize:], &r)
	e.crc = checksum(at.seed(), foot[footerHeadSize+footerPieceSize:])
	e.encode(foot[footerHeadSize:])
	encodeFooterHead(foot, at, 1)
	f.Add(foot)
	f.Fuzz(func(t *testing.T, b []byte) {
		if m, err := decodePartitionMap(b); err == nil {
			if again, err := decodePartitionMap(m.append(nil)); err != nil || again.end != m.end || !again.lineage.Equal(m.lineage) || !bytes.Equal(again.inline, m.inline) {
				t.Fatalf("%+v, again %+v, %v", m, again, err)
			}
		}
		if id, err := decodeIdentity(b); err == nil {
			if again, err := decodeIdentity(id.encode()); err != nil || again != id {
				t.Fatalf("%+v, again %+v, %v", id, again, err)
			}
		}
		decodeTail(b, at, int64(len(b)))
		if es, err := decodeFooterDirectory(b, at, int64(len(b))); err == nil {
			for i := range es {
				decodeRuns(b[es[i].runsAt:][:es[i].runs*footerRunSize], &es[i], at.seed(), 1<<30)
			}
		}
		decodeCheckpointEnd(b)
	})
}

// TestHostileLengths is what the fuzzer would need long to find: lengths that promise more than there is, behind
// checksums that are right.
func TestHostileLengths(t *testing.T) {
	f := makeFixture(t, 6, true)
	name := f.newest(t, f.fs)
	id, _ := decodeIdentity(f.fs.Bytes("wal/identity"))
	at := place{id.uuid, 1}
	for _, block := range []int64{f.ends[0], f.ends[3]} {
		for what, damage := range map[string]func(b []byte){
			"body 2^32-1":        func(b []byte) { le.PutUint32(b[56:], 1<<32-1) },
			"count 2^32-1":       func(b []byte) { le.PutUint32(b[60:], 1<<32-1) },
			"count too large":    func(b []byte) { le.PutUint32(b[60:], 500) },
			"record 2^32-1":      func(b []byte) { le.PutUint32(b[blockHeaderSize+40:], 1<<32-1) },
			"sequence jumps":     func(b []byte) { le.PutUint64(b[32:], 1<<60) },
			"sequence goes back": func(b []byte) { le.PutUint64(b[32:], 1) },
			"durable above seq":  func(b []byte) { le.PutUint64(b[40:], 1<<62) },
			"generation 0":       func(b []byte) { le.PutUint64(b[24:], 0) },
			"offsets backwards":  func(b []byte) { le.PutUint64(b[blockHeaderSize+24:], 0) },
			"base negative":      func(b []byte) { le.PutUint64(b[blockHeaderSize+16:], 1<<63) },
			"unknown kind":       func(b []byte) { b[blockHeaderSize] = 200 },
			"truncation below 0": func(b []byte) {
				b[blockHeaderSize] = byte(kindTruncate)
				le.PutUint64(b[blockHeaderSize+16:], 1<<63)
			},
		} {
			image := f.fs.Bytes(name)
			b := image[block:]
			damage(b)
			if h, err := decodeBlockHeader(b, at, int64(len(b))); err == nil {
				if h.headSize() <= int64(len(b)) {
					le.PutUint32(b[64:], headChecksum(b[:h.headSize()], at.seed()))
				}
			}
			fs := f.fs.Clone()
			fs.Put(name, image)
			// What is not suspect is whole, and nothing is served that was never written.
			l, got := f.open(t, fs, fmt.Sprintf("block at %d, %s", block, what))
			if l == nil {
				continue
			}
			for p, b := range got {
				if len(b) != len(f.data[p]) {
					t.Errorf("block at %d, %s: partition %d has %d of %d bytes, and is not suspect", block, what, p, len(b), len(f.data[p]))
				}
			}
			if l.Stats().CorruptReads == 0 {
				t.Errorf("block at %d, %s: not reported", block, what)
			}
			for _, r := range l.Partitions() {
				// What was written before the damage is there, and nothing that was not written.
				var before []byte
				if i := slices.Index(f.ends, block); i >= 0 {
					before = f.datas[i][r.ID]
				}
				got, err := readAll(l, r.ID, r.Start, r.End, 1<<20)
				if err != nil || r.Start != 0 || !bytes.HasPrefix(got, before) || !bytes.HasPrefix(f.data[r.ID], got) {
					t.Errorf("block at %d, %s: partition %d from %d: %d bytes, %d were written before; %v", block, what, r.ID, r.Start, len(got), len(before), err)
				}
			}
			l.Close()
		}
	}
}
