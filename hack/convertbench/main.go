// Command convertbench measures `shoal convert` beside what else reads or packs the same model: a sha256 pass, which no converter can
// beat that names its blobs by sha256, and the tools of the field. The contestants take turns, round by round; the medians are told.
//
//	go run ./hack/convertbench --shoal bin/shoal --size 4GiB --rounds 3
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/urfave/cli/v2"
)

func main() { os.Exit(main1()) }

func main1() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	app := &cli.App{
		Name:  "convertbench",
		Usage: "measure shoal convert beside other tools",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "shoal", Value: "bin/shoal", Usage: "`BINARY` to measure"},
			&cli.StringFlag{Name: "size", Value: "4GiB", Usage: "`SIZE` of the model"},
			&cli.IntFlag{Name: "shards", Value: 4, Usage: "`NUMBER` of files it is in"},
			&cli.IntFlag{Name: "rounds", Value: 3, Usage: "`NUMBER` of runs of each"},
			&cli.StringFlag{Name: "dir", Usage: "`FOLDER` on the disk to measure on (default: a temporary one)"},
			&cli.BoolFlag{Name: "cold", Usage: "drop the page cache before each run; needs root"},
			&cli.StringFlag{Name: "only", Usage: "measure only contestants whose name holds `TEXT`"},
			&cli.BoolFlag{Name: "json", Usage: "print one JSON object in place of the table"},
		},
		Action: func(c *cli.Context) error {
			cfg, err := newConfig(c)
			if err != nil {
				return err
			}
			return bench(c.Context, cfg, c.App.Writer)
		},
	}
	if err := app.RunContext(ctx, os.Args); err != nil {
		fmt.Fprintf(os.Stderr, "convertbench: %v\n", err)
		return 1
	}
	return 0
}

type config struct {
	shoal, dir, only string
	size             int64
	shards, rounds   int
	cold, json       bool
}

func newConfig(c *cli.Context) (config, error) {
	cfg := config{
		shoal: c.String("shoal"), dir: c.String("dir"), only: c.String("only"), shards: c.Int("shards"), rounds: c.Int("rounds"),
		cold: c.Bool("cold"), json: c.Bool("json"),
	}
	var err error
	if cfg.size, err = parseSize(c.String("size")); err != nil {
		return cfg, err
	}
	if cfg.shards < 1 || cfg.rounds < 1 || cfg.size < int64(cfg.shards)<<20 {
		return cfg, fmt.Errorf("want at least one round, one shard, and 1 MiB for each")
	}
	cfg.shoal, err = filepath.Abs(cfg.shoal)
	return cfg, err
}

func parseSize(s string) (int64, error) {
	number, shift := strings.TrimSuffix(s, "MiB"), 20
	if number == s {
		number, shift = strings.TrimSuffix(s, "GiB"), 30
	}
	n, err := strconv.ParseInt(number, 10, 32)
	if err != nil || number == s || n < 1 {
		return 0, fmt.Errorf("--size %q: want a size such as 512MiB or 4GiB", s)
	}
	return n << shift, nil
}

// bench lays out the inputs, runs everybody and prints the result.
func bench(ctx context.Context, cfg config, out io.Writer) (err error) {
	work, err := os.MkdirTemp(cfg.dir, "convertbench-")
	if err != nil {
		return err
	}
	defer func() {
		if rerr := os.RemoveAll(work); err == nil {
			err = rerr
		}
	}()
	fmt.Fprintf(os.Stderr, "writing a model of %d MiB in %d shards\n", cfg.size>>20, cfg.shards)
	in, err := layOut(work, cfg)
	if err != nil {
		return err
	}
	var runs []*contestant
	for _, c := range contestants(cfg, in) {
		if !strings.Contains(c.Name, cfg.only) {
			continue
		}
		if _, err := exec.LookPath(c.program); c.program != "" && err != nil {
			return fmt.Errorf("%s: %w; run hack/setup bench", c.Name, err)
		}
		runs = append(runs, c)
	}
	for round := range cfg.rounds {
		for _, c := range runs {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := c.run(ctx, in, cfg.cold); err != nil {
				return fmt.Errorf("%s: %w", c.Name, err)
			}
			fmt.Fprintf(os.Stderr, "round %d: %-28s %6.2f s\n", round+1, c.Name, c.seconds[len(c.seconds)-1])
		}
	}
	r := summarise(cfg, runs)
	if cfg.json {
		enc := json.NewEncoder(out)
		enc.SetIndent("", "  ")
		return enc.Encode(r)
	}
	return r.print(out)
}
