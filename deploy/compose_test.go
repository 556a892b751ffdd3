// Package deploy holds what runs a cluster, and these tests of it: there is no container engine where they run, so they
// hold the files to each other.
package deploy

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/types"

	"github.com/varve/varve/config"
)

func compose(t *testing.T, environment map[string]string) *types.Project {
	t.Helper()
	p, err := loader.LoadWithContext(t.Context(), types.ConfigDetails{
		WorkingDir: "..", Environment: environment, ConfigFiles: []types.ConfigFile{{Filename: "../docker-compose.yml"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// The containers: three brokers, two compaction workers, three members of etcd, one MinIO, each with a volume of its own and a
// check of its health; brokers and workers wait for etcd's and MinIO's.
func TestComposeServices(t *testing.T) {
	p := compose(t, nil)
	want := []string{"broker-1", "broker-2", "broker-3", "compactor-1", "compactor-2", "etcd-1", "etcd-2", "etcd-3", "minio"}
	if got := p.ServiceNames(); !slices.Equal(got, want) {
		t.Fatalf("services %q, want %q", got, want)
	}
	if got := p.VolumeNames(); !slices.Equal(got, want) {
		t.Errorf("volumes %q, want one for each of %q", got, want)
	}
	images := map[string]string{"etcd": "quay.io/coreos/etcd:v3.7.3", "mini": "quay.io/minio/minio:RELEASE.2025-09-07T16-13-09Z", "brok": "varve:latest", "comp": "varve:latest"}
	published := map[string]string{}
	for _, name := range want {
		s := p.Services[name]
		if s.Image != images[name[:4]] {
			t.Errorf("%s runs %s", name, s.Image)
		}
		if s.HealthCheck == nil || len(s.HealthCheck.Test) < 2 || s.HealthCheck.Test[0] != "CMD" {
			t.Errorf("%s has no health check that does without a shell: %+v", name, s.HealthCheck)
		}
		own := slices.ContainsFunc(s.Volumes, func(v types.ServiceVolumeConfig) bool { return v.Type == "volume" && v.Source == name })
		if !own {
			t.Errorf("%s keeps its data in %+v", name, s.Volumes)
		}
		for _, port := range s.Ports {
			if port.HostIP != "127.0.0.1" {
				t.Errorf("%s: port %s is open to the network: nothing here asks who one is", name, port.Published)
			}
			published[port.Published] = name + ":" + strconv.Itoa(int(port.Target))
		}
		waits := map[string]string{}
		for on, d := range s.DependsOn {
			waits[on] = d.Condition
		}
		healthy := map[string]string{}
		if strings.HasPrefix(name, "broker-") || strings.HasPrefix(name, "compactor-") {
			for _, on := range want[5:] {
				healthy[on] = types.ServiceConditionHealthy
			}
		}
		if !maps.Equal(waits, healthy) {
			t.Errorf("%s waits for %v, want %v", name, waits, healthy)
		}
	}
	if want := map[string]string{
		"19092": "broker-1:19092", "29092": "broker-2:19092", "39092": "broker-3:19092",
		"19644": "broker-1:9644", "29644": "broker-2:9644", "39644": "broker-3:9644", "20644": "compactor-1:9644", "20744": "compactor-2:9644", "19000": "minio:9000",
	}; !maps.Equal(published, want) {
		t.Errorf("published %v, want %v", published, want)
	}

	// Every member of etcd names the same members, and itself.
	for _, name := range want[5:8] {
		env := p.Services[name].Environment.Resolve(func(string) (string, bool) { return "", false })
		for key, want := range map[string]string{
			"ETCD_NAME": name, "ETCD_INITIAL_ADVERTISE_PEER_URLS": "http://" + name + ":2380", "ETCD_ADVERTISE_CLIENT_URLS": "http://" + name + ":2379",
			"ETCD_INITIAL_CLUSTER": "etcd-1=http://etcd-1:2380,etcd-2=http://etcd-2:2380,etcd-3=http://etcd-3:2380", "ETCD_DATA_DIR": "/etcd-data",
		} {
			if got := env[key]; got == nil || *got != want {
				t.Errorf("%s: %s is not %s", name, key, want)
			}
		}
	}
}

func TestComposeImagesAreVariables(t *testing.T) {
	p := compose(t, map[string]string{"MINIO_IMAGE": "m", "ETCD_IMAGE": "e", "VARVE_IMAGE": "v", "MINIO_ROOT_USER": "u", "MINIO_ROOT_PASSWORD": "p"})
	for name, want := range map[string]string{"minio": "m", "etcd-2": "e", "broker-3": "v"} {
		if got := p.Services[name].Image; got != want {
			t.Errorf("%s runs %s, want %s", name, got, want)
		}
	}
	broker, minio := p.Services["broker-1"].Environment, p.Services["minio"].Environment
	if *broker["AWS_ACCESS_KEY_ID"] != *minio["MINIO_ROOT_USER"] || *broker["AWS_SECRET_ACCESS_KEY"] != *minio["MINIO_ROOT_PASSWORD"] {
		t.Error("the brokers do not have MinIO's credentials")
	}
	if worker := p.Services["compactor-2"].Environment; *worker["AWS_ACCESS_KEY_ID"] != *minio["MINIO_ROOT_USER"] || *worker["AWS_SECRET_ACCESS_KEY"] != *minio["MINIO_ROOT_PASSWORD"] {
		t.Error("the compaction workers do not have MinIO's credentials")
	}
}

// brokerOf is the configuration with which a container starts.
func brokerOf(t *testing.T, name string, s types.ServiceConfig) (*config.BrokerConfig, string) {
	t.Helper()
	i := slices.IndexFunc(s.Volumes, func(v types.ServiceVolumeConfig) bool { return v.Target == "/etc/varve/server.properties" })
	if i < 0 || s.Volumes[i].Type != "bind" || !s.Volumes[i].ReadOnly {
		t.Fatalf("%s has no configuration file, or could write to it: %+v", name, s.Volumes)
	}
	file := s.Volumes[i].Source
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	fromFile, err := config.ParseProperties(file, b)
	if err != nil {
		t.Fatal(err)
	}
	// What differs between a process and a container is not the file's to say.
	for _, address := range []string{"listeners", "advertised.listeners", "admin.listener", "log.dirs", "etcd.endpoints", "remote.storage.url", "log.cleaner.spool.dir"} {
		if _, ok := fromFile[address]; ok {
			t.Errorf("%s sets %s", file, address)
		}
	}
	var environ []string
	for k, v := range s.Environment {
		environ = append(environ, k+"="+*v)
	}
	c, warnings, err := config.Build(config.Merge(fromFile, config.FromEnvironment(environ)), config.Machine{
		Hostname: name, MemoryBytes: 4 << 30, Brokers: 3, Required: []string{"etcd.endpoints", "remote.storage.url"},
		NoBroker: strings.HasPrefix(name, "compactor-"),
	})
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	for _, w := range warnings {
		// Settings of what does not exist yet are right all the same.
		if !strings.Contains(w.Message, "has no effect: replication between brokers does not exist yet") {
			t.Errorf("%s: %v", name, w)
		}
	}
	return c, filepath.Base(file)
}

// The files that containers mount are the brokers' of `make cluster-up`, without a fault, and say that every record
// lies on three brokers. What clients are told is what is published.
func TestComposeBrokers(t *testing.T) {
	p := compose(t, nil)
	for id, host := range map[int32]int{1: 19092, 2: 29092, 3: 39092} {
		name := "broker-" + strconv.Itoa(int(id))
		c, file := brokerOf(t, name, p.Services[name])
		if file != name+".properties" || c.NodeID != id || c.Rack == "" {
			t.Errorf("%s reads %s, which is of broker %d in rack %q", name, file, c.NodeID, c.Rack)
		}
		if c.DefaultReplicationFactor != 3 || c.OffsetsTopicReplicationFactor != 3 || c.TxnTopicReplication != 3 || c.TxnTopicMinISR != 2 || c.Static["min.insync.replicas"] != "2" {
			t.Errorf("%s keeps fewer copies", name)
		}
		want := []config.Listener{
			{Name: "HOST", Host: "0.0.0.0", Port: 19092, Protocol: "PLAINTEXT", Advertised: true, AdvertisedHost: "localhost", AdvertisedPort: host},
			{Name: "INTERNAL", Host: "0.0.0.0", Port: 9092, Protocol: "PLAINTEXT", Advertised: true, AdvertisedHost: name, AdvertisedPort: 9092, InterBroker: true},
		}
		if !slices.Equal(c.Listeners, want) {
			t.Errorf("%s listens at\n%+v, want\n%+v", name, c.Listeners, want)
		}
		if !slices.Equal(c.EtcdEndpoints, []string{"http://etcd-1:2379", "http://etcd-2:2379", "http://etcd-3:2379"}) {
			t.Errorf("%s asks %q", name, c.EtcdEndpoints)
		}
		if !strings.HasPrefix(c.LogDir, "/var/lib/varve/") || c.AdminListener != "0.0.0.0:9644" || !strings.Contains(c.RemoteStorageURL, "endpoint=http://minio:9000") {
			t.Errorf("%s: log.dirs=%s admin.listener=%s remote.storage.url=%s", name, c.LogDir, c.AdminListener, c.RemoteStorageURL)
		}
	}
}

// Workers run the same program on the same metadata and bucket as the brokers, and have room of their own for what they write:
// the image has no directory for temporary files.
func TestComposeCompactors(t *testing.T) {
	p := compose(t, nil)
	brokers, _ := brokerOf(t, "broker-1", p.Services["broker-1"])
	for _, name := range []string{"compactor-1", "compactor-2"} {
		s := p.Services[name]
		c, file := brokerOf(t, name, s)
		if want := []string{"compactor", "--config", "/etc/varve/server.properties"}; !slices.Equal(s.Command, want) || file != "compactor.properties" {
			t.Errorf("%s runs %q with %s", name, s.Command, file)
		}
		if !slices.Equal(c.EtcdEndpoints, brokers.EtcdEndpoints) || c.EtcdPrefix != brokers.EtcdPrefix || c.RemoteStorageURL != brokers.RemoteStorageURL {
			t.Errorf("%s works for another cluster: %q, %s", name, c.EtcdEndpoints, c.RemoteStorageURL)
		}
		if c.AdminListener != "0.0.0.0:9644" || c.Cleaner.SpoolDir != "/var/lib/varve" {
			t.Errorf("%s: admin.listener=%s log.cleaner.spool.dir=%s", name, c.AdminListener, c.Cleaner.SpoolDir)
		}
	}
}

// The image is built as `make build` builds, has nothing but the program, and runs it as somebody without rights; its
// volume and its configuration are where the containers have theirs.
func TestDockerfile(t *testing.T) {
	b, err := os.ReadFile("../Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	make, err := os.ReadFile("../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	if !regexp.MustCompile(`(?m)^build:.*\n\t\$\(GO\) build .*-X main.version=\$\(VERSION\).* -o \$\(BIN\) ./cmd/varve$`).Match(make) ||
		!regexp.MustCompile(`(?m)^BIN := bin/varve$`).Match(make) {
		t.Error("make build does not build bin/varve with a version")
	}
	mod, err := os.ReadFile("../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	version := regexp.MustCompile(`(?m)^go (\d+\.\d+)`).FindSubmatch(mod)
	stages := strings.Split(string(b), "\nFROM ")
	if len(stages) != 3 {
		t.Fatalf("%d stages", len(stages)-1)
	}
	for _, want := range []string{"ARG GO_IMAGE=golang:" + string(version[1]) + "\n"} {
		if !strings.Contains(stages[0], want) {
			t.Errorf("before the stages there is no %q", want)
		}
	}
	for _, want := range []string{"${GO_IMAGE} AS build\n", "\nRUN CGO_ENABLED=0 make build VERSION=${VERSION}\n"} {
		if !strings.Contains(stages[1], want) {
			t.Errorf("the first stage has no %q", want)
		}
	}
	for _, want := range []string{
		"scratch\n", "\nCOPY --from=build /src/bin/varve /usr/local/bin/varve\n", "\nUSER 65532:65532\n", "\nVOLUME /var/lib/varve\n",
		"\nENTRYPOINT [\"varve\"]\n", "\nCMD [\"broker\", \"--config\", \"/etc/varve/server.properties\"]\n",
	} {
		if !strings.Contains(stages[2], want) {
			t.Errorf("the last stage has no %q", want)
		}
	}
	s := compose(t, nil).Services["broker-1"]
	if s.HealthCheck.Test[1] != "/usr/local/bin/varve" {
		t.Errorf("the health check runs %s", s.HealthCheck.Test[1])
	}
	if !slices.ContainsFunc(s.Volumes, func(v types.ServiceVolumeConfig) bool { return v.Source == "broker-1" && v.Target == "/var/lib/varve" }) {
		t.Error("the volume is not where the image keeps data")
	}
}
