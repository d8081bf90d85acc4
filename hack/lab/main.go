// Command lab runs Shoal's clusters on one machine, with real registries, containerds and models in network namespaces:
// the demo, the end-to-end cases, faults, and the broadcast benchmark. It needs root and what hack/setup installs.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/urfave/cli/v2"

	"github.com/shoal-project/shoal/hack/lab/cluster"
)

func main() { os.Exit(main1()) }

func main1() int {
	// Signals stay caught while the lab tidies up: a second Ctrl-C must not leave half a cluster behind.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	err := newApp(os.Stdout, os.Stderr).RunContext(ctx, os.Args)
	switch {
	case err == nil:
		return 0
	case ctx.Err() != nil:
		fmt.Fprintln(os.Stderr, "lab: interrupted; all that was made is removed")
		return 130
	default:
		fmt.Fprintf(os.Stderr, "lab: %v\n", err)
		return 1
	}
}

func newApp(stdout, stderr io.Writer) *cli.App {
	return &cli.App{
		Name:            "lab",
		Usage:           "build clusters in network namespaces and see what Shoal does there",
		HideHelpCommand: true,
		Writer:          stdout,
		ErrWriter:       stderr,
		ExitErrHandler:  func(*cli.Context, error) {}, // main1 says it
		Flags: []cli.Flag{
			&cli.PathFlag{Name: "shoal", Usage: "the shoal `BINARY` to run; built from this tree when not given"},
			&cli.PathFlag{Name: "cache", Usage: "`FOLDER` of the tools, the base image and the model", EnvVars: []string{"SHOAL_CACHE"}, Value: defaultCache()},
		},
		Action: func(ctx *cli.Context) error {
			if ctx.NArg() > 0 {
				return fmt.Errorf("unknown command %q; see lab --help", ctx.Args().First())
			}
			return cli.ShowAppHelp(ctx)
		},
		Before: func(ctx *cli.Context) error {
			return toolsFirst(ctx.Path("cache"))
		},
		Commands: []*cli.Command{broadcastCommand(), demoCommand(), faultCommand(), containerdCommand(), kubeletCommand(), chaosCommand(), loadCommand(), pullsCommand(), mirrorBenchCommand(), firstCommand(), swarmBenchCommand(), lazyBenchCommand(), interopCommand(), fillCommand(), readFilesCommand(), cleanCommand()},
	}
}

func cleanCommand() *cli.Command {
	return &cli.Command{
		Name:  "clean",
		Usage: "remove what killed runs and demo --keep left",
		Action: func(ctx *cli.Context) error {
			runs, err := cluster.Leftovers()
			if err != nil {
				return err
			}
			for _, run := range runs {
				fmt.Fprintf(ctx.App.ErrWriter, "lab: remove run %s\n", run)
				err = errors.Join(err, cluster.Remove(ctx.Context, run))
			}
			return err
		},
	}
}

// sizeAndLink reads the flags --size and --link.
func sizeAndLink(ctx *cli.Context) (size int64, link cluster.Rate, err error) {
	size, errSize := cluster.ParseSize(ctx.String("size"))
	link, errLink := cluster.ParseRate(ctx.String("link"))
	return size, link, errors.Join(errSize, errLink)
}

// tellResult writes a result as one JSON object with --json, and for people without.
func tellResult(ctx *cli.Context, result interface{ print(w io.Writer) error }) error {
	if ctx.Bool("json") {
		return json.NewEncoder(ctx.App.Writer).Encode(result)
	}
	return result.print(ctx.App.Writer)
}

func linkFlag(value string) cli.Flag {
	return &cli.StringFlag{Name: "link", Value: value, Usage: "`RATE` of each host's link in both directions, like 200mbit; 0 for no limit"}
}

// withShoal calls fn with the binary to run: the one that was named, or one that is built from this tree and removed again.
func withShoal(ctx *cli.Context, fn func(shoal string) error) (err error) {
	if ctx.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q; see lab %s --help", ctx.Args().First(), ctx.Command.Name)
	}
	if os.Geteuid() != 0 {
		return cluster.ErrRoot
	}
	dir, err := os.MkdirTemp("", "shoal-build-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	shoal, err := shoalBinary(ctx.Context, ctx.Path("shoal"), dir)
	if err != nil {
		return err
	}
	return fn(shoal)
}

// toolsFirst puts the tools of the pinned versions before the distribution's.
func toolsFirst(cache string) error {
	return os.Setenv("PATH", filepath.Join(cache, "bin")+":"+os.Getenv("PATH"))
}

func defaultCache() string {
	home, err := os.UserHomeDir()
	if err != nil {
		return ""
	}
	return filepath.Join(home, ".cache", "shoal")
}

// shoalBinary returns the binary to run: the one that was named, or one built from this tree into dir.
func shoalBinary(ctx context.Context, named, dir string) (string, error) {
	if named != "" {
		return filepath.Abs(named)
	}
	bin := filepath.Join(dir, "shoal")
	build := exec.CommandContext(ctx, "go", "build", "-o", bin, "github.com/shoal-project/shoal/cmd/shoal")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build shoal: %w\n%s", err, out)
	}
	return bin, nil
}
