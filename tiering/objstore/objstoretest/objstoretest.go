// Package objstoretest is the acceptance test of a bucket: what every implementation of objstore.Bucket must do, so
// that whoever uses one need not know which.
package objstoretest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/varve/varve/tiering/objstore"
)

// Options say what an implementation cannot be held to.
type Options struct {
	// PartThreshold is the size above which the bucket under test uploads in parts; 0: it does not. Bodies around it are
	// tried.
	PartThreshold int64
	// NoCondition: the store is not asked to refuse overwriting, so that writers who race for one name can all win.
	NoCondition bool
}

// Run puts the bucket that open returns through all of it. open is called once; the bucket may hold other objects, under
// keys that do not start with "t-".
func Run(t *testing.T, open func(t *testing.T) objstore.Bucket, o Options) {
	b := open(t)
	tests := []struct {
		name string
		f    func(*testing.T, objstore.Bucket, Options)
	}{
		{"PutGet", putGet}, {"Ranges", ranges}, {"Missing", missing}, {"Head", head}, {"List", list}, {"ListPages", listPages},
		{"Delete", deletes}, {"Large", large}, {"SeekOnlyBody", seekOnly}, {"BodyPosition", bodyPosition}, {"Checksum", checksum}, {"NoOverwrite", noOverwrite},
		{"Keys", keys}, {"Concurrent", concurrent}, {"Cancel", cancel}, {"Probe", probe},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { tt.f(t, b, o) })
	}
	if err := b.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
}

var serial atomic.Int64

// base is a key prefix of one test's own.
func base() string { return fmt.Sprintf("t-%d-%d/", time.Now().UnixNano(), serial.Add(1)) }

func content(n int, seed uint64) []byte {
	b := make([]byte, n)
	r := rand.New(rand.NewPCG(seed, 7))
	for i := 0; i < n; i += 8 {
		v := r.Uint64()
		for k := i; k < min(i+8, n); k++ {
			b[k] = byte(v)
			v >>= 8
		}
	}
	return b
}

func put(t testing.TB, b objstore.Bucket, key string, data []byte) {
	t.Helper()
	if err := b.Put(context.Background(), key, bytes.NewReader(data), int64(len(data)), objstore.CRC32C(data)); err != nil {
		t.Fatal(err)
	}
}

func want(t testing.TB, b objstore.Bucket, key string, data []byte) {
	t.Helper()
	got, err := objstore.ReadRange(context.Background(), b, key, 0, int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, data) {
		t.Fatalf("%s: %d bytes differ from what was put", key, len(data))
	}
}

func wantErr(t testing.TB, err, sentinel error) {
	t.Helper()
	if !errors.Is(err, sentinel) {
		t.Fatalf("got %v, want %v", err, sentinel)
	}
}

func putGet(t *testing.T, b objstore.Bucket, _ Options) {
	p := base()
	for _, n := range []int{0, 1, 61, 4096, 1<<20 + 1} {
		key := fmt.Sprint(p, "ab/cd-", n)
		put(t, b, key, content(n, 1))
		want(t, b, key, content(n, 1))
	}
}

