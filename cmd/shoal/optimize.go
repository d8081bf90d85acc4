package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/shoal-project/shoal/cmd/internal/local"
	"github.com/shoal-project/shoal/converter"
)

const optimizeHelp = `Nodes that mount an image fetch it in the order that its Nydus variant says: at first the model's files in the order in which
loaders read them. A program that reads other files first, or the libraries of its framework, waits less when they are named here.

With --recorded the node of this machine is asked in which order containers of the image read its files here: pull the image with the
snapshotter on a node that does not have it, run its container until it serves, then run this there, before the node is restarted: a
node that was restarted after it had mounted the image does not know what was read before, and refuses. What is read after a blob is
complete is not seen. The node has to mount by the driver erofs; fuse takes no note of reads.

FILES is a text with one path in the image a line, in the order of reading; - is standard input. Empty lines and those that begin
with # are left out, and so are paths that the image has not.

Behind the files of the record or the list come those that were named before, in the order they had. Only the bootstrap layer and the manifests that name it are new: every
other blob and the plain variant stay as they are, and so do the signatures of those. The tag is written last.

EXAMPLES:
   shoal optimize --recorded registry.example.com/ml/llama:v1
   shoal optimize --files order.txt registry.example.com/ml/llama:v1
   shoal optimize --files order.txt --tag v1-fast registry.example.com/ml/llama:v1
   strace -f -e trace=openat -o trace python3 serve.py; grep -o '"/[^"]*"' trace | tr -d '"' | shoal optimize --files - oci:./out:v1
   shoal inspect --output json registry.example.com/ml/llama:v1 | jq '.platforms[].prefetch'`

func optimizeCommand() *cli.Command {
	flags := []cli.Flag{
		&cli.BoolFlag{Name: "recorded", Usage: "take the order in which the image's containers read on this machine's node"},
		&cli.StringFlag{Name: "files", Usage: "read the paths from `FILES`, - for standard input"},
		&cli.StringFlag{Name: "tag", Usage: "give the result this `TAG` instead of the image's own"},
		&cli.BoolFlag{Name: "dry-run", Usage: "tell the new order, ask whether it may be written, write nothing"},
		nodeFlag(),
	}
	return command(&cli.Command{
		Name: "optimize", Usage: "say which files of an image nodes fetch first", ArgsUsage: "IMAGE", Description: optimizeHelp,
		Flags: append(append(flags, accessFlags()...), outputFlags()...),
		Action: func(ctx *cli.Context) error {
			names, err := arguments(ctx, "an image, REGISTRY/NAME:TAG or oci:FOLDER:TAG")
			if err != nil {
				return err
			}
			cfg := converter.OptimizeConfig{Image: names[0], Tag: ctx.String("tag"), DryRun: ctx.Bool("dry-run")}
			switch {
			case ctx.IsSet("files") && ctx.Bool("recorded"):
				return usageError(errors.New("optimize: --files and --recorded were both given; leave one out"))
			case !ctx.IsSet("files") && !ctx.Bool("recorded"):
				return usageError(fmt.Errorf("optimize: name the list of files with --files FILE, or ask the node with --recorded; see %s --help",
					ctx.Command.HelpName))
			case ctx.Bool("recorded"):
				cfg.Files, err = recordedPaths(ctx, names[0])
			default:
				cfg.Files, err = readPaths(ctx.App.Reader, ctx.String("files"))
			}
			if err != nil {
				return err
			}
			return runTool(ctx, tool[converter.OptimizeResult]{
				run: func(a converter.Access, p converter.Progress) (*converter.OptimizeResult, error) {
					cfg.Access, cfg.Progress = a, p
					return converter.Optimize(ctx.Context, cfg)
				},
				text: optimizeText,
			})
		},
	}, append(accessEnvironment(), nodeEnvironment()...)...)
}

// recordedPaths asks the node of this machine.
func recordedPaths(ctx *cli.Context, image string) ([]string, error) {
	client := local.NewClient(ctx.String("node"))
	defer client.Close()
	accessed, err := client.Accessed(ctx.Context, image)
	if err != nil {
		return nil, fmt.Errorf("optimize: %w", err)
	}
	return accessed.Files, nil
}

// readPaths reads a path from each line of a file, or of in when it is called "-".
func readPaths(in io.Reader, file string) (paths []string, err error) {
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, usageError(fmt.Errorf("--files: %w", err))
		}
		defer f.Close()
		in = f
	}
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		if line := strings.TrimSpace(lines.Text()); line != "" && line[0] != '#' {
			paths = append(paths, line)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, usageError(fmt.Errorf("--files %s: %w", file, err))
	}
	return paths, nil
}

func optimizeText(r *converter.OptimizeResult) string {
	var b strings.Builder
	verb := "wrote"
	if !r.Written {
		verb = "would write"
	}
	fmt.Fprintf(&b, "%s %s as %s\n  digest  %s\n  before  %s\n", verb, printable(r.Image), printable(r.Tag), r.Digest, r.Before)
	for _, p := range r.Platforms {
		fmt.Fprintf(&b, "%s: %d files are fetched first, %d of the list left out\n", p.Platform, len(p.Prefetch), len(p.Left))
		for i, name := range p.Prefetch {
			if i == 20 {
				fmt.Fprintf(&b, "  … %d more; shoal inspect --output json lists them\n", len(p.Prefetch)-i)
				break
			}
			fmt.Fprintf(&b, "  %s\n", printable(name))
		}
	}
	return b.String()
}
