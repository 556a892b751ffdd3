package objstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// The store as somebody else's machine: what it may answer, and what must come of it, through both client libraries.

const secretCanary = "varve-hostile-secret-canary"

// script is a server whose answers a test writes down, and that counts.
type script struct {
	*httptest.Server
	requests atomic.Int64
	mu       sync.Mutex
	log      []string
	handle   func(w http.ResponseWriter, r *http.Request)
}

func newScript(t *testing.T, handle func(w http.ResponseWriter, r *http.Request)) *script {
	s := &script{handle: handle}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.requests.Add(1)
		s.mu.Lock()
		s.log = append(s.log, r.Method+" "+r.URL.Path+"?"+r.URL.RawQuery)
		s.mu.Unlock()
		if !strings.HasPrefix(r.Header.Get("Authorization"), "AWS4-HMAC-SHA256") {
			t.Errorf("%s %s is not signed", r.Method, r.URL)
		}
		s.handle(w, r)
	}))
	t.Cleanup(s.Close)
	return s
}

func testEnv(t *testing.T) {
	for name, value := range map[string]string{
		"AWS_ACCESS_KEY_ID": "hostile", "AWS_SECRET_ACCESS_KEY": secretCanary, "AWS_SESSION_TOKEN": "", "AWS_REGION": "us-east-1", "AWS_PROFILE": "",
		"MINIO_ROOT_USER": "", "MINIO_ACCESS_KEY": "", "AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": os.DevNull, "AWS_SHARED_CREDENTIALS_FILE": os.DevNull,
	} {
		t.Setenv(name, value)
	}
}

// both runs a test against a script through both libraries.
func both(t *testing.T, params string, handle func(w http.ResponseWriter, r *http.Request), f func(t *testing.T, b Bucket, s *script)) {
	for _, scheme := range []string{"s3", "minio"} {
		t.Run(scheme, func(t *testing.T) {
			testEnv(t)
			s := newScript(t, handle)
			url := "s3://bucket?endpoint=" + s.URL + "&check=false" + params
			if scheme == "minio" {
				url = "minio://" + strings.TrimPrefix(s.URL, "http://") + "/bucket?check=false" + params
			}
			b, err := Open(context.Background(), url, Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer b.Close()
			f(t, b, s)
		})
	}
}

func class(t *testing.T, err error, want Class) {
	t.Helper()
	if got := ClassOf(err); got != want {
		t.Errorf("class %s, want %s: %v", got, want, err)
	}
	if err != nil && (strings.Contains(err.Error(), secretCanary) || len(err.Error()) > 2000) {
		t.Errorf("error of %d bytes: %v", len(err.Error()), err)
	}
}

func xmlError(w http.ResponseWriter, status int, code string) {
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(status)
	fmt.Fprintf(w, `<?xml version="1.0"?><Error><Code>%s</Code><Message>no</Message><RequestId>r</RequestId></Error>`, code)
}

func TestStatusClasses(t *testing.T) {
	for _, tt := range []struct {
		status int
		code   string
		want   Class
	}{
		{503, "SlowDown", ClassThrottled},
		{503, "", ClassThrottled},
		{429, "TooManyRequests", ClassThrottled},
		{500, "InternalError", ClassUnavailable},
		{502, "", ClassUnavailable},
		{403, "AccessDenied", ClassDenied},
		{403, "InvalidAccessKeyId", ClassDenied},
		{403, "SignatureDoesNotMatch", ClassDenied},
		{401, "", ClassDenied},
		{404, "NoSuchBucket", ClassNoBucket},
		{404, "NoSuchKey", ClassNotExist},
		{416, "InvalidRange", ClassRange},
		{400, "BadDigest", ClassChecksum},
	} {
		t.Run(fmt.Sprint(tt.status, tt.code), func(t *testing.T) {
			both(t, "&attempts=1", func(w http.ResponseWriter, r *http.Request) {
				io.Copy(io.Discard, r.Body)
				if tt.code == "" {
					w.WriteHeader(tt.status)
					return
				}
				xmlError(w, tt.status, tt.code)
			}, func(t *testing.T, b Bucket, s *script) {
				_, err := b.GetRange(context.Background(), "k", 0, 10)
				class(t, err, tt.want)
				if n := s.requests.Load(); n != 1 {
					t.Errorf("%d requests, want 1", n)
				}
				if tt.status != 404 && tt.status != 416 {
					class(t, putBytes(b, "k", []byte("x")), tt.want)
					_, _, err = b.List(context.Background(), "", "", 0)
					class(t, err, tt.want)
				}
			})
		})
	}
}

// What may pass is tried again, as often as the URL says; what will not is not.
func TestAttempts(t *testing.T) {
	for status, want := range map[int]int64{503: 2, 403: 1, 404: 1} {
		both(t, "&attempts=2", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(status) }, func(t *testing.T, b Bucket, s *script) {
			if _, err := b.GetRange(context.Background(), "k", 0, 10); err == nil {
				t.Error("accepted")
			}
			if n := s.requests.Load(); n != want {
				t.Errorf("status %d: %d requests, want %d", status, n, want)
			}
		})
	}
}

