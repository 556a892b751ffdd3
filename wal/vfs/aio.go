package vfs

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// queue is the writes of a stage that go on while their caller does something else: in a queue of the kernel's (io_setup(2),
// io_submit(2)), or in a goroutine each where a process may not have one. Goroutines come later: they need a processor, the
// caller's own is busy with the next chunk, and the others with requests.
type queue struct {
	ctx    uintptr // 0: none
	none   bool    // the kernel gives this process none
	flying int     // writes that the kernel carries out
	cbs    [directDepth]iocb
	cb     *iocb // what is being submitted
	events [directDepth]ioEvent
	byHand chan written // of the goroutines
}

type written struct {
	slot, n int
	err     error
}

// iocb is struct iocb of linux/aio_abi.h.
type iocb struct {
	data   uint64
	_      uint64 // key, and flags of the write
	opcode uint16
	_      int16 // priority
	fd     uint32
	buf    uint64
	bytes  uint64
	off    int64
	_      uint64
	_      uint32 // flags
	_      uint32 // an eventfd
}

// ioEvent is struct io_event of linux/aio_abi.h.
type ioEvent struct {
	data uint64
	_    uint64
	res  int64 // bytes written, or minus the error
	_    int64
}

const opWrite = 1 // IOCB_CMD_PWRITE

// open makes the kernel's queue, if there can be one. A lack of room (fs.aio-max-nr) may pass, and is tried again with the
// next block.
func (q *queue) open() {
	if q.ctx != 0 || q.none {
		return
	}
	if _, _, e := unix.Syscall(unix.SYS_IO_SETUP, directDepth, uintptr(unsafe.Pointer(&q.ctx)), 0); e != 0 {
		q.ctx, q.none = 0, e != unix.EAGAIN && e != unix.ENOMEM
		return
	}
	// A filter may let a process begin what it does not let it end.
	var at unix.Timespec
	if _, _, e := unix.Syscall6(unix.SYS_IO_GETEVENTS, q.ctx, 0, directDepth, uintptr(unsafe.Pointer(&q.events)), uintptr(unsafe.Pointer(&at)), 0); e != 0 && e != unix.EINTR {
		unix.Syscall(unix.SYS_IO_DESTROY, q.ctx, 0, 0)
		q.ctx, q.none = 0, true
	}
}

// submit begins to write b at off.
func (q *queue) submit(fd, slot int, b []byte, off int64) {
	if q.open(); q.ctx != 0 {
		q.cb = &q.cbs[slot]
		*q.cb = iocb{data: uint64(slot), opcode: opWrite, fd: uint32(fd), buf: uint64(uintptr(unsafe.Pointer(&b[0]))), bytes: uint64(len(b)), off: off}
		e := unix.EINTR
		for n := uintptr(0); e == unix.EINTR; {
			if n, _, e = unix.Syscall(unix.SYS_IO_SUBMIT, q.ctx, 1, uintptr(unsafe.Pointer(&q.cb))); e == 0 && n == 1 {
				q.flying++
				return
			}
		}
	}
	go func() {
		n, err := pwriteAll(fd, b, off)
		q.byHand <- written{slot, n, err}
	}()
}

// wait waits for n writes, each of which it settles: how many bytes of it were written, or why not. An error says that
// the kernel does not tell, and may still be reading what it was given.
func (q *queue) wait(n int, settle func(slot, done int, err error)) error {
	for n > 0 {
		if q.flying == 0 {
			w := <-q.byHand
			settle(w.slot, w.n, w.err)
			n--
			continue
		}
		got, _, e := unix.Syscall6(unix.SYS_IO_GETEVENTS, q.ctx, uintptr(min(n, q.flying)), directDepth, uintptr(unsafe.Pointer(&q.events)), 0, 0)
		if e == unix.EINTR {
			continue
		}
		if e != 0 {
			return fmt.Errorf("%w: io_getevents: %s", ErrInFlight, e) // not as an error of the disk's
		}
		for _, ev := range q.events[:got] {
			done, err := outcome(ev.res)
			settle(int(ev.data), done, err)
		}
		n -= int(got)
		q.flying -= int(got)
	}
	return nil
}

// outcome is what a result of the kernel's says of a write. One that was interrupted, or that would have had to wait, has
// written nothing, and is to be written again.
func outcome(res int64) (done int, err error) {
	switch e := unix.Errno(-res); {
	case res >= 0:
		return int(res), nil
	case e == unix.EINTR, e == unix.EAGAIN:
		return 0, nil
	default:
		return 0, e
	}
}
