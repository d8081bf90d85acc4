package main

import (
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
		Flags:       append(accessFlags(), outputFlags()...),
		Action:      checkAction,
	})
}

func checkAction(ctx *cli.Context) error {
	if ctx.NArg() != 1 {
		return usageError(errors.New("check: give it the image, REGISTRY/NAME:TAG or oci:FOLDER:TAG"))
	}
	asJSON, err := checkOutput(ctx)
	if err != nil {
		return err
	}
	cfg := converter.CheckConfig{Image: ctx.Args().First()}
	if cfg.Access, err = access(ctx); err != nil {
		return err
	}
	var end func()
	cfg.Progress, end = startProgress(ctx)
	result, err := converter.Check(ctx.Context, cfg)
	end()
	if err != nil {
		return convertError(ctx.Context, "check", err)
	}
	if asJSON {
		return writeJSON(ctx.App.Writer, result)
	}
	_, err = fmt.Fprintf(ctx.App.Writer, "%s holds: %d blobs, %s, %s\n", result.Target, result.Blobs, bytesText(result.Bytes), result.Digest)
	return err
}
