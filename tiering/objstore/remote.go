package objstore

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// driver is what remote needs of a client library. Keys are whole (prefix included). Errors are classified.
type driver interface {
	// put stores a body in one request. Where onlyNew is set the request carries If-None-Match: *.
	put(ctx context.Context, key string, body io.ReadSeeker, size int64, crc uint32, onlyNew bool) error
	get(ctx context.Context, key string, off, length int64) (body io.ReadCloser, h rangeHeader, err error)
	stat(ctx context.Context, key string) (objectStat, error)
	list(ctx context.Context, prefix, after string, limit int) ([]Info, bool, error)
	remove(ctx context.Context, keys []string, failed *deleteErrors) error // at most MaxList keys

	createUpload(ctx context.Context, key string, crc uint32) (id string, err error)
	putPart(ctx context.Context, key, id string, number int, body io.ReadSeeker, size int64, crc uint32) (etag string, err error)
	completeUpload(ctx context.Context, key, id string, parts []part, crc uint32, onlyNew bool) error
	abortUpload(ctx context.Context, key, id string) error
	uploads(ctx context.Context, prefix string, f func(key, id string, started time.Time) error) error

	bucketExists(ctx context.Context) error // nil, ErrNoBucket, ErrDenied, ...
	makeBucket(ctx context.Context) error
	close()
}

// rangeHeader is what an answer to a ranged read says about itself.
type rangeHeader struct {
	contentRange string // "bytes a-b/size"; empty if the store sent the whole object
	length       int64  // -1: unknown
}

type objectStat struct {
	size int64
	crc  string // metaCRC, if the object has it
}

type part struct {
	number int
	etag   string
	crc    uint32
}

// metaCRC is the user metadata under which every object carries its CRC32C in hexadecimal: stores report checksums of
// multipart objects in too many ways, and some not at all.
const metaCRC = "varve-crc32c"

func crcHex(crc uint32) string { return fmt.Sprintf("%08x", crc) }

// crcHeader is the form of a CRC32C in x-amz-checksum-crc32c.
func crcHeader(crc uint32) string {
	return base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint32(nil, crc))
}

// remote is a bucket behind HTTP. It holds what both client libraries need alike: keys, ranges, the multipart
// procedure, and what to make of answers that leave the outcome open.
type remote struct {
	d        driver
	name     string // String()
	prefix   string // with its slash, or empty
	loc      Location
	noIfNone atomic.Bool // the store does not know If-None-Match on writes
	closed   atomic.Bool
}

// awayTimeout bounds the look for the bucket where Options.Away says that it may be away.
const awayTimeout = 4 * time.Second

func newRemote(ctx context.Context, d driver, loc Location, name string, o Options) (*remote, error) {
	r := &remote{d: d, loc: loc, name: name}
	if loc.Prefix != "" {
		r.prefix = loc.Prefix + "/"
	}
	r.noIfNone.Store(!loc.Conditional)
	if o.SkipCheck && !o.Create {
		return r, nil
	}
	if o.Away != nil {
		// Whoever can do without it is not to be kept by a store that takes connections and does not answer.
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, awayTimeout)
		defer cancel()
	}
	err := d.bucketExists(ctx)
	if errors.Is(err, ErrNoBucket) && o.Create {
		// Another broker may be making it at this moment.
		if err = d.makeBucket(ctx); err != nil && d.bucketExists(ctx) == nil {
			err = nil
		}
	}
	if err != nil && o.Away != nil {
		switch ClassOf(err) {
		case ClassUnavailable, ClassTimeout, ClassThrottled:
			o.Away(fmt.Errorf("open %s: %w", name, err))
			return r, nil
		}
	}
	if err != nil {
		d.close()
		hint := ""
		switch {
		case errors.Is(err, ErrNoBucket):
			hint = " (create it, or correct its name; ?create=true makes it at the start)"
		case errors.Is(err, ErrDenied):
			hint = " (check the credentials and that they may list, read, write and delete there; ?check=false starts without this look)"
		case errors.Is(err, ErrUnavailable):
			hint = " (check the endpoint, and http against https)"
		}
		return nil, fmt.Errorf("open %s: %w%s", name, err, hint)
	}
	return r, nil
}

