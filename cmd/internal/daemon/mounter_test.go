package daemon

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shoal-project/shoal/cmd/internal/config"
	"github.com/shoal-project/shoal/snapshotter/fanotify"
	"github.com/shoal-project/shoal/snapshotter/keeper"
	"github.com/shoal-project/shoal/snapshotter/lazy"
)

func TestRootTheDriverIsOneThatTheHostCan(t *testing.T) {
	needRoot(t)
	if err := unix.Access("/dev/fuse", unix.R_OK|unix.W_OK); err != nil {
		t.Skip(err)
	}
	disk, memory := t.TempDir(), memoryFolder(t) // whose files' readers cannot be held
	onDisk := lazy.EROFS
	if lacks(probe(disk)) {
		onDisk = lazy.FUSE
	}
	for _, c := range []struct {
		dir        string
		want, kind lazy.Kind // an empty kind is none
		warned     bool
	}{
		{disk, lazy.Auto, onDisk, onDisk == lazy.FUSE},
		{memory, lazy.Auto, lazy.FUSE, true},
		{memory, lazy.FUSE, lazy.FUSE, false},
		{memory, lazy.EROFS, "", false},
	} {
		var log bytes.Buffer
		cfg := lazy.Config{Dir: c.dir, Log: slog.New(slog.NewTextHandler(&log, nil)), Keeper: keeper.Config{Socket: filepath.Join(c.dir, "keeper.sock")}}
		m, err := newMounter(t.Context(), c.want, cfg, images{})
		var kind lazy.Kind
		if m != nil {
			kind = m.kind
			m.close()
		}
		if kind != c.kind || c.kind == "" && (!errors.Is(err, errForced) || !errors.Is(err, fanotify.ErrUnsupported)) {
			t.Errorf("%s wanted in %s: %q, %v, want %q", c.want, c.dir, kind, err, c.kind)
		}
		if warned := strings.Contains(log.String(), "level=WARN") && strings.Contains(log.String(), "ext4, xfs or btrfs"); warned != c.warned {
			t.Errorf("%s wanted in %s: warned %v, want %v:\n%s", c.want, c.dir, warned, c.warned, &log)
		}
	}
}

// What passes, such as a full disk, is no reason for another driver.
func TestWhatAHostLacksIsToldFromWhatPasses(t *testing.T) {
	for err, want := range map[error]bool{
		fanotify.ErrUnsupported: true, unix.ENODEV: true, unix.ENOTBLK: true,
		nil: false, unix.ENOSPC: false, unix.EMFILE: false, unix.EIO: false,
	} {
		if err != nil {
			err = fmt.Errorf("probe: %w", err)
		}
		if got := lacks(err); got != want {
			t.Errorf("%v: %v, want %v", err, got, want)
		}
	}
}

// A node whose configuration wants a driver that cannot work does not take images that would not run: it unpacks them, unless it has to mount.
func TestRootANodeWithADriverThatCannotWorkMountsNothing(t *testing.T) {
	needRoot(t)
	for _, enabled := range []string{config.SnapshotterOn, config.SnapshotterAuto} {
		var log bytes.Buffer
		cfg := config.DefaultNode()
		cfg.DataDir, cfg.Mirror.Listen, cfg.Admin.Listen = memoryFolder(t), "127.0.0.1:0", "127.0.0.1:0"
		cfg.Snapshotter.Enabled, cfg.Snapshotter.Driver = enabled, string(lazy.EROFS)
		n := &node{cfg: cfg, log: cfg.Log.Logger(&log), admin: newAdmin("test")}
		err := n.open(t.Context())
		off := n.snapshots.status()
		n.close()
		if enabled == config.SnapshotterOn {
			if !errors.Is(err, errForced) || !strings.Contains(err.Error(), "snapshotter.driver") {
				t.Errorf("the node opens with %v", err)
			}
			continue
		}
		if err != nil || off.Address == "" || off.Driver != "none" || !strings.Contains(off.Off, "images are unpacked: this host cannot do what snapshotter.driver wants") ||
			!strings.Contains(log.String(), "level=WARN msg=\"images are unpacked, not mounted\"") {
			t.Errorf("the node opens with %v, status %+v, log\n%s", err, off, &log)
		}
	}
}

// memoryFolder returns a folder that is on no disk.
func memoryFolder(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("test", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}
