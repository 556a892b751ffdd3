package vfs

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// queue is the kernel's queue of writes that go on while their caller does something else (io_setup(2), io_submit(2)). A
// goroutine for each would do the same, once there is a processor for it: the caller's own is busy with the next chunk, and
// the others with requests.
type queue struct {
	ctx    uintptr // 0: not made yet
	none   bool    // the kernel has none for this process
	cbs    [directDepth]iocb
	cb     *iocb // what is being submitted
	events [directDepth]ioEvent
}

// iocb is struct iocb of linux/aio_abi.h.
type iocb struct {
	data      uint64
	key       uint64 // and flags of the write, in the order of the machine's bytes
	opcode    uint16
	prio      int16
	fd        uint32
	buf       uint64
	bytes     uint64
	off       int64
	_         uint64
	flags     uint32
	signalled uint32
}

// ioEvent is struct io_event of linux/aio_abi.h.
type ioEvent struct {
	data uint64
	_    uint64
	res  int64 // bytes written, or minus the error
	_    int64
}

const opWrite = 1 // IOCB_CMD_PWRITE

// submit begins to write b at off. false: it does not, and b is to be written in another way.
func (q *queue) submit(fd, slot int, b []byte, off int64) bool {
	if q.ctx == 0 && !q.none {
		if _, _, e := unix.Syscall(unix.SYS_IO_SETUP, directDepth, uintptr(unsafe.Pointer(&q.ctx)), 0); e != 0 {
			q.ctx, q.none = 0, true
		}
	}
	if q.none {
		return false
	}
	q.cb = &q.cbs[slot]
	*q.cb = iocb{data: uint64(slot), opcode: opWrite, fd: uint32(fd), buf: uint64(uintptr(unsafe.Pointer(&b[0]))), bytes: uint64(len(b)), off: off}
	for {
		n, _, e := unix.Syscall(unix.SYS_IO_SUBMIT, q.ctx, 1, uintptr(unsafe.Pointer(&q.cb)))
		if e == unix.EINTR {
			continue
		}
		return e == 0 && n == 1
	}
}

// wait waits for n writes, each of which it settles: how many bytes of it were written, or why not.
func (q *queue) wait(n int, settle func(slot, done int, err error)) error {
	for n > 0 {
		got, _, e := unix.Syscall6(unix.SYS_IO_GETEVENTS, q.ctx, uintptr(n), directDepth, uintptr(unsafe.Pointer(&q.events)), 0, 0)
		if e == unix.EINTR {
			continue
		}
		if e != 0 {
			return e
		}
		for _, ev := range q.events[:got] {
			if ev.res < 0 {
				settle(int(ev.data), 0, unix.Errno(-ev.res))
			} else {
				settle(int(ev.data), int(ev.res), nil)
			}
		}
		n -= int(got)
	}
	return nil
}
