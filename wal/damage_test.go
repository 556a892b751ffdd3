package wal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/varve/varve/wal/lineage"
	"github.com/varve/varve/wal/vfs"
)

// fixture is a small log with all kinds of records, and what it should hold. Each append is a block of its own.
type fixture struct {
	fs    *vfs.Mem
	o     Options
	ids   []PartitionID
	data  map[PartitionID][]byte
	end   map[PartitionID]int64
	lin   map[PartitionID]lineage.Lineage
	snap  map[PartitionID]string
	ends  []int64 // where each block of the active segment ends
	datas []map[PartitionID][]byte
}

func makeFixture(t testing.TB, appends int, closed bool) *fixture {
	o := testOptions(vfs.NewMem())
	o.idle = time.Hour // no claim but that of Close
	o.MaxBytes = 16 * o.SegmentBytes
	f := &fixture{fs: o.FS.(*vfs.Mem), o: o, data: map[PartitionID][]byte{}, end: map[PartitionID]int64{}, lin: map[PartitionID]lineage.Lineage{}, snap: map[PartitionID]string{}}
	l := mustOpen(t, o)
	for i := range int32(3) {
		lin := lineage.Lineage{{Epoch: i, Start: 0}}
		p := l.Create([16]byte{1, byte(i)}, i, 0, lin, []byte(fmt.Sprintf("snapshot of %d", i)), nil)
		f.ids, f.lin[p], f.snap[p] = append(f.ids, p), lin, fmt.Sprintf("snapshot of %d", i)
	}
	for i := range appends {
		p := f.ids[i%3]
		f.data[p] = append(f.data[p], mustAppend(t, l, p, f.end[p], 2, 200+i*13)...)
		f.end[p] += 2
		f.ends = append(f.ends, l.w.active.end)
		f.datas = append(f.datas, map[PartitionID][]byte{f.ids[0]: f.data[f.ids[0]], f.ids[1]: f.data[f.ids[1]], f.ids[2]: f.data[f.ids[2]]})
	}
	if closed {
		mustClose(t, l)
		f.fs = f.fs.Clone()
		return f
	}
	c := f.fs.Clone()
	l.Close()
	f.fs = c
	return f
}

func (f *fixture) newest(t testing.TB, fs *vfs.Mem) string {
	t.Helper()
	names, _ := fs.List("wal")
	newest := ""
	for _, n := range names {
		if strings.HasSuffix(n, segmentSuffix) {
			newest = n
		}
	}
	return "wal/" + newest
}

// open opens a damaged copy. Whatever the damage, nothing panics, no wrong byte is served, and a partition that is
// not suspect has lost nothing; it returns what there is of each partition.
func (f *fixture) open(t *testing.T, fs *vfs.Mem, what string) (l *Log, got map[PartitionID][]byte) {
	t.Helper()
	o := f.o
	o.FS = fs
	l, err := Open(o)
	if err != nil {
		if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrVersion) && !errors.Is(err, ErrForeign) {
			t.Fatalf("%s: open: %v", what, err)
		}
		return nil, nil
	}
	got = map[PartitionID][]byte{}
	for _, r := range l.Partitions() {
		b, err := readAll(l, r.ID, r.Start, r.End, 1<<20)
		if err != nil && !errors.Is(err, ErrCorrupt) {
			t.Fatalf("%s: partition %d: %v", what, r.ID, err)
		}
		if err != nil {
			b = nil
			for at := r.Start; at < r.End; at++ {
				run, err := l.Read(r.ID, at, 1, r.End)
				if err == nil && !bytes.Contains(f.data[r.ID], bytes.Join(run.Chunks, nil)) {
					t.Fatalf("%s: partition %d: wrong bytes at %d", what, r.ID, at)
				}
				run.Release()
			}
		} else if !bytes.HasPrefix(f.data[r.ID], b) {
			t.Fatalf("%s: partition %d holds %d bytes that were never written there", what, r.ID, len(b))
		}
		if err != nil {
			b = f.data[r.ID] // all of it is accounted for: an error is not a loss
		}
		if r.Snapshot != nil && string(r.Snapshot) != f.snap[r.ID] {
			t.Fatalf("%s: partition %d: wrong snapshot %q", what, r.ID, r.Snapshot)
		}
		if !r.Suspect && !r.Lineage.Equal(f.lin[r.ID]) {
			t.Fatalf("%s: partition %d: lineage %v", what, r.ID, r.Lineage)
		}
		if r.Suspect {
			continue
		}
		got[r.ID] = b
	}
	return l, got
}

