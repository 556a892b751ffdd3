package main

import (
	"fmt"
	"io/fs"
	"net"
	"os"
	"syscall"
	"testing"
)

// A reader that has gone away is no error; a broker, etcd or a bucket that has is one.
func TestWhosePipe(t *testing.T) {
	broken := os.NewSyscallError("write", syscall.EPIPE)
	for _, tc := range []struct {
		err  error
		want bool
	}{
		{&fs.PathError{Op: "write", Path: os.Stdout.Name(), Err: syscall.EPIPE}, true},
		{fmt.Errorf("records: %w", &fs.PathError{Op: "write", Path: os.Stdout.Name(), Err: syscall.EPIPE}), true},
		{&net.OpError{Op: "write", Net: "tcp", Err: broken}, false},
		{fmt.Errorf("produce: %w", &net.OpError{Op: "write", Net: "tcp", Err: broken}), false},
	} {
		if got := toPipe(tc.err); got != tc.want {
			t.Errorf("%v: to a pipe %v", tc.err, got)
		}
	}
}
