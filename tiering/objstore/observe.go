package objstore

import (
	"context"
	"io"
	"sync"
	"sync/atomic"
	"time"
)

// Events tell what happens to a bucket; any may be nil, none may block.
type Events struct {
	Begin func(op Op) // a call has begun; End follows exactly once
	End   func(e Event)
}

// Event is one finished call. A read is finished when its reader is closed.
type Event struct {
	Op        Op
	Key       string // first key of a delete, prefix of a list
	Objects   int    // list: found; delete: asked for; else 1
	Bytes     int64  // put: the body's; get: really read
	Duration  time.Duration
	FirstByte time.Duration // get: until GetRange returned
	Err       error         // see ClassOf; a reader closed early is no error
}

// Observe wraps b so that every call is told to e.
func Observe(b Bucket, e Events) Bucket {
	o := &observed{b: b, e: e}
	if a, ok := b.(MultipartAborter); ok {
		return &observedAborter{observed: o, a: a}
	}
	return o
}

type observed struct {
	b Bucket
	e Events
}

type observedAborter struct {
	*observed
	a MultipartAborter
}

func (o *observedAborter) AbortIncomplete(ctx context.Context, before time.Time) (int, error) {
	return o.a.AbortIncomplete(ctx, before)
}

func (o *observed) begin(op Op) time.Time {
	if o.e.Begin != nil {
		o.e.Begin(op)
	}
	return time.Now()
}

func (o *observed) end(begin time.Time, e Event) {
	if o.e.End != nil {
		e.Duration = time.Since(begin)
		o.e.End(e)
	}
}

func (o *observed) Put(ctx context.Context, key string, body io.ReadSeeker, size int64, crc32c uint32) error {
	t := o.begin(OpPut)
	err := o.b.Put(ctx, key, body, size, crc32c)
	o.end(t, Event{Op: OpPut, Key: key, Objects: 1, Bytes: size, Err: err})
	return err
}

func (o *observed) GetRange(ctx context.Context, key string, off, length int64) (io.ReadCloser, error) {
	t := o.begin(OpGet)
	r, err := o.b.GetRange(ctx, key, off, length)
	e := Event{Op: OpGet, Key: key, Objects: 1, FirstByte: time.Since(t), Err: err}
	if err != nil {
		o.end(t, e)
		return nil, err
	}
	return &observedReader{r: r, o: o, begin: t, e: e}, nil
}

type observedReader struct {
	r     io.ReadCloser
	o     *observed
	begin time.Time
	e     Event
	once  sync.Once
}

func (r *observedReader) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	r.e.Bytes += int64(n)
	if err != nil && err != io.EOF {
		r.e.Err = err
	}
	return n, err
}

func (r *observedReader) Close() error {
	err := r.r.Close()
	r.once.Do(func() { r.o.end(r.begin, r.e) })
	return err
}

func (o *observed) Head(ctx context.Context, key string) (int64, error) {
	t := o.begin(OpHead)
	size, err := o.b.Head(ctx, key)
	o.end(t, Event{Op: OpHead, Key: key, Objects: 1, Err: err})
	return size, err
}

func (o *observed) List(ctx context.Context, prefix, after string, limit int) ([]Info, bool, error) {
	t := o.begin(OpList)
	infos, more, err := o.b.List(ctx, prefix, after, limit)
	o.end(t, Event{Op: OpList, Key: prefix, Objects: len(infos), Err: err})
	return infos, more, err
}

func (o *observed) Delete(ctx context.Context, keys []string) error {
	t := o.begin(OpDelete)
	err := o.b.Delete(ctx, keys)
	e := Event{Op: OpDelete, Objects: len(keys), Err: err}
	if len(keys) > 0 {
		e.Key = keys[0]
	}
	o.end(t, e)
	return err
}

func (o *observed) String() string { return o.b.String() }
func (o *observed) Close() error   { return o.b.Close() }

// Counter adds up events, for tests and reports that need no more than totals.
type Counter struct {
	Calls, Errors, BytesPut, BytesGot atomic.Int64
}

// Events returns the events that feed the counter.
func (c *Counter) Events() Events {
	return Events{End: func(e Event) {
		c.Calls.Add(1)
		if e.Err != nil {
			c.Errors.Add(1)
			return
		}
		switch e.Op {
		case OpPut:
			c.BytesPut.Add(e.Bytes)
		case OpGet:
			c.BytesGot.Add(e.Bytes)
		}
	}}
}
