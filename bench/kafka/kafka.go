package main

import (
	"context"
	"crypto/rand"
	"embed"
	"encoding/base64"
	"encoding/xml"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/varve/varve/internal/child"
	"github.com/varve/varve/internal/install"
)

//go:embed server/pom.xml
var sources embed.FS

// installKafka lays Kafka's jars into the user's cache.
func installKafka(ctx context.Context) (jars string, err error) {
	cache, err := install.Open("varve-bench")
	if err != nil {
		return "", err
	}
	defer cache.Close()
	dir, err := cache.Folder(sources, "server", func(dir string) error {
		fmt.Fprintln(os.Stderr, "installing Apache Kafka", kafkaVersion(), "from Maven Central (once)")
		if err := install.Jars(ctx, dir); err != nil {
			return err
		}
		for _, artifact := range []string{"kafka-storage:" + pomProperties().Tests + ":jar:test", "kafka-clients:" + pomProperties().Tests} {
			if err := install.Command(ctx, dir, "mvn", "-q", "-B", "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy",
				"-Dartifact=org.apache.kafka:"+artifact, "-DoutputDirectory="+filepath.Join(dir, "tests")); err != nil {
				return err
			}
		}
		return nil
	})
	return filepath.Join(dir, "jars"), err
}

// installMinIO builds a MinIO server, or finds the one that is in the cache.
func installMinIO(ctx context.Context) (string, error) {
	cache, err := install.Open("varve-interop")
	if err != nil {
		return "", err
	}
	defer cache.Close()
	return cache.MinIO(ctx)
}

// kafkaVersion is the one that pom.xml asks for.
func kafkaVersion() string { return pomProperties().Version }

type properties struct {
	Version string `xml:"properties>kafka.version"`
	Tests   string `xml:"properties>kafka.tests.version"`
}

func pomProperties() (p properties) {
	b, err := sources.ReadFile("server/pom.xml")
	if err == nil {
		err = xml.Unmarshal(b, &p)
	}
	if err != nil {
		panic(err)
	}
	return p
}

// profile is how a Kafka broker is set up.
type profile struct {
	Name   string
	Heap   []string // flags of the JVM
	Server []string // server.properties, over those of the distribution
	Note   string
}

// distribution is the server.properties that Kafka is delivered with, but for
// addresses and directories.
var distribution = []string{
	"process.roles=broker,controller",
	"num.network.threads=3",
	"num.io.threads=8",
	"socket.send.buffer.bytes=102400",
	"socket.receive.buffer.bytes=102400",
	"socket.request.max.bytes=104857600",
	"num.partitions=1",
	"num.recovery.threads.per.data.dir=1",
	"offsets.topic.replication.factor=1",
	"share.coordinator.state.topic.replication.factor=1",
	"share.coordinator.state.topic.min.isr=1",
	"transaction.state.log.replication.factor=1",
	"transaction.state.log.min.isr=1",
	"log.retention.hours=168",
	"log.segment.bytes=1073741824",
	"log.retention.check.interval.ms=300000",
}

// startScript are the flags that kafka-server-start.sh gives the JVM beside
// the heap.
var startScript = []string{
	"-server", "-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20", "-XX:InitiatingHeapOccupancyPercent=35", "-XX:+ExplicitGCInvokesConcurrent",
	"-XX:MaxInlineLevel=15", "-Djava.awt.headless=true",
}

var (
	kafkaDefault = profile{
		Name: "default", Heap: []string{"-Xmx1G", "-Xms1G"},
		Note: "the server.properties of the distribution, the flags of kafka-server-start.sh",
	}
	kafkaTuned = profile{
		Name: "tuned",
		// A heap that is there from the start and never grows, so that no page fault and no full collection
		// falls into a measurement.
		Heap: []string{"-Xmx4G", "-Xms4G", "-XX:+AlwaysPreTouch"},
		Server: []string{
			// One network thread and one request thread for each core, and one more request thread because
			// one may wait for a page to be written: with more they only take the cores from each other.
			fmt.Sprintf("num.network.threads=%d", runtime.NumCPU()),
			fmt.Sprintf("num.io.threads=%d", runtime.NumCPU()+1),
			// A request of 1 MiB in few reads, and a fetch in few writes.
			"socket.send.buffer.bytes=1048576",
			"socket.receive.buffer.bytes=1048576",
			// More requests wait in the broker rather than in the sockets.
			"queued.max.requests=1000",
			// A clean log is loaded by all cores.
			fmt.Sprintf("num.recovery.threads.per.data.dir=%d", runtime.NumCPU()),
		},
		Note: "4 GiB heap, pre-touched; a network thread for each core and one request thread more; 1 MiB socket buffers",
	}
	// Kafka acknowledges what is in the page cache. Where durability is compared, it is told to do what Varve does.
	kafkaFsync = profile{
		Name: "fsync", Heap: kafkaDefault.Heap, Server: []string{"log.flush.interval.messages=1"},
		Note: "default, and log.flush.interval.messages=1: an fsync of the partition's file before every acknowledgement",
	}
	// Three replicas of everything, of which two have what is acknowledged.
	kafkaCluster = profile{
		Name: "cluster", Heap: kafkaDefault.Heap, Server: []string{
			"default.replication.factor=3", "min.insync.replicas=2",
			"offsets.topic.replication.factor=3", "transaction.state.log.replication.factor=3", "transaction.state.log.min.isr=2",
			"share.coordinator.state.topic.replication.factor=3", "share.coordinator.state.topic.min.isr=2",
		},
		Note: "three processes, each broker and controller (KRaft), default otherwise; replication.factor=3, min.insync.replicas=2",
	}
	// The object store of Kafka's own tests: a directory, without a network and without a server.
	kafkaTiered = profile{
		Name: "tiered", Heap: kafkaDefault.Heap, Server: []string{
			"remote.log.storage.system.enable=true",
			"remote.log.storage.manager.class.name=org.apache.kafka.server.log.remote.storage.LocalTieredStorage",
			"remote.log.metadata.manager.listener.name=PLAINTEXT",
			"rlmm.config.remote.log.metadata.topic.replication.factor=1",
			"rlmm.config.remote.log.metadata.topic.num.partitions=5",
			// Only so that what is to be replayed leaves the local log soon.
			"remote.log.manager.task.interval.ms=1000",
			"log.retention.check.interval.ms=1000",
			"log.initial.task.delay.ms=1000",
		},
		Note: "default, with tiered storage on LocalTieredStorage, the directory-backed store of Kafka's tests (of " + pomProperties().Tests + ": that of the broker's version is not published)",
	}
)