func ranges(t *testing.T, b objstore.Bucket, _ Options) {
	ctx := context.Background()
	key := base() + "o"
	const size = 100_000
	data := content(size, 2)
	put(t, b, key, data)
	for _, r := range [][2]int64{{0, 1}, {0, size}, {1, size - 1}, {size - 1, 1}, {4095, 2}, {50_000, 50_000}, {0, 0}, {10, 0}, {size, 0}} {
		got, err := objstore.ReadRange(ctx, b, key, r[0], r[1])
		if err != nil || !bytes.Equal(got, data[r[0]:r[0]+r[1]]) {
			t.Errorf("[%d,+%d): %v", r[0], r[1], err)
		}
	}
	for _, r := range [][2]int64{{0, size + 1}, {size - 1, 2}, {size, 1}, {size + 10, 1}, {size + 1, 0}, {-1, 1}, {0, -1}, {1 << 62, 1 << 62}} {
		body, err := b.GetRange(ctx, key, r[0], r[1])
		if err == nil {
			body.Close()
		}
		if !errors.Is(err, objstore.ErrRange) {
			t.Errorf("[%d,+%d): got %v, want %v", r[0], r[1], err, objstore.ErrRange)
		}
	}
	// A reader may be closed at any time.
	body, err := b.GetRange(ctx, key, 0, size)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(body, make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	if err := body.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := body.Read(make([]byte, 10)); err == nil {
		t.Error("read after close succeeded")
	}
}

func missing(t *testing.T, b objstore.Bucket, _ Options) {
	ctx := context.Background()
	p := base()
	put(t, b, p+"dir/o", []byte("x"))
	for _, key := range []string{p + "no", p + "dir", p + "dir/o/below", p + "dir/no"} {
		_, err := b.GetRange(ctx, key, 0, 1)
		wantErr(t, err, objstore.ErrNotExist)
		_, err = b.GetRange(ctx, key, 0, 0)
		wantErr(t, err, objstore.ErrNotExist)
		_, err = b.Head(ctx, key)
		wantErr(t, err, objstore.ErrNotExist)
	}
}

func head(t *testing.T, b objstore.Bucket, _ Options) {
	p := base()
	for _, n := range []int{0, 1, 12345} {
		key := fmt.Sprint(p, n)
		put(t, b, key, content(n, 3))
		if size, err := b.Head(context.Background(), key); err != nil || size != int64(n) {
			t.Errorf("%d bytes: %d, %v", n, size, err)
		}
	}
}

func names(infos []objstore.Info) []string {
	var out []string
	for _, in := range infos {
		out = append(out, in.Key)
	}
	return out
}

func list(t *testing.T, b objstore.Bucket, _ Options) {
	ctx := context.Background()
	p := base()
	// The order of keys is that of their bytes: "a-b", "a.b" and "a/b" are not neighbours of "a" as directories are.
	all := []string{"a", "a+b", "a-b", "a.b", "a/b", "a/b-c/d", "a/b.c", "a/c", "a0", "a=1", "aa", "b/c/d/e", "b/c/d/f", "c"}
	for i, k := range all {
		if k == "a" || k == "a/b" {
			continue // below: an object and a "directory" of one name are not for every store
		}
		put(t, b, p+k, content(i, 4))
	}
	all = slices.DeleteFunc(slices.Clone(all), func(k string) bool { return k == "a" || k == "a/b" })
	check := func(prefix, after string, limit int) {
		t.Helper()
		var exp []string
		for _, k := range all {
			if strings.HasPrefix(k, prefix) && (after == "" || k > after) {
				exp = append(exp, p+k)
			}
		}
		from := ""
		if after != "" {
			from = p + after
		}
		infos, more, err := b.List(ctx, p+prefix, from, limit)
		if err != nil {
			t.Fatal(err)
		}
		wantMore := limit > 0 && len(exp) > limit
		if wantMore {
			exp = exp[:limit]
		}
		if !slices.Equal(names(infos), exp) || more != wantMore {
			t.Errorf("list(%q, after %q, %d):\n got %q more %v\nwant %q more %v", prefix, after, limit, names(infos), more, exp, wantMore)
		}
	}
	for _, prefix := range []string{"", "a", "a/", "a/b", "a.", "b", "b/c/", "b/c/d/e", "zz", "A"} {
		for _, after := range []string{"", "a", "a/", "a/b.c", "a.b", "aa", "b/c/d/e", "b/", "c", "zzz", "A"} {
			for _, limit := range []int{0, 1, 3, 1000} {
				check(prefix, after, limit)
			}
		}
	}
	infos, _, err := b.List(ctx, p+"aa", "", 0)
	if err != nil || len(infos) != 1 || infos[0].Size != 10 || time.Since(infos[0].Modified).Abs() > time.Hour {
		t.Errorf("%+v %v", infos, err)
	}
}

func listPages(t *testing.T, b objstore.Bucket, _ Options) {
	ctx := context.Background()
	p := base()
	const n = 57
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { put(t, b, fmt.Sprintf("%s%02d/x", p, i), nil) })
	}
	wg.Wait()
	var got []string
	after := ""
	for {
		infos, more, err := b.List(ctx, p, after, 10)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, names(infos)...)
		if !more {
			break
		}
		if len(infos) == 0 {
			t.Fatal("an empty page with more behind it")
		}
		after = infos[len(infos)-1].Key
	}
	if len(got) != n || !slices.IsSorted(got) || len(slices.Compact(got)) != n {
		t.Errorf("%d keys: %q", len(got), got)
	}
}

