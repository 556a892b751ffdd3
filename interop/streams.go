package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/varve/varve/internal/child"
)

const (
	streamsIn    = "streams-lines"
	streamsOut   = "streams-counts"
	streamsPace  = 5 * time.Millisecond // between two lines
	streamsWords = 7                    // of a line
	streamsKills = 2
)

// streams kills a word count of Kafka Streams while lines arrive, and compares the counts that come out with those of the
// lines: each word's go 1, 2, 3 to its number, without a gap and without one twice.
func (h *harness) streams(ctx context.Context) {
	h.slots <- struct{}{}
	defer func() { <-h.slots }()
	h.check("streams", "word count with exactly_once_v2, killed and restarted: every count, once", func() error {
		if _, err := h.admin.CreateTopics(ctx, 2, 1, nil, streamsIn, streamsOut); err != nil {
			return err
		}
		in, err := kgo.NewClient(kgo.SeedBrokers(h.boot), kgo.DefaultProduceTopic(streamsIn))
		if err != nil {
			return err
		}
		defer in.Close()
		out, err := kgo.NewClient(kgo.SeedBrokers(h.boot), kgo.ConsumeTopics(streamsOut), kgo.FetchIsolationLevel(kgo.ReadCommitted()))
		if err != nil {
			return err
		}
		defer out.Close()

		app, err := h.wordCount(ctx)
		if err != nil {
			return err
		}
		defer func() { app.Kill() }()
		want, got, total, seen := map[string]int{}, map[string]int{}, 0, 0
		// Lines arrive all the time until the last kill, so that each comes in the midst of a transaction.
		done, fed := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(fed)
			rng := rand.New(rand.NewPCG(3, 4))
			for {
				select {
				case <-done:
					return
				case <-time.After(streamsPace):
				}
				words := make([]string, streamsWords)
				for i := range words {
					words[i] = fmt.Sprintf("word%d", rng.IntN(50))
					want[words[i]]++
					total++
				}
				in.Produce(ctx, kgo.StringRecord(strings.Join(words, " ")), nil)
			}
		}()
		stop := sync.OnceFunc(func() {
			close(done)
			<-fed
		})
		defer stop()
		// read takes what is there, and waits for the first of it. A count that is not the next of its word is an error.
		read := func() error {
			ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
			defer cancel()
			fetches := out.PollFetches(ctx)
			if err := fetches.Err(); err != nil {
				return fmt.Errorf("after %d counts: %w\n%s", seen, err, app.Tail())
			}
			var wrong error
			fetches.EachRecord(func(r *kgo.Record) {
				word := string(r.Key)
				got[word]++
				seen++
				if n := strconv.Itoa(got[word]); n != string(r.Value) && wrong == nil {
					wrong = fmt.Errorf("%s-%d@%d: %s is counted %s, want %s", r.Topic, r.Partition, r.Offset, word, r.Value, n)
				}
			})
			return wrong
		}
		for range streamsKills {
			for before := seen; seen == before; {
				if err := read(); err != nil {
					return err
				}
			}
			time.Sleep(rand.N(400 * time.Millisecond)) // two of its commit intervals
			app.Kill()
			if app, err = h.wordCount(ctx); err != nil {
				return err
			}
		}
		stop()
		if err := in.Flush(ctx); err != nil {
			return err
		}
		for seen < total {
			if err := read(); err != nil {
				return err
			}
		}
		for word, n := range want {
			if got[word] != n {
				return fmt.Errorf("%s is counted %d, want %d", word, got[word], n)
			}
		}
		return nil
	})
}

func (h *harness) wordCount(ctx context.Context) (*child.Process, error) {
	args := slices.Concat(javaOptions, []string{"-cp", h.installed.jars + "/*", filepath.Join(h.installed.java, "WordCount.java"), h.boot, filepath.Join(h.work, "streams"), streamsIn, streamsOut})
	cmd := exec.Command("java", args...)
	cmd.Dir = h.work
	return child.Start(ctx, &child.Process{Name: "the word count", Log: filepath.Join(h.work, "streams.log")}, cmd, func() error { return nil })
}
