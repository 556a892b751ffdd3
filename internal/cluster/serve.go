package cluster

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/signal"
	"syscall"

	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/storage/wal"

	"github.com/varve/varve/tiering/objstore/s3test"
)

// The servers that a program calls itself for.
const (
	etcdMember = "etcd-member"
	s3Server   = "s3-server"
)

// Serve makes the program one of a cluster's servers, and ends it with that server, if that is what it was called
// for: Options.Servers calls programs that way. Anything else that is on the command line is left to the caller.
func Serve(args []string) {
	if len(args) == 0 {
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var err error
	switch {
	case args[0] == etcdMember && len(args) == 6:
		err = serveEtcd(ctx, args[1], args[2], args[3], args[4], args[5])
	case args[0] == s3Server && len(args) == 3:
		if err = s3test.Serve(ctx, args[1], args[2]); ctx.Err() != nil {
			err = nil // it calls its own end an error
		}
	case args[0] == s3Server && len(args) == 4:
		if err = s3test.ServeAmbiguous(ctx, args[1], args[2], args[3]); ctx.Err() != nil {
			err = nil
		}
	default:
		return
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", args[0], err)
		os.Exit(1)
	}
	os.Exit(0)
}

// serveEtcd runs a member of an etcd cluster. members is name=peer URL of all, separated by commas; a member that has
// data goes by what is written there.
func serveEtcd(ctx context.Context, name, dir, client, peer, members string) error {
	// Files of the log are filled before they are used. Several members share one disk here, and hold little.
	wal.SegmentSizeBytes = 8 << 20
	cfg := embed.NewConfig()
	cfg.Name, cfg.Dir, cfg.InitialCluster = name, dir, members
	clients, peers := []url.URL{{Scheme: "http", Host: client}}, []url.URL{{Scheme: "http", Host: peer}}
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = clients, clients
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = peers, peers
	cfg.LogLevel = "warn"
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		return err
	}
	defer e.Close()
	select {
	case <-ctx.Done():
		return nil
	case err := <-e.Err():
		return err
	case <-e.Server.StopNotify():
		return errors.New("the member was removed from its cluster")
	}
}
