package objstore

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/bits"
	"testing"
	"testing/synctest"
	"time"
)

func faulty(t *testing.T) (*Faulty, []byte) {
	t.Helper()
	f := NewFaulty(NewMem(), 1)
	data := bytes.Repeat([]byte("0123456789abcdef"), 100)
	if err := putBytes(f, "o", data); err != nil {
		t.Fatal(err)
	}
	return f, data
}

func TestFaultySequence(t *testing.T) {
	f, _ := faulty(t)
	ctx := context.Background()
	f.Inject(Fault{Op: OpHead, Nth: 2, Kind: Throttle})
	f.Inject(Fault{Op: OpHead, Nth: 4, Kind: Deny})
	boom := errors.New("boom")
	remove := f.Inject(Fault{Op: OpHead, Key: "o", Kind: FailBefore, Err: boom, Count: 1})
	var got []Class
	for range 5 {
		_, err := f.Head(ctx, "o")
		got = append(got, ClassOf(err))
	}
	// The first call takes the third fault; the counted ones keep their count.
	for i, want := range []Class{ClassOther, ClassThrottled, ClassOK, ClassDenied, ClassOK} {
		if got[i] != want {
			t.Errorf("call %d: %s, want %s", i+1, got[i], want)
		}
	}
	remove()
	if f.Calls(OpHead) != 5 || f.Fired() != 3 {
		t.Errorf("%d calls, %d fired", f.Calls(OpHead), f.Fired())
	}
	f.SetOutage(true)
	if _, err := f.Head(ctx, "o"); !errors.Is(err, ErrUnavailable) {
		t.Error(err)
	}
	f.SetOutage(false)
	if _, err := f.Head(ctx, "o"); err != nil {
		t.Error(err)
	}
}

// A request that timed out may have been carried out.
func TestFaultyAmbiguous(t *testing.T) {
	f, _ := faulty(t)
	f.Inject(Fault{Op: OpPut, Kind: FailAfter, Count: 1})
	if err := putBytes(f, "new", []byte("x")); !errors.Is(err, ErrUnavailable) {
		t.Fatal(err)
	}
	if n, err := f.Head(context.Background(), "new"); err != nil || n != 1 {
		t.Fatal(n, err)
	}
	if err := putBytes(f, "new", []byte("x")); err != nil {
		t.Fatalf("the repeated attempt: %v", err)
	}
}

func TestFaultyBodies(t *testing.T) {
	f, data := faulty(t)
	ctx := context.Background()
	read := func(k Kind) ([]byte, error) {
		defer f.Clear()
		f.Inject(Fault{Op: OpGet, Kind: k})
		r, err := f.GetRange(ctx, "o", 100, 200)
		if err != nil {
			return nil, err
		}
		defer r.Close()
		return io.ReadAll(r)
	}
	if got, err := read(Truncate); !errors.Is(err, ErrTruncated) || len(got) != 100 {
		t.Errorf("truncate: %d bytes, %v", len(got), err)
	}
	if got, err := read(ShortBody); err != nil || len(got) != 100 {
		t.Errorf("short body: %d bytes, %v", len(got), err)
	}
	if got, err := read(WrongRange); err != nil || len(got) != 200 || !bytes.Equal(got, data[99:299]) {
		t.Errorf("wrong range: %d bytes, %v", len(got), err)
	}
	got, err := read(Flip)
	if err != nil || len(got) != 200 {
		t.Fatal(err)
	}
	flipped := 0
	for i := range got {
		flipped += bits.OnesCount8(got[i] ^ data[100+i])
	}
	if flipped != 1 {
		t.Errorf("%d bits flipped", flipped)
	}
	f.Inject(Fault{Op: OpGet, Kind: ShortBody})
	if _, err := ReadRange(ctx, f, "o", 0, 10); !errors.Is(err, ErrTruncated) {
		t.Errorf("ReadRange of a short body: %v", err)
	}
}

func TestFaultyTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, _ := faulty(t)
		f.Inject(Fault{Op: OpHead, Nth: 1, Kind: Delay, Delay: time.Hour})
		f.Inject(Fault{Op: OpHead, Nth: 2, Kind: Hang})
		f.Inject(Fault{Op: OpPut, Kind: HangAfter})
		begin := time.Now()
		if _, err := f.Head(context.Background(), "o"); err != nil || time.Since(begin) != time.Hour {
			t.Error(err, time.Since(begin))
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if _, err := f.Head(ctx, "o"); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		if err := f.Put(ctx, "late", bytes.NewReader(nil), 0, 0); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
	})
}

func TestFaultyLists(t *testing.T) {
	f, _ := faulty(t)
	ctx := context.Background()
	list := func() int {
		infos, _, err := f.List(ctx, "", "", 0)
		if err != nil {
			t.Fatal(err)
		}
		return len(infos)
	}
	list()
	for _, k := range []string{"a", "b", "c"} {
		if err := putBytes(f, k, nil); err != nil {
			t.Fatal(err)
		}
	}
	for kind, want := range map[Kind]int{StaleList: 1, EmptyList: 0, DropFromList: 2} {
		remove := f.Inject(Fault{Op: OpList, Kind: kind})
		if got := list(); got != want {
			t.Errorf("%v: %d keys, want %d", kind, got, want)
		}
		remove()
	}
	if got := list(); got != 4 {
		t.Errorf("%d keys", got)
	}
}

// The same seed spoils the same calls.
func TestFaultySeed(t *testing.T) {
	run := func(seed uint64) (out string) {
		f := NewFaulty(NewMem(), seed)
		f.Inject(Fault{Prob: 0.3, Kind: Throttle})
		for range 64 {
			if err := putBytes(f, "k", nil); err != nil {
				out += "x"
			} else {
				out += "."
			}
		}
		return out
	}
	if a, b, c := run(1), run(1), run(2); a != b || a == c {
		t.Errorf("\n%s\n%s\n%s", a, b, c)
	}
}

func TestObserve(t *testing.T) {
	f, _ := faulty(t)
	var events []Event
	begun := 0
	b := Observe(f, Events{Begin: func(Op) { begun++ }, End: func(e Event) { events = append(events, e) }})
	ctx := context.Background()
	putBytes(b, "x", []byte("abc"))
	r, err := b.GetRange(ctx, "x", 0, 3)
	if err != nil {
		t.Fatal(err)
	}
	io.ReadFull(r, make([]byte, 2))
	r.Close()
	r.Close()
	b.GetRange(ctx, "no", 0, 3)
	b.Head(ctx, "x")
	b.List(ctx, "", "", 0)
	b.Delete(ctx, []string{"x", "y"})
	want := []Event{
		{Op: OpPut, Key: "x", Objects: 1, Bytes: 3}, {Op: OpGet, Key: "x", Objects: 1, Bytes: 2}, {Op: OpGet, Key: "no", Objects: 1},
		{Op: OpHead, Key: "x", Objects: 1}, {Op: OpList, Objects: 2}, {Op: OpDelete, Key: "x", Objects: 2},
	}
	if len(events) != len(want) || begun != len(want) {
		t.Fatalf("%d begun, %+v", begun, events)
	}
	for i, e := range events {
		if (e.Err != nil) != (i == 2) {
			t.Errorf("%d: %v", i, e.Err)
		}
		e.Duration, e.FirstByte, e.Err = 0, 0, nil
		if e != want[i] {
			t.Errorf("%d: %+v, want %+v", i, e, want[i])
		}
	}
}
