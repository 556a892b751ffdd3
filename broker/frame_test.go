package broker

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"testing"

	"github.com/varve/varve/wal/slab"
)

// Frames of all sizes come out as they went in, in whatever pieces they arrive, however long their holders keep them,
// and every buffer is given back. Builds with the race detector overwrite what is released too early.
func TestFrames(t *testing.T) {
	for seed := range uint64(6) {
		inUse := slab.InUse()
		client, server := tcpPair(t)
		r := rand.New(rand.NewPCG(seed, 1))
		var frames [][]byte
		var stream []byte
		for len(stream) < 8<<20 {
			size := minFrame + r.IntN(200)
			switch r.IntN(6) {
			case 0:
				size = 1000 + r.IntN(4000)
			case 1, 2:
				size = 16000 + r.IntN(2000)
			case 3:
				size = readBufferSize - 100 + r.IntN(200)
			case 4:
				if seed%2 == 0 {
					size = r.IntN(4*readBufferSize) + minFrame
				}
			}
			f := bytes.Repeat([]byte{byte(len(frames))}, size)
			binary.BigEndian.PutUint16(f, uint16(r.IntN(5)/4)) // Produce, and some Fetch
			binary.BigEndian.PutUint32(f[2:], uint32(len(frames)))
			frames = append(frames, f)
			stream = append(binary.BigEndian.AppendUint32(stream, uint32(size)), f...)
		}
		go func() {
			w := rand.New(rand.NewPCG(seed, 2))
			for b := stream; len(b) > 0; {
				n := min(len(b), 1+w.IntN([]int{10, 5000, 100_000, 1 << 20}[w.IntN(4)]))
				if _, err := client.Write(b[:n]); err != nil {
					return
				}
				b = b[n:]
			}
			client.Close()
		}()
		type held struct {
			frame []byte
			buf   *slab.Buf
			n     int
		}
		var holding []held
		shared := 0
		release := func(i int) {
			h := holding[i]
			if !bytes.Equal(h.frame, frames[h.n]) {
				t.Fatalf("seed %d: frame %d of %d bytes changed while it was held", seed, h.n, len(h.frame))
			}
			h.buf.Release()
			holding[i] = holding[len(holding)-1]
			holding = holding[:len(holding)-1]
		}
		fr := newFrameReader(server)
		admitted := 0
		for n := 0; ; n++ {
			frame, buf, err := fr.next(context.Background(), 1<<20, func() {}, func(_ context.Context, size int) error { admitted += size; return nil })
			if errors.Is(err, io.EOF) && n == len(frames) {
				break
			}
			if err != nil {
				t.Fatalf("seed %d: frame %d of %d: %v", seed, n, len(frames), err)
			}
			if !bytes.Equal(frame, frames[n]) {
				t.Fatalf("seed %d: frame %d came as %d bytes, not the %d that were sent", seed, n, len(frame), len(frames[n]))
			}
			if len(frame) != len(buf.Bytes()) {
				if shared++; frame[1] != 0 {
					t.Fatalf("seed %d: frame %d of another request than Produce stays where it was read", seed, n)
				}
			}
			if cap(frame) != len(frame) {
				t.Fatalf("seed %d: frame %d of %d bytes reaches to %d", seed, n, len(frame), cap(frame))
			}
			// As the broker does: what is in a frame is its holder's to change.
			frame[len(frame)-1] ^= 0xff
			frames[n][len(frame)-1] ^= 0xff
			holding = append(holding, held{frame, buf, n})
			for len(holding) > 50 {
				release(r.IntN(len(holding)))
			}
		}
		for len(holding) > 0 {
			release(len(holding) - 1)
		}
		fr.drop()
		server.Close()
		if shared < len(frames)/20 {
			t.Errorf("seed %d: %d of %d frames stayed where they were read", seed, shared, len(frames))
		}
		if want := len(stream) - 4*len(frames); admitted != want {
			t.Errorf("seed %d: %d bytes were asked for, want %d", seed, admitted, want)
		}
		if got := slab.InUse(); got != inUse {
			t.Errorf("seed %d: %d bytes of buffers are held, %d before", seed, got, inUse)
		}
	}
}

// Who keeps a frame keeps at most about twice as much.
func TestFramesKeepLittle(t *testing.T) {
	client, server := tcpPair(t)
	fr := newFrameReader(server)
	for _, size := range []int{sharedFrame, 10_000, 20_000, 31_000, 40_000, 64_000, 100_000} {
		frame := append(binary.BigEndian.AppendUint32(nil, uint32(size)), make([]byte, size)...)
		if _, err := client.Write(frame); err != nil {
			t.Fatal(err)
		}
		_, buf, err := fr.next(context.Background(), 1<<20, func() {}, func(context.Context, int) error { return nil })
		if err != nil {
			t.Fatal(err)
		}
		if buf.Charge() > 2*size+16 {
			t.Errorf("a frame of %d bytes that came alone keeps %d", size, buf.Charge())
		}
		buf.Release()
	}
	fr.drop()
	client.Close()
	server.Close()
}

// tcpPair are the ends of a connection.
func tcpPair(t *testing.T) (client, server net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if client, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if server, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	return client, server
}

func TestSpoken(t *testing.T) {
	for _, c := range []struct {
		size uint32
		want string
	}{
		{0x47455420, ": it begins as HTTP does; metrics and health are at admin.listener"}, // GET
		{0x50524920, ": it begins as HTTP does; metrics and health are at admin.listener"}, // HTTP/2's preface
		{0x16030100, ": it begins as TLS does, and this listener has none"},
		{0x16030305, ": it begins as TLS does, and this listener has none"},
		{0x16020100, ""},
		{0x5353482d, ": it begins as SSH does"},
		{0xffffffff, ""},
		{0, ""},
	} {
		if got := spoken(c.size); got != c.want {
			t.Errorf("%#x: %q, want %q", c.size, got, c.want)
		}
	}
}
