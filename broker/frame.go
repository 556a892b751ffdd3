package broker

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"

	"github.com/varve/varve/wal/slab"
)

// minFrame is the smallest frame that can be a request: key, version,
// correlation id, and the length of a null client id.
const minFrame = 10

// errFrame says that a size prefix cannot be right. What follows it on the
// stream cannot be told apart, so the connection ends.
var errFrame = errors.New("broker: impossible frame size")

// spoken tells whoever reads the log what the peer takes this port for.
func spoken(size uint32) string {
	if size>>16 == 0x1603 { // a TLS record: handshake, version 3.x
		return ": it begins as TLS does, and this listener has none"
	}
	switch text := string([]byte{byte(size >> 24), byte(size >> 16), byte(size >> 8), byte(size)}); text {
	case "GET ", "POST", "PUT ", "HEAD", "OPTI", "DELE", "CONN", "PATC", "TRAC", "PRI ":
		return ": it begins as HTTP does; metrics and health are at admin.listener"
	case "SSH-":
		return ": it begins as SSH does"
	}
	return ""
}

const (
	readBufferSize = 64 << 10
	// sharedFrame is from which size on a Produce request may stay where it was read: a copy of a smaller one costs
	// less than what sharing a buffer between more holders does.
	sharedFrame = 4 << 10
)

// stays says whether a frame may stay where it was read. Other requests than Produce may hold on to their frame for as
// long as a rebalance takes, and are charged for no more than that.
func stays(frame []byte) bool {
	return len(frame) >= sharedFrame && int16(binary.BigEndian.Uint16(frame)) == keyProduce
}

// frameReader cuts a connection's bytes into frames. While the connection is
// idle it holds no buffer: it waits in the poller, and takes a buffer only when
// the socket has something to read.
type frameReader struct {
	conn   net.Conn
	raw    syscall.RawConn // nil for connections that are not sockets
	buf    *slab.Buf       // nil while empty
	r, w   int             // unread part of buf
	shared bool            // frames that were handed out lie below r
	looked int             // up to where worth has looked
	worth  bool            // the frames in buf are to stay there
}

func newFrameReader(c net.Conn) *frameReader {
	f := &frameReader{conn: c}
	if sc, ok := c.(syscall.Conn); ok {
		if raw, err := sc.SyscallConn(); err == nil {
			f.raw = raw
		}
	}
	return f
}

// atLeast reads until n bytes are unread in the buffer. atEOF is the error for
// a stream that ends with none of them.
func (f *frameReader) atLeast(n int, atEOF error) error {
	for f.w-f.r < n {
		if err := f.fill(); err != nil {
			if errors.Is(err, io.EOF) {
				err = atEOF
				if f.w != f.r {
					err = io.ErrUnexpectedEOF
				}
			}
			return err
		}
	}
	return nil
}

// fill reads once, into an empty or a partly filled buffer.
func (f *frameReader) fill() error {
	if f.r == f.w && f.shared {
		f.drop()
	} else if f.r == f.w {
		f.r, f.w = 0, 0
	} else if f.r > 0 && f.w == readBufferSize {
		to := f.buf
		if f.shared {
			to = slab.Get(readBufferSize)
		}
		f.w = copy(to.Bytes(), f.buf.Bytes()[f.r:f.w])
		f.r = 0
		if f.shared {
			f.buf.Release()
			f.buf, f.shared = to, false
		}
	}
	f.looked = -1
	var n int
	var err error
	if f.raw != nil && f.buf == nil {
		perr := f.raw.Read(func(fd uintptr) bool {
			buf := slab.Get(readBufferSize)
			for {
				n, err = syscall.Read(int(fd), buf.Bytes())
				if err != syscall.EINTR {
					break
				}
			}
			if n > 0 {
				f.buf = buf
				return true
			}
			buf.Release()
			return err != syscall.EAGAIN
		})
		if perr != nil {
			return perr
		}
		n = max(n, 0)
	} else {
		if f.buf == nil {
			f.buf = slab.Get(readBufferSize)
		}
		n, err = f.conn.Read(f.buf.Bytes()[f.w:])
	}
	f.w += n
	if n > 0 {
		return nil
	}
	if err == nil {
		err = io.EOF
	}
	return err
}

// worthSharing says whether at least half of the buffer are frames that are all
// there and may stay in it; the next one has size bytes, which begin at r. Then
// they do, and each holds on to all of it: whoever keeps them for long keeps at
// most twice of what came.
func (f *frameReader) worthSharing(size int) bool {
	if f.looked == f.w {
		return f.worth
	}
	b := f.buf.Bytes()[:f.w]
	sum := 0
	for at := f.r; size >= 0 && size <= len(b)-at; {
		if stays(b[at : at+size]) {
			sum += size
		}
		if at += size; at+4 > len(b) {
			break
		}
		size = int(binary.BigEndian.Uint32(b[at:]))
		at += 4
	}
	f.looked, f.worth = f.w, sum >= readBufferSize/2 || f.shared
	return f.worth
}

// next reads the next frame, without its size prefix. It lies in buf, perhaps
// with other frames, and the caller has a reference to that. started is called
// once a size has come whose frame has not; admit is asked before anything is
// allocated for the frame, and that is not before all of the frame has come, or
// as much of it as the read buffer holds: what a connection merely announces
// must not be taken from what all of them share.
func (f *frameReader) next(ctx context.Context, limit int, started func(), admit func(context.Context, int) error) (frame []byte, buf *slab.Buf, err error) {
	if err := f.atLeast(4, io.EOF); err != nil {
		return nil, nil, err
	}
	size := int(int32(binary.BigEndian.Uint32(f.buf.Bytes()[f.r:])))
	if size < minFrame || size > limit {
		return nil, nil, fmt.Errorf("%w: %d bytes, where %d to %d are possible (socket.request.max.bytes)%s", errFrame, size, minFrame, limit, spoken(uint32(size)))
	}
	f.r += 4
	if f.w-f.r < size {
		started()
		if err := f.atLeast(min(size, readBufferSize), io.ErrUnexpectedEOF); err != nil {
			return nil, nil, err
		}
	}
	if err := admit(ctx, size); err != nil {
		return nil, nil, err
	}
	if size <= f.w-f.r && stays(f.buf.Bytes()[f.r:f.r+size]) && f.worthSharing(size) {
		b := f.buf
		frame = b.Bytes()[f.r : f.r+size : f.r+size]
		if f.r += size; f.r == f.w {
			f.buf, f.r, f.w, f.shared = nil, 0, 0, false // its reference goes with the frame
		} else {
			b.Retain()
			f.shared = true
		}
		return frame, b, nil
	}
	b := slab.Get(size)
	n := copy(b.Bytes(), f.buf.Bytes()[f.r:f.w])
	f.r += n
	for n < size {
		// Small remainders go through the buffer, which may pick up the
		// next frames with the same system call; large ones straight to
		// their place.
		if size-n >= readBufferSize/2 {
			m, err := io.ReadFull(f.conn, b.Bytes()[n:])
			n += m
			if err != nil {
				b.Release()
				return nil, nil, err
			}
			break
		}
		if err := f.fill(); err != nil {
			b.Release()
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return nil, nil, err
		}
		m := copy(b.Bytes()[n:], f.buf.Bytes()[f.r:f.w])
		f.r += m
		n += m
	}
	if f.r == f.w {
		f.drop()
	}
	return b.Bytes(), b, nil
}

func (f *frameReader) drop() {
	if f.buf != nil {
		f.buf.Release()
		f.buf, f.r, f.w, f.shared = nil, 0, 0, false
	}
}