func deletes(t *testing.T, b objstore.Bucket, _ Options) {
	ctx := context.Background()
	p := base()
	var all []string
	for i := range 20 {
		all = append(all, fmt.Sprintf("%sd%d/e/o", p, i))
		put(t, b, all[i], []byte("x"))
	}
	put(t, b, p+"stays", []byte("y"))
	if err := b.Delete(ctx, append([]string{p + "never-was", p + "d0"}, all[:15]...)); err != nil {
		t.Fatal(err)
	}
	if err := b.Delete(ctx, all); err != nil {
		t.Fatal(err)
	}
	if err := b.Delete(ctx, nil); err != nil {
		t.Fatal(err)
	}
	infos, _, err := b.List(ctx, p, "", 0)
	if err != nil || !slices.Equal(names(infos), []string{p + "stays"}) {
		t.Errorf("left: %q, %v", names(infos), err)
	}
	// A deleted name can be written, though nobody does.
	put(t, b, all[3], []byte("z"))
	want(t, b, all[3], []byte("z"))
}

func large(t *testing.T, b objstore.Bucket, o Options) {
	sizes := []int64{3 << 20}
	if o.PartThreshold > 0 {
		sizes = []int64{o.PartThreshold, 2*o.PartThreshold + 12345}
	}
	p := base()
	for _, n := range sizes {
		key := fmt.Sprint(p, n)
		data := content(int(n), 5)
		put(t, b, key, data)
		if size, err := b.Head(context.Background(), key); err != nil || size != n {
			t.Fatalf("%d bytes: %d, %v", n, size, err)
		}
		want(t, b, key, data)
		// A repeated attempt finds its own success.
		put(t, b, key, data)
		for _, off := range []int64{0, n / 2, n - 1000} {
			got, err := objstore.ReadRange(context.Background(), b, key, off, 1000)
			if err != nil || !bytes.Equal(got, data[off:off+1000]) {
				t.Fatalf("range at %d: %v", off, err)
			}
		}
	}
}

// seeker is a body that cannot be read at any place.
type seeker struct{ io.ReadSeeker }

func seekOnly(t *testing.T, b objstore.Bucket, o Options) {
	p := base()
	for _, n := range []int64{1000, 2*o.PartThreshold + 7} {
		data := content(int(n), 6)
		key := fmt.Sprint(p, n)
		if err := b.Put(context.Background(), key, seeker{bytes.NewReader(data)}, n, objstore.CRC32C(data)); err != nil {
			t.Fatal(err)
		}
		want(t, b, key, data)
	}
}

// bodyPosition: a body is sent from its start, wherever it stands, and no further than its announced size.
func bodyPosition(t *testing.T, b objstore.Bucket, _ Options) {
	data := content(5000, 8)
	p := base()
	for i, wrap := range []func(*bytes.Reader) io.ReadSeeker{
		func(r *bytes.Reader) io.ReadSeeker { return r },
		func(r *bytes.Reader) io.ReadSeeker { return seeker{r} },
	} {
		r := bytes.NewReader(data)
		r.Seek(1234, io.SeekStart)
		key := fmt.Sprint(p, i)
		if err := b.Put(context.Background(), key, wrap(r), 4000, objstore.CRC32C(data[:4000])); err != nil {
			t.Fatal(err)
		}
		if size, err := b.Head(context.Background(), key); err != nil || size != 4000 {
			t.Fatal(size, err)
		}
		want(t, b, key, data[:4000])
	}
}

