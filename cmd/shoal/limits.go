package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/shoal-project/shoal/cmd/internal/config"
	"github.com/shoal-project/shoal/peer/limits"
	"github.com/shoal-project/shoal/scheduler/identity"
)

// limitFlags are the flags of rates, and what each bounds; the key in the daemon's document has _ for -.
var limitFlags = map[string]string{
	"upload": "to other nodes", "upload-per-task": "to other nodes, of one blob",
	"download": "from other nodes and origins", "download-per-task": "from other nodes and origins, of one blob",
	"source": "from origins; with --scheduler, of all nodes together", "source-per-task": "from origins, of one blob",
	"disk-write": "to the store",
}

func limitsCommand() *cli.Command {
	flags := []cli.Flag{
		nodeFlag(),
		&cli.StringFlag{Name: "scheduler", Usage: "ask the scheduler at `URL` instead, for the rate of all nodes together"},
		&cli.StringFlag{Name: "token-file", Usage: "the cluster's secret is in `FILE`, for --scheduler"},
		&cli.StringFlag{Name: "ca-file", Usage: "the cluster's authority is in `FILE`, for --scheduler with https"},
		&cli.StringFlag{Name: "cert-file", Usage: "the certificate of a node is in `FILE`, for --scheduler with https"},
		&cli.StringFlag{Name: "key-file", Usage: "its key is in `FILE`"},
		&cli.StringFlag{Name: "output", Value: "text", Usage: "`FORMAT` on standard output: text, or json in bytes a second"},
	}
	for _, name := range slices.Sorted(maps.Keys(limitFlags)) {
		flags = append(flags, &cli.StringFlag{Name: name, Usage: "at most `RATE` bytes a second " + limitFlags[name]})
	}
	return command(&cli.Command{
		Name:  "limits",
		Usage: "show or change how much a running node or a cluster may move",
		Description: `Without a rate, prints the limits of the node on this machine. A rate is a number with a unit, like 100MiB or 50MB;
0 is no limit, and anything below 1MiB is refused. A change holds at once, for what is under way too, until the daemon restarts:
put it into the configuration as well.

EXAMPLES:
   shoal limits
   shoal limits --upload 200MiB --disk-write 500MiB
   shoal limits --scheduler http://10.0.0.1:7700 --token-file /etc/shoal/token --source 1GiB
   shoal limits --scheduler https://10.0.0.1:7700 --ca-file ca.pem --cert-file node-1.pem --key-file node-1-key.pem`,
		Flags:  flags,
		Action: runLimits,
	}, nodeEnvironment()...)
}

func runLimits(c *cli.Context) error {
	asJSON, err := checkOutput(c)
	if err != nil {
		return err
	}
	change := map[string]limits.Rate{}
	for name := range limitFlags {
		if !c.IsSet(name) {
			continue
		}
		rate, err := limits.ParseRate(c.String(name))
		if err != nil {
			return usageError(fmt.Errorf("--%s: %w", name, err))
		}
		change[strings.ReplaceAll(name, "-", "_")] = rate
	}
	daemon, err := settingsOf(c)
	if err != nil {
		return usageError(fmt.Errorf("limits: %w", err))
	}
	defer daemon.client.CloseIdleConnections()
	current, err := daemon.limits(c.Context, http.MethodGet, nil)
	if err != nil {
		return err
	}
	for key, rate := range change {
		if _, ok := current[key]; !ok {
			return usageError(fmt.Errorf("--%s: a scheduler has no such limit, it keeps --source", strings.ReplaceAll(key, "_", "-")))
		}
		current[key] = rate
	}
	if len(change) > 0 {
		if current, err = daemon.limits(c.Context, http.MethodPut, current); err != nil {
			return err
		}
	}
	if asJSON {
		return writeJSON(c.App.Writer, current)
	}
	return printLimits(c, current)
}

func printLimits(c *cli.Context, current map[string]limits.Rate) error {
	for _, key := range slices.Sorted(maps.Keys(current)) {
		text := "none"
		if current[key] > 0 {
			text = current[key].String() + "/s"
		}
		if _, err := fmt.Fprintf(c.App.Writer, "%-18s %s\n", key, text); err != nil {
			return err
		}
	}
	return nil
}

// settings is a running daemon that can be asked for its settings.
type settings struct {
	url, token string
	client     *http.Client
}

// settingsOf returns the daemon that the flags name: the node, or a scheduler.
func settingsOf(c *cli.Context) (settings, error) {
	if !c.IsSet("scheduler") {
		for _, name := range []string{"token-file", "ca-file", "cert-file", "key-file"} {
			if c.IsSet(name) {
				return settings{}, fmt.Errorf("--%s goes with --scheduler", name)
			}
		}
		return settings{url: "http://" + c.String("node"), client: &http.Client{}}, nil
	}
	if c.IsSet("node") && c.String("node") != os.Getenv(nodeVariable) {
		return settings{}, errors.New("--node and --scheduler exclude each other")
	}
	s := settings{url: c.String("scheduler")}
	if !strings.HasPrefix(s.url, "http://") && !strings.HasPrefix(s.url, "https://") {
		return s, fmt.Errorf("--scheduler %q: want http://HOST:PORT or https://HOST:PORT", s.url)
	}
	var err error
	if s.token, err = (config.Cluster{TokenFile: c.String("token-file")}).Token(); err != nil {
		return s, err
	}
	transport := &http.Transport{}
	id, err := config.TLS{CAFile: c.String("ca-file"), CertFile: c.String("cert-file"), KeyFile: c.String("key-file")}.
		Identity(identity.Node, slog.New(slog.DiscardHandler))
	if err != nil {
		return s, err
	}
	if id != nil && !strings.HasPrefix(s.url, "https://") {
		return s, fmt.Errorf("--scheduler %s: certificates are for https", s.url)
	}
	if id != nil {
		transport.TLSClientConfig = id.Client(identity.Scheduler)
	}
	s.client = &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }} // nobody else gets the token
	return s, nil
}

// settingsPatience is how long a daemon may take to answer.
const settingsPatience = 10 * time.Second

func (s settings) limits(ctx context.Context, method string, body any) (map[string]limits.Rate, error) {
	ctx, cancel := context.WithTimeout(ctx, settingsPatience)
	defer cancel()
	data, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, method, strings.TrimRight(s.url, "/")+"/limits", bytes.NewReader(data))
	if err != nil {
		return nil, usageError(err)
	}
	if s.token != "" {
		req.Header.Set("Authorization", "Bearer "+s.token)
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("no daemon answers at %s: %w; name it with --node or --scheduler", s.url, err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return nil, err
	}
	if resp.StatusCode == http.StatusBadRequest {
		return nil, usageError(fmt.Errorf("limits: %s", bytes.TrimSpace(answer)))
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s: %s", s.url, resp.Status, bytes.TrimSpace(answer))
	}
	var out map[string]limits.Rate
	if err := json.Unmarshal(answer, &out); err != nil {
		return nil, fmt.Errorf("%s answers in no form this program knows: %w", s.url, err)
	}
	return out, nil
}
