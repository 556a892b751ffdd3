package broker

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/varve/varve/wal"
	"github.com/varve/varve/wal/batch"
	"github.com/varve/varve/wal/crc32c"
	"github.com/varve/varve/wal/vfs"
)

// What a leader sent is put together by leader epoch, offset and size, with the checksums of the pieces; nothing of it
// is changed or lost, and a batch that is damaged makes all of it of no use.
func TestPieces(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		var run []byte
		epoch, offset := int32(rnd.IntN(3)), int64(rnd.IntN(100))
		epochs := 1
		for i := range 1 + rnd.IntN(8) {
			if i > 0 && rnd.IntN(3) == 0 {
				epoch++
				epochs++
			}
			bb := batch.NewBuilder()
			for range 1 + rnd.IntN(3) {
				bb.Add(int64(rnd.IntN(1000)), nil, make([]byte, rnd.IntN(300<<10)))
			}
			b, err := bb.Build()
			if err != nil {
				t.Fatal(err)
			}
			batch.SetBaseOffset(b, offset)
			batch.SetLeaderEpoch(b, epoch)
			h, _ := batch.ParseHeader(b)
			offset = h.NextOffset()
			run = append(run, b...)
		}
		pieces, err := piecesOf(run)
		if err != nil {
			t.Fatal(err)
		}
		var got []byte
		next := pieces[0].base
		for i, p := range pieces {
			got = append(got, p.bytes...)
			if p.sum != crc32c.Checksum(p.bytes) || p.base != next || cap(p.bytes) != len(p.bytes) {
				t.Fatalf("piece %d of %d: %d to %d after %d, sum %x of bytes of %x", i, len(pieces), p.base, p.next, next, p.sum, crc32c.Checksum(p.bytes))
			}
			maxTS, batches := int64(-1), 0
			err := batch.Walk(p.bytes, func(h batch.Header, _ []byte) error {
				if h.LeaderEpoch != p.epoch {
					t.Fatalf("a batch of epoch %d in a piece of epoch %d", h.LeaderEpoch, p.epoch)
				}
				batches++
				next, maxTS = h.NextOffset(), max(maxTS, h.MaxTimestamp)
				return nil
			})
			if err != nil || next != p.next || maxTS != p.maxTS || batches > 1 && len(p.bytes) > maxPiece {
				t.Fatalf("piece %d: %d batches of %d bytes up to %d, %d; timestamp %d, %d; %v", i, batches, len(p.bytes), next, p.next, maxTS, p.maxTS, err)
			}
		}
		if !bytes.Equal(got, run) || len(pieces) < epochs {
			t.Fatalf("%d bytes of %d in %d pieces of %d epochs", len(got), len(run), len(pieces), epochs)
		}
		run[len(run)-1-rnd.IntN(len(pieces[len(pieces)-1].bytes)-batch.HeaderSize)] ^= 4
		if _, err := piecesOf(run); !errors.Is(err, errCorruptCopy) {
			t.Fatalf("a damaged run: %v", err)
		}
		if _, err := piecesOf(run[:len(run)-1]); !errors.Is(err, errCorruptCopy) {
			t.Fatalf("a run cut short: %v", err)
		}
	}
}

// The smallest log that can be configured takes what is copied.
func TestPiecesFitTheSmallestLog(t *testing.T) {
	l, err := wal.Open(wal.Options{FS: vfs.NewMem(), Dir: "wal", ClusterID: "c", SegmentBytes: 1 << 20, MaxBytes: 16 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := l.Reserve(context.Background(), wal.ClassReplication, maxPiece); err != nil {
		t.Error(err)
	}
}
