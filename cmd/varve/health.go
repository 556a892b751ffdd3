package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/varve/varve/internal/admin"
)

// healthCommand is what a container's health check runs: there is no shell and no curl in the image.
func healthCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "health",
		Short: "Whether a broker serves clients, or a compaction worker works: exit 0 if it does, 1 and the reasons if not",
		Long: `Asks the admin listener of a broker, or of a compaction worker, for /readyz. What is not well although clients are served, as when
etcd or the bucket is away or when the compaction worker in varve dev has been failing for five minutes, is a warning on stderr and leaves the exit code 0.`,
		Args: arguments("", 0, 0),
	}
	wait := 5 * time.Second
	adminURL := cmd.Flags().String("admin-url", "http://"+admin.DefaultListen, "admin listener of the broker or compaction worker")
	cmd.Flags().Var(durationValue{d: &wait}, "request-timeout", "how long to wait for the answer")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		ctx, cancel := context.WithTimeout(cmd.Context(), wait)
		defer cancel()
		status, body, err := askAdmin(ctx, *adminURL, "/readyz", nil)
		if err != nil {
			return err
		}
		var answer struct {
			Status   string   `json:"status"`
			Reasons  []string `json:"reasons"`
			Warnings []string `json:"warnings"`
		}
		if err := json.Unmarshal(body, &answer); err == nil {
			for _, w := range answer.Warnings {
				fmt.Fprintf(cmd.ErrOrStderr(), "warning: %s\n", visible(w))
			}
		}
		switch {
		case status == http.StatusOK && answer.Status == "ok":
			_, err := fmt.Fprintln(cmd.OutOrStdout(), "ready")
			return err
		case status == http.StatusServiceUnavailable && len(answer.Reasons) > 0:
			return errors.New("not ready: " + visible(strings.Join(answer.Reasons, "; ")))
		}
		return fmt.Errorf("%s answered %d %s; is that the admin listener of a varve broker or compaction worker?", *adminURL, status, http.StatusText(status))
	}
	return cmd
}
