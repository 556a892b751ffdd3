package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/varve/varve/internal/child"
	"github.com/varve/varve/internal/cluster"
	"github.com/varve/varve/metadata/etcd"
)

// threeCopies is a cluster of three with a topic of one partition, of which nothing is uploaded unless settings say so.
type threeCopies struct {
	*cluster.Cluster
	t   *testing.T
	cl  *kgo.Client
	adm *kadm.Client
	n   int // records acknowledged by all
}

func startThreeCopies(t *testing.T, settings ...string) *threeCopies {
	c := &threeCopies{t: t, Cluster: cluster.Start(t, processes(cluster.Options{
		Set: append([]string{"default.replication.factor=3", "min.insync.replicas=2", "remote.flush.interval.ms=3600000"}, settings...)}))}
	c.cl = c.Client(t, kgo.MetadataMinAge(50*time.Millisecond), kgo.DefaultProduceTopic("t"), kgo.ProducerBatchCompression(kgo.NoCompression()))
	c.adm = kadm.NewClient(c.cl)
	if _, err := c.adm.CreateTopic(t.Context(), 1, -1, nil, "t"); err != nil {
		t.Fatal(err)
	}
	return c
}

// inSync waits until all replicas are in sync, and returns the leader.
func (c *threeCopies) inSync() (leader int32) {
	c.t.Helper()
	eventually(c.t, func() error {
		topics, err := c.adm.ListTopics(c.t.Context(), "t")
		if err != nil {
			return err
		}
		p := topics["t"].Partitions[0]
		if leader = p.Leader; p.Err != nil || leader < 1 || len(p.ISR) != 3 {
			return fmt.Errorf("leader %d, in sync %v, %v", leader, p.ISR, p.Err)
		}
		return nil
	})
	return leader
}

const acknowledgedByAll = "acknowledged-by-all"

func (c *threeCopies) put(n int) {
	c.t.Helper()
	for range n {
		if err := c.cl.ProduceSync(c.t.Context(), &kgo.Record{Value: []byte(acknowledgedByAll)}).FirstErr(); err != nil {
			c.t.Fatal(err)
		}
		c.n++
	}
}

// crash kills all at once.
func (c *threeCopies) crash() {
	c.t.Helper()
	for _, f := range []func(*cluster.Broker) error{
		func(b *cluster.Broker) error { return b.Pause() }, // so that none sees another end
		func(b *cluster.Broker) error { return b.Kill() },
	} {
		for _, b := range c.Brokers {
			if err := f(b); err != nil {
				c.t.Fatal(err)
			}
		}
	}
}

// says waits for words in a broker's log, or for it to lead.
func (c *threeCopies) says(b *cluster.Broker, words ...string) {
	c.t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(b.Addr))
	if err != nil {
		c.t.Fatal(err)
	}
	defer cl.Close()
	eventually(c.t, func() error {
		log, err := os.ReadFile(b.Log())
		if err != nil || slices.ContainsFunc(words, func(w string) bool { return bytes.Contains(log, []byte(w)) }) {
			return err
		}
		topics, err := kadm.NewClient(cl).ListTopics(c.t.Context(), "t")
		if err == nil && (len(topics["t"].Partitions) == 0 || topics["t"].Partitions[0].Leader != b.ID) {
			err = fmt.Errorf("it neither says %q nor leads", words)
		}
		return err
	})
}