// TestTornTail cuts the newest segment at every byte of its last three blocks, and tears sectors out of its last
// block: what is recovered is exactly the blocks that are whole.
func TestTornTail(t *testing.T) {
	f := makeFixture(t, 9, false)
	name := f.newest(t, f.fs)
	image := f.fs.Bytes(name)
	n := len(f.ends)
	check := func(what string, image []byte, blocks int) {
		t.Helper()
		fs := f.fs.Clone()
		fs.Put(name, image)
		l, got := f.open(t, fs, what)
		if l == nil {
			t.Fatalf("%s: not opened", what)
		}
		for _, p := range f.ids {
			if _, ok := got[p]; !ok {
				t.Fatalf("%s: partition %d is suspect or gone", what, p)
			}
			if !bytes.Equal(got[p], f.datas[blocks-1][p]) {
				t.Fatalf("%s: partition %d has %d bytes, want %d", what, p, len(got[p]), len(f.datas[blocks-1][p]))
			}
		}
		// And it can be written on, and read again.
		p := f.ids[0]
		_, end := l.Bounds(p)
		more := mustAppend(t, l, p, end, 1, 900)
		l.Close()
		o := f.o
		o.FS = fs
		l = mustOpen(t, o)
		b, err := readAll(l, p, 0, end+1, 1<<20)
		if err != nil || !bytes.Equal(b, append(slices.Clone(got[p]), more...)) {
			t.Fatalf("%s: after going on: %v", what, err)
		}
		l.Close()
	}
	step := 7
	if *long {
		step = 1
	}
	last := f.ends[n-1] - 4096
	for _, stale := range []byte{0, 0xEE} {
		for cut := f.ends[n-4]; cut <= last+4096; cut++ {
			inBlock := cut % 4096
			if inBlock > 600 && cut%int64(step*16) != 0 || inBlock > 130 && cut%int64(step) != 0 {
				continue // descriptors and header are at the front; payloads look all alike
			}
			b := slices.Clone(image)
			for i := cut; i < f.ends[n-1]; i++ {
				b[i] = stale
			}
			blocks := n
			for blocks > 0 && !bytes.Equal(b[f.ends[blocks-1]-4096:f.ends[blocks-1]], image[f.ends[blocks-1]-4096:f.ends[blocks-1]]) && !wholeBlock(b[f.ends[blocks-1]-4096:f.ends[blocks-1]], f, t) {
				blocks--
			}
			check(fmt.Sprintf("cut at %d, then %#x", cut, stale), b, blocks)
		}
	}
	for sector := last; sector < last+1024; sector += 512 {
		b := slices.Clone(image)
		clear(b[sector : sector+512])
		if bytes.Equal(b, image) {
			continue
		}
		check(fmt.Sprintf("sector at %d lost", sector), b, n-1)
	}
}

// wholeBlock says that only padding was damaged.
func wholeBlock(b []byte, f *fixture, t *testing.T) bool {
	id, err := decodeIdentity(f.fs.Bytes("wal/identity"))
	if err != nil {
		t.Fatal(err)
	}
	at := place{id.uuid, 1}
	_, err = decodeBlock(b, at, at.seed(), nil)
	return err == nil
}