// A redirect to another host is not followed: it would carry credentials and data there.
func TestRedirectIsNotFollowed(t *testing.T) {
	var elsewhere atomic.Int64
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { elsewhere.Add(1) }))
	defer other.Close()
	for _, status := range []int{301, 302, 307, 308} {
		both(t, "&attempts=1", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Location", other.URL+r.URL.Path)
			w.Header().Set("X-Amz-Bucket-Region", "eu-west-3")
			w.WriteHeader(status)
		}, func(t *testing.T, b Bucket, s *script) {
			_, err := b.GetRange(context.Background(), "k", 0, 10)
			class(t, err, ClassUnavailable)
			if !strings.Contains(err.Error(), "redirect") || !strings.Contains(err.Error(), "eu-west-3") {
				t.Error(err)
			}
			class(t, putBytes(b, "k", []byte("x")), ClassUnavailable)
		})
	}
	if elsewhere.Load() != 0 {
		t.Errorf("%d requests arrived at the other host", elsewhere.Load())
	}
}

// endless writes until the client has had enough, and tells how much that was.
func endless(w http.ResponseWriter, start string, sent *atomic.Int64) {
	io.WriteString(w, start)
	junk := []byte(strings.Repeat("<a>junk</a>", 6000))
	for range 20_000 { // more than 1 GB
		n, err := w.Write(junk)
		sent.Add(int64(n))
		if err != nil {
			return
		}
	}
}

func TestEndlessAnswers(t *testing.T) {
	var sent atomic.Int64
	for _, status := range []int{200, 403, 500} {
		sent.Store(0)
		both(t, "&attempts=1", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/xml")
			w.WriteHeader(status)
			if status == 200 {
				endless(w, `<?xml version="1.0"?><ListBucketResult>`, &sent)
			} else {
				endless(w, `<?xml version="1.0"?><Error>`, &sent)
			}
		}, func(t *testing.T, b Bucket, s *script) {
			_, _, err := b.List(context.Background(), "", "", 0)
			switch {
			case err == nil:
				t.Error("accepted")
			case status == 403:
				class(t, err, ClassDenied)
			default:
				class(t, err, ClassUnavailable)
			}
		})
		// What the sockets buffer comes on top.
		if sent.Load() > 2*(maxAnswer+8<<20) {
			t.Errorf("status %d: %d bytes were taken", status, sent.Load())
		}
	}
}

