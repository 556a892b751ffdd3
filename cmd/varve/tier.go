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
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/varve/varve/internal/admin"
)

// maxTierAnswer bounds what is read from the admin listener: 100,000 partitions need about 20 MB.
const maxTierAnswer = 256 << 20

func tierCommand() *cobra.Command {
	cmd := group("tier", "Where the records are: local disk and object storage")
	cmd.AddCommand(tierStatus())
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
			seeds, err := conn.seeds()
			if err != nil {
				return err
			}
			host, _, _ := net.SplitHostPort(seeds[0])
			_, port, _ := net.SplitHostPort(admin.DefaultListen)
			base = "http://" + net.JoinHostPort(host, port)
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

// fetchTier asks the admin listener at base; an empty topic means all.
func fetchTier(ctx context.Context, base, topic string) ([]admin.TierStatus, error) {
	query := url.Values{}
	if topic != "" {
		query.Set("topic", topic)
	}
	status, body, err := askAdmin(ctx, base, "/v1/tier", query)
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
		return nil, notAdmin(base, status)
	}
	list := []admin.TierStatus{}
	if err := json.Unmarshal(body, &list); err != nil {
		return nil, fmt.Errorf("the answer of %s is not a tier status; is that the admin listener of a varve broker? (%w)", base, err)
	}
	return list, nil
}

func notAdmin(base string, status int) error {
	return fmt.Errorf("%s answered %d %s; is that the admin listener of a varve broker?", base, status, http.StatusText(status))
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
			return 0, nil, fmt.Errorf("cannot reach the admin listener at %s: connection refused; is the broker running, and is this its admin.listener? --admin-url names another", base)
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