// key gives the whole key, or says why there is none.
func (r *remote) key(key string) (string, error) {
	if r.closed.Load() {
		return "", ErrClosed
	}
	if err := CheckKey(key); err != nil {
		return "", err
	}
	if len(r.prefix)+len(key) > MaxKeyBytes {
		return "", fmt.Errorf("%w: %d bytes with the bucket's prefix, at most %d", ErrKey, len(r.prefix)+len(key), MaxKeyBytes)
	}
	return r.prefix + key, nil
}

func (r *remote) Put(ctx context.Context, key string, body io.ReadSeeker, size int64, crc uint32) error {
	full, err := r.key(key)
	if err != nil {
		return opError(OpPut, r, "", err)
	}
	if size < 0 {
		return opError(OpPut, r, key, fmt.Errorf("negative size %d", size))
	}
	return opError(OpPut, r, key, r.put(ctx, full, body, size, crc))
}

func (r *remote) put(ctx context.Context, key string, body io.ReadSeeker, size int64, crc uint32) error {
	onlyNew := !r.noIfNone.Load()
	if !onlyNew {
		// Without the condition a look must do: names are unique per attempt, so nobody but ourselves races.
		switch st, err := r.d.stat(ctx, key); {
		case err == nil:
			return same(st, size, crc)
		case !errors.Is(err, ErrNotExist):
			return err
		}
	}
	write := func(onlyNew bool) error {
		if size > r.loc.PartThreshold {
			return r.putParts(ctx, key, body, size, crc, onlyNew)
		}
		return r.d.put(ctx, key, section(body, 0, size), size, crc, onlyNew)
	}
	err := write(onlyNew)
	if errors.Is(err, errNotImplemented) && onlyNew {
		r.noIfNone.Store(true)
		err = write(false)
	}
	if errors.Is(err, errPrecondition) {
		// Something has this name. If an attempt of ours was carried out after its connection had gone, it is us.
		st, serr := r.d.stat(ctx, key)
		if errors.Is(serr, ErrNotExist) {
			return fmt.Errorf("%w: conflicting write of this key that left nothing: %v", ErrUnavailable, err)
		}
		if serr != nil {
			return serr
		}
		return same(st, size, crc)
	}
	if ClassOf(err) == ClassUnavailable && ctx.Err() == nil {
		// The connection broke: the store may have carried it out, now or in an earlier attempt.
		if st, serr := r.d.stat(ctx, key); serr == nil && same(st, size, crc) == nil {
			return nil
		}
	}
	return err
}

// same tells an earlier attempt at this very object from another object under its name.
func same(st objectStat, size int64, crc uint32) error {
	if st.size == size && st.crc == crcHex(crc) {
		return nil
	}
	return fmt.Errorf("%w: %d bytes, CRC32C %q, against %d bytes, %08x", ErrExists, st.size, st.crc, size, crc)
}

// errPrecondition and errNotImplemented are classes between driver and remote only.
var (
	errPrecondition   = errors.New("precondition failed")
	errNotImplemented = errors.New("not implemented by the store")
	errNoUpload       = errors.New("no such upload")
)

// section is the part of a body that one request sends. If the body can be read at any place, sections are independent
// of each other; otherwise they share its position and must be used one after the other.
func section(body io.ReadSeeker, off, n int64) io.ReadSeeker {
	if ra, ok := body.(io.ReaderAt); ok {
		return &window{body: io.NewSectionReader(ra, off, n), n: n}
	}
	return &window{body: body, off: off, n: n}
}

// window is n bytes of a body from off on. A body that ends before them is an error of its own, and one that stays: to
// the client libraries it looks like a broken connection, but they cannot rewind for another attempt.
type window struct {
	body   io.ReadSeeker
	off, n int64
	pos    int64
	sought bool
	short  error
}

func (w *window) Read(p []byte) (int, error) {
	if w.pos >= w.n {
		return 0, io.EOF
	}
	if !w.sought {
		if _, err := w.body.Seek(w.off+w.pos, io.SeekStart); err != nil {
			return 0, err
		}
		w.sought = true
	}
	if int64(len(p)) > w.n-w.pos {
		p = p[:w.n-w.pos]
	}
	n, err := w.body.Read(p)
	w.pos += int64(n)
	if errors.Is(err, io.EOF) {
		err = nil
		if w.pos < w.n {
			w.short = fmt.Errorf("%w: body is %d bytes shorter than announced", ErrChecksum, w.n-w.pos)
			err = w.short
		}
	}
	return n, err
}

