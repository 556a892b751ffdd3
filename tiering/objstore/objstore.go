// Package objstore is the seam between Varve and the place where sealed layers live: an object store, or a
// directory that plays one.
//
// The interface is small on purpose: objects are written once, whole, under a name that is never used again;
// read by range; listed only to find garbage; deleted. Nothing here renames, appends, overwrites or depends on a
// conditional write for correctness (see the README for what the stores disagree on).
//
// What a caller may rest on:
//
//   - Put that returned nil: the whole object is there, its CRC32C is the given one, and it survives a crash of
//     this process and of the machine as far as the store promises that at all (file: fsynced).
//   - Put that returned an error: the object may be there or may appear later (a request that timed out can still
//     be carried out). Whoever needs certainty writes under a new name.
//   - GetRange that returned nil: the reader yields exactly the bytes asked for or ends in an error, never in a
//     silent short read. Whether the bytes are the right ones is for the caller's checksums to say.
//   - Every error can be classified with errors.Is against the sentinels below, or with ClassOf.
package objstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

// Bucket is one object store under one prefix. All methods may be called concurrently.
type Bucket interface {
	// Put stores size bytes of body, from its current start (offset 0), as key. crc32c is the CRC32C (Castagnoli)
	// of those bytes; a body that does not match it is refused with ErrChecksum, by the store where it can verify.
	// body must stay untouched until Put has returned; if it is an io.ReaderAt too, parts may be read concurrently.
	//
	// An object is never overwritten: where key exists already with this size and checksum (an earlier attempt
	// that was thought lost), Put succeeds; where it holds anything else, Put fails with ErrExists.
	Put(ctx context.Context, key string, body io.ReadSeeker, size int64, crc32c uint32) error

	// GetRange reads length bytes from off. A range that does not lie wholly inside the object is ErrRange, a
	// missing object ErrNotExist: both from this call, before any byte. A body that ends early ends in ErrTruncated
	// instead of io.EOF. ctx governs reading too; the reader must be closed.
	GetRange(ctx context.Context, key string, off, length int64) (io.ReadCloser, error)

	// Head returns the object's size in bytes, or ErrNotExist.
	Head(ctx context.Context, key string) (size int64, err error)

	// List returns up to limit objects (1..1000; anything else means 1000) whose keys start with prefix and sort
	// after the key after, in ascending byte order; more tells whether there are others behind the last one.
	// Listings may be stale: nothing but the search for garbage may use them.
	List(ctx context.Context, prefix, after string, limit int) (infos []Info, more bool, err error)

	// Delete removes the keys. A missing key is no error. If some could not be removed the others still are, and
	// the error names the first few.
	Delete(ctx context.Context, keys []string) error

	// String is the URL without anything secret.
	String() string

	// Close releases connections and handles. Calls in flight may fail.
	Close() error
}

// Info is one listed object.
type Info struct {
	Key      string
	Size     int64
	Modified time.Time
}

// MultipartAborter is implemented by buckets whose stores keep the parts of an upload that was never completed
// (and bill them). The collector calls it now and then: a process that died inside Put cannot clean up.
type MultipartAborter interface {
	// AbortIncomplete ends uploads below the bucket's prefix that were started before the given time. The time must lie
	// further back than the longest deadline of a Put anywhere in the cluster.
	AbortIncomplete(ctx context.Context, before time.Time) (aborted int, err error)
}

// What callers branch on. Every error of a Bucket is one of these, or the context's, or unclassified (a bug or a
// local I/O error).
var (
	ErrNotExist    = errors.New("object does not exist")
	ErrExists      = errors.New("key already holds another object")
	ErrRange       = errors.New("range not inside the object")
	ErrTruncated   = errors.New("object body ended early")
	ErrChecksum    = errors.New("checksum mismatch")
	ErrThrottled   = errors.New("object store asks to slow down")
	ErrDenied      = errors.New("object store denied access")
	ErrNoBucket    = errors.New("bucket does not exist")
	ErrUnavailable = errors.New("object store unavailable")
	ErrKey         = errors.New("invalid object key")
	ErrURL         = errors.New("invalid object store URL")
	ErrClosed      = errors.New("bucket is closed")
)

// Class is the name an error has in metrics.
type Class string

const (
	ClassOK          Class = "ok"
	ClassNotExist    Class = "not_exist"
	ClassExists      Class = "exists"
	ClassRange       Class = "range"
	ClassTruncated   Class = "truncated"
	ClassChecksum    Class = "checksum"
	ClassThrottled   Class = "throttled"
	ClassDenied      Class = "denied"
	ClassNoBucket    Class = "no_bucket"
	ClassUnavailable Class = "unavailable"
	ClassTimeout     Class = "timeout"
	ClassCanceled    Class = "canceled"
	ClassOther       Class = "other"
)