// TestBitFlips flips a bit in every byte of every file of a closed log, one at a time (of a log of several segments, in
// its short form, in every byte of headers and descriptors and in some of the payloads). Close has claimed the last
// block, so whatever is flipped, a partition that is not suspect has everything.
func TestBitFlips(t *testing.T) {
	for _, tc := range []struct {
		appends, step int
		what          string
	}{{8, 1, "one segment"}, {45, 41, "several segments"}} {
		f := makeFixture(t, tc.appends, true)
		names, _ := f.fs.List("wal")
		step := tc.step
		if *long {
			step = 1
		}
		flips, refused, suspect := 0, 0, 0
		for _, name := range names {
			if strings.HasSuffix(name, spareSuffix) {
				continue
			}
			image := f.fs.Bytes("wal/" + name)
			zeros := 0
			for i := range image {
				// All of what is not zero or near it; of the zeros behind, only some.
				if image[i] == 0 {
					zeros++
				} else {
					zeros = 0
				}
				if zeros > 64 && i%4096 > 32 || i%4096 > 128 && i%step != 0 {
					continue
				}
				fs := f.fs.Clone()
				b := slices.Clone(image)
				b[i] ^= 1 << (i % 8)
				fs.Put("wal/"+name, b)
				what := fmt.Sprintf("%s: %s, bit %d of byte %d", tc.what, name, i%8, i)
				l, got := f.open(t, fs, what)
				flips++
				if l == nil {
					refused++
					continue
				}
				if len(got) < len(l.Partitions()) {
					suspect++
				}
				if len(l.Partitions()) != len(f.ids) {
					// A partition whose map record is gone cannot be told from one that never was; the log says so.
					if l.Stats().CorruptReads == 0 {
						t.Fatalf("%s: %d partitions and no word about it", what, len(l.Partitions()))
					}
				}
				for p, b := range got {
					if len(b) != len(f.data[p]) {
						t.Fatalf("%s: partition %d has %d of %d bytes, and is not suspect", what, p, len(b), len(f.data[p]))
					}
				}
				l.Close()
			}
		}
		t.Logf("%s: %d flips, %d logs refused, %d with suspect partitions", tc.what, flips, refused, suspect)
	}
}

// TestFooterFlips flips a bit in every byte of every footer (in its short form in every fifth). A footer is derived from the blocks: none of this may
// cost anything.
func TestFooterFlips(t *testing.T) {
	f := makeFixture(t, 45, true)
	id, err := decodeIdentity(f.fs.Bytes("wal/identity"))
	if err != nil {
		t.Fatal(err)
	}
	names, _ := f.fs.List("wal")
	flips := 0
	for _, name := range names {
		generation, ok := parseName(name, segmentSuffix)
		if !ok {
			continue
		}
		image := f.fs.Bytes("wal/" + name)
		end := int64(len(image)) - segmentTailSize
		tail, err := decodeTail(image[end:], place{id.uuid, generation}, int64(len(image)))
		if err != nil {
			continue // the active segment
		}
		at := func(i int64) {
			b := slices.Clone(image)
			b[i] ^= 1 << (i % 8)
			fs := f.fs.Clone()
			fs.Put("wal/"+name, b)
			o := f.o
			o.FS = fs
			l := mustOpen(t, o)
			for _, p := range f.ids {
				start, end := l.Bounds(p)
				if got, err := readAll(l, p, start, end, 1000); err != nil || !bytes.Equal(got, f.data[p]) {
					t.Fatalf("%s, byte %d: partition %d: %d bytes, want %d; %v", name, i, p, len(got), len(f.data[p]), err)
				}
				if _, found, err := l.Find(p, 1000+end-2, start, end); err != nil || !found {
					t.Fatalf("%s, byte %d: partition %d: last record not found by time: %v", name, i, p, err)
				}
			}
			mustClose(t, l)
			flips++
		}
		step := int64(5)
		if *long {
			step = 1
		}
		for i := tail.footerAt + int64(flips)%step; i < tail.footerAt+tail.footerLen; i += step {
			at(i)
		}
		for i := end; i < end+80; i += step {
			at(i)
		}
	}
	if flips < 200 {
		t.Errorf("only %d flips", flips)
	}
}

