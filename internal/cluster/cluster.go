// Package cluster runs a whole cluster as processes of one machine: members of etcd, an S3 server, brokers and compaction
// workers, all on loopback. Tests kill and stop them one by one (Start); `make cluster-up` lets them go on by themselves (Options.Stays)
// and finds them again. Linux only: /proc says whether a process is still the one that was started.
package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/varve/varve/internal/child"
	"github.com/varve/varve/tiering/objstore/s3test"
)

// Options say what a cluster is made of.
type Options struct {
	// Dir is where everything is kept: the processes' data, logs and ids, and the addresses, which stay the same for
	// as long as the data is there.
	Dir     string
	Brokers int // 0: three, with the ids 1, 2 and 3
	Spare   int // so many of them, the last ones, are not started by Up
	Etcd    int // members; 0: three
	Workers int // of compaction; 0: none
	// FreePorts looks for free ports; otherwise they are those of the Compose file, the first digit being a broker's
	// or member's number.
	FreePorts bool

	// Place says where a process is, by its name (broker-1, compactor-1, etcd-1, s3): the address that it listens at, and what its command
	// line begins with, as a namespace of the network wants it. nil: all are on 127.0.0.1.
	Place func(name string) (host string, before []string)

	// Within is what the command line of a process begins with after that: a program that becomes what the rest says. May be nil, and return nil.
	Within func(name string) []string

	Varve   []string                   // the program that `broker` is an argument of, after its own first ones
	Servers []string                   // a program that begins with Serve, likewise
	Env     []string                   // of brokers and workers, added to this program's
	EnvOf   func(name string) []string // of one broker or worker, likewise; may be nil
	MinIO   string                     // the program of the S3 server; empty: the one of the tests
	Config  func(id int32) string      // a broker's configuration file; nil: none
	Set     []string                   // settings of all brokers and workers, as name=value
	SetOf   func(id int32) []string    // settings of one broker; may be nil

	WorkerConfig string // the workers' configuration file; empty: none

	// Bucket are further parameters of remote.storage.url, as part_size=5242880&part_concurrency=2.
	Bucket string
	// Front puts something before a server: it is told the server's name (s3, etcd-1) and where that listens, and returns where brokers and
	// workers go instead, all as host:port. It is called once for each, by New. nil: nothing is before them.
	Front func(name, addr string) string

	// Advertised is the address that clients are told of a broker, where it is not the one that it listens at. May be nil.
	Advertised func(id int32) string

	// Ambiguous has the S3 server of the tests end requests otherwise than it tells, where Cluster.Ambiguous asks for it.
	Ambiguous bool

	// Stays lets the processes go on when this program has ended.
	Stays bool
}

// layout is where everything listens.
type layout struct {
	Brokers []brokerAddrs `json:"brokers"`
	Workers []workerAddrs `json:"compactors,omitempty"`
	Etcd    []etcdAddrs   `json:"etcd"`
	S3      string        `json:"s3"`
	MinIO   bool          `json:"minio"` // what keeps the objects; the two servers cannot read each other's
}

type brokerAddrs struct {
	Host     string `json:"host"`     // of clients
	Internal string `json:"internal"` // of the other brokers
	Admin    string `json:"admin"`
}

type workerAddrs struct {
	Admin string `json:"admin"`
}

type etcdAddrs struct {
	Client string `json:"client"`
	Peer   string `json:"peer"`
}

// Cluster is a cluster of processes.
type Cluster struct {
	o      Options
	layout layout

	Brokers []*Broker
	Workers []*Worker
	Etcd    []*Server
	S3      *Server
}

// Broker is a broker's process.
type Broker struct {
	*Server
	ID    int32
	Addr  string // for clients
	Admin string // URL of metrics and health
}

// Worker is a compaction worker's process.
type Worker struct {
	*Server
	Admin string // URL of metrics and health
}

// New describes a cluster, and finds those of its processes that run.
func New(o Options) (*Cluster, error) {
	if o.Brokers == 0 {
		o.Brokers = 3
	}
	if o.Etcd == 0 {
		o.Etcd = 3
	}
	var err error
	if o.Dir, err = filepath.Abs(o.Dir); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(o.Dir, 0o755); err != nil {
		return nil, err
	}
	c := &Cluster{o: o}
	if err := c.plan(); err != nil {
		return nil, err
	}
	c.describe()
	for _, s := range c.Servers() {
		s.find()
	}
	return c, nil
}

