package cache

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"
)

// The slot file (bytes in the README): a header page, a table with one entry per slot, the slots. Nothing in it is
// fsynced, and it is never trusted: an entry counts if its own checksum holds, a slot if the checksum in its entry
// does. A slot's data is written before its entry, and either may be lost in a crash; in every mixture of old and new
// the checksums differ and the chunk is a miss.
const (
	diskFile    = "chunks.cache"
	diskMagic   = "VRVCHNKS"
	diskVersion = 1
	headerSize  = 4096
	entrySize   = 512
	entryMagic  = 0x544c5356         // "VSLT"
	maxDiskKey  = entrySize - 28 - 4 // 480
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// errCorrupt marks slots whose bytes are not the ones that were written.
var errCorrupt = errors.New("slot is damaged")

// disk is the slot file and its index. The fields are guarded by Cache.mu; read and write, which do I/O, are called
// without it, on slots that are pinned or allocated and so belong to the caller.
type disk struct {
	f         *os.File
	slotBytes int
	slots     int
	dataStart int64

	index   map[Key]*slotEntry
	policy  *policy // weights are slots
	free    []int32
	pending []Key // to be written, oldest first; what has left memory meanwhile is skipped
	queued  map[Key]struct{}
	notify  chan struct{}
	limit   *rate.Limiter
}

// slotEntry is one chunk in the slot file. Slots of an entry that was evicted while somebody reads it are freed by the
// last reader.
type slotEntry struct {
	key    Key
	node   *node
	slots  []int32
	crcs   []uint32
	length int
	pins   int
	dead   bool
}

func openDisk(o Options) (*disk, error) {
	slots := o.DiskBytes / int64(o.ChunkBytes+entrySize)
	if slots < 1 {
		return nil, fmt.Errorf("%d bytes do not hold one chunk of %d", o.DiskBytes, o.ChunkBytes)
	}
	slots = min(slots, 1<<30)
	if err := os.MkdirAll(o.Dir, 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(o.Dir, diskFile), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("%s is in use by another process: %w", f.Name(), err)
	}
	d := &disk{
		f: f, slotBytes: o.ChunkBytes, slots: int(slots),
		dataStart: (headerSize + slots*entrySize + headerSize - 1) / headerSize * headerSize,
		index:     map[Key]*slotEntry{}, policy: newPolicy(slots), queued: map[Key]struct{}{}, notify: make(chan struct{}, 1),
	}
	if o.DiskWriteBytes > 0 {
		d.limit = rate.NewLimiter(rate.Limit(o.DiskWriteBytes), max(int(min(o.DiskWriteBytes, 1<<30)), o.ChunkBytes))
	}
	if err := d.load(o.Identity); err != nil {
		f.Close()
		return nil, err
	}
	return d, nil
}

func (d *disk) header(identity string) []byte {
	b := make([]byte, headerSize)
	copy(b, diskMagic)
	binary.LittleEndian.PutUint32(b[8:], diskVersion)
	binary.LittleEndian.PutUint32(b[12:], uint32(d.slotBytes))
	binary.LittleEndian.PutUint32(b[16:], uint32(d.slots))
	id := sha256.Sum256([]byte(identity))
	copy(b[20:36], id[:])
	binary.LittleEndian.PutUint32(b[headerSize-4:], crc32.Checksum(b[:headerSize-4], castagnoli))
	return b
}

// load reads the table, or starts an empty file if this one is of another cluster, version or shape.
func (d *disk) load(identity string) error {
	want, got := d.header(identity), make([]byte, headerSize)
	if n, err := d.f.ReadAt(got, 0); n < headerSize || !bytes.Equal(want, got) {
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if err := d.f.Truncate(0); err != nil {
			return err
		}
		if _, err := d.f.WriteAt(want, 0); err != nil {
			return err
		}
		for s := d.slots - 1; s >= 0; s-- {
			d.free = append(d.free, int32(s))
		}
		return nil
	}
	used := make([]bool, d.slots)
	partial := map[Key]*slotEntry{}
	buf := make([]byte, 1024*entrySize)
	for first := 0; first < d.slots; first += 1024 {
		b := buf[:min(1024, d.slots-first)*entrySize]
		n, err := d.f.ReadAt(b, headerSize+int64(first)*entrySize)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		b = b[:n/entrySize*entrySize]
		for i := 0; i*entrySize < len(b); i++ {
			e, ok := parseEntry(b[i*entrySize:(i+1)*entrySize], d.slotBytes)
			if !ok {
				continue
			}
			p := partial[e.key]
			if p == nil {
				p = &slotEntry{key: e.key, length: e.total, slots: make([]int32, e.parts), crcs: make([]uint32, e.parts)}
				for k := range p.slots {
					p.slots[k] = -1
				}
				partial[e.key] = p
			}
			// The same part twice is an old copy beside a new one: both hold the same bytes.
			if p.length == e.total && len(p.slots) == e.parts && p.slots[e.part] < 0 {
				p.slots[e.part], p.crcs[e.part] = int32(first+i), e.crc
			}
		}
	}
	for _, p := range partial {
		whole := true
		for _, s := range p.slots {
			whole = whole && s >= 0
		}
		if whole {
			for _, s := range p.slots {
				used[s] = true
			}
			d.insert(p)
		}
	}
	for s := d.slots - 1; s >= 0; s-- {
		if !used[s] {
			d.free = append(d.free, int32(s))
		}
	}
	return nil
}

// tableEntry is what the table says of one slot: part of parts of a chunk of total bytes.
type tableEntry struct {
	key         Key
	part, parts int
	total       int
	crc         uint32 // of this part
}

func partsOf(total, slotBytes int) int { return (total + slotBytes - 1) / slotBytes }

func partLen(total, part, slotBytes int) int { return min(slotBytes, total-part*slotBytes) }

func appendEntry(e tableEntry, slotBytes int) []byte {
	b := make([]byte, entrySize)
	binary.LittleEndian.PutUint32(b[0:], entryMagic)
	binary.LittleEndian.PutUint16(b[4:], diskVersion)
	binary.LittleEndian.PutUint16(b[6:], uint16(len(e.key.Object)))
	binary.LittleEndian.PutUint32(b[8:], uint32(e.key.Chunk))
	binary.LittleEndian.PutUint16(b[12:], uint16(e.part))
	binary.LittleEndian.PutUint16(b[14:], uint16(e.parts))
	binary.LittleEndian.PutUint32(b[16:], uint32(e.total))
	binary.LittleEndian.PutUint32(b[20:], uint32(partLen(e.total, e.part, slotBytes)))
	binary.LittleEndian.PutUint32(b[24:], e.crc)
	copy(b[28:], e.key.Object)
	binary.LittleEndian.PutUint32(b[entrySize-4:], crc32.Checksum(b[:entrySize-4], castagnoli))
	return b
}

func parseEntry(b []byte, slotBytes int) (tableEntry, bool) {
	if len(b) != entrySize || binary.LittleEndian.Uint32(b) != entryMagic || binary.LittleEndian.Uint16(b[4:]) != diskVersion ||
		binary.LittleEndian.Uint32(b[entrySize-4:]) != crc32.Checksum(b[:entrySize-4], castagnoli) {
		return tableEntry{}, false
	}
	keyLen := int(binary.LittleEndian.Uint16(b[6:]))
	e := tableEntry{
		part: int(binary.LittleEndian.Uint16(b[12:])), parts: int(binary.LittleEndian.Uint16(b[14:])),
		total: int(binary.LittleEndian.Uint32(b[16:])), crc: binary.LittleEndian.Uint32(b[24:]),
	}
	if keyLen == 0 || keyLen > maxDiskKey || e.total <= 0 || e.parts != partsOf(e.total, slotBytes) || e.part >= e.parts ||
		int(binary.LittleEndian.Uint32(b[20:])) != partLen(e.total, e.part, slotBytes) {
		return tableEntry{}, false
	}
	e.key = Key{string(b[28 : 28+keyLen]), int(binary.LittleEndian.Uint32(b[8:]))}
	return e, true
}

func (d *disk) insert(e *slotEntry) {
	e.node = d.policy.add(e.key, int64(len(e.slots)), false, 0)
	d.index[e.key] = e
}

func (d *disk) has(key Key) bool { return d.index[key] != nil }

// pin returns the slots of a chunk for reading, or nil. Until unpin they are not written to.
func (d *disk) pin(key Key, length int) *slotEntry {
	e := d.index[key]
	if e == nil || e.length != length {
		return nil
	}
	d.policy.touch(e.node)
	e.pins++
	return e
}

func (d *disk) unpin(e *slotEntry) {
	e.pins--
	d.reap(e)
}

func (d *disk) reap(e *slotEntry) {
	if e.dead && e.pins == 0 {
		d.free = append(d.free, e.slots...)
		e.slots = nil
	}
}

func (d *disk) drop(key Key) {
	if e := d.index[key]; e != nil {
		d.policy.remove(e.node)
		delete(d.index, key)
		e.dead = true
		d.reap(e)
	}
}

// want queues a chunk of memory for writing. What is queued twice or too much is not written.
func (d *disk) want(key Key) {
	if _, ok := d.queued[key]; ok || len(key.Object) > maxDiskKey || len(d.pending) >= 1<<14 {
		return
	}
	d.queued[key] = struct{}{}
	d.pending = append(d.pending, key)
	d.wake()
}

func (d *disk) wake() {
	select {
	case d.notify <- struct{}{}:
	default:
	}
}

func (d *disk) next() (Key, bool) {
	if len(d.pending) == 0 {
		return Key{}, false
	}
	key := d.pending[0]
	d.pending = d.pending[1:]
	delete(d.queued, key)
	return key, true
}

// allocate returns n free slots, evicting for them, or nil if they cannot be had now. It tells how many chunks went.
func (d *disk) allocate(n int) (slots []int32, evicted int64) {
	if n > d.slots {
		return nil, 0
	}
	for len(d.free) < n {
		v := d.policy.evict()
		if v == nil {
			return nil, evicted // all that is left is being read
		}
		evicted++
		e := d.index[v.key]
		delete(d.index, v.key)
		e.dead = true
		d.reap(e)
	}
	slots = append(slots, d.free[len(d.free)-n:]...)
	d.free = d.free[:len(d.free)-n]
	return slots, evicted
}

func (d *disk) usedBytes() int64 { return int64(d.slots-len(d.free)) * int64(d.slotBytes) }
func (d *disk) maxBytes() int64  { return int64(d.slots) * int64(d.slotBytes) }

// read fills dst from pinned slots and verifies it. It takes no lock.
func (d *disk) read(e *slotEntry, dst []byte) error {
	for part, slot := range e.slots {
		b := dst[part*d.slotBytes:][:partLen(e.length, part, d.slotBytes)]
		if _, err := d.f.ReadAt(b, d.dataStart+int64(slot)*int64(d.slotBytes)); err != nil {
			if errors.Is(err, io.EOF) {
				return fmt.Errorf("slot %d: %w: beyond the end of the file", slot, errCorrupt)
			}
			return fmt.Errorf("slot %d: %w", slot, err)
		}
		if sum := crc32.Checksum(b, castagnoli); sum != e.crcs[part] {
			return fmt.Errorf("slot %d of chunk %d of %s: %w: CRC32C %08x, %08x written", slot, e.key.Chunk, e.key.Object, errCorrupt, sum, e.crcs[part])
		}
	}
	return nil
}

// write fills allocated slots, data before table entries. It takes no lock.
func (d *disk) write(e *slotEntry, data []byte) error {
	for part, slot := range e.slots {
		b := data[part*d.slotBytes:][:partLen(e.length, part, d.slotBytes)]
		e.crcs[part] = crc32.Checksum(b, castagnoli)
		if _, err := d.f.WriteAt(b, d.dataStart+int64(slot)*int64(d.slotBytes)); err != nil {
			return err
		}
	}
	for part, slot := range e.slots {
		b := appendEntry(tableEntry{key: e.key, part: part, parts: len(e.slots), total: e.length, crc: e.crcs[part]}, d.slotBytes)
		if _, err := d.f.WriteAt(b, headerSize+int64(slot)*entrySize); err != nil {
			return err
		}
	}
	return nil
}

func (d *disk) close() error { return d.f.Close() }

// diskPause is how long nothing is written after a write has failed (no space, most likely): the cache must not
// compete for a disk that is full, and can do without.
const diskPause = time.Minute

// writeBehind copies chunks that were loaded into the slot file, as long as they are in memory. It is one
// goroutine; a slow disk makes it skip chunks, never wait for it.
func (c *Cache) writeBehind() {
	defer c.wg.Done()
	for {
		c.mu.Lock()
		if c.closed {
			c.mu.Unlock()
			return
		}
		key, ok := c.disk.next()
		if !ok {
			c.mu.Unlock()
			select {
			case <-c.disk.notify:
			case <-c.ctx.Done():
			}
			continue
		}
		held := c.entries[key]
		if held == nil {
			c.stats.DiskSkipped++
			c.mu.Unlock()
			continue
		}
		if c.disk.has(key) {
			c.mu.Unlock()
			continue
		}
		data := held.buf.Bytes()
		slots, evicted := c.disk.allocate(partsOf(len(data), c.disk.slotBytes))
		c.stats.DiskEvictions += evicted
		if slots == nil {
			c.stats.DiskSkipped++
			c.mu.Unlock()
			continue
		}
		buf := held.buf
		buf.Retain() // one chunk beyond the bound, if it is evicted meanwhile
		c.mu.Unlock()

		e := &slotEntry{key: key, slots: slots, crcs: make([]uint32, len(slots)), length: len(data)}
		err := c.pace(len(data))
		if err == nil {
			err = c.disk.write(e, data)
		}
		buf.Release()

		c.mu.Lock()
		if err != nil || c.disk.has(key) {
			c.disk.free = append(c.disk.free, slots...)
		} else {
			c.disk.insert(e)
			c.stats.DiskWrites++
		}
		closed := c.closed
		if err != nil && !closed {
			c.stats.DiskErrors++
		}
		c.mu.Unlock()
		if err != nil && !closed {
			c.o.Logger.Warn("chunk cache: slot file cannot be written, pausing", "dir", c.o.Dir, "pause", diskPause, "error", err)
			c.diskEvent(err)
			t := time.NewTimer(diskPause)
			select {
			case <-t.C:
			case <-c.ctx.Done():
			}
			t.Stop()
		}
	}
}

// pace waits until n more bytes may be written.
func (c *Cache) pace(n int) error {
	if c.disk.limit == nil {
		return nil
	}
	for n > 0 {
		step := min(n, c.disk.limit.Burst())
		if err := c.disk.limit.WaitN(c.ctx, step); err != nil {
			return err
		}
		n -= step
	}
	return nil
}

// diskFault forgets a chunk whose slots could not be read; c.mu is held.
func (c *Cache) diskFault(key Key, e *slotEntry, err error) {
	if c.disk.index[key] == e {
		c.disk.drop(key)
	}
	if errors.Is(err, errCorrupt) {
		c.stats.DiskCorrupt++
	} else {
		c.stats.DiskErrors++
	}
}

func (c *Cache) diskEvent(err error) {
	if c.o.Events.DiskError != nil {
		c.o.Events.DiskError(err)
	}
}