func (w *window) Seek(off int64, whence int) (int64, error) {
	if w.short != nil {
		return 0, w.short
	}
	switch whence {
	case io.SeekCurrent:
		off += w.pos
	case io.SeekEnd:
		off += w.n
	}
	if off < 0 {
		return 0, errors.New("seek before the start")
	}
	w.pos, w.sought = off, false
	return off, nil
}

// maxParts is S3's limit.
const maxParts = 10000

// abortTimeout bounds the clean-up after a failed upload, which goes on when the caller's context has ended.
const abortTimeout = 10 * time.Second

// putParts uploads a large body in parts. The checksum of each part is verified by the store; that of the whole is
// checked here before the parts are joined, and by stores that can do that again then. The size is read back.
func (r *remote) putParts(ctx context.Context, key string, body io.ReadSeeker, size int64, crc uint32, onlyNew bool) error {
	partSize := max(r.loc.PartSize, (size+maxParts-1)/maxParts)
	count := int((size + partSize - 1) / partSize)
	parts := make([]part, count)
	var whole uint32
	sums := func(i int) (io.ReadSeeker, int64, error) {
		off := int64(i) * partSize
		n := min(partSize, size-off)
		s := section(body, off, n)
		h := crc32.New(castagnoli)
		if _, err := io.Copy(io.MultiWriter(h, crcWriter{&whole}), s); err != nil {
			return nil, 0, fmt.Errorf("read body: %w", err)
		}
		if _, err := s.Seek(0, io.SeekStart); err != nil {
			return nil, 0, fmt.Errorf("rewind body: %w", err)
		}
		parts[i] = part{number: i + 1, crc: h.Sum32()}
		return s, n, nil
	}

	id, err := r.d.createUpload(ctx, key, crc)
	if err != nil {
		return err
	}
	abort := func() {
		actx, cancel := context.WithTimeout(context.WithoutCancel(ctx), abortTimeout)
		defer cancel()
		// What this leaves behind AbortIncomplete finds.
		_ = r.d.abortUpload(actx, key, id)
	}
	_, parallel := body.(io.ReaderAt)
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(r.loc.PartConcurrency)
	if !parallel {
		g.SetLimit(1)
	}
	var failed error
	for i := range count {
		if !parallel {
			// A part reads the body at its shared position: the one before must be through.
			if failed = g.Wait(); failed != nil {
				break
			}
			g, gctx = errgroup.WithContext(ctx)
		}
		if failed = gctx.Err(); failed != nil {
			break
		}
		s, n, err := sums(i)
		if err != nil {
			failed = err
			break
		}
		g.Go(func() error {
			etag, err := r.d.putPart(gctx, key, id, parts[i].number, s, n, parts[i].crc)
			parts[i].etag = etag
			return err
		})
	}
	if err := g.Wait(); err != nil {
		failed = err
	}
	if failed == nil && whole != crc {
		failed = fmt.Errorf("%w: body has CRC32C %08x, %08x announced", ErrChecksum, whole, crc)
	}
	if failed != nil {
		abort()
		return failed
	}
	err = r.d.completeUpload(ctx, key, id, parts, crc, onlyNew)
	switch {
	case errors.Is(err, errNoUpload):
		// A repeated completion whose first one was carried out, or an upload that somebody aborted.
		st, serr := r.d.stat(ctx, key)
		if serr != nil {
			return fmt.Errorf("%w: upload is gone and object is not there: %v", ErrUnavailable, serr)
		}
		return same(st, size, crc)
	case err != nil:
		// The completion may be under way still; aborting it then fails or leaves the object whole.
		abort()
		return err
	}
	st, err := r.d.stat(ctx, key)
	if err != nil {
		return fmt.Errorf("read back: %w", err)
	}
	if st.size != size {
		return fmt.Errorf("%w: store joined %d bytes of %d", ErrChecksum, st.size, size)
	}
	return nil
}

// crcWriter keeps a running checksum across parts.
type crcWriter struct{ sum *uint32 }

func (w crcWriter) Write(p []byte) (int, error) {
	*w.sum = crc32.Update(*w.sum, castagnoli, p)
	return len(p), nil
}

