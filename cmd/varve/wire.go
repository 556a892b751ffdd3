package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/varve/varve/cmd/varve/server"
	"github.com/varve/varve/config"
)

// serverCommands are the commands that run a server.
func serverCommands() []*cobra.Command {
	return []*cobra.Command{devCommand(), brokerCommand(), compactorCommand()}
}

// drainTime is how long a server that is asked to end lets its clients finish.
const drainTime = 20 * time.Second

func devCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "dev",
		Short: "Run a broker with everything embedded: metadata, log and objects in one directory",
		Long: `Runs one broker with an embedded etcd, its write-ahead log and its objects under --data-dir. For a first look, for
tests, and for applications that want a Kafka beside them. Every setting of a broker can be given with --set.`,
		Args: arguments("", 0, 0),
	}
	dir := cmd.Flags().String("data-dir", "data", "directory for everything that is kept")
	set := cmd.Flags().StringArray("set", nil, "a setting, as name=value; may be repeated")
	acceptBucket := cmd.Flags().Bool("accept-bucket", false, "take the bucket for the cluster's though the object that says so is not in it: after it was emptied, or copied without that; no other broker and no compaction worker may run")
	acceptCorrupt := cmd.Flags().Bool("accept-corrupt-log", false, "serve what is intact of partitions whose local log has corrupt blocks; the rest is lost")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		defaults := config.DevDefaults()
		defaults["log.dirs"] = filepath.Join(*dir, "wal")
		cfg, err := loadConfig(cmd.ErrOrStderr(), config.FromMode("varve dev", defaults), "", *set, nil)
		if err != nil {
			return err
		}
		return serve(cmd.Context(), cmd.ErrOrStderr(), server.Options{Config: cfg, Dev: true, DataDir: *dir, AcceptCorruptLog: *acceptCorrupt, AcceptBucket: *acceptBucket})
	}
	return cmd
}

func brokerCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "broker",
		Short: "Run a broker of a cluster",
		Long: `Runs a broker with the settings of a server.properties file; environment variables (VARVE_NODE_ID is node.id) count
more than the file, --set more than both.`,
		Args: arguments("", 0, 0),
	}
	file := cmd.Flags().String("config", "", "the server.properties file")
	set := cmd.Flags().StringArray("set", nil, "a setting, as name=value; may be repeated")
	acceptLoss := cmd.Flags().Bool("restart-at-remote-end", false, "after the log directory was lost: go on from the end of what object storage has; acknowledged records beyond it are lost")
	acceptBucket := cmd.Flags().Bool("accept-bucket", false, "take the bucket for the cluster's though the object that says so is not in it: after it was emptied, or copied without that; no other broker and no compaction worker may run")
	acceptCorrupt := cmd.Flags().Bool("accept-corrupt-log", false, "serve what is intact of partitions whose local log has corrupt blocks; the rest is lost")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := loadConfig(cmd.ErrOrStderr(), nil, *file, *set, []string{"node.id", "log.dirs", "etcd.endpoints", "remote.storage.url"})
		if err != nil {
			return err
		}
		return serve(cmd.Context(), cmd.ErrOrStderr(), server.Options{Config: cfg, DataDir: cfg.LogDir, AcceptLoss: *acceptLoss, AcceptCorruptLog: *acceptCorrupt, AcceptBucket: *acceptBucket})
	}
	cmd.AddCommand(brokerDrain(), brokerUndrain(), brokerUnregister())
	return cmd
}

func compactorCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "compactor",
		Short: "Run a compaction worker of a cluster",
		Long: `Runs a worker that compacts topics with cleanup.policy=compact in object storage, makes few large objects of many
small ones, and checks that every object is there. Any number of workers share the work; brokers need none to serve.

It reads the settings of a server.properties file, which may be a broker's: etcd.*, remote.*, log.cleaner.*, admin.listener and what the brokers' file
says of topics. Environment variables (VARVE_REMOTE_STORAGE_URL is remote.storage.url) count more than the file, --set more than both.`,
		Args: arguments("", 0, 0),
	}
	file := cmd.Flags().String("config", "", "the server.properties file")
	set := cmd.Flags().StringArray("set", nil, "a setting, as name=value; may be repeated")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := loadConfig(cmd.ErrOrStderr(), nil, *file, *set, []string{"etcd.endpoints", "remote.storage.url"})
		if err != nil {
			return err
		}
		log := newLogger(cmd.ErrOrStderr(), cfg.LogLevel, cfg.LogFormat)
		// The tables are most of what is in use, and never garbage: without a bound the collector would wait until there is
		// as much of that.
		debug.SetMemoryLimit(server.WorkerMemory(cfg))
		c, err := server.OpenCompactor(cmd.Context(), server.Options{Config: cfg, Logger: log})
		if err != nil {
			return err
		}
		log.Info("compaction worker runs", "worker", c.Name(), "threads", max(cfg.Cleaner.Threads, 1))
		if u := c.AdminURL(); u != "" {
			log.Info("serving metrics and health", "url", u)
		}
		c.Run(cmd.Context())
		log.Info("shutting down: what is being made is thrown away, what is committed stays")
		if err := c.Close(); err != nil {
			return err
		}
		log.Info("stopped")
		return nil
	}
	return cmd
}

// loadConfig puts the settings together: defaults of the command, file,
// environment, flags, the later counting more.
func loadConfig(stderr io.Writer, mode config.Settings, file string, set, required []string) (*config.BrokerConfig, error) {
	layers := []config.Settings{mode}
	if file != "" {
		b, mode, err := readConfig(file)
		if err != nil {
			return nil, usagef("--config: %w", err)
		}
		fromFile, err := config.ParseProperties(file, b)
		if err != nil {
			return nil, unusable(stderr, err)
		}
		if mode.Perm()&0o077 != 0 && hasSecret(fromFile) {
			fmt.Fprintf(stderr, "warning: %s holds a password and others may read it: chmod 600 %s\n", file, file)
		}
		layers = append(layers, fromFile)
	}
	layers = append(layers, config.FromEnvironment(os.Environ()))
	fromFlags, err := config.FromFlags(set)
	if err != nil {
		return nil, unusable(stderr, err)
	}
	layers = append(layers, fromFlags)
	host, _ := os.Hostname()
	cfg, warnings, err := config.Build(config.Merge(layers...), config.Machine{Hostname: host, MemoryBytes: machineMemory(), Required: required,
		NoBroker: mode == nil && !slices.Contains(required, "node.id")})
	for _, w := range warnings {
		fmt.Fprintf(stderr, "warning: %s\n", visible(w.String()))
	}
	if err != nil {
		return nil, unusable(stderr, err)
	}
	if cfg.MemoryMaxBytes == 0 {
		cfg.MemoryMaxBytes = machineMemory() / 10 * 6
	}
	return cfg, nil
}

// readConfig reads a configuration file and no more of it than one may have: a
// device or a pipe has no size to look at before.
func readConfig(file string) ([]byte, os.FileMode, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, 0, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, 0, err
	}
	b, err := io.ReadAll(io.LimitReader(f, config.MaxFile+1))
	if err != nil {
		return nil, 0, err
	}
	if len(b) > config.MaxFile {
		return nil, 0, fmt.Errorf("%s has more than the %d bytes that a configuration may have", file, config.MaxFile)
	}
	return b, info.Mode(), nil
}

// unusable prints everything that is wrong with a configuration, a line each.
func unusable(stderr io.Writer, err error) error {
	var bad *config.Error
	if !errors.As(err, &bad) {
		return usagef("the configuration cannot be used: %w", err)
	}
	for _, p := range bad.Problems {
		fmt.Fprintf(stderr, "error: %s\n", visible(p.String()))
	}
	return usagef("the configuration cannot be used, for the reasons above")
}

