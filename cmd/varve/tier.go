package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/varve/varve/cmd/varve/server"
	"github.com/varve/varve/config"
	"github.com/varve/varve/internal/admin"
	"github.com/varve/varve/tiering"
)

// maxTierAnswer bounds what is read from the admin listener: 100,000 partitions need about 20 MB.
const maxTierAnswer = 256 << 20

func tierCommand() *cobra.Command {
	cmd := group("tier", "Where the records are: local disk and object storage")
	cmd.AddCommand(tierStatus(), tierVerify(), tierRetired())
	return cmd
}

func tierStatus() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status [TOPIC]",
		Short: "Per partition: what is in the bucket, what is on local disk, how far the upload lags",
		Long: `Asks a broker's admin listener. Offsets from LOG-START to REMOTE-END are in the bucket, from LOCAL-START to
HIGH-WATERMARK on the broker's disk. With REMOTE-END = HIGH-WATERMARK everything is uploaded; with LOCAL-START =
REMOTE-END everything that is uploaded has left the local disk.`,
		Args: arguments("the topic's name", 0, 1),
	}
	conn := addConnection(cmd)
	adminURL := cmd.Flags().String("admin-url", "", "the broker's admin listener (default: port 9644 of the first host in --bootstrap-server)")
	out := addOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		topic := ""
		if len(args) == 1 {
			topic = args[0]
			if err := checkTopicName(topic); err != nil {
				return err
			}
		}
		base := *adminURL
		if base == "" {
			var err error
			if base, err = conn.adminURL(); err != nil {
				return err
			}
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), conn.wait)
		defer cancel()
		list, err := fetchTier(ctx, base, topic)
		if err != nil {
			if cmd.Context().Err() != nil {
				return context.Cause(cmd.Context())
			}
			return err
		}
		if out.json() {
			return writeJSON(cmd.OutOrStdout(), list)
		}
		t := newTable("TOPIC", "PARTITION", "LOG-START", "LOCAL-START", "REMOTE-END", "HIGH-WATERMARK", "OBJECTS", "BYTES", "UPLOAD-LAG")
		for _, s := range list {
			t.row(s.Topic, s.Partition, s.LogStart, s.LocalStart, s.RemoteEnd, s.HighWatermark, s.Objects, humanBytes(s.Bytes),
				time.Duration(s.UploadLagMs)*time.Millisecond)
		}
		return t.writeTo(cmd.OutOrStdout())
	}
	return cmd
}

// adminURL is where a broker's admin listener is if nobody says otherwise.
func (c *connection) adminURL() (string, error) {
	seeds, err := c.seeds()
	if err != nil {
		return "", err
	}
	host, _, _ := net.SplitHostPort(seeds[0])
	_, port, _ := net.SplitHostPort(admin.DefaultListen)
	return "http://" + net.JoinHostPort(host, port), nil
}

type verified struct {
	Partitions   int               `json:"partitions"`
	Objects      int               `json:"objects"` // with pages of manifests
	Bytes        int64             `json:"bytes"`   // of record batches
	Findings     []verifiedFinding `json:"findings"`
	Unnamed      int               `json:"unnamed_objects"`
	UnnamedBytes int64             `json:"unnamed_bytes"`
}

type verifiedFinding struct {
	Fault     string `json:"fault"`
	Topic     string `json:"topic,omitempty"`
	Partition int32  `json:"partition"`
	Base      int64  `json:"base"` // -1: no offsets in particular
	Last      int64  `json:"last"`
	Object    string `json:"object,omitempty"`
	What      string `json:"what"`
	Do        string `json:"do"`
}