// plan decides where everything listens, or remembers it.
func (c *Cluster) plan() error {
	file := filepath.Join(c.o.Dir, "addresses.json")
	b, err := os.ReadFile(file)
	if _, none := os.Stat(filepath.Join(c.o.Dir, "etcd-1")); none != nil {
		err = os.ErrNotExist // nothing was started there: whoever could not have its ports may choose others
	}
	known := err == nil
	if known {
		if err = json.Unmarshal(b, &c.layout); err == nil && (len(c.layout.Brokers) != c.o.Brokers || len(c.layout.Etcd) != c.o.Etcd) {
			err = fmt.Errorf("it has %d brokers and %d members of etcd", len(c.layout.Brokers), len(c.layout.Etcd))
		}
		if err != nil {
			return fmt.Errorf("the cluster in %s is not this one: %s: %w", c.o.Dir, file, err)
		}
		if len(c.layout.Workers) == c.o.Workers {
			return nil
		}
		err = nil // nobody knows a worker by its address, and they keep nothing
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	var failed error
	taken := map[string]bool{}
	port := func(name string, fixed int) string {
		if c.o.Place != nil {
			host, _ := c.o.Place(name) // where nobody else is
			return net.JoinHostPort(host, strconv.Itoa(fixed))
		}
		if !c.o.FreePorts {
			return net.JoinHostPort("127.0.0.1", strconv.Itoa(fixed))
		}
		for {
			addr, err := child.FreeAddr()
			if err != nil {
				failed = err
			} else if taken[addr] {
				continue
			}
			taken[addr] = true
			return addr
		}
	}
	// All below the ports that Linux gives to connections (from 32768 on), which may be taken at any moment.
	l := c.layout
	for _, a := range l.Brokers {
		taken[a.Host], taken[a.Internal], taken[a.Admin] = true, true, true
	}
	for _, a := range l.Etcd {
		taken[a.Client], taken[a.Peer] = true, true
	}
	taken[l.S3] = true
	if !known {
		l = layout{S3: port(s3Name, 19000), MinIO: c.o.MinIO != ""}
		for i := range c.o.Brokers {
			name := brokerName(i)
			l.Brokers = append(l.Brokers, brokerAddrs{port(name, 19092+100*i), port(name, 19093+100*i), port(name, 19644+100*i)})
		}
		for i := range c.o.Etcd {
			name := etcdName(i)
			l.Etcd = append(l.Etcd, etcdAddrs{port(name, 12379+100*i), port(name, 12380+100*i)})
		}
	}
	l.Workers = nil
	for i := range c.o.Workers {
		l.Workers = append(l.Workers, workerAddrs{port(workerName(i), 20644+100*i)})
	}
	if failed != nil {
		return failed
	}
	c.layout = l
	return writeJSON(file, l)
}

const s3Name = "s3"

func brokerName(i int) string { return fmt.Sprintf("broker-%d", i+1) }
func workerName(i int) string { return fmt.Sprintf("compactor-%d", i+1) }
func etcdName(i int) string   { return fmt.Sprintf("etcd-%d", i+1) }

func (c *Cluster) describe() {
	l := c.layout
	server := func(name string, listens ...string) *Server {
		s := &Server{Name: name, listens: listens, stays: c.o.Stays}
		if c.o.Place != nil {
			s.listens = nil // not an address of this program's network
		}
		s.under(c.o.Dir)
		return s
	}
	command := func(name string, program []string, args ...string) *exec.Cmd {
		var before []string
		if c.o.Place != nil {
			_, before = c.o.Place(name)
		}
		if c.o.Within != nil {
			before = slices.Concat(before, c.o.Within(name))
		}
		all := slices.Concat(before, program, args)
		return exec.Command(all[0], all[1:]...)
	}

	front := func(_, addr string) string { return addr }
	if c.o.Front != nil {
		front = c.o.Front
	}
	var members, endpoints []string
	for i, e := range l.Etcd {
		members = append(members, etcdName(i)+"=http://"+e.Peer)
		endpoints = append(endpoints, "http://"+front(etcdName(i), e.Client))
	}
	bucket := c.bucketURL(front(s3Name, l.S3))
	for i, e := range l.Etcd {
		s := server(etcdName(i), e.Client, e.Peer)
		s.command = func() *exec.Cmd {
			return command(s.Name, c.o.Servers, etcdMember, s.Name, s.Dir, e.Client, e.Peer, strings.Join(members, ","))
		}
		s.ready = func() error { return child.AnswersOK("http://" + e.Client + "/health") }
		c.Etcd = append(c.Etcd, s)
	}

	c.S3 = server(s3Name, l.S3)
	c.S3.command = func() *exec.Cmd {
		args := []string{s3Server, c.S3.Dir, l.S3}
		if c.o.Ambiguous {
			args = append(args, c.ambiguous())
		}
		return command(s3Name, c.o.Servers, args...)
	}
	c.S3.ready = func() error { return child.AnswersOK("http://" + l.S3 + s3test.HealthPath) }
	if l.MinIO {
		c.S3.command = func() *exec.Cmd { return child.MinIOCommand(c.o.MinIO, c.S3.Dir, l.S3) }
		c.S3.ready = func() error { return child.AnswersOK("http://" + l.S3 + child.MinIOHealthPath) }
	}

	for i, a := range l.Brokers {
		id := int32(i + 1)
		s := server(brokerName(i), a.Host, a.Internal, a.Admin)
		b := &Broker{Server: s, ID: id, Addr: a.Host, Admin: "http://" + a.Admin}
		s.command = func() *exec.Cmd {
			args := []string{"broker"}
			var settings []string
			if c.o.Config != nil {
				args = append(args, "--config", c.o.Config(id))
			} else {
				settings = []string{
					"node.id=" + strconv.Itoa(int(id)),
					"listener.security.protocol.map=HOST:PLAINTEXT,INTERNAL:PLAINTEXT", "inter.broker.listener.name=INTERNAL",
				}
			}
			listens := func(host string) string { return "HOST://" + host + ",INTERNAL://" + a.Internal }
			advertised := a.Host
			if c.o.Advertised != nil {
				advertised = c.o.Advertised(id)
			}
			settings = append(settings,
				"listeners="+listens(a.Host), "advertised.listeners="+listens(advertised), "admin.listener="+a.Admin, "log.dirs="+s.Dir,
				"etcd.endpoints="+strings.Join(endpoints, ","), "remote.storage.url="+bucket)
			settings = append(settings, c.o.Set...)
			if c.o.SetOf != nil {
				settings = append(settings, c.o.SetOf(id)...)
			}
			args = append(args, child.SetFlags(settings)...)
			cmd := command(s.Name, c.o.Varve, args...)
			cmd.Env = c.env(s.Name)
			return cmd
		}
		s.ready = func() error {
			if err := child.AnswersOK(b.Admin + "/readyz"); err != nil {
				return err
			}
			return child.Dialled(b.Addr)
		}
		c.Brokers = append(c.Brokers, b)
	}

	for i, a := range l.Workers {
		w := &Worker{Server: server(workerName(i), a.Admin), Admin: "http://" + a.Admin}
		w.command = func() *exec.Cmd {
			args := []string{"compactor"}
			if c.o.WorkerConfig != "" {
				args = append(args, "--config", c.o.WorkerConfig)
			}
			args = append(args, child.SetFlags(append([]string{
				"admin.listener=" + a.Admin, "etcd.endpoints=" + strings.Join(endpoints, ","), "remote.storage.url=" + bucket, "log.cleaner.spool.dir=" + w.Dir,
			}, c.o.Set...))...)
			cmd := command(w.Name, c.o.Varve, args...)
			cmd.Env = c.env(w.Name)
			return cmd
		}
		w.ready = func() error { return child.AnswersOK(w.Admin + "/readyz") }
		c.Workers = append(c.Workers, w)
	}
}

// env is the environment of a broker or worker.
func (c *Cluster) env(name string) []string {
	env := append(os.Environ(), c.o.Env...)
	if c.o.EnvOf != nil {
		env = append(env, c.o.EnvOf(name)...)
	}
	return env
}

// first are the servers that Up starts.
func (c *Cluster) first() []*Server {
	last := len(c.Etcd) + 1 + len(c.Brokers)
	return slices.Delete(c.Servers(), last-c.o.Spare, last)
}

// Servers are all processes of the cluster, those that the brokers need first.
func (c *Cluster) Servers() []*Server {
	all := append(slices.Clone(c.Etcd), c.S3)
	for _, b := range c.Brokers {
		all = append(all, b.Server)
	}
	for _, w := range c.Workers {
		all = append(all, w.Server)
	}
	return all
}

// Bootstrap is what clients are given to begin with.
func (c *Cluster) Bootstrap() []string {
	var list []string
	for _, b := range c.Brokers {
		list = append(list, b.Addr)
	}
	return list
}

// Broker returns the broker with an id.
func (c *Cluster) Broker(id int32) *Broker { return c.Brokers[id-1] }

// BucketURL is the brokers' remote.storage.url, with nothing before the server.
func (c *Cluster) BucketURL() string { return c.bucketURL(c.layout.S3) }

func (c *Cluster) bucketURL(addr string) string {
	u := "s3://varve?endpoint=http://" + addr + "&region=us-east-1&create=true&credentials_file=" + c.credentials()
	if c.o.Bucket != "" {
		u += "&" + c.o.Bucket
	}
	return u
}

// Ambiguous has something happen to a share of the requests that the S3 server gets, as s3test.Ambiguous says; 0: to none.
func (c *Cluster) Ambiguous(share float64) error {
	file := c.ambiguous()
	if err := os.WriteFile(file+".new", strconv.AppendFloat(nil, share, 'g', -1, 64), 0o600); err != nil {
		return err
	}
	return os.Rename(file+".new", file)
}

func (c *Cluster) ambiguous() string { return filepath.Join(c.o.Dir, "s3.ambiguous") }

func (c *Cluster) credentials() string { return filepath.Join(c.o.Dir, "s3.credentials") }

// Up starts what does not run, and returns the names of it, once all brokers know each other. Where that fails, what it
// started is ended again.
func (c *Cluster) Up(ctx context.Context) (started []string, err error) {
	if c.layout.MinIO && c.o.MinIO == "" {
		return nil, fmt.Errorf("the objects in %s were written by MinIO, which is not there any more: install it, or delete the cluster's data", c.S3.Dir)
	}
	user, secret := s3test.AccessKey, s3test.SecretKey
	if c.layout.MinIO {
		user, secret = child.MinIOUser, child.MinIOPassword
	}
	// Before anything is there that would have to be cleaned up.
	if err := each(slices.DeleteFunc(c.first(), (*Server).Running), (*Server).free); err != nil {
		return nil, err
	}
	if err := os.WriteFile(c.credentials(), []byte(user+"\n"+secret+"\n"), 0o600); err != nil {
		return nil, err
	}
	var servers []*Server
	defer func() {
		if err == nil {
			return
		}
		for _, s := range servers {
			if s.Running() {
				err = errors.Join(err, s.Kill())
			}
		}
	}()
	begin := func(list ...*Server) error {
		list = slices.DeleteFunc(list, (*Server).Running)
		servers = append(servers, list...)
		// All of a kind together: a member of etcd serves when most of them do.
		return each(list, func(s *Server) error { return s.Start(ctx) })
	}
	if err := begin(append(slices.Clone(c.Etcd), c.S3)...); err != nil {
		return nil, err
	}
	if err := begin(c.first()[len(c.Etcd)+1:]...); err != nil {
		return nil, err
	}
	first := c.Brokers[:len(c.Brokers)-c.o.Spare]
	for _, b := range first {
		if err := child.Eventually(ctx, patience, func() error { return b.knows(ctx, first) }); err != nil {
			return nil, fmt.Errorf("%s: %w\n%s", b.Name, err, b.Tail())
		}
	}
	for _, s := range servers {
		started = append(started, s.Name)
	}
	return started, nil
}

// knows asks a broker which brokers there are. Beside these there may be others, which somebody else runs.
func (b *Broker) knows(ctx context.Context, all []*Broker) error {
	cl, err := kgo.NewClient(kgo.SeedBrokers(b.Addr))
	if err != nil {
		return err
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	meta, err := kadm.NewClient(cl).BrokerMetadata(ctx)
	if err != nil {
		return err
	}
	ids := meta.Brokers.NodeIDs()
	for _, other := range all {
		if !slices.Contains(ids, other.ID) {
			return fmt.Errorf("it knows the brokers %v, and not %d", ids, other.ID)
		}
	}
	return nil
}

// Down ends what runs, brokers and workers first, and returns its names.
func (c *Cluster) Down() (ended []string, err error) {
	for _, list := range [][]*Server{c.Servers()[len(c.Etcd)+1:], append(slices.Clone(c.Etcd), c.S3)} {
		list = slices.DeleteFunc(list, func(s *Server) bool { return !s.Running() })
		for _, s := range list {
			ended = append(ended, s.Name)
		}
		err = errors.Join(err, each(list, (*Server).Stop))
	}
	for _, s := range c.Servers() {
		err = errors.Join(err, s.forget())
	}
	return ended, err
}

// each calls f for all at once.
func each(list []*Server, f func(*Server) error) error {
	errs := make([]error, len(list))
	var wg sync.WaitGroup
	for i, s := range list {
		wg.Go(func() { errs[i] = f(s) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// Description is the file by which other programs find the cluster.
type Description struct {
	Bootstrap string              `json:"bootstrap"`
	Brokers   []BrokerDescription `json:"brokers"`
	Workers   []WorkerDescription `json:"compactors"`
	Etcd      []EtcdDescription   `json:"etcd"`
	S3        S3Description       `json:"s3"`
}

// BrokerDescription is one broker's.
type BrokerDescription struct {
	ID    int32  `json:"id"`
	PID   int    `json:"pid"`
	Kafka string `json:"kafka"` // host:port for clients
	Admin string `json:"admin"` // URL
	Data  string `json:"data"`
}

// WorkerDescription is one compaction worker's.
type WorkerDescription struct {
	Name  string `json:"name"`
	PID   int    `json:"pid"`
	Admin string `json:"admin"` // URL
}

// EtcdDescription is one member's.
type EtcdDescription struct {
	Name   string `json:"name"`
	PID    int    `json:"pid"`
	Client string `json:"client"` // URL
}

// S3Description is the S3 server's.
type S3Description struct {
	URL    string `json:"url"` // of the server
	PID    int    `json:"pid"`
	Bucket string `json:"bucket"` // remote.storage.url
}

// Describe says what runs where.
func (c *Cluster) Describe() Description {
	d := Description{Bootstrap: strings.Join(c.Bootstrap(), ","), S3: S3Description{"http://" + c.layout.S3, c.S3.PID(), c.BucketURL()}}
	for _, b := range c.Brokers {
		d.Brokers = append(d.Brokers, BrokerDescription{b.ID, b.PID(), b.Addr, b.Admin, b.Dir})
	}
	for _, w := range c.Workers {
		d.Workers = append(d.Workers, WorkerDescription{w.Name, w.PID(), w.Admin})
	}
	for i, s := range c.Etcd {
		d.Etcd = append(d.Etcd, EtcdDescription{s.Name, s.PID(), "http://" + c.layout.Etcd[i].Client})
	}
	return d
}

// WriteDescription writes what Describe says, all or nothing.
func (c *Cluster) WriteDescription(file string) error { return writeJSON(file, c.Describe()) }

func writeJSON(file string, v any) error {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false) // URLs with & stay what can be copied
	if err := e.Encode(v); err != nil {
		return err
	}
	if err := os.WriteFile(file+".new", b.Bytes(), 0o644); err != nil {
		return err
	}
	return os.Rename(file+".new", file)
}

// Lock keeps others from starting or ending the cluster in dir meanwhile.
func Lock(dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("somebody else starts or ends the cluster in %s right now", dir)
	}
	return func() { f.Close() }, nil
}
