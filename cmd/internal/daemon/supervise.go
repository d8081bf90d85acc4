package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	systemd "github.com/coreos/go-systemd/v22/daemon"
)

// supervise tells systemd, if it started this daemon, that it is ready, and that it is alive for as long as the server at l answers
// within a third of the time after which systemd kills and restarts it (WatchdogSec). So a daemon that hangs becomes one
// that is dead, which containerd notices at once. It returns when ctx ends.
func supervise(ctx context.Context, l net.Addr, log *slog.Logger) error {
	if _, err := systemd.SdNotify(false, systemd.SdNotifyReady); err != nil {
		return fmt.Errorf("NOTIFY_SOCKET: %w", err)
	}
	patience, err := systemd.SdWatchdogEnabled(false)
	if err != nil {
		return fmt.Errorf("WATCHDOG_USEC: %w", err)
	}
	if patience == 0 {
		<-ctx.Done()
		return nil
	}
	tick := time.NewTicker(patience / 3)
	defer tick.Stop()
	client := &http.Client{Timeout: patience / 3, Transport: &http.Transport{DisableKeepAlives: true}}
	for {
		if err := alive(ctx, client, "http://"+l.String()+"/v2/"); err == nil {
			_, err = systemd.SdNotify(false, systemd.SdNotifyWatchdog)
			if err != nil {
				log.Warn("systemd is not told that this daemon is alive", "error", err)
			}
		} else if ctx.Err() == nil {
			log.Error("this daemon does not answer", "address", l, "error", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			_, _ = systemd.SdNotify(false, systemd.SdNotifyStopping) // only for its status display
			return nil
		}
	}
}

// alive asks a server of this daemon for anything at all.
func alive(ctx context.Context, client *http.Client, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}
