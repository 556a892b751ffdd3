package child

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// JavaOptions are for a JVM that does little: no second compiler, no parallel collector.
var JavaOptions = []string{"-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto", "-Xmx512m"}

// StartKafkaAt runs a broker of Apache Kafka that is its own controller, with its data in dir/data, at addresses that a
// restart gives again. jars is a folder with Kafka's jars and what they need. Settings are name=value; later ones win. What
// is in dir already is opened again.
func StartKafkaAt(ctx context.Context, jars, dir, addr, controller string, settings ...string) (*Process, error) {
	data := filepath.Join(dir, "data")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	config := filepath.Join(dir, "server.properties")
	if err := os.WriteFile(config, []byte(strings.Join(append([]string{
		"process.roles=broker,controller", "node.id=1", "listeners=PLAINTEXT://" + addr + ",CONTROLLER://" + controller,
		"advertised.listeners=PLAINTEXT://" + addr, "controller.listener.names=CONTROLLER",
		"listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT", "controller.quorum.bootstrap.servers=" + controller,
		"log.dirs=" + data, "offsets.topic.replication.factor=1", "transaction.state.log.replication.factor=1", "transaction.state.log.min.isr=1",
	}, settings...), "\n")+"\n"), 0o644); err != nil {
		return nil, err
	}
	java := func(args ...string) *exec.Cmd {
		cmd := exec.Command("java", slices.Concat(JavaOptions, []string{"-cp", jars + "/*"}, args)...)
		cmd.Dir = dir
		return cmd
	}
	if _, err := os.Stat(filepath.Join(data, "meta.properties")); errors.Is(err, os.ErrNotExist) {
		id := make([]byte, 16)
		rand.Read(id)
		id[0] &= 0x7f // a leading dash would be read as an option
		if out, err := java("kafka.tools.StorageTool", "format", "-t", base64.RawURLEncoding.EncodeToString(id), "-c", config, "--standalone").CombinedOutput(); err != nil {
			return nil, fmt.Errorf("format Kafka's directory: %w\n%s", err, out)
		}
	}
	return Start(ctx, &Process{Name: "Kafka", Log: filepath.Join(dir, "kafka.log"), Patience: 3 * time.Minute}, java("kafka.Kafka", config), func() error {
		if err := Dialled(addr); err != nil {
			return err
		}
		cl, err := kgo.NewClient(kgo.SeedBrokers(addr), kgo.RetryTimeout(time.Second))
		if err != nil {
			return err
		}
		defer cl.Close()
		c, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		brokers, err := kadm.NewClient(cl).ListBrokers(c)
		if err == nil && len(brokers) == 0 {
			err = errors.New("it knows no broker yet")
		}
		return err
	})
}