func tierVerify() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "verify [TOPIC]",
		Short: "Whether everything is in the bucket that the manifests name, and is what was written",
		Long: `Looks in etcd for what should be in the bucket, and in the bucket for whether it is; no broker has to run, and those
that do are not asked. Every object that a manifest names must be there and have the footer that is named; with --data all
of it is read and compared with its checksums, which costs as much as reading the topic. Nothing is changed.

Each finding is a line on standard output; with any the exit code is 1. Objects that nothing names are counted: they wait to be
deleted, or are on their way into a manifest. With --unnamed each of them is a finding, which makes sense for a cluster at rest.

Which cluster it is say the settings of a broker's server.properties file, etcd.* and remote.*, or --data-dir, the directory of a varve dev, which
may run or not.`,
		Args: arguments("the topic's name", 0, 1),
	}
	file := cmd.Flags().String("config", "", "the server.properties file")
	set := cmd.Flags().StringArray("set", nil, "a setting, as name=value; may be repeated")
	dataDir := cmd.Flags().String("data-dir", "", "what varve dev was given as --data-dir")
	data := cmd.Flags().Bool("data", false, "read every record batch, not only what describes the objects")
	unnamed := cmd.Flags().Bool("unnamed", false, "every object that no manifest names is a finding")
	quiet := cmd.Flags().BoolP("quiet", "q", false, "no progress on stderr")
	out := addOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		topic := ""
		if len(args) == 1 {
			topic = args[0]
			if err := checkTopicName(topic); err != nil {
				return err
			}
		}
		stderr := cmd.ErrOrStderr()
		cfg, err := auditedConfig(stderr, *file, *dataDir, *set)
		if err != nil {
			return err
		}
		a, err := server.OpenAuditor(cmd.Context(), cfg, *dataDir, newLogger(stderr, "error", cfg.LogFormat))
		if err != nil {
			return err
		}
		defer a.Close()
		o := tiering.AuditOptions{Data: *data}
		if last := time.Now(); !*quiet && cmd.ErrOrStderr() == os.Stderr && isTerminal(os.Stderr) {
			o.Progress = func(a tiering.Audit) {
				if time.Since(last) > 5*time.Second {
					last = time.Now()
					fmt.Fprintf(stderr, "%d partitions, %d objects, %s\n", a.Partitions, a.Entries+a.Pages, humanBytes(a.Bytes))
				}
			}
		}
		res := verified{Findings: []verifiedFinding{}}
		var writeErr error
		o.Found = func(f tiering.Finding) {
			res.Findings = append(res.Findings, verifiedFinding{string(f.Fault), f.Topic, f.Partition, f.Base, f.Last, f.Object, f.What, f.Fault.Advice()})
			if !out.json() && writeErr == nil {
				_, writeErr = fmt.Fprintln(cmd.OutOrStdout(), visible(f.String()))
			}
		}
		audit, err := a.Check(cmd.Context(), topic, o)
		if err != nil {
			return fmt.Errorf("the bucket could not be verified: %w", err)
		}
		for _, u := range audit.Unnamed {
			if topic != "" && u.Topic != topic {
				continue
			}
			res.Unnamed++
			res.UnnamedBytes += u.Size
			if *unnamed {
				o.Found(tiering.Finding{Fault: tiering.FaultOrphan, Topic: u.Topic, Partition: u.Partition, Base: -1, Last: -1, Object: u.Key,
					What: fmt.Sprintf("no manifest names it; written %s, %d bytes", u.Modified.UTC().Format(time.RFC3339), u.Size)})
			}
		}
		res.Partitions, res.Objects, res.Bytes = audit.Partitions, audit.Entries+audit.Pages, audit.Bytes
		if out.json() {
			writeErr = writeJSON(cmd.OutOrStdout(), res)
		}
		if writeErr != nil {
			return writeErr
		}
		what := fmt.Sprintf("%d partitions, %d objects with %s of records; %d objects (%s) that no manifest names", res.Partitions, res.Objects, humanBytes(res.Bytes),
			res.Unnamed, humanBytes(res.UnnamedBytes))
		if n := len(res.Findings); n > 0 {
			return fmt.Errorf("%d findings in %s", n, what)
		}
		if !*quiet {
			fmt.Fprintf(stderr, "all is there: %s\n", what)
		}
		return nil
	}
	return cmd
}

// auditedConfig is the configuration of the cluster that is to be looked at.
func auditedConfig(stderr io.Writer, file, dataDir string, set []string) (*config.BrokerConfig, error) {
	if dataDir != "" {
		if file != "" {
			return nil, usagef("--config is of a cluster, --data-dir of a varve dev: give one of them")
		}
		defaults := config.DevDefaults()
		defaults["log.dirs"] = filepath.Join(dataDir, "wal")
		return loadConfig(stderr, config.FromMode("varve dev", defaults), "", set, nil)
	}
	named := func(s string) bool { return strings.HasPrefix(s, "etcd.endpoints=") }
	if _, env := os.LookupEnv(config.EnvName("etcd.endpoints")); file == "" && !env && !slices.ContainsFunc(set, named) {
		return nil, usagef("which cluster? --config FILE names the server.properties of one of its brokers, --data-dir DIR the directory of a varve dev")
	}
	return loadConfig(stderr, nil, file, set, []string{"etcd.endpoints", "remote.storage.url"})
}

