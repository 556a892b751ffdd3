package objstore

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync"
	"time"
)

// What a store may answer with besides an object's bytes, which are bounded by the range that was asked for. A page of
// 1,000 keys of 1 KiB, each byte of them escaped, stays below maxAnswer.
const (
	maxAnswer      = 8 << 20
	maxErrorAnswer = 64 << 10
	maxHeaders     = 256 << 10
)

// headerTimeout bounds the wait for an answer once a request has been sent; what a whole call may take is for its
// context to say.
const headerTimeout = time.Minute

// expectAbove is the size above which a body waits for the store's word. A store that refuses (412, 403, 503) at once
// closes the connection on the bytes still coming, and the reset often overtakes its answer.
const expectAbove = 256 << 10

// errTooLong is what reading more of an answer than it may have gives.
var errTooLong = fmt.Errorf("%w: answer is longer than it may be", ErrUnavailable)

// guard is the round tripper under both client libraries. It treats the store as somebody else's machine: answers are
// bounded, redirects (the libraries do not follow them either) become errors that name their target, and a body
// is not touched any more once its request is over.
type guard struct {
	next      *http.Transport
	onRequest func(Request)
}

func newGuard(t *http.Transport, onRequest func(Request)) *guard {
	t = t.Clone()
	t.MaxResponseHeaderBytes = maxHeaders
	t.ResponseHeaderTimeout = headerTimeout
	t.MaxIdleConns = 256
	t.MaxIdleConnsPerHost = 128
	t.ExpectContinueTimeout = time.Second // then it is sent anyway
	t.DisableCompression = true           // a body inflated on the way would not be the bytes of the range
	return &guard{next: t, onRequest: onRequest}
}

func (g *guard) client() *http.Client {
	return &http.Client{
		Transport:     g,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

func (g *guard) RoundTrip(req *http.Request) (*http.Response, error) {
	// A round tripper may not change the caller's request.
	var body *fencedBody
	if req.Body != nil && req.Body != http.NoBody {
		body = &fencedBody{r: req.Body}
		clone := *req
		clone.Body = body
		clone.GetBody = nil // would hand out bodies without a fence; the libraries retry by themselves
		if req.ContentLength > expectAbove && req.Header.Get("Expect") == "" {
			clone.Header = req.Header.Clone()
			clone.Header.Set("Expect", "100-continue")
		}
		req = &clone
	}
	begin := time.Now()
	resp, err := g.next.RoundTrip(req)
	if body != nil {
		// The transport can return while its writing goroutine still reads the body (an answer that came early, a
		// context that ended). The caller takes the return of Put for the end of that.
		body.fence()
	}
	if g.onRequest != nil {
		r := Request{Method: req.Method, Duration: time.Since(begin)}
		if resp != nil {
			r.Status = resp.StatusCode
		}
		g.onRequest(r)
	}
	if err != nil {
		return nil, err
	}
	switch {
	case resp.StatusCode >= 300 && resp.StatusCode < 400 && resp.StatusCode != http.StatusNotModified:
		err := &redirectError{status: resp.StatusCode, region: resp.Header.Get("X-Amz-Bucket-Region")}
		if u, perr := url.Parse(resp.Header.Get("Location")); perr == nil {
			err.host = u.Host
		}
		resp.Body.Close()
		return nil, err
	case resp.StatusCode >= 400:
		// Cut, not refused: the status says what matters even when the text does not parse any more.
		resp.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(resp.Body, maxErrorAnswer), resp.Body}
	case req.Method != http.MethodGet || req.Header.Get("Range") == "":
		resp.Body = &boundedBody{resp.Body, maxAnswer}
	}
	return resp, nil
}

// redirectError is a redirect that was not followed: following it would send credentials and data where nobody
// configured them to go.
type redirectError struct {
	status int
	host   string
	region string
}

func (e *redirectError) Error() string {
	msg := fmt.Sprintf("store answered with redirect %d", e.status)
	if e.host != "" {
		msg += fmt.Sprintf(" to %.100q", e.host)
	}
	msg += ", which is not followed"
	if e.region != "" {
		msg += fmt.Sprintf("; the bucket is in region %.40q: set region in the URL", e.region)
	}
	return msg
}

func (e *redirectError) Unwrap() error { return ErrUnavailable }

// fencedBody stops being readable at once, and for good, when fence is called.
type fencedBody struct {
	mu     sync.Mutex // held while r is read, so that fence returns after the last read
	r      io.ReadCloser
	fenced bool
}

var errFenced = errors.New("request is over")

func (f *fencedBody) Read(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fenced {
		return 0, errFenced
	}
	return f.r.Read(p)
}

func (f *fencedBody) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fenced {
		return nil
	}
	return f.r.Close()
}

func (f *fencedBody) fence() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.fenced {
		f.fenced = true
		f.r.Close()
	}
}

type boundedBody struct {
	io.ReadCloser
	left int64
}

func (b *boundedBody) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, errTooLong
	}
	if int64(len(p)) > b.left {
		p = p[:b.left]
	}
	n, err := b.ReadCloser.Read(p)
	b.left -= int64(n)
	return n, err
}