func (r *remote) GetRange(ctx context.Context, key string, off, length int64) (io.ReadCloser, error) {
	full, err := r.key(key)
	if err == nil {
		err = checkRange(key, off, length)
	}
	if err != nil {
		return nil, opError(OpGet, r, "", err)
	}
	if length == 0 {
		// HTTP has no empty ranges.
		st, err := r.d.stat(ctx, full)
		if err == nil && off > st.size {
			err = fmt.Errorf("%w: offset %d of %d bytes", ErrRange, off, st.size)
		}
		if err != nil {
			return nil, opError(OpGet, r, key, err)
		}
		return http.NoBody, nil
	}
	body, h, err := r.d.get(ctx, full, off, length)
	if err != nil {
		return nil, opError(OpGet, r, key, err)
	}
	if err := h.check(off, length); err != nil {
		body.Close()
		return nil, opError(OpGet, r, key, err)
	}
	return &exactReader{ctx: ctx, r: body, key: key, left: length, classify: classifyTransport}, nil
}

// check holds an answer against the range that was asked for.
func (h rangeHeader) check(off, length int64) error {
	if h.contentRange == "" {
		// The store ignored the range. That is fine only if the range is the object.
		if off == 0 && h.length == length {
			return nil
		}
		if h.length >= 0 && off+length > h.length {
			return fmt.Errorf("%w: [%d,%d) of %d bytes", ErrRange, off, off+length, h.length)
		}
		return fmt.Errorf("%w: store ignores ranges", ErrUnavailable)
	}
	first, last, size, ok := parseContentRange(h.contentRange)
	if !ok {
		return fmt.Errorf("%w: answer has Content-Range %.60q", ErrUnavailable, h.contentRange)
	}
	if size >= 0 && off+length > size {
		return fmt.Errorf("%w: [%d,%d) of %d bytes", ErrRange, off, off+length, size)
	}
	if first != off || last != off+length-1 || h.length >= 0 && h.length != length {
		return fmt.Errorf("%w: asked for [%d,%d), answer has Content-Range %.60q and %d bytes", ErrTruncated, off, off+length, h.contentRange, h.length)
	}
	return nil
}

func parseContentRange(s string) (first, last, size int64, ok bool) {
	rest, found := strings.CutPrefix(s, "bytes ")
	span, total, found2 := strings.Cut(rest, "/")
	a, b, found3 := strings.Cut(span, "-")
	if !found || !found2 || !found3 {
		return 0, 0, 0, false
	}
	var err1, err2, err3 error
	first, err1 = strconv.ParseInt(a, 10, 64)
	last, err2 = strconv.ParseInt(b, 10, 64)
	size = -1
	if total != "*" {
		size, err3 = strconv.ParseInt(total, 10, 64)
	}
	return first, last, size, err1 == nil && err2 == nil && err3 == nil && first >= 0 && last >= first
}

func (r *remote) Head(ctx context.Context, key string) (int64, error) {
	full, err := r.key(key)
	if err != nil {
		return 0, opError(OpHead, r, "", err)
	}
	st, err := r.d.stat(ctx, full)
	if errors.Is(err, ErrNotExist) {
		// A HEAD has no body to say whether the object is missing or the bucket. Whoever takes the second for the first
		// takes all history for deleted.
		if berr := r.d.bucketExists(ctx); errors.Is(berr, ErrNoBucket) {
			err = berr
		}
	}
	return st.size, opError(OpHead, r, key, err)
}

func (r *remote) List(ctx context.Context, prefix, after string, limit int) ([]Info, bool, error) {
	if r.closed.Load() {
		return nil, false, opError(OpList, r, "", ErrClosed)
	}
	if err := checkList(prefix, after); err != nil {
		return nil, false, opError(OpList, r, "", err)
	}
	limit = listLimit(limit)
	if after != "" {
		if after < prefix {
			after = "" // all of the prefix is behind it; not every store can start before the prefix
		} else if after > prefix && !strings.HasPrefix(after, prefix) {
			return nil, false, nil // all of the prefix is before it
		} else {
			after = r.prefix + after
		}
	}
	infos, more, err := r.d.list(ctx, r.prefix+prefix, after, limit)
	if err != nil {
		return nil, false, opError(OpList, r, prefix, err)
	}
	kept := infos[:0]
	for _, in := range infos {
		// Strangers' objects whose names no Put could have made are not shown: Delete would refuse them.
		key, found := strings.CutPrefix(in.Key, r.prefix)
		if found && CheckKey(key) == nil {
			in.Key = key
			kept = append(kept, in)
		}
	}
	return kept, more, nil
}