// startOthers starts those that do not run, has all of them catch up, and reads what was acknowledged.
func (c *threeCopies) startOthers() {
	c.t.Helper()
	for _, b := range c.Brokers {
		if b.Running() {
			continue
		}
		if err := b.Start(c.t.Context()); err != nil {
			c.t.Fatal(err)
		}
	}
	c.inSync()
	c.put(5)
	in := c.Client(c.t, kgo.ConsumeTopics("t"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	for n := 0; n < c.n; {
		fs := in.PollFetches(c.t.Context())
		if err := fs.Err(); err != nil {
			c.t.Fatal(err)
		}
		n += fs.NumRecords()
	}
}

// The directory of a broker is copied, while the broker stands still, and it goes on. A broker that is started on the
// copy, beside the first, ends, and says what to do. When all are killed and the copy takes the place of the directory,
// it is known for what it is: others lead, and nothing of what came since is lost, although it is there first.
func TestCopiedDirectory(t *testing.T) {
	c := startThreeCopies(t)
	first := c.Broker(c.inSync())
	c.put(100)
	copies := t.TempDir()
	twin, old := filepath.Join(copies, "twin"), filepath.Join(copies, "old")
	eventually(t, func() error { _, err := os.Stat(filepath.Join(first.Dir, "marks")); return err })
	if err := first.Pause(); err != nil {
		t.Fatal(err)
	}
	err := errors.Join(os.CopyFS(twin, os.DirFS(first.Dir)), os.CopyFS(old, os.DirFS(first.Dir)))
	if err := errors.Join(err, first.Resume()); err != nil {
		t.Fatal(err)
	}
	c.put(100)
	// The directory gets a mark now and then as it grows; the second shows that etcd has the first.
	for range 2 {
		marks := func() []byte {
			b, err := os.ReadFile(filepath.Join(first.Dir, "marks"))
			if err != nil {
				t.Fatal(err)
			}
			return b
		}
		before := marks()
		eventually(t, func() error {
			c.put(1)
			if bytes.Equal(marks(), before) {
				return errors.New("the directory has got no mark")
			}
			return nil
		})
	}
	leader := c.inSync()

	var listeners []string
	for _, name := range []string{"HOST", "INTERNAL"} {
		addr, err := child.FreeAddr()
		if err != nil {
			t.Fatal(err)
		}
		listeners = append(listeners, name+"://"+addr)
	}
	var members []string
	for _, e := range c.Describe().Etcd {
		members = append(members, e.Client)
	}
	all := strings.Join(listeners, ",")
	beside := exec.CommandContext(t.Context(), os.Args[0], append([]string{"broker"}, child.SetFlags([]string{
		fmt.Sprint("node.id=", first.ID), "listener.security.protocol.map=HOST:PLAINTEXT,INTERNAL:PLAINTEXT", "inter.broker.listener.name=INTERNAL",
		"listeners=" + all, "advertised.listeners=" + all, "admin.listener=", "log.dirs=" + twin,
		"etcd.endpoints=" + strings.Join(members, ","), "remote.storage.url=" + c.BucketURL(),
		"wal.segment.bytes=4194304", "wal.max.bytes=268435456", "memory.max.bytes=268435456",
	})...)...)
	beside.Env = append(os.Environ(), envBeVarve+"=1")
	out, err := beside.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "one of the two is a copy: end that process if this one is to take its place") {
		t.Errorf("a copy beside the first: %v\n%s", err, out)
	}
	log, err := os.ReadFile(first.Log())
	if err != nil || bytes.Contains(log, []byte("the session ran out")) {
		t.Errorf("the first has lost its session to a copy: %v", err)
	}
	if now := c.inSync(); now != leader {
		t.Errorf("%d leads, and %d did before the copy was started", now, leader)
	}
	c.put(10)

	c.crash()
	if err := errors.Join(os.RemoveAll(first.Dir), os.Rename(old, first.Dir), first.Start(t.Context())); err != nil {
		t.Fatal(err)
	}
	c.says(first, "the log directory is an old one")
	c.startOthers()
}

// As above, with a copy that nobody can tell by its mark: of before there were marks, say. What was uploaded since shows that
// it lacks something.
func TestCopiedDirectoryWithoutMarks(t *testing.T) {
	c := startThreeCopies(t, "remote.flush.interval.ms=500")
	first := c.Broker(c.inSync())
	c.put(20)
	old := filepath.Join(t.TempDir(), "old")
	if err := first.Pause(); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.CopyFS(old, os.DirFS(first.Dir)), first.Resume()); err != nil {
		t.Fatal(err)
	}
	var members []string
	for _, e := range c.Describe().Etcd {
		members = append(members, e.Client)
	}
	client, err := etcd.Dial(t.Context(), etcd.DialOptions{Endpoints: members})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	heads := etcd.New(etcd.Options{Client: client, Prefix: "/varve"}).Manifests()
	topics, err := c.adm.ListTopics(t.Context(), "t")
	if err != nil {
		t.Fatal(err)
	}
	// Twice: what is uploaded first may be what the copy has.
	for range 2 {
		_, before, err := heads.Load(t.Context(), topics["t"].ID, 0)
		if err != nil {
			t.Fatal(err)
		}
		c.put(20)
		eventually(t, func() error {
			_, now, err := heads.Load(t.Context(), topics["t"].ID, 0)
			if err == nil && now == before {
				err = errors.New("nothing is uploaded")
			}
			return err
		})
	}
	c.crash()
	if _, err := client.Delete(t.Context(), fmt.Sprintf("/varve/mark/%010d", first.ID)); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.RemoveAll(first.Dir), os.Rename(old, first.Dir), first.Start(t.Context())); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		log, err := os.ReadFile(first.Log())
		if err == nil && !bytes.Contains(log, []byte("local log given up")) {
			err = errors.New("the old log is not given up")
		}
		return err
	})
	c.startOthers()
}

// All brokers are killed at once, and the last block of one log, which all had acknowledged, is damaged: it looks like one
// that was being written, and is cut off. The broker leads, if it is there first, and hands over to one that has more; if it is there
// while the sessions of the others last, they lead, and it waits for them.
func TestDamagedEndOfALog(t *testing.T) {
	c := startThreeCopies(t)
	damaged := c.Broker(c.inSync())
	c.put(20)
	c.crash()
	flipLast(t, damaged.Dir, []byte(acknowledgedByAll))
	if err := damaged.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.says(damaged, "local log given up", "others lead 1 partitions before it does") // the first where there was time to say that the last block is whole
	c.startOthers()
}

// flipLast flips a bit of the last place in a broker's log that holds these bytes.
func flipLast(t *testing.T, dir string, what []byte) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*.wal"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range slices.Backward(names) {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if at := bytes.LastIndex(b, what); at >= 0 {
			b[at] ^= 1
			if err := os.WriteFile(name, b, 0o600); err != nil {
				t.Fatal(err)
			}
			return
		}
	}
	t.Fatalf("%s is not in %s", what, dir)
}
