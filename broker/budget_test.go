package broker

import (
	"context"
	"testing"
)

// What is counted twice, or not taken off, is found out.
func TestCharged(t *testing.T) {
	const bound, most = 1 << 20, 1 << 10
	ctx := context.Background()
	b := &Broker{requests: newBudget(bound), responses: &gauge{max: bound}, wasted: &gauge{max: bound}, opening: newOpening(bound), heavy: newOpening(bound)}
	if err := b.Charged(most); err != nil {
		t.Fatal(err)
	}
	for name, charge := range map[string]func() func(){
		"a small request": func() func() {
			n, _ := b.requests.acquire(ctx, most+1)
			return func() { b.requests.release(n) }
		},
		"a large request": func() func() {
			n, _ := b.requests.acquire(ctx, bound)
			return func() { b.requests.release(n) }
		},
		"an answer":               func() func() { b.responses.add(most + 1); return func() { b.responses.add(-most - 1) } },
		"what it lies in":         func() func() { b.wasted.add(most + 1); return func() { b.wasted.add(-most - 1) } },
		"more taken off":          func() func() { b.responses.add(-1); return func() { b.responses.add(1) } },
		"a batch that is opened":  func() func() { b.opening.sem.Acquire(ctx, most+1); return func() { b.opening.sem.Release(most + 1) } },
		"a request that is heavy": func() func() { b.heavy.sem.Acquire(ctx, most+1); return func() { b.heavy.sem.Release(most + 1) } },
	} {
		undo := charge()
		if b.Charged(most) == nil {
			t.Errorf("%s: not noticed", name)
		}
		undo()
		if err := b.Charged(most); err != nil {
			t.Errorf("%s: stays: %v", name, err)
		}
	}
}