// Bodies that are not what was asked for.
func TestWrongBodies(t *testing.T) {
	data := bytes.Repeat([]byte("0123456789"), 100)
	for _, tt := range []struct {
		name   string
		handle func(w http.ResponseWriter)
		want   Class
		atOpen bool
	}{
		{"right", func(w http.ResponseWriter) {
			w.Header().Set("Content-Range", "bytes 100-199/1000")
			w.Header().Set("Content-Length", "100")
			w.WriteHeader(206)
			w.Write(data[100:200])
		}, ClassOK, false},
		{"cut off", func(w http.ResponseWriter) {
			w.Header().Set("Content-Range", "bytes 100-199/1000")
			w.Header().Set("Content-Length", "100")
			w.WriteHeader(206)
			w.Write(data[100:150])
		}, ClassTruncated, false},
		{"cut off, chunked", func(w http.ResponseWriter) {
			w.Header().Set("Content-Range", "bytes 100-199/1000")
			w.WriteHeader(206)
			w.(http.Flusher).Flush()
			w.Write(data[100:150])
		}, ClassTruncated, false},
		{"another range", func(w http.ResponseWriter) {
			w.Header().Set("Content-Range", "bytes 0-99/1000")
			w.Header().Set("Content-Length", "100")
			w.WriteHeader(206)
			w.Write(data[0:100])
		}, ClassTruncated, true},
		{"object is shorter", func(w http.ResponseWriter) {
			w.Header().Set("Content-Range", "bytes 100-149/150")
			w.Header().Set("Content-Length", "50")
			w.WriteHeader(206)
			w.Write(data[100:150])
		}, ClassRange, true},
		{"whole object", func(w http.ResponseWriter) {
			w.Header().Set("Content-Length", "1000")
			w.Write(data)
		}, ClassUnavailable, true},
		{"nonsense range", func(w http.ResponseWriter) {
			w.Header().Set("Content-Range", "bytes a-b/c")
			w.WriteHeader(206)
			w.Write(data[100:200])
		}, ClassUnavailable, true},
		{"more than asked for", func(w http.ResponseWriter) {
			w.Header().Set("Content-Range", "bytes 100-199/1000")
			w.WriteHeader(206)
			w.(http.Flusher).Flush()
			w.Write(data[100:900])
		}, ClassOK, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			both(t, "&attempts=1", func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Last-Modified", "Mon, 02 Nov 2026 10:00:00 GMT")
				w.Header().Set("ETag", `"e"`)
				tt.handle(w)
			}, func(t *testing.T, b Bucket, s *script) {
				r, err := b.GetRange(context.Background(), "k", 100, 100)
				if tt.atOpen {
					class(t, err, tt.want)
					return
				}
				if err != nil {
					// A chunked answer has no length, which minio-go refuses by itself.
					if strings.Contains(tt.name, "chunked") || strings.Contains(tt.name, "more") {
						return
					}
					t.Fatal(err)
				}
				defer r.Close()
				got, err := io.ReadAll(r)
				class(t, err, tt.want)
				if tt.want == ClassOK && !bytes.Equal(got, data[100:200]) {
					t.Errorf("%d bytes", len(got))
				}
			})
		})
	}
}

// A HEAD cannot say that the bucket is gone; nobody may take that for a missing object.
func TestHeadTellsBucketFromObject(t *testing.T) {
	for _, gone := range []bool{false, true} {
		both(t, "&attempts=1", func(w http.ResponseWriter, r *http.Request) {
			if strings.Trim(r.URL.Path, "/") == "bucket" && !gone {
				return
			}
			w.WriteHeader(404)
		}, func(t *testing.T, b Bucket, s *script) {
			_, err := b.Head(context.Background(), "k")
			if gone {
				class(t, err, ClassNoBucket)
			} else {
				class(t, err, ClassNotExist)
			}
		})
	}
}

func TestHangEndsWithTheContext(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	both(t, "", func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-release:
		case <-r.Context().Done():
		}
	}, func(t *testing.T, b Bucket, s *script) {
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		defer cancel()
		_, err := b.GetRange(ctx, "k", 0, 10)
		class(t, err, ClassTimeout)
		data := make([]byte, 1000)
		class(t, b.Put(ctx, "k", bytes.NewReader(data), 1000, CRC32C(data)), ClassTimeout)
	})
}

