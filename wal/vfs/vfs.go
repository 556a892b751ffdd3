// Package vfs is the seam between the write-ahead log and the file system: the operating system's (OS), one in
// memory that can crash at any operation (Mem), and a wrapper that fails where it is told to (Faulty).
package vfs

import (
	"errors"
	"io"
	"io/fs"
)

// FS is what the log asks of a file system. Names are paths.
//
// A creation, removal or rename is durable once Sync of its directory has returned; until then a crash may
// undo any subset of them.
type FS interface {
	Create(name string) (File, error) // new and empty; an existing file is replaced
	Open(name string) (File, error)   // for reading and writing; fs.ErrNotExist
	Remove(name string) error
	Rename(from, to string) error
	List(dir string) ([]string, error) // names without the directory, sorted
	MkdirAll(dir string) error
	OpenDir(dir string) (Dir, error)
	// Lock is exclusive and ends with the process; ErrLocked. What it returns may be a Placer.
	Lock(name string) (io.Closer, error)
	// Free is how many bytes the disk that holds dir has left, and how many it has in all.
	Free(dir string) (free, size int64, err error)
}

// Dir is an open directory: whoever has one can make names durable though no more files may be opened.
type Dir interface {
	Sync() error // names; as of a File, another one proves nothing after one that failed
	Close() error
}

// Together is an FS whose files take one piece of memory that begins with a page (TakePages) with less work than many pieces.
type Together interface{ Together() bool }

// File is an open file. A write is durable once a Sync that began after it has returned without error; until then
// a crash may keep any part of it. After a failed Sync nothing is known about what was written since the last good
// one, and another Sync proves nothing.
type File interface {
	ReadAt(p []byte, off int64) (int, error)
	WriteAt(p []byte, off int64) (int, error)
	// WriteVAt writes the buffers one after the other at off. It consumes bufs. What it returns without an error
	// is all of them.
	WriteVAt(bufs [][]byte, off int64) (int64, error)
	// Allocate sets space aside so that writes below size do not run out of it, and makes the file that long: what
	// was not written reads as zeros. A file system that cannot do this returns nil and leaves the size; one that
	// is full returns syscall.ENOSPC.
	Allocate(size int64) error
	Sync() error // data, and the metadata without which it cannot be read
	Size() (int64, error)
	Close() error
}

// AsyncWriter is a File that can write while its caller does something else.
type AsyncWriter interface {
	// BeginWrite begins to write b at off and returns before that is done. False: it cannot, not now or not this, and has done
	// nothing. b must stay as it is, and nothing else be written, until EndWrite.
	BeginWrite(b []byte, off int64) bool
	// EndWrite waits for it and returns what WriteVAt would.
	EndWrite() (int64, error)
}

// Placer is a lock that can say what it is on. Two locks show the same place only if they are on one file of one
// running machine: so one of the two has ended. "" if that cannot be said.
type Placer interface{ Place() string }

// ErrLocked says that another process holds a lock.
var ErrLocked = errors.New("vfs: locked by another process")

// ErrInFlight says that what became of a write is not known: the disk may still read what it was given.
var ErrInFlight = errors.New("vfs: what became of a write is not known")

// ErrNotExist is fs.ErrNotExist.
var ErrNotExist = fs.ErrNotExist