func tierRetired() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "retired",
		Short: "Objects that wait to be deleted from the bucket, and when they go",
		Long: `Asks the admin listeners of brokers and compaction workers: each deletes what it has let go of itself. An object is deleted at the
time that is shown or soon after it, once the state published in the bucket lacks it, if no manifest names it then. A deleted topic is one line, without
its objects: whichever process comes first deletes them, so that several may show it.`,
		Args: arguments("", 0, 0),
	}
	conn := addConnection(cmd)
	adminURLs := cmd.Flags().StringArray("admin-url", nil, "an admin listener; may be repeated (default: port 9644 of the first host in --bootstrap-server)")
	out := addOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		urls := *adminURLs
		if len(urls) == 0 {
			base, err := conn.adminURL()
			if err != nil {
				return err
			}
			urls = []string{base}
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), conn.wait)
		defer cancel()
		all := []admin.Retired{}
		for _, base := range urls {
			list, err := fetchAdmin[admin.Retired](ctx, base, "/v1/tier/retired", nil)
			if err != nil {
				if cmd.Context().Err() != nil {
					return context.Cause(cmd.Context())
				}
				return err
			}
			all = append(all, list...)
		}
		slices.SortStableFunc(all, func(a, b admin.Retired) int { return a.Earliest.Compare(b.Earliest) })
		if out.json() {
			return writeJSON(cmd.OutOrStdout(), all)
		}
		t := newTable("TOPIC", "PARTITION", "BYTES", "SINCE", "EARLIEST", "OBJECT")
		for _, r := range all {
			topic, partition, bytes := r.Topic, strconv.Itoa(int(r.Partition)), "-"
			if topic == "" {
				topic, partition = "-", "-"
			}
			if r.Bytes > 0 {
				bytes = humanBytes(r.Bytes)
			}
			object := r.Object
			if object == "" {
				partition, object = "-", "(the topic is deleted)"
			}
			t.row(topic, partition, bytes, r.Since.UTC().Format(time.RFC3339), r.Earliest.UTC().Format(time.RFC3339), object)
		}
		return t.writeTo(cmd.OutOrStdout())
	}
	return cmd
}

// fetchTier asks the admin listener at base; an empty topic means all.
func fetchTier(ctx context.Context, base, topic string) ([]admin.TierStatus, error) {
	query := url.Values{}
	if topic != "" {
		query.Set("topic", topic)
	}
	return fetchAdmin[admin.TierStatus](ctx, base, "/v1/tier", query)
}

// fetchAdmin asks the admin listener at base for a list.
func fetchAdmin[T any](ctx context.Context, base, path string, query url.Values) ([]T, error) {
	status, body, err := askAdmin(ctx, base, path, query)
	if err != nil {
		return nil, err
	}
	if status != http.StatusOK {
		var e struct {
			Error string `json:"error"`
		}
		if json.Unmarshal(body, &e) == nil && e.Error != "" {
			return nil, errors.New(e.Error)
		}
		return nil, fmt.Errorf("%s answered %d %s; is that the admin listener of a varve broker?", base, status, http.StatusText(status))
	}
	list := []T{}
	if err := json.Unmarshal(body, &list); err != nil {
		return nil, fmt.Errorf("the answer of %s is not what was asked for; is that the admin listener of a varve broker? (%w)", base, err)
	}
	return list, nil
}

// askAdmin gets a page of the admin listener at base.
func askAdmin(ctx context.Context, base, path string, query url.Values) (status int, body []byte, err error) {
	u, err := url.Parse(base)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		return 0, nil, usagef("--admin-url %q: must be a URL like http://%s", base, admin.DefaultListen)
	}
	u = u.JoinPath(path)
	u.RawQuery = query.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return 0, nil, usagef("--admin-url %q: %w", base, err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		switch {
		case errors.Is(err, syscall.ECONNREFUSED):
			return 0, nil, fmt.Errorf("cannot reach the admin listener at %s: connection refused; is the process running, and is this its admin.listener? --admin-url names another", base)
		case errors.Is(err, context.DeadlineExceeded):
			return 0, nil, fmt.Errorf("the admin listener at %s did not answer in time (--request-timeout)", base)
		}
		var ue *url.Error
		if errors.As(err, &ue) {
			err = ue.Err
		}
		return 0, nil, fmt.Errorf("asking the admin listener at %s: %w", base, err)
	}
	defer resp.Body.Close()
	if body, err = io.ReadAll(io.LimitReader(resp.Body, maxTierAnswer)); err != nil {
		return 0, nil, fmt.Errorf("reading the answer of %s: %w", base, err)
	}
	return resp.StatusCode, body, nil
}