// TestRunsFromBlocks puts the runs of every piece together from the blocks, and compares them with those in the
// footer, in a log with truncations and in one with copies.
func TestRunsFromBlocks(t *testing.T) {
	data, copies := 0, 0
	compare := func(what string, l *Log) {
		t.Helper()
		newest := l.Stats().NewestGenration
		for _, r := range l.Partitions() {
			p := l.part(r.ID)
			p.mu.Lock()
			pieces := slices.DeleteFunc(slices.Clone(p.pieces), func(x piece) bool { return x.foot.runs == 0 || x.seg.at.generation >= newest })
			for i := range pieces {
				pieces[i].seg.retain()
			}
			p.mu.Unlock()
			for i := range pieces {
				x := &pieces[i]
				want, err := x.seg.loadRuns(&x.foot)
				if err != nil {
					t.Fatal(err)
				}
				s, err := l.scanSegment(x.seg, false)
				if err != nil {
					t.Fatal(err)
				}
				x.seg.release() // held longer, it would keep the log from going on
				got := s.runsOf(&x.foot)
				clip := func(runs []run) (out []run) {
					for _, r := range runs {
						if r.base, r.next = max(r.base, x.foot.base), min(r.next, x.foot.next); r.base < r.next {
							out = append(out, r)
						}
					}
					return out
				}
				if !slices.Equal(clip(got), clip(want)) {
					t.Fatalf("%s, partition %d, copy %v, [%d, %d):\ngot  %v\nwant %v", what, p.id, x.carried, x.foot.base, x.foot.next, clip(got), clip(want))
				}
				if x.carried {
					copies++
				} else {
					data++
				}
			}
		}
	}
	o := testOptions(openSample(t, "v1-reclaimed", nil))
	o.ClusterID, o.BrokerID, o.MaxBytes = "sample", 7, 8*o.SegmentBytes
	l := mustOpen(t, o)
	compare("sample", l)
	mustClose(t, l)
	fs := vfs.NewMem()
	s := newScript(4)
	for life := range 6 {
		l := mustOpen(t, crashOptions(fs))
		s.l, s.failed = l, false
		compare(fmt.Sprintf("life %d", life), l)
		for id, below := range s.below {
			l.SetReclaimable(id, below)
		}
		s.run(200)
		mustClose(t, l)
		fs = fs.Clone()
	}
	t.Logf("%d pieces of data, %d of copies", data, copies)
	if data < 20 || copies == 0 {
		t.Errorf("%d pieces of data, %d of copies: the script does not reach what it is there for", data, copies)
	}
}

// TestStaleBlocks puts blocks that were valid once, in an earlier life of the file or further up, at every place
// behind the end: none of them is taken for new.
func TestStaleBlocks(t *testing.T) {
	f := makeFixture(t, 30, false)
	name := f.newest(t, f.fs)
	image := f.fs.Bytes(name)
	names, _ := f.fs.List("wal")
	end := f.ends[len(f.ends)-1]
	var stale [][]byte
	for _, n := range names {
		if strings.HasSuffix(n, segmentSuffix) {
			b := f.fs.Bytes("wal/" + n)
			for at := int64(segmentHeaderSize); at < int64(len(b)); at += 4096 {
				if bytes.Equal(b[at:at+4], magicBlock[:]) {
					stale = append(stale, b[at:at+4096])
				}
			}
		}
	}
	if len(stale) < 20 {
		t.Fatalf("only %d old blocks", len(stale))
	}
	for at := end; at+4096 <= int64(len(image)); at += 4096 {
		for i, s := range stale {
			if !*long && (i+int(at/4096))%5 != 0 {
				continue
			}
			fs := f.fs.Clone()
			b := slices.Clone(image)
			copy(b[at:], s)
			fs.Put(name, b)
			what := fmt.Sprintf("old block %d at %d", i, at)
			l, got := f.open(t, fs, what)
			if l == nil {
				t.Fatalf("%s: not opened", what)
			}
			for _, p := range f.ids {
				if !bytes.Equal(got[p], f.data[p]) {
					t.Fatalf("%s: partition %d: %d bytes, want %d", what, p, len(got[p]), len(f.data[p]))
				}
			}
			l.Close()
		}
	}
}

// TestCheckpointOfAFullSegment damages the checkpoint with which a segment begins when the segment has no room for
// another: the log is opened all the same, and goes on in a new segment.
func TestCheckpointOfAFullSegment(t *testing.T) {
	o := testOptions(vfs.NewMem())
	o.idle = time.Hour
	l := mustOpen(t, o)
	p := l.Create([16]byte{1}, 0, 0, nil, nil, nil)
	var want []byte
	var end int64
	for l.w.active.at.generation < 3 || l.w.active.room(0, 0) >= pageSize {
		want = append(want, mustAppend(t, l, p, end, 1, 1000)...)
		end++
	}
	fs := o.FS.(*vfs.Mem).Clone()
	l.Close()
	name := "wal/" + segmentName(3)
	image := fs.Bytes(name)
	image[segmentHeaderSize] ^= 1
	fs.Put(name, image)
	o.FS = fs
	for range 2 {
		l = mustOpen(t, o)
		r := l.Partitions()[0]
		if r.Suspect || r.End != end {
			t.Fatalf("%+v, want the end at %d", r, end)
		}
		if got, err := readAll(l, p, 0, end, 1<<20); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%d bytes, want %d; %v", len(got), len(want), err)
		}
		want = append(want, mustAppend(t, l, p, end, 1, 1000)...)
		end++
		mustClose(t, l)
	}
}

