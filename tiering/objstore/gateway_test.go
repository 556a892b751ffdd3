package objstore_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/varve/varve/tiering/objstore"
	"github.com/varve/varve/tiering/objstore/s3test"
)

// A real server, and what may become of a multipart upload on the way to it and back (F35): an error or the whole
// object, never another one, and no parts are left that somebody pays for.
func TestMultipartOnTheWay(t *testing.T) {
	data := make([]byte, 12<<20)
	for i := range data {
		data[i] = byte(rand.Uint32())
	}
	isPart := func(r *http.Request, n string) bool {
		return r.Method == http.MethodPut && r.URL.Query().Get("partNumber") == n
	}
	isCompletion := func(r *http.Request) bool { return r.Method == http.MethodPost && r.URL.Query().Has("uploadId") }
	for _, tt := range []struct {
		name   string
		before func(r *http.Request) (int, string)
		after  func(r *http.Request, a *s3test.Answer)
		whole  bool // the object is there; else nothing is
		fails  bool
	}{
		{"nothing happens", nil, nil, true, false},
		{"the ETag of a part is another", nil, func(r *http.Request, a *s3test.Answer) {
			if isPart(r, "2") {
				a.Header.Set("Etag", `"00000000000000000000000000000000"`)
			}
		}, false, true},
		{"a part is lost, and said to be there", func(r *http.Request) (int, string) {
			if isPart(r, "2") {
				io.Copy(io.Discard, r.Body)
				return http.StatusOK, ""
			}
			return 0, ""
		}, nil, false, true},
		{"two parts change places", func(r *http.Request) (int, string) {
			if q := r.URL.Query(); isPart(r, "1") || isPart(r, "2") {
				q.Set("partNumber", map[string]string{"1": "2", "2": "1"}[q.Get("partNumber")])
				r.URL.RawQuery = q.Encode()
			}
			return 0, ""
		}, nil, false, true},
		{"a flipped bit", func(r *http.Request) (int, string) {
			if isPart(r, "3") {
				b, _ := io.ReadAll(r.Body)
				b[len(b)/2] ^= 4
				r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(b)), int64(len(b))
			}
			return 0, ""
		}, nil, false, true},
		{"the answer to the completion is an error", nil, func(r *http.Request, a *s3test.Answer) {
			if isCompletion(r) {
				a.Status, a.Body = http.StatusForbidden, nil
				a.Header.Del("Content-Length")
			}
		}, true, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := s3test.Start(t).Gateway(t)
			for _, url := range []string{g.S3("varve-parts"), g.Minio("varve-parts")} {
				g.Before(nil)
				g.After(nil)
				b := openURL(url + "&attempts=1&part_size=5MiB&part_threshold=5MiB")(t)
				key := "data/" + strings.Split(url, ":")[0]
				var aborted atomic.Bool
				g.Before(func(r *http.Request) (int, string) {
					if r.Method == http.MethodDelete && r.URL.Query().Has("uploadId") {
						aborted.Store(true)
					}
					if tt.before == nil {
						return 0, ""
					}
					return tt.before(r)
				})
				g.After(tt.after)
				err := b.Put(context.Background(), key, bytes.NewReader(data), int64(len(data)), objstore.CRC32C(data))
				if (err != nil) != tt.fails || aborted.Load() != tt.fails {
					t.Errorf("%s: put: %v, given up %v", key, err, aborted.Load())
				}
				g.Before(nil)
				g.After(nil)
				got, err := objstore.ReadRange(context.Background(), b, key, 0, int64(len(data)))
				if tt.whole && (err != nil || !bytes.Equal(got, data)) || !tt.whole && !errors.Is(err, objstore.ErrNotExist) {
					t.Errorf("%s: there are %d bytes, the same %v, %v", key, len(got), bytes.Equal(got, data), err)
				}
				// A part that was still under way when its upload was given up can
				// bring it back, as S3's documentation says: that is for the sweep.
				for most := 1; most >= 0; most-- {
					if n, err := b.(objstore.MultipartAborter).AbortIncomplete(context.Background(), time.Now().Add(time.Hour)); err != nil || n > most {
						t.Errorf("%s: %d uploads are left, %v", key, n, err)
					}
				}
				if err := b.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// What a process that died left of an upload is found and ended; the object that another one made under way is not
// touched.
func TestOrphanedParts(t *testing.T) {
	data := make([]byte, 12<<20)
	g := s3test.Start(t).Gateway(t)
	for _, url := range []string{g.S3("varve-orphans"), g.Minio("varve-orphans")} {
		g.Before(nil)
		b := openURL(url + "&attempts=1&part_size=5MiB&part_threshold=5MiB")(t)
		key := "data/" + strings.Split(url, ":")[0]
		var aborts atomic.Int32
		// Neither the completion nor the clean-up after it come through.
		g.Before(func(r *http.Request) (int, string) {
			switch {
			case r.Method == http.MethodDelete && r.URL.Query().Has("uploadId"):
				aborts.Add(1)
				return http.StatusServiceUnavailable, "SlowDown"
			case r.Method == http.MethodPost && r.URL.Query().Has("uploadId"):
				return http.StatusServiceUnavailable, "SlowDown"
			}
			return 0, ""
		})
		put := func(key string) error {
			return b.Put(context.Background(), key, bytes.NewReader(data), int64(len(data)), objstore.CRC32C(data))
		}
		if err := put(key); !errors.Is(err, objstore.ErrThrottled) {
			t.Errorf("%s: %v", key, err)
		}
		if aborts.Load() == 0 {
			t.Errorf("%s: the upload was not given up", key)
		}
		g.Before(nil)
		if err := put(key + "-again"); err != nil {
			t.Error(err)
		}
		a := b.(objstore.MultipartAborter)
		if n, err := a.AbortIncomplete(context.Background(), time.Now().Add(-time.Hour)); err != nil || n != 0 {
			t.Errorf("%s: %d young uploads ended, %v", key, n, err)
		}
		for _, want := range []int{1, 0} {
			if n, err := a.AbortIncomplete(context.Background(), time.Now().Add(time.Hour)); err != nil || n != want {
				t.Errorf("%s: %d uploads ended, want %d; %v", key, n, want, err)
			}
		}
		if _, err := b.Head(context.Background(), key); !errors.Is(err, objstore.ErrNotExist) {
			t.Errorf("%s: %v", key, err)
		}
		if got, err := objstore.ReadRange(context.Background(), b, key+"-again", 0, int64(len(data))); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%s-again: %d bytes, %v", key, len(got), err)
		}
		b.Close()
	}
}
