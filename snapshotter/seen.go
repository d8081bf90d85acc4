package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"github.com/shoal-project/shoal/snapshotter/keeper"
)

// ErrUnseen means that who asks does not see what is mounted here, and would take the empty folder below for the image.
var ErrUnseen = errors.New("containerd does not see what this node mounts, and containers would find an empty folder. The node has a mount namespace of its own: " +
	"under systemd its unit must have none of PrivateTmp, PrivateMounts, ProtectSystem, ProtectHome, MountFlags and the like; " +
	"in a container the folder has to be one of the host, under the same path, with mountPropagation: Bidirectional")

// seenName is the folder where it is tried what callers see.
const seenName = "seen"

// caller is a connection's other end.
type caller struct {
	credentials.CommonAuthInfo

	blind func() error // why it does not see mounts, if it does not; it is looked up once
}

// AuthType implements credentials.AuthInfo.
func (caller) AuthType() string { return "unix" }

// callers notes of each connection who is at its other end. Nothing is said over the connection for it.
type callers struct{ s *Snapshotter }

// ServerHandshake implements credentials.TransportCredentials.
func (c callers) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	pid := processOf(conn)
	return conn, caller{blind: sync.OnceValue(func() error { return c.s.unseenBy(pid) })}, nil
}

// ClientHandshake implements credentials.TransportCredentials; there are only servers of this kind.
func (callers) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.ErrUnsupported
}

// Info implements credentials.TransportCredentials.
func (callers) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "unix"}
}

// Clone implements credentials.TransportCredentials.
func (c callers) Clone() credentials.TransportCredentials { return c }

// OverrideServerName implements credentials.TransportCredentials.
func (callers) OverrideServerName(string) error { return nil }

// unseen returns why the caller of ctx does not see what is mounted here; nil when it does, or when nobody called. Fault tells the last answer.
func (s *Snapshotter) unseen(ctx context.Context) error {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return nil
	}
	c, ok := p.AuthInfo.(caller)
	if !ok {
		return nil
	}
	now := c.blind()
	was := s.blind.Swap(&now)
	switch {
	case now != nil && load(was) == nil:
		s.log.Error("images cannot be mounted", "error", now)
	case now == nil && load(was) != nil:
		s.log.Warn("containerd sees what is mounted again", "root", s.cfg.Root)
	}
	return now
}

// processOf returns the process that made the connection; 0 when it cannot be seen from here.
func processOf(conn net.Conn) int {
	u, ok := conn.(*net.UnixConn)
	if !ok {
		return 0
	}
	cred, err := keeper.OtherEnd(u)
	if err != nil {
		return 0
	}
	return int(cred.Pid)
}

// unseenBy mounts something, and returns ErrUnseen when a process does not see it at the same path. Where that cannot be looked up, what counts is
// whether other mount namespaces are told of mounts at all. When nothing can be mounted it returns nil: who mounts an image learns why.
func (s *Snapshotter) unseenBy(pid int) error {
	s.looking.Lock()
	defer s.looking.Unlock()
	target := filepath.Join(s.cfg.Root, seenName)
	s.forgetLook()
	if err := os.Mkdir(target, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return nil
	}
	defer func() { _ = os.Remove(target) }() // the next one finds it
	if err := unix.Mount("shoal", target, "tmpfs", unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "size=4k"); err != nil {
		return nil
	}
	defer s.forgetLook()
	sees, err := seesMount(pid, target)
	if err != nil {
		sees, err = isShared(target)
	}
	if sees || err != nil {
		return nil
	}
	return fmt.Errorf("%s: %w", s.cfg.Root, ErrUnseen)
}

// forgetLook takes away what unseenBy has mounted, or a process that was killed then.
func (s *Snapshotter) forgetLook() {
	_ = unix.Unmount(filepath.Join(s.cfg.Root, seenName), unix.MNT_DETACH) // mostly there is nothing
}

// seesMount reports whether a process finds at a path what is mounted there. The path is followed from the root of that process.
func seesMount(pid int, path string) (bool, error) {
	var here, there unix.Stat_t
	if err := unix.Stat(path, &here); err != nil {
		return false, err
	}
	root, err := unix.Open(fmt.Sprintf("/proc/%d/root", pid), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false, err
	}
	defer unix.Close(root)
	fd, err := unix.Openat2(root, path, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT})
	switch {
	case errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR):
		return false, nil
	case err != nil:
		return false, err
	}
	defer unix.Close(fd)
	err = unix.Fstat(fd, &there)
	return here.Dev == there.Dev, err
}

// isShared reports whether the mount at a path is told to other mount namespaces.
func isShared(path string) (bool, error) {
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		return false, err
	}
	infos, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(path))
	if err != nil || len(infos) == 0 {
		return false, errors.Join(err, unix.ENOENT)
	}
	return strings.Contains(" "+infos[0].Optional, " shared:"), nil
}

// load returns what a pointer that may be nil points to.
func load(err *error) error {
	if err == nil {
		return nil
	}
	return *err
}