// TestSuspect follows a partition through corruption: suspect, served up to the damage, and trusted again once a
// record says that the log ended there.
func TestSuspect(t *testing.T) {
	f := makeFixture(t, 9, true)
	name := f.newest(t, f.fs)
	image := f.fs.Bytes(name)
	// The block of the fifth append, of partition index 1, whose offsets [2, 4) it holds.
	image[f.ends[3]+200] ^= 1
	f.fs.Put(name, image)
	o := f.o
	o.FS = f.fs
	for range 2 {
		l := mustOpen(t, o)
		for i, r := range l.Partitions() {
			// Those that were appended to after the damage have proved that they lack nothing.
			want := Recovered{End: 6}
			if i == 1 {
				want = Recovered{End: 2, Suspect: true}
			}
			if r.End != want.End || r.Suspect != want.Suspect {
				t.Fatalf("partition %d: %+v", i, r)
			}
		}
		if _, err := l.Read(f.ids[1], 3, 1, 10); !errors.Is(err, ErrOutOfRange) {
			t.Fatalf("read behind the damage: %v", err)
		}
		mustClose(t, l)
	}
	l := mustOpen(t, o)
	if err := wait(func(done func(error)) { l.Epoch(f.ids[1], 7, 2, done) }); err != nil {
		t.Fatal(err)
	}
	b := mustAppend(t, l, f.ids[1], 2, 1, 300)
	mustClose(t, l)
	l = mustOpen(t, o)
	r := l.Partitions()[1]
	got, err := readAll(l, f.ids[1], 0, 3, 1<<20)
	if r.Suspect || r.End != 3 || err != nil || !bytes.HasSuffix(got, b) {
		t.Fatalf("after the decision to go on: %+v, %v", r, err)
	}
	mustClose(t, l)
}

// TestSkip damages a partition in the middle: what is above the damage can be kept, if what is below is known to be
// elsewhere.
func TestSkip(t *testing.T) {
	f := makeFixture(t, 9, true)
	name := f.newest(t, f.fs)
	image := f.fs.Bytes(name)
	// The block of the fifth append, of partition index 1, whose offsets [2, 4) it holds.
	image[f.ends[3]+200] ^= 1
	f.fs.Put(name, image)
	o := f.o
	o.FS = f.fs
	p := f.ids[1]
	want := f.data[p][len(f.data[p])-len(f.datas[7][p])+len(f.datas[4][p]):]
	l := mustOpen(t, o)
	if r := l.Partitions()[1]; !r.Suspect || r.End != 2 || r.ClaimedEnd != 6 {
		t.Fatalf("%+v", r)
	}
	for _, to := range []int64{1, 2, 3, 7} {
		if r, ok := l.CanSkip(p, to); ok {
			t.Fatalf("could skip to %d: %+v", to, r)
		}
		if r, ok := l.Skip(p, to); ok {
			t.Fatalf("skipped to %d: %+v", to, r)
		}
	}
	if r, ok := l.Skip(99, 4); ok {
		t.Fatalf("skipped in a partition that is not there: %+v", r)
	}
	can, ok := l.CanSkip(p, 4)
	if !ok || can.Start != 4 || can.End != 6 || can.Suspect {
		t.Fatalf("%+v, %v", can, ok)
	}
	if start, end := l.Bounds(p); start != 0 || end != 2 {
		t.Fatalf("the look has changed the log: [%d, %d)", start, end)
	}
	mustClose(t, l)
	l = mustOpen(t, o)
	if r := l.Partitions()[1]; !r.Suspect || r.Start != 0 || r.End != 2 || r.ClaimedEnd != 6 {
		t.Fatalf("opened again after the look: %+v", r)
	}
	r, ok := l.Skip(p, 4)
	if !ok || !reflect.DeepEqual(r, can) {
		t.Fatalf("%+v, %v, want %+v", r, ok, can)
	}
	for range 2 {
		got, err := readAll(l, p, 4, 6, 1<<20)
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%d bytes, want %d; %v", len(got), len(want), err)
		}
		if _, err := l.Read(p, 3, 1, 6); !errors.Is(err, ErrOutOfRange) {
			t.Fatalf("read of what is damaged: %v", err)
		}
		mustClose(t, l)
		l = mustOpen(t, o)
		if r := l.Partitions()[1]; r.Suspect || r.Start != 4 || r.End != 6 {
			t.Fatalf("opened again: %+v", r)
		}
	}
	mustClose(t, l)
}