// A write that was carried out although its connection broke is found to be one's own.
func TestAmbiguousPut(t *testing.T) {
	data := []byte("payload")
	for _, mine := range []bool{true, false} {
		var stored atomic.Bool
		both(t, "&attempts=2", func(w http.ResponseWriter, r *http.Request) {
			switch r.Method {
			case http.MethodPut:
				if r.Header.Get("If-None-Match") != "*" {
					t.Error("no condition")
				}
				io.Copy(io.Discard, r.Body)
				if stored.Swap(true) {
					xmlError(w, 412, "PreconditionFailed")
					return
				}
				conn, _, err := w.(http.Hijacker).Hijack()
				if err == nil {
					conn.Close()
				}
			case http.MethodHead:
				sum := CRC32C(data)
				if !mine {
					sum++
				}
				w.Header().Set("Content-Length", strconv.Itoa(len(data)))
				w.Header().Set("Last-Modified", "Mon, 02 Nov 2026 10:00:00 GMT")
				w.Header().Set("X-Amz-Meta-Varve-Crc32c", crcHex(sum))
			}
		}, func(t *testing.T, b Bucket, s *script) {
			stored.Store(false)
			err := putBytes(b, "k", data)
			if mine && err != nil {
				t.Error(err)
			}
			if !mine {
				class(t, err, ClassExists)
			}
		})
	}
}

// A store without conditional writes is used without them, after the first refusal.
func TestNoConditionalWrites(t *testing.T) {
	both(t, "&attempts=1", func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		switch {
		case r.Method == http.MethodHead:
			w.WriteHeader(404)
		case r.Header.Get("If-None-Match") != "":
			xmlError(w, 501, "NotImplemented")
		}
	}, func(t *testing.T, b Bucket, s *script) {
		for _, k := range []string{"a", "b"} {
			if err := putBytes(b, k, []byte("x")); err != nil {
				t.Fatal(err)
			}
		}
		var puts []string
		for _, l := range s.log {
			if strings.HasPrefix(l, "PUT") {
				puts = append(puts, l)
			}
		}
		if len(puts) != 3 {
			t.Errorf("%q", s.log)
		}
	})
}

// Multipart uploads that go wrong in the middle or at the end are given up and cleaned away.
func TestMultipartFailures(t *testing.T) {
	data := make([]byte, 12<<20)
	for _, tt := range []struct {
		name       string
		part, done func(w http.ResponseWriter)
		size       int
		want       Class
		abort      bool
	}{
		{"part is refused", func(w http.ResponseWriter) { xmlError(w, 400, "BadDigest") }, nil, len(data), ClassChecksum, true},
		{"part is throttled", func(w http.ResponseWriter) { xmlError(w, 503, "SlowDown") }, nil, len(data), ClassThrottled, true},
		{"parts get lost", nil, func(w http.ResponseWriter) { xmlError(w, 400, "InvalidPart") }, len(data), ClassOther, true},
		{"error behind a success", nil, func(w http.ResponseWriter) { xmlError(w, 200, "InternalError") }, 0, ClassUnavailable, true},
		{"upload is gone but joined", nil, func(w http.ResponseWriter) { xmlError(w, 404, "NoSuchUpload") }, len(data), ClassOK, false},
		{"upload is gone", nil, func(w http.ResponseWriter) { xmlError(w, 404, "NoSuchUpload") }, 0, ClassUnavailable, false},
		{"object comes out short", nil, nil, len(data) - 1, ClassChecksum, false},
		{"all is well", nil, nil, len(data), ClassOK, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			both(t, "&attempts=1&part_size=5MiB&part_threshold=5MiB", func(w http.ResponseWriter, r *http.Request) {
				io.Copy(io.Discard, r.Body)
				q := r.URL.Query()
				w.Header().Set("ETag", `"e"`)
				switch {
				case r.Method == http.MethodPost && q.Has("uploads"):
					io.WriteString(w, `<?xml version="1.0"?><InitiateMultipartUploadResult><Bucket>bucket</Bucket><Key>k</Key><UploadId>up</UploadId></InitiateMultipartUploadResult>`)
				case r.Method == http.MethodPut:
					if tt.part != nil && q.Get("partNumber") == "2" {
						tt.part(w)
					}
				case r.Method == http.MethodPost:
					if tt.done != nil {
						tt.done(w)
						return
					}
					io.WriteString(w, `<?xml version="1.0"?><CompleteMultipartUploadResult><Bucket>bucket</Bucket><Key>k</Key><ETag>e</ETag></CompleteMultipartUploadResult>`)
				case r.Method == http.MethodDelete:
					w.WriteHeader(204)
				case r.Method == http.MethodHead:
					if tt.size == 0 {
						w.WriteHeader(404)
						return
					}
					w.Header().Set("Content-Length", strconv.Itoa(tt.size))
					w.Header().Set("Last-Modified", "Mon, 02 Nov 2026 10:00:00 GMT")
					w.Header().Set("X-Amz-Meta-Varve-Crc32c", crcHex(CRC32C(data)))
				}
			}, func(t *testing.T, b Bucket, s *script) {
				class(t, putBytes(b, "k", data), tt.want)
				aborted := strings.Contains(strings.Join(s.log, "\n"), "DELETE /bucket/k?uploadId=up")
				if aborted != tt.abort {
					t.Errorf("aborted %v: %q", aborted, s.log)
				}
			})
		})
	}
}

