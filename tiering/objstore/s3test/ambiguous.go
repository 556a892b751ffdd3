package s3test

import (
	"maps"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"time"
)

// Ambiguous is for Gateway.Around: some of the requests that change the bucket end otherwise than their client is told, or come more than once. Whom it
// happens to is decided by chance.
type Ambiguous struct {
	mu     sync.Mutex
	share  float64
	rnd    *rand.Rand
	counts map[string]int
	coming sync.WaitGroup // requests that happen to be, and those that will come again
}

// What happens to a request.
const (
	Lost  = "lost"  // it is carried out, and its connection ends without an answer
	Held  = "held"  // it is carried out, and its client waits for the answer until it gives up
	Late  = "late"  // its client waits until it gives up, and then it is carried out
	Twice = "twice" // it is carried out twice, and what the second one gets is the answer
	Again = "again" // it is carried out and answered, and carried out again later
)

const (
	maxLate = 3 * time.Second // how much later a request comes at most
	maxHeld = 5 * time.Second // a client that does not give up loses its connection
)

// NewAmbiguous has something happen to a share of the requests, from 0 to 1.
func NewAmbiguous(share float64, seed uint64) *Ambiguous {
	return &Ambiguous{share: share, rnd: rand.New(rand.NewPCG(seed, 1)), counts: map[string]int{}}
}

// Set is for another share.
func (a *Ambiguous) Set(share float64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.share = share
}

// End has nothing happen any more, and returns when everything that was to come later has come.
func (a *Ambiguous) End() {
	a.Set(0)
	a.coming.Wait()
}

// Counts is how often what happened to which requests, as "held PUT data".
func (a *Ambiguous) Counts() map[string]int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return maps.Clone(a.counts)
}

// Around is for Gateway.Around.
func (a *Ambiguous) Around(r *http.Request, _ []byte, forward func() *Answer) *Answer {
	what, later := a.choose(r)
	if what == "" {
		return forward()
	}
	defer a.coming.Done()
	switch what {
	case Lost:
		forward()
		return nil
	case Held:
		forward()
		givenUp(r)
		return nil
	case Late:
		givenUp(r)
		time.Sleep(later)
		forward()
		return nil
	case Twice:
		forward()
		return forward()
	}
	a.coming.Go(func() {
		time.Sleep(later)
		forward()
	})
	return forward()
}

func givenUp(r *http.Request) {
	select {
	case <-r.Context().Done():
	case <-time.After(maxHeld):
	}
}

func (a *Ambiguous) choose(r *http.Request) (what string, later time.Duration) {
	if r.Method == http.MethodGet {
		return "", 0
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.rnd.Float64() >= a.share {
		return "", 0
	}
	what = []string{Lost, Held, Late, Twice, Again}[a.rnd.IntN(5)]
	if r.Method == http.MethodHead {
		what = Lost // so that a look does not tell either
	}
	a.counts[what+" "+r.Method+" "+about(r)]++
	a.coming.Add(1)
	return what, time.Duration(a.rnd.Int64N(int64(maxLate)))
}

// about is what a request changes: the first part of an object's key, or which step of another kind it is.
func about(r *http.Request) string {
	for _, kind := range []string{"delete", "uploads", "partNumber", "uploadId"} {
		if r.URL.Query().Has(kind) {
			return "?" + kind
		}
	}
	_, key, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	first, _, _ := strings.Cut(key, "/")
	return first
}