func hasSecret(s config.Settings) bool {
	for name := range s {
		if d, ok := config.Broker(name); ok && d.Sensitive() {
			return true
		}
	}
	return false
}

// machineMemory is the memory of the container, or of the machine.
func machineMemory() int64 {
	total := int64(4 << 30)
	if b, err := os.ReadFile("/proc/meminfo"); err == nil {
		for line := range strings.Lines(string(b)) {
			if f := strings.Fields(line); len(f) >= 2 && f[0] == "MemTotal:" {
				if kb, err := strconv.ParseInt(f[1], 10, 64); err == nil {
					total = kb << 10
				}
			}
		}
	}
	return min(total, cgroupMemory("/proc/self/cgroup", "/sys/fs/cgroup"))
}

// cgroupMemory is the least of the limits of the control groups that a process is in, from its own, which membership names
// as /proc/self/cgroup does, up to the root, in either version (cgroups(7)). A container may see its own group as the root.
func cgroupMemory(membership, root string) int64 {
	least := int64(math.MaxInt64)
	b, _ := os.ReadFile(membership)
	for line := range strings.Lines(string(b) + "\n0::/\n0:memory:/\n") {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) != 3 {
			continue
		}
		mounts, file := []string{root, filepath.Join(root, "unified")}, "memory.max"
		if f[1] != "" {
			if !slices.Contains(strings.Split(f[1], ","), "memory") {
				continue
			}
			mounts, file = []string{filepath.Join(root, "memory")}, "memory.limit_in_bytes"
		}
		for _, mount := range mounts {
			for dir := filepath.Join("/", f[2]); ; dir = filepath.Dir(dir) {
				if b, err := os.ReadFile(filepath.Join(mount, dir, file)); err == nil {
					if n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64); err == nil && n > 0 {
						least = min(least, n)
					}
				}
				if dir == "/" {
					break
				}
			}
		}
	}
	return least
}

// serve runs a server until it is asked to end or fails.
func serve(ctx context.Context, stderr io.Writer, o server.Options) error {
	o.Logger = newLogger(stderr, o.Config.LogLevel, o.Config.LogFormat)
	o.Version = buildVersion().Version
	s, err := server.Open(ctx, o)
	switch {
	case err != nil && ctx.Err() != nil && errors.Is(err, context.Canceled):
		o.Logger.Info("stopped before it served", "err", err)
		return nil
	case err != nil:
		return err
	}
	for _, ep := range s.Endpoints() {
		o.Logger.Info("serving Kafka clients", "listener", ep.Listener, "bootstrap_server", net.JoinHostPort(ep.Host, strconv.Itoa(int(ep.Port))))
	}
	if u := s.AdminURL(); u != "" {
		o.Logger.Info("serving metrics and health", "url", u)
	}
	select {
	case err := <-s.Failed():
		// Not drained: nothing after a failed write may be believed.
		return fmt.Errorf("the broker ends because its log failed: %w", err)
	case <-ctx.Done():
	}
	o.Logger.Info("shutting down: clients are answered, nothing new is accepted", "at_most", drainTime)
	drain, cancel := context.WithTimeout(context.Background(), drainTime)
	defer cancel()
	err = s.Close(drain)
	if err != nil && errors.Is(err, context.DeadlineExceeded) {
		o.Logger.Warn("not everything was drained", "err", err)
		err = nil
	}
	if err == nil {
		o.Logger.Info("stopped")
	}
	return err
}

func newLogger(w io.Writer, level, format string) *slog.Logger {
	var l slog.Level
	switch level {
	case "debug":
		l = slog.LevelDebug
	case "warn":
		l = slog.LevelWarn
	case "error":
		l = slog.LevelError
	}
	opts := &slog.HandlerOptions{Level: l}
	if format == "json" {
		return slog.New(slog.NewJSONHandler(w, opts))
	}
	return slog.New(slog.NewTextHandler(w, opts))
}