// Uploads of processes that died are found and ended, those under way are not.
func TestAbortIncomplete(t *testing.T) {
	both(t, "&attempts=1", func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodDelete {
			w.WriteHeader(204)
			return
		}
		io.WriteString(w, `<?xml version="1.0"?><ListMultipartUploadsResult><Bucket>bucket</Bucket><IsTruncated>false</IsTruncated>
			<Upload><Key>old</Key><UploadId>1</UploadId><Initiated>2026-11-01T10:00:00.000Z</Initiated></Upload>
			<Upload><Key>young</Key><UploadId>2</UploadId><Initiated>2026-11-03T10:00:00.000Z</Initiated></Upload></ListMultipartUploadsResult>`)
	}, func(t *testing.T, b Bucket, s *script) {
		n, err := b.(MultipartAborter).AbortIncomplete(context.Background(), time.Date(2026, 11, 2, 0, 0, 0, 0, time.UTC))
		if err != nil || n != 1 {
			t.Fatal(n, err)
		}
		if log := strings.Join(s.log, "\n"); !strings.Contains(log, "DELETE /bucket/old?uploadId=1") || strings.Contains(log, "young?uploadId") {
			t.Error(log)
		}
	})
}

// Some keys of a Delete can fail by themselves.
func TestDeletePartly(t *testing.T) {
	both(t, "&attempts=1", func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		io.WriteString(w, `<?xml version="1.0"?><DeleteResult><Deleted><Key>a</Key></Deleted><Error><Key>b</Key><Code>AccessDenied</Code><Message>no</Message></Error>
			<Error><Key>c</Key><Code>NoSuchKey</Code></Error></DeleteResult>`)
	}, func(t *testing.T, b Bucket, s *script) {
		err := b.Delete(context.Background(), []string{"a", "b", "c"})
		class(t, err, ClassDenied)
		if err == nil || !strings.Contains(err.Error(), "b:") {
			t.Error(err)
		}
	})
}

// A listing that shows objects of others, or turns in circles, is survived.
func TestStrangeListing(t *testing.T) {
	both(t, "&attempts=1", func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, `<?xml version="1.0"?><ListBucketResult><Name>bucket</Name><IsTruncated>false</IsTruncated>
			<Contents><Key>../../etc/passwd</Key><Size>1</Size></Contents><Contents><Key>fine</Key><Size>2</Size></Contents>
			<Contents><Key>has space</Key><Size>3</Size></Contents></ListBucketResult>`)
	}, func(t *testing.T, b Bucket, s *script) {
		infos, more, err := b.List(context.Background(), "", "", 0)
		if err != nil || more || len(infos) != 1 || infos[0].Key != "fine" {
			t.Errorf("%+v %v %v", infos, more, err)
		}
	})
}

// The transport is told nothing about where the body comes from, and reads none of it after the request is over.
func TestFencedBody(t *testing.T) {
	reads := make(chan struct{})
	f := &fencedBody{r: io.NopCloser(readerFunc(func(p []byte) (int, error) { <-reads; return len(p), nil }))}
	done := make(chan error)
	go func() {
		_, err := f.Read(make([]byte, 10))
		done <- err
	}()
	reads <- struct{}{}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	f.fence()
	if _, err := f.Read(make([]byte, 10)); !errors.Is(err, errFenced) {
		t.Error(err)
	}
}

type readerFunc func(p []byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }
