package wal

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/varve/varve/wal/crc32c"
	"github.com/varve/varve/wal/vfs"
)

// The marks of a directory say, to whoever keeps the same outside of it, how far it has come: a copy, or what was
// restored of it, has an earlier one. The log keeps them, and gives them no meaning; metadata.Marks has the rules.

const marksName = "marks"

var magicMarks = [8]byte{'V', 'A', 'R', 'V', 'E', 'M', 'R', 'K'}

const marksSize = 63

// marks are what the file of that name says.
type marks struct {
	last, next [16]byte
	cut        bool // recovery has cut off a block, and nobody was told yet
}

func (m marks) encode(uuid [16]byte) []byte {
	b := append([]byte(nil), magicMarks[:]...)
	b = le.AppendUint16(b, formatVersion)
	b = append(b, uuid[:]...)
	flags := byte(0)
	if m.cut {
		flags = 1
	}
	b = append(b, flags)
	b = append(b, m.last[:]...)
	b = append(b, m.next[:]...)
	return le.AppendUint32(b, crc32c.Checksum(b))
}

func decodeMarks(b []byte, uuid [16]byte) (m marks, err error) {
	if len(b) != marksSize || !bytes.Equal(b[:8], magicMarks[:]) || crc32c.Checksum(b[:marksSize-4]) != le.Uint32(b[marksSize-4:]) {
		return m, errInvalid
	}
	if v := le.Uint16(b[8:]); v != formatVersion {
		return m, fmt.Errorf("%w: %s file of format version %d, this program reads version %d", ErrVersion, marksName, v, formatVersion)
	}
	if !bytes.Equal(b[10:26], uuid[:]) {
		return m, nil // left by a log that was here before this one
	}
	m.cut = b[26]&1 != 0
	copy(m.last[:], b[27:])
	copy(m.next[:], b[43:])
	return m, nil
}

// readMarks loads the marks. A file that is damaged counts as one that is not there: whoever compares them then takes
// the directory for an old one, which costs a copy of what others have, and not a start.
func (l *Log) readMarks() error {
	f, err := l.fs.Open(l.path(marksName))
	if errors.Is(err, vfs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("wal: open %s: %w", marksName, err)
	}
	defer f.Close()
	b := make([]byte, marksSize+1)
	n, err := f.ReadAt(b, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("wal: read %s: %w", marksName, err)
	}
	if l.marks, err = decodeMarks(b[:n], l.id.uuid); errors.Is(err, ErrVersion) {
		return err
	} else if err != nil {
		l.corrupt("the %s file: it counts as missing", marksName)
	}
	return nil
}

// noteCut remembers that recovery has cut off a block, before anything is written over what is left of it: a process
// that finds no trace of it any more, after one that came no further, says it all the same.
func (l *Log) noteCut() error {
	if !l.cutTail || l.marks.cut {
		return nil
	}
	l.marks.cut = true
	err := l.replace(marksName, l.marks.encode(l.id.uuid))
	if isNoSpace(err) {
		l.log.Warn("write-ahead log: no room to remember that a block was cut off", "err", err)
		return nil
	}
	return err
}

// Marks returns the marks that the directory was given last; zero without any.
func (l *Log) Marks() (last, next [16]byte) {
	l.marksMu.Lock()
	defer l.marksMu.Unlock()
	return l.marks.last, l.marks.next
}

// SetMarks replaces the marks, durably, and forgets what CutTail says. One goroutine at a time, which has ended when
// the log is closed.
func (l *Log) SetMarks(last, next [16]byte) error {
	m := marks{last: last, next: next}
	if err := l.replace(marksName, m.encode(l.id.uuid)); err != nil {
		return err
	}
	l.marksMu.Lock()
	l.marks = m
	l.marksMu.Unlock()
	return nil
}

// CutTail says that recovery cut off a block that had been written in part, at this start or at one before, since
// SetMarks was last called. Nothing in it was acknowledged by this broker, unless the disk has changed it since: a
// replica that did this should be elected only after those that did not.
func (l *Log) CutTail() bool {
	l.marksMu.Lock()
	defer l.marksMu.Unlock()
	return l.marks.cut
}

// Written grows with every block.
func (l *Log) Written() int64 { return l.stats.blocks.Load() }

// Place names the directory among all that a process could have open: of two processes that show the same place, one
// has ended, for it is locked. "" if it cannot be named.
func (l *Log) Place() string {
	if p, ok := l.lock.(vfs.Placer); ok {
		return p.Place()
	}
	return ""
}
