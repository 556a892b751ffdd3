package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// broker is the `varve dev` that the demo runs.
type broker struct {
	cmd      *exec.Cmd
	log      string
	kafka    string // host:port
	adminURL string
	exited   chan struct{}
	err      error // of the process; read after exited is closed
}

// freeAddress finds a port that nobody uses. Somebody could take it before the child does; then the child says so and
// the demo fails with its log.
func freeAddress() (string, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer ln.Close()
	return ln.Addr().String(), nil
}

func startBroker(ctx context.Context, binary, dir string, sets []string) (*broker, error) {
	kafka, err := freeAddress()
	if err != nil {
		return nil, err
	}
	admin, err := freeAddress()
	if err != nil {
		return nil, err
	}
	args := []string{"dev", "--data-dir", filepath.Join(dir, "data"), "--set", "listeners=PLAINTEXT://" + kafka, "--set", "admin.listener=" + admin}
	for _, s := range sets {
		args = append(args, "--set", s)
	}
	b := &broker{cmd: exec.Command(binary, args...), log: filepath.Join(dir, "varve.log"), kafka: kafka, adminURL: "http://" + admin, exited: make(chan struct{})}
	out, err := os.Create(b.log)
	if err != nil {
		return nil, err
	}
	b.cmd.Stdout, b.cmd.Stderr = out, out
	// A Ctrl-C in the terminal goes to the whole process group; the demo ends its child itself, in order.
	b.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	err = b.cmd.Start()
	out.Close()
	if err != nil {
		return nil, fmt.Errorf("starting %s: %w (make build)", binary, err)
	}
	go func() {
		defer close(b.exited)
		b.err = b.cmd.Wait()
	}()
	if err := b.waitReady(ctx); err != nil {
		b.cmd.Process.Kill()
		<-b.exited
		return nil, err
	}
	return b, nil
}

func (b *broker) waitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		_, err := b.get(ctx, "/readyz")
		if err == nil {
			return nil
		}
		select {
		case <-b.exited:
			return b.died()
		case <-ctx.Done():
			return fmt.Errorf("varve dev is not ready: %w\n%s", err, b.logTail())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (b *broker) died() error {
	return fmt.Errorf("varve dev ended: %v\n%s", b.err, b.logTail())
}

func (b *broker) logTail() string {
	text, _ := os.ReadFile(b.log)
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return "  | " + strings.Join(lines[max(0, len(lines)-15):], "\n  | ")
}

// stop ends the broker with SIGTERM, on which it drains and exits with 0.
func (b *broker) stop() error {
	select {
	case <-b.exited:
		return b.died()
	default:
	}
	b.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-b.exited:
		if b.err != nil {
			return fmt.Errorf("after SIGTERM: %w", b.died())
		}
		return nil
	case <-time.After(30 * time.Second):
		b.cmd.Process.Kill()
		<-b.exited
		return fmt.Errorf("varve dev did not end within 30 s of SIGTERM\n%s", b.logTail())
	}
}

// get asks the admin listener.
func (b *broker) get(ctx context.Context, path string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, b.adminURL+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %s", path, resp.Status, bytes.TrimSpace(body))
	}
	return body, err
}

// tierStatus is a line of /v1/tier.
type tierStatus struct {
	Topic         string `json:"topic"`
	Partition     int32  `json:"partition"`
	LogStart      int64  `json:"log_start"`
	LocalStart    int64  `json:"local_start"`
	RemoteEnd     int64  `json:"remote_end"`
	HighWatermark int64  `json:"high_watermark"`
	Objects       int64  `json:"objects"`
	Bytes         int64  `json:"bytes"`
	UploadLagMs   int64  `json:"upload_lag_ms"`
}

func (b *broker) tier(ctx context.Context, topic string) ([]tierStatus, error) {
	body, err := b.get(ctx, "/v1/tier?topic="+topic)
	if err != nil {
		return nil, err
	}
	var list []tierStatus
	if err := json.Unmarshal(body, &list); err != nil {
		return nil, fmt.Errorf("/v1/tier: %w", err)
	}
	return list, nil
}

// requests returns how many requests the broker made to the bucket so far, by operation.
func (b *broker) requests(ctx context.Context) (map[string]float64, error) {
	body, err := b.get(ctx, "/metrics")
	if err != nil {
		return nil, err
	}
	return countRequests(body)
}

const requestsMetric = "varve_objstore_requests_total"

// countRequests reads the counter in Prometheus's text format, summed by its operation label.
func countRequests(text []byte) (map[string]float64, error) {
	counts := map[string]float64{}
	sc := bufio.NewScanner(bytes.NewReader(text))
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		rest, ok := strings.CutPrefix(sc.Text(), requestsMetric)
		if !ok || rest == "" || (rest[0] != '{' && rest[0] != ' ') {
			continue
		}
		op := "all"
		labels, value, ok := strings.Cut(rest, "} ")
		if !ok {
			labels, value = "", strings.TrimSpace(rest)
		}
		for _, l := range strings.Split(strings.TrimPrefix(labels, "{"), ",") {
			if name, v, ok := strings.Cut(l, "="); ok && (name == "operation" || name == "op") {
				op = strings.Trim(v, `"`)
			}
		}
		n, err := strconv.ParseFloat(strings.Fields(value)[0], 64)
		if err != nil {
			return nil, fmt.Errorf("/metrics: %s: %w", sc.Text(), err)
		}
		counts[op] += n
	}
	if len(counts) == 0 {
		return nil, fmt.Errorf("/metrics has no %s", requestsMetric)
	}
	return counts, sc.Err()
}
