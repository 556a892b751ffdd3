package child

import (
	"net"
	"strconv"
	"testing"
)

// No address is given out twice, and the first port of a block keeps other processes from it.
func TestFreeAddr(t *testing.T) {
	seen := map[string]bool{}
	for range 2*blockPorts + blockPorts/2 {
		addr, err := FreeAddr()
		if err != nil {
			t.Fatal(err)
		}
		if seen[addr] {
			t.Fatalf("%s is given out twice", addr)
		}
		seen[addr] = true
		host, port, err := net.SplitHostPort(addr)
		n, nerr := strconv.Atoi(port)
		if err != nil || nerr != nil || n < firstPort || n >= firstPort+portBlocks*blockPorts {
			t.Fatal(addr, err, nerr)
		}
		if l, err := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(n-n%blockPorts))); err == nil {
			l.Close()
			t.Fatalf("%s: nothing keeps other processes from its block", addr)
		}
	}
}
