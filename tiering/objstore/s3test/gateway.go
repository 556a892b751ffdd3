package s3test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

// Gateway stands before a server: it has accounts of its own, which come and go, and a test says what becomes of each
// request and answer on the way. Signatures are not verified here, but whose they are counts.
type Gateway struct {
	Addr string // host:port

	to     string // the server's host:port
	signer *v4.Signer

	mu       sync.Mutex
	accounts map[string]bool
	before   func(r *http.Request) (status int, code string)
	after    func(r *http.Request, a *Answer)
	around   func(r *http.Request, body []byte, forward func() *Answer) *Answer
	requests []time.Time
}

// Answer is what the server answers, and what the client will get.
type Answer struct {
	Status int
	Header http.Header
	Body   []byte
}

// Gateway starts a gateway before the server, until the test ends.
func (s *Server) Gateway(tb testing.TB) *Gateway { return NewGateway(tb, s.Addr) }

// NewGateway starts a gateway before the server that listens at an address, or will, until the test ends.
func NewGateway(tb testing.TB, addr string) *Gateway {
	g := newGateway(addr)
	h := httptest.NewServer(g)
	tb.Cleanup(h.Close)
	g.Addr = strings.TrimPrefix(h.URL, "http://")
	return g
}

func newGateway(addr string) *Gateway {
	return &Gateway{to: addr, signer: v4.NewSigner(func(o *v4.SignerOptions) { o.DisableURIPathEscaping = true }), accounts: map[string]bool{AccessKey: true}}
}

// Allow opens or revokes an account.
func (g *Gateway) Allow(accessKey string, allowed bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.accounts[accessKey] = allowed
}

// Before is asked about each request: with a status the server does not get it, and the client gets an error with that
// code. nil lets all pass.
func (g *Gateway) Before(f func(r *http.Request) (status int, code string)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.before = f
}

// After may change each answer.
func (g *Gateway) After(f func(r *http.Request, a *Answer)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.after = f
}

// Around has each request that Before lets pass, with the whole of its body. f has it forwarded when it is time, as often as it likes and also after it
// has returned; it is answered with 502 if the server cannot be reached. What f returns is what the client gets; for nil its
// connection ends without an answer. The request's context ends when the client has given it up. nil lets all pass.
func (g *Gateway) Around(f func(r *http.Request, body []byte, forward func() *Answer) *Answer) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.around = f
}

// Requests are the times at which requests came.
func (g *Gateway) Requests() []time.Time {
	g.mu.Lock()
	defer g.mu.Unlock()
	return append([]time.Time(nil), g.requests...)
}

func (g *Gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	g.mu.Lock()
	g.requests = append(g.requests, time.Now())
	before, after, around := g.before, g.after, g.around
	_, account, _ := strings.Cut(r.Header.Get("Authorization"), "Credential=")
	account, _, _ = strings.Cut(account, "/")
	known := g.accounts[account]
	g.mu.Unlock()
	refuse := func(status int, code string) {
		w.Header().Set("Content-Type", "application/xml")
		w.WriteHeader(status)
		fmt.Fprintf(w, `<?xml version="1.0"?><Error><Code>%s</Code><Message>by the gateway</Message></Error>`, code)
	}
	if !known && r.URL.Path != HealthPath {
		refuse(http.StatusForbidden, "InvalidAccessKeyId")
		return
	}
	if before != nil {
		if status, code := before(r); status != 0 {
			refuse(status, code)
			return
		}
	}
	var a *Answer
	var err error
	if around == nil {
		a, err = g.forward(r)
	} else {
		var body []byte
		if body, err = io.ReadAll(r.Body); err != nil {
			return // the client has gone
		}
		again := r.Clone(context.WithoutCancel(r.Context()))
		a = around(r, body, func() *Answer {
			one := again.Clone(again.Context())
			if one.Body = http.NoBody; len(body) > 0 {
				one.Body = io.NopCloser(bytes.NewReader(body))
			}
			a, err := g.forward(one)
			if err != nil {
				return &Answer{Status: http.StatusBadGateway}
			}
			return a
		})
		if a == nil {
			panic(http.ErrAbortHandler)
		}
	}
	if err != nil {
		refuse(http.StatusBadGateway, "InternalError")
		return
	}
	if after != nil {
		after(r, a)
	}
	for name, values := range a.Header {
		w.Header()[name] = values
	}
	w.WriteHeader(a.Status)
	w.Write(a.Body)
}

// forward sends a request on under the server's own account.
func (g *Gateway) forward(r *http.Request) (*Answer, error) {
	out := r.Clone(context.WithoutCancel(r.Context()))
	out.RequestURI, out.Host = "", g.to
	out.URL.Scheme, out.URL.Host = "http", g.to
	for _, h := range []string{"Authorization", "X-Amz-Date", "X-Amz-Content-Sha256", "X-Amz-Security-Token", "Accept-Encoding", "Expect"} {
		out.Header.Del(h)
	}
	const unsigned = "UNSIGNED-PAYLOAD"
	out.Header.Set("X-Amz-Content-Sha256", unsigned)
	if err := g.signer.SignHTTP(r.Context(), aws.Credentials{AccessKeyID: AccessKey, SecretAccessKey: SecretKey}, out, unsigned, "s3", "us-east-1", time.Now()); err != nil {
		return nil, err
	}
	resp, err := http.DefaultTransport.RoundTrip(out)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	return &Answer{resp.StatusCode, resp.Header, body}, nil
}

// S3 is the URL of a bucket for the AWS client; it is made when opened.
func (g *Gateway) S3(bucket string) string {
	return fmt.Sprintf("s3://%s?endpoint=http://%s&region=us-east-1&create=true", bucket, g.Addr)
}

// Minio is the URL of a bucket for the MinIO client; it is made when opened.
func (g *Gateway) Minio(bucket string) string {
	return fmt.Sprintf("minio://%s/%s?create=true", g.Addr, bucket)
}
