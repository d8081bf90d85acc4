package cluster

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"
)

// Supervision is what the service manager of a host does with a daemon: what the units in deploy/systemd ask systemd for.
type Supervision struct {
	// Watchdog is how long the daemon may say nothing before it is told to abort. Zero does not watch.
	Watchdog time.Duration
	// Abort is how long it may take over that before it is killed.
	Abort time.Duration
	// Restart is the pause before it is started again. The lab's cases do that.
	Restart time.Duration
}

// UnitSupervision is what deploy/systemd/shoal-node.service says.
func UnitSupervision() Supervision {
	return Supervision{Watchdog: 2500 * time.Millisecond, Abort: 250 * time.Millisecond, Restart: time.Second}
}

// A watchdog ends a process that no longer says that it lives.
type watchdog struct {
	conn   *net.UnixConn
	target atomic.Pointer[Process]
	done   chan struct{} // closed when it has ended
}

// startWatchdog listens at the path of a socket until close.
func startWatchdog(path string, s Supervision) (*watchdog, error) {
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return nil, fmt.Errorf("watchdog: %w", err)
	}
	w := &watchdog{conn: conn, done: make(chan struct{})}
	go w.run(s) // ends with close
	return w, nil
}

// env is what systemd tells a daemon of the watchdog.
func (w *watchdog) env(s Supervision) []string {
	return []string{"NOTIFY_SOCKET=" + w.conn.LocalAddr().String(), fmt.Sprintf("WATCHDOG_USEC=%d", s.Watchdog.Microseconds())}
}

func (w *watchdog) run(s Supervision) {
	defer close(w.done)
	message := make([]byte, 4096)
	for {
		_ = w.conn.SetReadDeadline(time.Now().Add(s.Watchdog)) // a closed socket fails the read too
		_, err := w.conn.Read(message)
		switch p := w.target.Load(); {
		case err == nil:
		case !errors.Is(err, os.ErrDeadlineExceeded):
			return
		case p != nil && p.alive():
			_ = p.cmd.Process.Signal(syscall.SIGABRT) // as below, an error means that it is gone
			timer := time.NewTimer(s.Abort)
			select {
			case <-p.done:
			case <-timer.C:
				p.Kill()
			}
			timer.Stop()
		}
	}
}

func (w *watchdog) close() error {
	err := w.conn.Close()
	<-w.done
	return err
}

// watch starts the watchdog of a daemon on the host, once; Cluster.Close ends it.
func (h *Host) watch(w **watchdog, s Supervision) (err error) {
	if *w != nil {
		return nil
	}
	if *w, err = startWatchdog(filepath.Join(h.Dir, "notify"), s); err != nil {
		return err
	}
	h.c.mu.Lock()
	h.c.watchdogs = append(h.c.watchdogs, *w)
	h.c.mu.Unlock()
	return nil
}
