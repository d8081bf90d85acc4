package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/shoal-project/shoal/cmd/internal/config"
	"github.com/shoal-project/shoal/peer/limits"
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
		&cli.StringFlag{Name: "admin", Value: "http://127.0.0.1:7703", Usage: "`URL` of the node's admin.listen"},
		&cli.StringFlag{Name: "scheduler", Usage: "ask the scheduler at `URL` instead, for the rate of all nodes together"},
		&cli.StringFlag{Name: "token-file", Usage: "the cluster's secret is in `FILE`, for --scheduler"},
		&cli.BoolFlag{Name: "json", Usage: "print one JSON object, in bytes a second"},
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
   shoal limits --scheduler http://10.0.0.1:7700 --token-file /etc/shoal/token --source 1GiB`,
		Flags:  flags,
		Action: runLimits,
	})
}

func runLimits(c *cli.Context) error {
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
	daemon := settings{url: c.String("admin")}
	if c.IsSet("scheduler") {
		daemon.url = c.String("scheduler")
		var err error
		if daemon.token, err = (config.Cluster{TokenFile: c.String("token-file")}).Token(); err != nil {
			return usageError(err)
		}
	}
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
	return printLimits(c, current)
}

func printLimits(c *cli.Context, current map[string]limits.Rate) error {
	if c.Bool("json") {
		return json.NewEncoder(c.App.Writer).Encode(current)
	}
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
type settings struct{ url, token string }

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
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, fmt.Errorf("no daemon answers at %s: %w; name it with --admin or --scheduler", s.url, err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return nil, err
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