func checksum(t *testing.T, b objstore.Bucket, o Options) {
	ctx := context.Background()
	p := base()
	for _, n := range []int64{0, 1000, 2*o.PartThreshold + 7} {
		data := content(int(n), 9)
		key := fmt.Sprint(p, n)
		err := b.Put(ctx, key, bytes.NewReader(data), n, objstore.CRC32C(data)^0x10)
		wantErr(t, err, objstore.ErrChecksum)
		if _, err := b.Head(ctx, key); !errors.Is(err, objstore.ErrNotExist) {
			t.Errorf("%d bytes with a wrong checksum left an object (%v)", n, err)
		}
		if n > 0 {
			// A body that is shorter than announced is no object either.
			if err := b.Put(ctx, key, bytes.NewReader(data[:n-1]), n, objstore.CRC32C(data)); err == nil {
				t.Errorf("short body of %d bytes was accepted", n)
			}
			if _, err := b.Head(ctx, key); !errors.Is(err, objstore.ErrNotExist) {
				t.Errorf("a short body left an object (%v)", err)
			}
		}
	}
}

func noOverwrite(t *testing.T, b objstore.Bucket, o Options) {
	ctx := context.Background()
	p := base()
	for _, n := range []int64{500, 2*o.PartThreshold + 7} {
		key := fmt.Sprint(p, n)
		first, second := content(int(n), 10), content(int(n), 11)
		put(t, b, key, first)
		put(t, b, key, first) // an attempt that was thought lost
		err := b.Put(ctx, key, bytes.NewReader(second), n, objstore.CRC32C(second))
		wantErr(t, err, objstore.ErrExists)
		err = b.Put(ctx, key, bytes.NewReader(first[:n-1]), n-1, objstore.CRC32C(first[:n-1]))
		wantErr(t, err, objstore.ErrExists)
		want(t, b, key, first)
	}
}

// BadKeys are keys that every bucket refuses.
func BadKeys() []string {
	return []string{"", "/", "/a", "a/", "a//b", ".", "..", "../a", "a/../b", "a/..", "./a", ".hidden", "a/.hidden", "a\x00b", "a\nb", "a b", `a\b`, `..\a`,
		"a%2f..", "é", "a?b", "a#b", strings.Repeat("x", 256), strings.Repeat("x/", 600) + "x"}
}

func keys(t *testing.T, b objstore.Bucket, _ Options) {
	ctx := context.Background()
	for _, key := range BadKeys() {
		err := b.Put(ctx, key, strings.NewReader("x"), 1, objstore.CRC32C([]byte("x")))
		if !errors.Is(err, objstore.ErrKey) {
			t.Errorf("put %q: %v", key, err)
		}
		if _, err := b.GetRange(ctx, key, 0, 1); !errors.Is(err, objstore.ErrKey) {
			t.Errorf("get %q: %v", key, err)
		}
		if _, err := b.Head(ctx, key); !errors.Is(err, objstore.ErrKey) {
			t.Errorf("head %q: %v", key, err)
		}
		if err := b.Delete(ctx, []string{key}); !errors.Is(err, objstore.ErrKey) {
			t.Errorf("delete %q: %v", key, err)
		}
	}
	p := base()
	for _, key := range []string{p + "a..b", p + "-a", p + "~", p + "a=b+c,d@e", p + strings.Repeat("y", 255), p + strings.Repeat("d/", 100) + "o"} {
		put(t, b, key, []byte(key))
		want(t, b, key, []byte(key))
	}
}

