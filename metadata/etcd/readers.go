package etcd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3rpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// An embedded etcd has no listener, so nobody outside the process could look at what it holds. What an operator's command
// has to see is served on a socket in its directory: to this user alone, for the directory is closed to others, and
// to be read only.

// ErrNoReaders: the process that has an etcd directory open serves no readers.
var ErrNoReaders = errors.New("metadata: no socket for readers")

// socketOf is where readers of the etcd in dir connect.
func socketOf(dir string) string { return filepath.Join(dir, "read.sock") }

// ServeReaders lets other processes of this user read what is stored, by OpenReader, until Close. An error is no reason
// not to go on: a path of more than about 100 bytes cannot be a socket's.
func (s *Server) ServeReaders() error {
	path := socketOf(s.dir)
	// Of a process that was killed; the lock says that no other has it.
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("socket for readers of etcd: %w", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return fmt.Errorf("socket for readers of etcd: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return fmt.Errorf("socket for readers of etcd: %w", err)
	}
	g := v3rpc.Server(s.etcd.Server, nil, onlyReads, grpc.ChainStreamInterceptor(noStreams))
	served := make(chan struct{})
	go func() {
		defer close(served)
		g.Serve(l) // ends with Stop, which removes the socket
	}()
	s.endReaders = func() {
		g.Stop()
		<-served
	}
	return nil
}

func onlyReads(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	if info.FullMethod != "/etcdserverpb.KV/Range" {
		return nil, status.Errorf(codes.PermissionDenied, "varve: this socket is for reading, not for %s", info.FullMethod)
	}
	return handler(ctx, req)
}

func noStreams(_ any, _ grpc.ServerStream, info *grpc.StreamServerInfo, _ grpc.StreamHandler) error {
	return status.Errorf(codes.PermissionDenied, "varve: this socket is for reading, not for %s", info.FullMethod)
}

// OpenReader returns a client that reads what the etcd in dir holds: of the process that has it open, or, if none has,
// by opening it. The directory must be there; ErrNoReaders if it is open and serves none.
func OpenReader(ctx context.Context, dir string, o DialOptions) (c *clientv3.Client, closer func() error, err error) {
	if _, err := os.Stat(filepath.Join(dir, dataDir)); err != nil {
		return nil, nil, fmt.Errorf("metadata: no etcd in %s: %w", dir, err)
	}
	for try := 0; ; try++ {
		s, err := Embedded(dir, o.Logger)
		if err == nil {
			return s.Client(), s.Close, nil
		}
		if !errors.Is(err, ErrLocked) {
			return nil, nil, err
		}
		path := socketOf(dir)
		if _, err := os.Stat(path); err == nil {
			o.Endpoints = []string{"unix:" + path}
			if c, err = Dial(ctx, o); err != nil {
				return nil, nil, err
			}
			return c, c.Close, nil
		}
		// It may be about to be there, or its process about to end.
		if try == 20 {
			return nil, nil, fmt.Errorf("%w: %s", ErrNoReaders, path)
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		}
	}
}
