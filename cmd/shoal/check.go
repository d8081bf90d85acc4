package main

import (
	"fmt"
	"strings"

	"github.com/shoal-project/shoal/converter"
	"github.com/urfave/cli/v2"
)

const checkHelp = `Verifies an image that shoal convert has made: its manifests, configurations and bootstraps, the chunk map and chunk table
of each blob, that both variants agree on the model, and that the registry has every blob in its size. No layer is read, so
this takes a second.

With --deep every blob is read once, several at a time, and its bytes are compared with its digest, its chunk map and its
RAFS chunks; and the plain layers are unpacked, in memory, to compare names, types, modes, owners, times, link targets,
attributes and content with what the Nydus variant shows. Memory grows with the number of files, not with their size.

Exits with 5 and names the blob or path if anything does not hold.

EXAMPLES:
   shoal check registry.example.com/ml/llama:v1
   shoal check --deep oci:./out:v1
   shoal check --deep --output json registry.example.com/ml/llama:v1 | jq .checked`

func checkCommand() *cli.Command {
	flags := []cli.Flag{
		&cli.BoolFlag{Name: "deep", Usage: "read and verify every blob"},
		&cli.IntFlag{Name: "parallel", Value: 4, Usage: "read `N` blobs at once"},
	}
	return command(&cli.Command{
		Name:        "check",
		Usage:       "verify a converted image in its registry",
		ArgsUsage:   "IMAGE",
		Description: checkHelp,
		Flags:       append(append(flags, accessFlags()...), outputFlags()...),
		Action:      checkAction,
	}, accessEnvironment()...)
}

func checkAction(ctx *cli.Context) error {
	names, err := arguments(ctx, "the image, REGISTRY/NAME:TAG or oci:FOLDER:TAG")
	if err != nil {
		return err
	}
	if ctx.Int("parallel") < 1 {
		return usageError(fmt.Errorf("--parallel %d: want 1 or more", ctx.Int("parallel")))
	}
	cfg := converter.CheckConfig{Image: names[0], Deep: ctx.Bool("deep"), Parallel: ctx.Int("parallel")}
	return runTool(ctx, tool[converter.CheckResult]{
		run: func(a converter.Access, p converter.Progress) (*converter.CheckResult, error) {
			cfg.Access, cfg.Progress = a, p
			return converter.Check(ctx.Context, cfg)
		},
		text: checkText,
	})
}

func checkText(r *converter.CheckResult) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s holds: %d manifests, %d blobs, %s, %s\n", r.Target, r.Manifests, r.Blobs, bytesText(r.Bytes), r.Digest)
	fmt.Fprintf(&b, "  platforms %s\n  checked   %s\n", strings.Join(r.Platforms, ", "), strings.ReplaceAll(strings.Join(r.Checked, ", "), "_", " "))
	if r.Deep {
		fmt.Fprintf(&b, "  compared  %d files, %d RAFS chunks\n", r.Files, r.RAFSChunks)
	} else {
		b.WriteString("  blobs were asked for, not read; --deep reads them\n")
	}
	return b.String()
}