func (r *remote) Delete(ctx context.Context, keys []string) error {
	full := make([]string, len(keys))
	for i, k := range keys {
		var err error
		if full[i], err = r.key(k); err != nil {
			return opError(OpDelete, r, "", err)
		}
	}
	var failed deleteErrors
	for len(full) > 0 {
		n := min(len(full), MaxList)
		if err := r.d.remove(ctx, full[:n], &failed); err != nil {
			return opError(OpDelete, r, "", err)
		}
		full = full[n:]
	}
	return opError(OpDelete, r, "", failed.join())
}

// AbortIncomplete implements MultipartAborter.
func (r *remote) AbortIncomplete(ctx context.Context, before time.Time) (aborted int, err error) {
	if r.closed.Load() {
		return 0, opError("abort uploads", r, "", ErrClosed)
	}
	err = r.d.uploads(ctx, r.prefix, func(key, id string, started time.Time) error {
		if !started.Before(before) || !strings.HasPrefix(key, r.prefix) {
			return nil
		}
		if err := r.d.abortUpload(ctx, key, id); err != nil && !errors.Is(err, errNoUpload) {
			return err
		}
		aborted++
		return nil
	})
	return aborted, opError("abort uploads", r, "", err)
}

func (r *remote) String() string { return r.name }

func (r *remote) Close() error {
	if r.closed.CompareAndSwap(false, true) {
		r.d.close()
	}
	return nil
}

// classifyStatus maps a store's answer to this package's errors; code is the S3 error code, where one was sent. The
// message is the store's and bounded here.
func classifyStatus(status int, code, message string) error {
	var class error
	switch code {
	case "NoSuchKey":
		class = ErrNotExist
	case "NoSuchBucket":
		class = ErrNoBucket
	case "NoSuchUpload":
		class = errNoUpload
	case "SlowDown", "SlowDownRead", "SlowDownWrite", "Throttling", "ThrottlingException", "RequestLimitExceeded", "RequestThrottled",
		"TooManyRequests", "ServiceUnavailable", "Busy", "XMinioServerNotInitialized":
		class = ErrThrottled
	case "BadDigest", "XAmzContentChecksumMismatch", "XAmzContentSHA256Mismatch", "InvalidDigest", "InvalidChecksum":
		class = ErrChecksum
	case "InvalidRange":
		class = ErrRange
	case "PreconditionFailed", "ConditionalRequestConflict":
		class = errPrecondition
	case "NotImplemented":
		class = errNotImplemented
	case "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "TokenRefreshRequired",
		"AllAccessDisabled", "AccountProblem", "RequestTimeTooSkewed":
		class = ErrDenied
	case "RequestTimeout", "InternalError", "IncompleteBody":
		class = ErrUnavailable
	}
	if class == nil {
		switch {
		case status == http.StatusNotFound:
			class = ErrNotExist
		case status == http.StatusUnauthorized, status == http.StatusForbidden:
			class = ErrDenied
		case status == http.StatusPreconditionFailed, status == http.StatusConflict:
			class = errPrecondition
		case status == http.StatusRequestedRangeNotSatisfiable:
			class = ErrRange
		case status == http.StatusNotImplemented:
			class = errNotImplemented
		case status == http.StatusTooManyRequests, status == http.StatusServiceUnavailable:
			class = ErrThrottled
		case status == http.StatusRequestTimeout, status >= 500:
			class = ErrUnavailable
		}
	}
	text := fmt.Sprintf("status %d", status)
	if code != "" {
		text += " " + short(code, 60)
	}
	if message != "" {
		text += ": " + short(message, 300)
	}
	if class == nil {
		return errors.New(text)
	}
	return fmt.Errorf("%w: %s", class, text)
}

// classifyTransport maps what happened without an answer, or in the middle of one.
func classifyTransport(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case ClassOf(err) != ClassOther, errors.Is(err, ErrClosed):
		return err
	case errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("%w: %s", ErrTruncated, short(err.Error(), 300))
	}
	return fmt.Errorf("%w: %s", ErrUnavailable, short(err.Error(), 300))
}

// short bounds text that came from outside and takes out what would break a log line.
func short(s string, n int) string {
	s = strings.Map(func(c rune) rune {
		if c < ' ' || c == 0x7f {
			return ' '
		}
		return c
	}, strings.ToValidUTF8(s[:min(len(s), 4*n)], "?"))
	if len(s) > n {
		s = strings.ToValidUTF8(s[:n], "") + "..."
	}
	return s
}
