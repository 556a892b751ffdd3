package broker

import (
	"context"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// silentFor is how long the machine of another broker may leave bytes unacknowledged before the connection to it counts
// as broken (TCP_USER_TIMEOUT; keepalive probes while nothing is under way). It says nothing of the process there,
// however slow: its kernel acknowledges. Without it a link that dropped packets for a few seconds is not used again for
// as long as retransmission has backed off to, twice as long at most.
const silentFor = 3 * time.Second

// dialPeer connects to another broker.
func dialPeer(ctx context.Context, address string) (net.Conn, error) {
	d := net.Dialer{
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: time.Second, Interval: time.Second, Count: int(silentFor / time.Second)},
		Control: func(_, _ string, c syscall.RawConn) error {
			var set error
			if err := c.Control(func(fd uintptr) {
				set = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(silentFor.Milliseconds()))
			}); err != nil {
				return err
			}
			return set
		},
	}
	return d.DialContext(ctx, "tcp", address)
}