// kafkaNode is one of Kafka's processes: all of a cluster, or a member of one.
type kafkaNode struct {
	id         int
	dir        string
	addr       string
	controller string   // where it listens as a controller; empty: it is none
	voters     []string // of a cluster, as id@address; none: it is alone
	cluster    string   // the id of its cluster
}

// properties is the server.properties of a profile; later lines win.
func (p profile) properties(n kafkaNode) []string {
	lines := slices.Concat(distribution, []string{
		"node.id=" + strconv.Itoa(n.id),
		"listeners=PLAINTEXT://" + n.addr + ",CONTROLLER://" + n.controller,
		"advertised.listeners=PLAINTEXT://" + n.addr,
		"controller.listener.names=CONTROLLER",
		"listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
		"log.dirs=" + filepath.Join(n.dir, "data"),
		"rsm.config.dir=" + filepath.Join(n.dir, "remote"),
		// Deleted topics leave the disk between two measurements, not in the midst of a later one.
		"log.segment.delete.delay.ms=1000",
		"group.initial.rebalance.delay.ms=0",
	}, p.Server)
	if len(n.voters) == 0 {
		return append(lines, "controller.quorum.bootstrap.servers="+n.controller)
	}
	lines = append(lines, "controller.quorum.voters="+strings.Join(n.voters, ","))
	if n.controller == "" {
		lines = append(lines, "process.roles=broker", "listeners=PLAINTEXT://"+n.addr)
	}
	return lines
}

// start runs the node, on what it has stored, and returns once it answers.
func (n kafkaNode) start(ctx context.Context, jars string, p profile) (*child.Process, error) {
	config := filepath.Join(n.dir, "server.properties")
	class := filepath.Join(jars, "*") + ":" + filepath.Join(filepath.Dir(jars), "tests", "*")
	if _, err := os.Stat(config); err != nil {
		if err := os.MkdirAll(filepath.Join(n.dir, "remote"), 0o755); err != nil {
			return nil, err
		}
		if err := os.WriteFile(config, []byte(strings.Join(p.properties(n), "\n")+"\n"), 0o644); err != nil {
			return nil, err
		}
		args := []string{
			"-Xmx256m", "-XX:TieredStopAtLevel=1", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp", class,
			"kafka.tools.StorageTool", "format", "-c", config, "-t",
		}
		if len(n.voters) > 0 {
			args = append(args, n.cluster)
		} else {
			args = append(args, clusterID(), "--standalone")
		}
		if err := install.Command(ctx, n.dir, "java", args...); err != nil {
			return nil, err
		}
	}
	args := slices.Concat(p.Heap, startScript, []string{
		"-Xlog:gc*:file=" + filepath.Join(n.dir, "gc.log") + ":time,tags:filecount=10,filesize=100M",
		"-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-Dorg.slf4j.simpleLogger.showDateTime=true",
		"-cp", class, "kafka.Kafka", config,
	})
	began := time.Now()
	cmd := exec.Command("java", args...)
	cmd.Dir = n.dir // the jar of LocalTieredStorage has a log configuration that writes below the working directory
	proc, err := child.Start(ctx, &child.Process{Name: "Kafka", Log: filepath.Join(n.dir, "kafka.log"), Patience: 3 * time.Minute}, cmd, func() error {
		if err := child.Dialled(n.addr); err != nil {
			return err
		}
		return knows(ctx, n.addr, int32(n.id))
	})
	if err != nil {
		return nil, fmt.Errorf("after %s: %w", time.Since(began).Round(time.Second), err)
	}
	return proc, nil
}

// knows is an error until the broker at addr knows the one with an id as a member of its cluster.
func knows(ctx context.Context, addr string, id int32) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	cl, err := kgo.NewClient(kgo.SeedBrokers(addr), kgo.RetryTimeout(time.Second), kgo.DisableClientMetrics())
	if err != nil {
		return err
	}
	defer cl.Close()
	brokers, err := kadm.NewClient(cl).ListBrokers(ctx)
	if err == nil && !slices.Contains(brokers.NodeIDs(), id) {
		err = fmt.Errorf("%s does not know broker %d yet", addr, id)
	}
	return err
}

// clusterID is a random one in Kafka's form.
func clusterID() string {
	b := make([]byte, 16)
	rand.Read(b)
	b[0] &= 0x7f // a leading dash would be read as an option
	return base64.RawURLEncoding.EncodeToString(b)
}

func javaVersion() string {
	out, err := exec.Command("java", "-version").CombinedOutput()
	if err != nil {
		return "unknown: " + err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if len(lines) > 1 {
		return strings.TrimSpace(lines[1])
	}
	return lines[0]
}
