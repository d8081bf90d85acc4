package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const netnsDir = "/run/netns"

// namespace is a network namespace by its name.
type namespace string

// do calls fn on a thread that is in the namespace: sockets made and programs started by fn belong to it. fn must not
// hand the work to another goroutine.
func (ns namespace) do(fn func() error) error {
	inside, err := os.Open(filepath.Join(netnsDir, string(ns)))
	if err != nil {
		return fmt.Errorf("network namespace %s: %w", ns, err)
	}
	defer inside.Close()
	errs := make(chan error, 1)
	go func() { errs <- onThread(inside, fn) }() // ends with fn, which the caller waits for
	return <-errs
}

// onThread calls fn with the thread moved to a namespace and back. If there is no way back, the goroutine ends with the
// thread still locked, and the runtime throws the thread away.
func onThread(inside *os.File, fn func() error) error {
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer home.Close()
	if err := unix.Setns(int(inside.Fd()), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter %s: %w", inside.Name(), err)
	}
	err = fn()
	if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
		runtime.UnlockOSThread()
	}
	return err
}

// dial connects from inside the namespace. addr is an IP address and a port: with a name, a resolver would ask elsewhere.
func (ns namespace) dial(ctx context.Context, network, addr string) (conn net.Conn, err error) {
	err = ns.do(func() error {
		conn, err = (&net.Dialer{}).DialContext(ctx, network, addr)
		return err
	})
	return conn, err
}

// client returns an HTTP client whose connections start in the namespace.
func (ns namespace) client() *http.Client {
	return &http.Client{Transport: &http.Transport{
		DialContext:           ns.dial,
		MaxIdleConnsPerHost:   8,
		IdleConnTimeout:       10 * time.Second,
		ResponseHeaderTimeout: time.Minute,
		DisableCompression:    true,
	}}
}

// pids lists the processes in the namespace.
func (ns namespace) pids(ctx context.Context) ([]int, error) {
	out, err := command(ctx, "ip", "netns", "pids", string(ns))
	if err != nil {
		return nil, err
	}
	var pids []int
	for field := range strings.FieldsSeq(out) {
		var pid int
		if _, err := fmt.Sscan(field, &pid); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// firstBridge is the switch that hosts of no zone are plugged into.
const firstBridge = "bridge"

// makeSwitch makes a namespace with a bridge that hosts are plugged into.
func makeSwitch(ctx context.Context, ns namespace) error {
	return commands(ctx,
		"ip netns add "+string(ns),
		"ip -n "+string(ns)+" link set lo up",
		"ip -n "+string(ns)+" link add "+firstBridge+" type bridge stp_state 0 forward_delay 0",
		"ip -n "+string(ns)+" link set "+firstBridge+" up",
	)
}

// plugIn makes a host's namespace and its link to a bridge of the switch, whose end is called port.
func (c *Cluster) plugIn(ctx context.Context, bridge string, h *Host) error {
	sw, ns, port := c.switchNS(), h.ns, h.port
	return commands(ctx,
		"ip netns add "+string(ns),
		"ip -n "+string(ns)+" link set lo up",
		fmt.Sprintf("ip -n %s link add %s type veth peer name eth0 netns %s", sw, port, ns),
		fmt.Sprintf("ip -n %s link set %s master %s up", sw, port, bridge),
		fmt.Sprintf("ip -n %s addr add %s/24 dev eth0", ns, h.Addr),
		fmt.Sprintf("ip -n %s link set eth0 up", ns),
	)
}

// shape holds back what an interface sends to a rate. Zero takes the limit away.
func shape(ctx context.Context, ns namespace, dev string, rate Rate) error {
	if rate == 0 {
		// Without a qdisc of ours there is nothing to delete, which is what was asked for.
		_ = commands(ctx, fmt.Sprintf("tc -n %s qdisc del dev %s root", ns, dev))
		return nil
	}
	// A burst takes 10 ms of the rate, and never less than two of the largest segments the kernel hands over whole.
	burst := max(128<<10, int64(rate)/8/100)
	return commands(ctx, fmt.Sprintf("tc -n %s qdisc replace dev %s root tbf rate %dbit burst %d latency 50ms", ns, dev, rate, burst))
}

// commands runs simple commands, words apart by spaces, up to the first that fails.
func commands(ctx context.Context, lines ...string) error {
	for _, line := range lines {
		words := strings.Fields(line)
		if _, err := command(ctx, words[0], words[1:]...); err != nil {
			return err
		}
	}
	return nil
}

// command runs a program of this machine and returns what it printed; an error has what it complained of.
func command(ctx context.Context, name string, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, name, args...).Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(exit.Stderr)))
	}
	if err != nil {
		return "", fmt.Errorf("%s: %w", name, err)
	}
	return string(out), nil
}

// silent is how long a client of a listener of ours may acknowledge nothing. Without it a connection to a host that has lost its cable stays open for a
// quarter of an hour, and with it the request at the server behind.
const silent = 10 * time.Second

// listen opens a listener inside the namespace.
func (ns namespace) listen(ctx context.Context, addr string) (l net.Listener, err error) {
	config := net.ListenConfig{Control: func(_, _ string, conn syscall.RawConn) (err error) {
		controlErr := conn.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(silent.Milliseconds()))
		})
		return errors.Join(controlErr, err)
	}}
	err = ns.do(func() error {
		l, err = config.Listen(ctx, "tcp", addr)
		return err
	})
	return l, err
}

// parseTimeWait reads the field of /proc/net/sockstat.
func parseTimeWait(sockstat string) int {
	for line := range strings.Lines(sockstat) {
		fields := strings.Fields(line)
		for i := 1; i+1 < len(fields) && fields[0] == "TCP:"; i += 2 {
			if fields[i] == "tw" {
				n, _ := strconv.Atoi(fields[i+1]) // the kernel writes numbers
				return n
			}
		}
	}
	return 0
}
