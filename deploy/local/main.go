// Command local runs a cluster on this machine, three brokers, two compaction workers, three members of etcd and an S3 server, as
// processes that go on when it has ended: `make cluster-up` and `make cluster-down`.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/varve/varve/internal/cluster"
	"github.com/varve/varve/internal/install"
)

const usage = `usage: varve-cluster up [flags] | down [flags]

`

// workers of compaction: two, so that one may go.
const workers = 2

type options struct {
	dir, description, varve, config string
	freePorts, minio, deleteData    bool
	set                             []string
}

func main() {
	cluster.Serve(os.Args[1:])
	var o options
	flags := flag.NewFlagSet("varve-cluster", flag.ExitOnError)
	flags.StringVar(&o.dir, "dir", filepath.Join("build", "cluster"), "the directory of data, logs and process ids")
	flags.StringVar(&o.description, "description", filepath.Join("build", "cluster.json"), "the file that says what runs where")
	flags.StringVar(&o.varve, "varve", filepath.Join("bin", "varve"), "up: the varve program")
	flags.StringVar(&o.config, "config", "deploy", "up: the directory of the configuration files")
	flags.BoolVar(&o.freePorts, "free-ports", false, "up: any free ports instead of 19092, 19192, 19292 and their neighbours, for as long as the data is there")
	flags.BoolVar(&o.minio, "minio", false, "up: build MinIO for the objects if it is not there (eight minutes of a processor, once)")
	flags.Func("set", "up: a setting of all brokers and workers, name=value (repeatable)", func(s string) error { o.set = append(o.set, s); return nil })
	flags.BoolVar(&o.deleteData, "delete-data", false, "down: delete data and logs too")
	flags.Usage = func() {
		fmt.Fprint(flags.Output(), usage)
		flags.PrintDefaults()
	}
	if len(os.Args) < 2 {
		flags.Usage()
		os.Exit(2)
	}
	flags.Parse(os.Args[2:])
	run, known := map[string]func(context.Context, options) error{"up": up, "down": down}[os.Args[1]]
	if !known || flags.NArg() > 0 {
		flags.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintf(os.Stderr, "cluster: %v\n", err)
		os.Exit(1)
	}
}

func up(ctx context.Context, o options) error {
	unlock, err := cluster.Lock(o.dir)
	if err != nil {
		return err
	}
	defer unlock()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	minio, _ := install.FindMinIO()
	if minio == "" && o.minio {
		cache, err := install.Open("varve-cluster")
		if err != nil {
			return err
		}
		minio, err = cache.MinIO(ctx)
		if err := errors.Join(err, cache.Close()); err != nil {
			return err
		}
	}
	c, err := cluster.New(cluster.Options{
		Dir: o.dir, FreePorts: o.freePorts, Varve: []string{o.varve}, Servers: []string{self}, MinIO: minio, Set: o.set, Stays: true,
		Config: func(id int32) string {
			return filepath.Join(o.config, "broker-"+strconv.Itoa(int(id))+".properties")
		},
		Workers: workers, WorkerConfig: filepath.Join(o.config, "compactor.properties"),
	})
	if err != nil {
		return err
	}
	started, err := c.Up(ctx)
	if err != nil {
		return err
	}
	if err := c.WriteDescription(o.description); err != nil {
		return err
	}
	switch d := c.Describe(); {
	case len(started) == 0:
		fmt.Printf("the cluster is up already: --bootstrap-server %s\n", d.Bootstrap)
	default:
		fmt.Printf("started %s\n--bootstrap-server %s\n%s says what runs where; logs and data are in %s\n", strings.Join(started, ", "), d.Bootstrap, o.description, o.dir)
	}
	return nil
}

func down(_ context.Context, o options) error {
	if _, err := os.Stat(o.dir); errors.Is(err, os.ErrNotExist) {
		fmt.Printf("there is no cluster in %s\n", o.dir)
		return nil
	}
	unlock, err := cluster.Lock(o.dir)
	if err != nil {
		return err
	}
	defer unlock()
	c, err := cluster.New(cluster.Options{Dir: o.dir, Workers: workers, Stays: true})
	if err != nil {
		return err
	}
	ended, err := c.Down()
	if err != nil {
		return err
	}
	if err := os.Remove(o.description); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	kept := "data and logs stay in " + o.dir
	if o.deleteData {
		if err := os.RemoveAll(o.dir); err != nil {
			return err
		}
		kept = "data and logs are deleted"
	}
	if len(ended) == 0 {
		fmt.Printf("the cluster was down already; %s\n", kept)
		return nil
	}
	fmt.Printf("ended %s; %s\n", strings.Join(ended, ", "), kept)
	return nil
}