// TestLostEpoch loses the block in which an epoch began and nothing else of the partition: what is written in it says
// that there was one.
func TestLostEpoch(t *testing.T) {
	o := testOptions(vfs.NewMem())
	o.idle = time.Hour
	l := mustOpen(t, o)
	p := l.Create([16]byte{1}, 0, 0, lineage.Lineage{{Epoch: 1, Start: 0}}, nil, nil)
	put := func(epoch int32, at int64) {
		t.Helper()
		b := mkBatch(at, 1, 100, at, byte(at))
		if err := wait(func(done func(error)) {
			if err := l.Reserve(context.Background(), ClassClient, int64(len(b))); err != nil {
				done(err)
				return
			}
			l.Append(&Append{Partition: p, LeaderEpoch: epoch, BaseOffset: at, LastOffset: at, Run: b, Done: done})
		}); err != nil {
			t.Fatal(err)
		}
	}
	put(1, 0)
	damage := l.w.active.end
	if err := wait(func(done func(error)) { l.Epoch(p, 3, 1, done) }); err != nil {
		t.Fatal(err)
	}
	put(3, 1)
	put(3, 2)
	mustClose(t, l)
	fs := o.FS.(*vfs.Mem)
	image := fs.Bytes("wal/" + segmentName(1))
	image[damage+10] ^= 1
	fs.Put("wal/"+segmentName(1), image)
	l = mustOpen(t, o)
	r := l.Partitions()[0]
	if want := (lineage.Lineage{{Epoch: 1, Start: 0}, {Epoch: 3, Start: 1}}); r.Suspect || r.End != 3 || !r.Lineage.Equal(want) {
		t.Fatalf("%+v, want lineage %v", r, want)
	}
	mustClose(t, l)
}

// TestLastBlockClaimed is why an idle log writes an empty block: without the claim, a flipped last block looks torn.
func TestLastBlockClaimed(t *testing.T) {
	for _, closed := range []bool{false, true} {
		f := makeFixture(t, 6, closed)
		name := f.newest(t, f.fs)
		image := f.fs.Bytes(name)
		image[f.ends[5]-4096+150] ^= 4
		f.fs.Put(name, image)
		o := f.o
		o.FS = f.fs
		l := mustOpen(t, o)
		suspects := 0
		for _, r := range l.Partitions() {
			if r.Suspect {
				suspects++
			}
		}
		if closed != (suspects > 0) || closed == l.CutTail() {
			t.Errorf("claimed %v: %d suspect, cut %v", closed, suspects, l.CutTail())
		}
		l.Close()
	}
}

// TestMissingFiles takes segments away, or cuts them short.
func TestMissingFiles(t *testing.T) {
	f := makeFixture(t, 60, true)
	names, _ := f.fs.List("wal")
	for _, name := range names {
		if !strings.HasSuffix(name, segmentSuffix) {
			continue
		}
		for _, size := range []int{-1, 0, 100, 5000, 20000, 60000} {
			fs := f.fs.Clone()
			what := fmt.Sprintf("%s cut to %d", name, size)
			if size < 0 {
				fs.Remove("wal/" + name)
			} else {
				fs.Put("wal/"+name, fs.Bytes("wal/" + name)[:size])
			}
			l, got := f.open(t, fs, what)
			if l == nil {
				continue
			}
			newest := "wal/"+name == f.newest(t, f.fs)
			for p, b := range got {
				if len(b) != len(f.data[p]) && !newest {
					t.Errorf("%s: partition %d has %d of %d bytes, and is not suspect", what, p, len(b), len(f.data[p]))
				}
			}
			l.Close()
		}
	}
}