func concurrent(t *testing.T, b objstore.Bucket, o Options) {
	ctx := context.Background()
	p := base()
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 6 {
				// Neighbours come and go in the same directories.
				key := fmt.Sprintf("%sx/%d/o%d", p, i%2, g*100+i)
				data := content(1000+g*100+i, uint64(g*100+i))
				if err := b.Put(ctx, key, bytes.NewReader(data), int64(len(data)), objstore.CRC32C(data)); err != nil {
					t.Error(err)
					return
				}
				got, err := objstore.ReadRange(ctx, b, key, 0, int64(len(data)))
				if err != nil || !bytes.Equal(got, data) {
					t.Errorf("%s: %v", key, err)
				}
				if _, _, err := b.List(ctx, p, "", 10); err != nil {
					t.Error(err)
				}
				if i%3 != 0 {
					if err := b.Delete(ctx, []string{key}); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	infos, _, err := b.List(ctx, p, "", 0)
	if err != nil || len(infos) != 16 {
		t.Errorf("%d objects left, want 16: %v", len(infos), err)
	}
	// Of many writers of one name exactly one object comes out, and all others are told.
	key := p + "race"
	var won atomic.Int64
	for g := range 8 {
		wg.Go(func() {
			data := content(100_000, uint64(1000+g))
			switch err := b.Put(ctx, key, bytes.NewReader(data), int64(len(data)), objstore.CRC32C(data)); {
			case err == nil:
				won.Add(1)
			case !errors.Is(err, objstore.ErrExists) && !errors.Is(err, objstore.ErrUnavailable) && !errors.Is(err, objstore.ErrThrottled):
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if won.Load() != 1 && !(o.NoCondition && won.Load() > 1) {
		t.Errorf("%d writers of one name succeeded", won.Load())
	}
}

// blocker is a body whose reading waits for the context to end, and that must not be read after Put has returned.
type blocker struct {
	*bytes.Reader
	ctx      context.Context
	returned atomic.Bool
	late     atomic.Bool
}

func (b *blocker) ReadAt(p []byte, off int64) (int, error) {
	if b.returned.Load() {
		b.late.Store(true)
	}
	if off > 0 {
		<-b.ctx.Done()
	}
	return b.Reader.ReadAt(p[:min(len(p), 1000)], off)
}

func (b *blocker) Read(p []byte) (int, error) {
	if b.returned.Load() {
		b.late.Store(true)
	}
	if b.Reader.Len() < int(b.Reader.Size()) {
		<-b.ctx.Done()
	}
	return b.Reader.Read(p[:min(len(p), 1000)])
}

func cancel(t *testing.T, b objstore.Bucket, _ Options) {
	p := base()
	data := content(1<<20, 12)
	put(t, b, p+"o", data)
	ended, end := context.WithCancel(context.Background())
	end()
	if err := b.Put(ended, p+"n", bytes.NewReader(data), int64(len(data)), objstore.CRC32C(data)); !errors.Is(err, context.Canceled) {
		t.Errorf("put: %v", err)
	}
	if _, err := b.GetRange(ended, p+"o", 0, 10); !errors.Is(err, context.Canceled) {
		t.Errorf("get: %v", err)
	}
	if _, err := b.Head(ended, p+"o"); !errors.Is(err, context.Canceled) {
		t.Errorf("head: %v", err)
	}
	if _, _, err := b.List(ended, p, "", 0); !errors.Is(err, context.Canceled) {
		t.Errorf("list: %v", err)
	}
	if err := b.Delete(ended, []string{p + "o"}); !errors.Is(err, context.Canceled) {
		t.Errorf("delete: %v", err)
	}

	// In the middle of a read,
	ctx, stop := context.WithCancel(context.Background())
	body, err := b.GetRange(ctx, p+"o", 0, int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(body, make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	stop()
	if _, err := io.Copy(io.Discard, body); !errors.Is(err, context.Canceled) {
		t.Errorf("read after cancel: %v", err)
	}
	body.Close()

	// and of a write, whose body is left alone once Put has returned.
	ctx, stop = context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer stop()
	slow := &blocker{Reader: bytes.NewReader(data), ctx: ctx}
	err = b.Put(ctx, p+"slow", slow, int64(len(data)), objstore.CRC32C(data))
	slow.returned.Store(true)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("put that was cut off: %v", err)
	}
	time.Sleep(20 * time.Millisecond)
	if slow.late.Load() {
		t.Error("the body was read after Put had returned")
	}
}

func probe(t *testing.T, b objstore.Bucket, _ Options) {
	ctx := context.Background()
	token := strings.TrimSuffix(base(), "/")
	wantErr(t, objstore.ConfirmProbe(ctx, b, token, 0), objstore.ErrNotShared)
	for range 2 {
		if err := objstore.WriteProbe(ctx, b, token); err != nil {
			t.Fatal(err)
		}
	}
	if err := objstore.ConfirmProbe(ctx, b, token, 0); err != nil {
		t.Fatal(err)
	}
	if err := objstore.RemoveProbe(ctx, b, token); err != nil {
		t.Fatal(err)
	}
	wantErr(t, objstore.ConfirmProbe(ctx, b, token, 20*time.Millisecond), objstore.ErrNotShared)
}