var classes = []struct {
	err   error
	class Class
}{
	{ErrNotExist, ClassNotExist}, {ErrExists, ClassExists}, {ErrRange, ClassRange}, {ErrTruncated, ClassTruncated},
	{ErrChecksum, ClassChecksum}, {ErrThrottled, ClassThrottled}, {ErrDenied, ClassDenied}, {ErrNoBucket, ClassNoBucket},
	// The context's errors come before ErrUnavailable: a request cut off by its caller says nothing about the store.
	{context.Canceled, ClassCanceled}, {context.DeadlineExceeded, ClassTimeout},
	{ErrUnavailable, ClassUnavailable},
}

// Classes lists every class, for metrics that want all their series from the start.
func Classes() []Class {
	out := []Class{ClassOK, ClassOther}
	for _, c := range classes {
		out = append(out, c.class)
	}
	return out
}

// ClassOf classifies an error of a Bucket; nil is ClassOK.
func ClassOf(err error) Class {
	if err == nil {
		return ClassOK
	}
	for _, c := range classes {
		if errors.Is(err, c.err) {
			return c.class
		}
	}
	return ClassOther
}

// Retriable tells whether the same call can succeed later without anybody changing anything here. Denied and a
// missing bucket count: credentials get rotated and buckets restored, and what waits locally must then drain by
// itself; but they deserve a slow pace and an alarm.
func Retriable(err error) bool {
	switch ClassOf(err) {
	case ClassTruncated, ClassChecksum, ClassThrottled, ClassDenied, ClassNoBucket, ClassUnavailable, ClassTimeout, ClassOther:
		return !errors.Is(err, ErrKey) && !errors.Is(err, ErrURL) && !errors.Is(err, ErrClosed)
	}
	return false
}

// MaxKeyBytes bounds a key, its bucket prefix included (S3's own limit).
const MaxKeyBytes = 1024

// MaxSegmentBytes bounds what stands between two slashes of a key: a file name.
const MaxSegmentBytes = 255

// MaxList is the largest page of List.
const MaxList = 1000

// CheckKey refuses keys that some store could not hold, or would understand differently: segments of
// [A-Za-z0-9._~=+,@-] not starting with a dot, joined by single slashes. A leading dot is what the file bucket
// uses for its own files, and what ".." starts with.
func CheckKey(key string) error {
	if key == "" {
		return fmt.Errorf("%w: empty", ErrKey)
	}
	return checkPath(key)
}

func checkPath(key string) error {
	if len(key) > MaxKeyBytes {
		return fmt.Errorf("%w: %d bytes, at most %d", ErrKey, len(key), MaxKeyBytes)
	}
	start := 0
	for i := 0; i <= len(key); i++ {
		if i < len(key) && key[i] != '/' {
			if !keyByte(key[i]) {
				return fmt.Errorf("%w: byte %#x at %d of %.80q", ErrKey, key[i], i, key)
			}
			continue
		}
		switch seg := key[start:i]; {
		case seg == "":
			return fmt.Errorf("%w: empty segment in %.80q", ErrKey, key)
		case seg[0] == '.':
			return fmt.Errorf("%w: segment starts with a dot in %.80q", ErrKey, key)
		case len(seg) > MaxSegmentBytes:
			return fmt.Errorf("%w: segment of %d bytes, at most %d", ErrKey, len(seg), MaxSegmentBytes)
		}
		start = i + 1
	}
	return nil
}

func keyByte(c byte) bool {
	switch {
	case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		return true
	}
	switch c {
	case '.', '_', '~', '=', '+', ',', '@', '-':
		return true
	}
	return false
}

// checkList refuses what List could not mean the same way everywhere. A prefix may end in the middle of a
// segment; after may be any string (it is only compared).
func checkList(prefix, after string) error {
	if len(prefix) > MaxKeyBytes || len(after) > MaxKeyBytes {
		return fmt.Errorf("%w: list prefix or start longer than %d bytes", ErrKey, MaxKeyBytes)
	}
	for _, s := range []string{prefix, after} {
		for i := 0; i < len(s); i++ {
			if s[i] != '/' && !keyByte(s[i]) {
				return fmt.Errorf("%w: byte %#x in %.80q", ErrKey, s[i], s)
			}
		}
	}
	return nil
}

func listLimit(limit int) int {
	if limit < 1 || limit > MaxList {
		return MaxList
	}
	return limit
}

func checkRange(key string, off, length int64) error {
	if off < 0 || length < 0 || off+length < off {
		return fmt.Errorf("%w: offset %d length %d of %s", ErrRange, off, length, key)
	}
	return nil
}

// opError wraps an error once with what was attempted.
func opError(op Op, b Bucket, key string, err error) error {
	if err == nil {
		return nil
	}
	if key == "" {
		return fmt.Errorf("%s on %s: %w", op, b, err)
	}
	return fmt.Errorf("%s %s on %s: %w", op, key, b, err)
}

// Op names an operation in events, faults and errors.
type Op string

const (
	OpPut    Op = "put"
	OpGet    Op = "get"
	OpHead   Op = "head"
	OpList   Op = "list"
	OpDelete Op = "delete"
)

// Ops lists all operations.
func Ops() []Op { return []Op{OpPut, OpGet, OpHead, OpList, OpDelete} }
