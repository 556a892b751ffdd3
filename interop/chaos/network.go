package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// network has every process in a network namespace of its own:
//
//	broker-1 10.213.1.2 -- 10.213.1.1 \
//	...                                 this program's namespace, which forwards, and where the clients are
//	s3       10.213.7.2 -- 10.213.7.1 /
//
// What is forwarded can be dropped without a word, for each pair and direction (a rule of routing); and a process can be
// cut off from all by taking its link down. Linux, as root; anywhere else there is none, and no fault of the network.
type network struct {
	spaces map[string]string // of processes
	number map[string]int

	mu   sync.Mutex
	pref int
}

const insideNetwork = "CHAOS_NETWORK"

// enterNetwork runs this program again in a network and a mount namespace of its own, and returns how it ended. It returns false
// where there are no namespaces, with the reason.
func enterNetwork() (code int, ok bool, why error) {
	if os.Geteuid() != 0 {
		return 0, false, errors.New("they want root")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		return 0, false, err
	}
	probe := exec.Command("ip", "link", "add", "type", "veth")
	probe.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if out, err := probe.CombinedOutput(); err != nil {
		return 0, false, fmt.Errorf("%w: %s", err, strings.TrimSpace(string(out)))
	}
	self, err := os.Executable()
	if err != nil {
		return 0, false, err
	}
	cmd := exec.Command(self, os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), insideNetwork+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGTERM}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	if err := cmd.Start(); err != nil {
		return 0, false, err
	}
	go func() {
		for s := range signals {
			cmd.Process.Signal(s)
		}
	}()
	cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code >= 0 {
		return code, true, nil
	}
	return 1, true, nil
}

func newNetwork(names []string) (*network, error) {
	n := &network{spaces: map[string]string{}, number: map[string]int{}, pref: 100}
	sweep()
	if err := ip("link set lo up"); err != nil {
		return nil, err
	}
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0); err != nil {
		return nil, err
	}
	for i, name := range names {
		space, link := fmt.Sprintf("%s%d-%s", spacePrefix, os.Getpid(), name), fmt.Sprintf("v%d", i+1)
		n.number[name] = i + 1
		for _, do := range []string{
			"netns add " + space,
			fmt.Sprintf("link add %s type veth peer name eth0 netns %s", link, space),
			fmt.Sprintf("addr add 10.213.%d.1/24 dev %s", i+1, link),
			"link set " + link + " up",
			fmt.Sprintf("-n %s addr add 10.213.%d.2/24 dev eth0", space, i+1),
			"-n " + space + " link set lo up",
			"-n " + space + " link set eth0 up",
			fmt.Sprintf("-n %s route add default via 10.213.%d.1", space, i+1),
		} {
			if err := ip(do); err != nil {
				n.close()
				return nil, err
			}
			n.spaces[name] = space
		}
	}
	return n, nil
}

const spacePrefix = "varve-chaos-"

// sweep removes what programs that were killed have left.
func sweep() {
	old, _ := filepath.Glob("/run/netns/" + spacePrefix + "*")
	for _, path := range old {
		space := filepath.Base(path)
		pid, _, _ := strings.Cut(strings.TrimPrefix(space, spacePrefix), "-")
		if n, err := strconv.Atoi(pid); err == nil && errors.Is(syscall.Kill(n, 0), syscall.ESRCH) {
			ip("netns del " + space)
		}
	}
}

func (n *network) close() {
	for _, space := range n.spaces {
		ip("netns del " + space)
	}
}

// place is cluster.Options.Place.
func (n *network) place(name string) (host string, before []string) {
	return n.address(name), []string{"ip", "netns", "exec", n.spaces[name]}
}

func (n *network) address(name string) string { return fmt.Sprintf("10.213.%d.2", n.number[name]) }

// drop has what one sends to the other come to nothing, until undo is called.
func (n *network) drop(from, to string) (undo func() error, err error) {
	n.mu.Lock()
	n.pref++
	pref := n.pref
	n.mu.Unlock()
	err = ip(fmt.Sprintf("rule add pref %d from %s to %s blackhole", pref, n.address(from), n.address(to)))
	return func() error { return ip(fmt.Sprintf("rule del pref %d", pref)) }, err
}

// link takes the link of a process down, or up again.
func (n *network) link(name, state string) error {
	return ip(fmt.Sprintf("link set v%d %s", n.number[name], state))
}

// slow lets a process receive no more than a trickle, until undo is called: what it is sent is delayed by up to half a
// second, and dropped when that does not do.
func (n *network) slow(name string) (undo func() error, err error) {
	link := fmt.Sprintf("dev v%d root", n.number[name])
	err = execute("tc qdisc add " + link + " tbf rate 2mbit burst 16kb latency 500ms")
	return func() error { return execute("tc qdisc del " + link) }, err
}

func ip(args string) error { return execute("ip " + args) }
