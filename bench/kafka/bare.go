package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"golang.org/x/sys/unix"

	"github.com/varve/varve/bench/load"
	"github.com/varve/varve/internal/child"
)

// Bare programs do what a measurement asks of a broker, and nothing else: they
// are the floor where bench/floor is none. They are this program, run once more.

const bareCommand = "bare-program"

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// bareMain is a bare program: what, where it serves, what it needs. It serves until it is ended, or returns why it cannot.
func bareMain(args []string) error {
	if len(args) != 3 {
		return fmt.Errorf("%s: %q", bareCommand, args)
	}
	switch args[0] {
	case "replay":
		return bareReplay(args[1], args[2])
	case "restart":
		return bareRestart(args[1], args[2])
	}
	return fmt.Errorf("no bare program %q", args[0])
}

// startBare runs a bare program and returns when it serves at addr.
func (r *runner) startBare(ctx context.Context, what, arg string) (addr string, p *child.Process, err error) {
	self, err := os.Executable()
	if err != nil {
		return "", nil, err
	}
	if addr, err = child.FreeAddr(); err != nil {
		return "", nil, err
	}
	p, err = child.Start(ctx, &child.Process{Name: "the bare " + what, Log: filepath.Join(r.dir, "bare.log")},
		execCommand(self, bareCommand, what, addr, arg), func() error { return child.Dialled(addr) })
	return addr, p, err
}

// bareStore is a bucket as a bare program is told of it.
type bareStore struct {
	Dir      string `json:"dir,omitempty"`
	Endpoint string `json:"endpoint,omitempty"`
	Limit    int64  `json:"limit"`
}

// bareReplay sends what a bucket has to whoever connects: ranges of 8 MiB, eight
// requested at a time, each sent with its length by the connection that is free.
// A connection asks with a byte.
func bareReplay(addr, arg string) error {
	var store bareStore
	if err := json.Unmarshal([]byte(arg), &store); err != nil {
		return err
	}
	k := &bucket{dir: store.Dir}
	if store.Endpoint != "" {
		var err error
		if k.minio, err = minio.New(store.Endpoint, &minio.Options{Creds: credentials.NewStaticV4(child.MinIOUser, child.MinIOPassword, "")}); err != nil {
			return err
		}
	}
	ctx := context.Background()
	parts, err := k.parts(ctx, store.Limit)
	if err != nil {
		return err
	}
	read := make(chan []byte) // as many as are sent wait for it
	free := make(chan []byte, 16)
	for range cap(free) {
		free <- make([]byte, 8<<20)
	}
	var once sync.Once
	fetch := func() {
		var next atomic.Int64
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for i := next.Add(1) - 1; i < int64(len(parts)); i = next.Add(1) - 1 {
					b := (<-free)[:parts[i].to-parts[i].from]
					if err := k.get(ctx, parts[i], b); err != nil {
						fmt.Fprintln(os.Stderr, err)
						os.Exit(1)
					}
					read <- b
				}
			})
		}
		wg.Wait()
		close(read)
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
				return
			}
			once.Do(func() { go fetch() })
			for b := range read {
				bufs := net.Buffers{binary.BigEndian.AppendUint32(nil, uint32(len(b))), b}
				if _, err := bufs.WriteTo(c); err != nil {
					return
				}
				free <- b[:cap(b)]
			}
		}()
	}
}

// replayBare measures the bare replay: as many readers as the row has consumers,
// which make a checksum over every byte, as the consumers do.
func (r *runner) replayBare(ctx context.Context, k *bucket, consumers int, limit int64) (sample, error) {
	arg, err := json.Marshal(bareStore{Dir: k.dir, Endpoint: k.endpoint, Limit: limit})
	if err != nil {
		return nil, err
	}
	addr, p, err := r.startBare(ctx, "replay", string(arg))
	if err != nil {
		return nil, err
	}
	defer p.Kill()
	before, err := load.Times(p.PID())
	if err != nil {
		return nil, err
	}
	began := time.Now()
	var total atomic.Int64
	errs := make(chan error, consumers)
	for range consumers {
		go func() { errs <- readBare(ctx, addr, &total) }()
	}
	for range consumers {
		if e := <-errs; e != nil {
			err = e
		}
	}
	took := time.Since(began).Seconds()
	if err != nil {
		p.Kill()
		return nil, fmt.Errorf("%w; %s", err, p.Tail())
	}
	if total.Load() == 0 {
		return nil, errors.New("the bare replay sent nothing")
	}
	after, err := load.Times(p.PID())
	cpu := (after.CPU - before.CPU).Seconds()
	gb := float64(total.Load()) / 1e9
	return sample{mReplay: gb * 1000 / took, mCPU: cpu / gb, mCores: cpu / took, mRSS: float64(after.RSS) / 1e6}, err
}

func readBare(ctx context.Context, addr string, total *atomic.Int64) error {
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	if _, err := c.Write([]byte{1}); err != nil {
		return err
	}
	b := make([]byte, 8<<20)
	for {
		var head [4]byte
		if _, err := io.ReadFull(c, head[:]); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		n := int(binary.BigEndian.Uint32(head[:]))
		if n > len(b) {
			return fmt.Errorf("a range of %d bytes", n)
		}
		if _, err := io.ReadFull(c, b[:n]); err != nil {
			return err
		}
		crc32.Checksum(b[:n], castagnoli)
		total.Add(int64(n))
	}
}

// bareRestart does what nothing that starts on a log can leave out: it looks at
// both ends of every segment in dir, reads the newest one, makes a checksum over
// it, and serves. What it has read does not stay in the page cache: the broker
// that starts after it would find its log there.
func bareRestart(addr, dir string) error {
	var segments []string // generations are in hexadecimal of one length
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && filepath.Ext(path) == ".wal" {
			segments = append(segments, path)
		}
		return err
	})
	if err != nil {
		return err
	}
	if len(segments) == 0 {
		return fmt.Errorf("no segments in %s", dir)
	}
	slices.Sort(segments)
	b := make([]byte, 1<<20)
	for i, name := range segments {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		st, err := f.Stat()
		if err == nil {
			_, err = f.ReadAt(b[:4096], 0)
		}
		if err == nil {
			_, err = f.ReadAt(b[:4096], st.Size()-4096)
		}
		for i == len(segments)-1 && err == nil {
			var n int
			n, err = f.Read(b)
			crc32.Checksum(b[:n], castagnoli)
		}
		unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
		f.Close()
		if err != nil && err != io.EOF {
			return err
		}
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		c.Close()
	}
}
