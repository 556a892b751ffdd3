package objstore

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// CRC32C is the checksum that Put takes.
func CRC32C(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }

// ReadRange reads length bytes of key at off into a buffer of its own, all of them or an error.
func ReadRange(ctx context.Context, b Bucket, key string, off, length int64) ([]byte, error) {
	dst := make([]byte, length)
	return dst, ReadInto(ctx, b, key, off, dst)
}

// ReadInto fills dst from key at off, wholly or with an error.
func ReadInto(ctx context.Context, b Bucket, key string, off int64, dst []byte) error {
	r, err := b.GetRange(ctx, key, off, int64(len(dst)))
	if err != nil {
		return err
	}
	defer r.Close()
	if _, err := io.ReadFull(r, dst); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			err = fmt.Errorf("%w: %s: fewer than %d bytes", ErrTruncated, key, len(dst))
		}
		return err
	}
	return nil
}

// exactReader turns a body into exactly left bytes or an error: an early end is ErrTruncated, whatever a store
// sends beyond what was asked for is not read.
type exactReader struct {
	ctx      context.Context
	r        io.ReadCloser
	key      string
	left     int64
	classify func(error) error // from an error of r to one of this package; may be nil
	err      error
}

func (e *exactReader) Read(p []byte) (int, error) {
	if e.err != nil {
		return 0, e.err
	}
	if e.left == 0 {
		e.err = io.EOF
		return 0, io.EOF
	}
	if err := e.ctx.Err(); err != nil {
		e.err = fmt.Errorf("read %s: %w", e.key, err)
		return 0, e.err
	}
	if int64(len(p)) > e.left {
		p = p[:e.left]
	}
	n, err := e.r.Read(p)
	e.left -= int64(n)
	switch {
	case err == nil:
	case e.left == 0:
		// All bytes are here; what the connection did afterwards is of no interest.
		e.err = io.EOF
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		e.err = fmt.Errorf("read %s: %w with %d bytes missing", e.key, ErrTruncated, e.left)
	default:
		if e.classify != nil {
			err = e.classify(err)
		}
		e.err = fmt.Errorf("read %s: %w", e.key, err)
	}
	if n > 0 {
		// The error is kept for the next call: readers that see both handle them in either order.
		if e.err == io.EOF {
			return n, nil
		}
	}
	return n, e.err
}

func (e *exactReader) Close() error {
	if e.err == nil || e.err == io.EOF {
		e.err = fmt.Errorf("read %s: %w", e.key, ErrClosed)
	}
	return e.r.Close()
}

// verifyingReader passes size bytes of r through and fails with ErrChecksum at their end if they are not the ones
// the checksum was taken of.
type verifyingReader struct {
	r    io.Reader
	left int64
	sum  uint32
	want uint32
}

func (v *verifyingReader) Read(p []byte) (int, error) {
	if v.left == 0 {
		return 0, io.EOF
	}
	if int64(len(p)) > v.left {
		p = p[:v.left]
	}
	n, err := v.r.Read(p)
	v.left -= int64(n)
	v.sum = crc32.Update(v.sum, castagnoli, p[:n])
	if v.left == 0 {
		if v.sum != v.want {
			return n, fmt.Errorf("%w: body has CRC32C %08x, %08x announced", ErrChecksum, v.sum, v.want)
		}
		return n, nil
	}
	if errors.Is(err, io.EOF) {
		return n, fmt.Errorf("%w: body is %d bytes shorter than announced", ErrChecksum, v.left)
	}
	return n, err
}

// copyBody streams a Put body from its start to w, verifying it, in steps short enough for ctx to matter.
func copyBody(ctx context.Context, w io.Writer, body io.ReadSeeker, size int64, crc uint32) error {
	if size < 0 {
		return fmt.Errorf("negative size %d", size)
	}
	if _, err := body.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("rewind body: %w", err)
	}
	if size == 0 {
		if crc != 0 {
			return fmt.Errorf("%w: empty body has CRC32C 0, %08x announced", ErrChecksum, crc)
		}
		return nil
	}
	v := &verifyingReader{r: body, left: size, want: crc}
	buf := make([]byte, min(size, 256<<10))
	for v.left > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := v.Read(buf)
		if n > 0 {
			if _, werr := w.Write(buf[:n]); werr != nil && err == nil {
				err = werr
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}
