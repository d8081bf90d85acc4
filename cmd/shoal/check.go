package main

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/shoal-project/shoal/converter"
	"github.com/urfave/cli/v2"
)

const checkHelp = `Reads every blob of an image that shoal convert has made and verifies it: digests and sizes, the chunk map of each layer,
and that the bootstrap names the blobs of its manifest. Exits with 5 if anything does not hold.

EXAMPLE:
   shoal check registry.example.com/ml/llama:v1`

func checkCommand() *cli.Command {
	return command(&cli.Command{
		Name:        "check",
		Usage:       "verify a converted image in its registry",
		ArgsUsage:   "REGISTRY/NAME:TAG",
		Description: checkHelp,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "plain-http", Usage: "speak plain HTTP to the registry"},
			&cli.StringFlag{Name: "output", Value: "text", Usage: "`FORMAT` of the summary on standard output: text or json"},
			&cli.BoolFlag{Name: "quiet", Usage: "no progress"},
		},
		Action: checkAction,
	})
}

func checkAction(ctx *cli.Context) error {
	if ctx.NArg() != 1 {
		return usageError(errors.New("check: give it the image, REGISTRY/NAME:TAG"))
	}
	output := ctx.String("output")
	if output != "text" && output != "json" {
		return usageError(fmt.Errorf("--output %q: want text or json", output))
	}
	cfg := converter.Config{Target: ctx.Args().First(), PlainHTTP: ctx.Bool("plain-http")}
	var bar *progress
	if !ctx.Bool("quiet") {
		bar = newProgress(ctx.App.ErrWriter)
		cfg.Progress = bar
	}
	result, err := converter.Check(ctx.Context, cfg)
	if bar != nil {
		bar.end()
	}
	if err != nil {
		return convertError(ctx.Context, "check", err)
	}
	if output == "json" {
		return json.NewEncoder(ctx.App.Writer).Encode(result)
	}
	_, err = fmt.Fprintf(ctx.App.Writer, "%s holds: %d blobs, %s, %s\n", result.Target, result.Blobs, bytesText(result.Bytes), result.Digest)
	return err
}
