package main

import (
	"fmt"
	"strings"

	"github.com/shoal-project/shoal/converter"
	"github.com/urfave/cli/v2"
)

const diffHelp = `Tells what a node that has image A must fetch for image B, for each platform and variant: whole blobs, as clients fetch
them that know nothing but digests, and the chunks that are in no layer of A. Only manifests, configurations and bootstraps are
read. The images may lie in different registries and layouts. Images without chunk maps are compared by whole blobs.

With --files it also lists the files of the model that were added, removed or changed.

EXAMPLES:
   shoal diff registry.example.com/ml/llama:v1 registry.example.com/ml/llama:v2
   shoal diff --files registry.example.com/ml/llama:v1 oci:./out:v2
   shoal diff --output json r.example.com/llama:v1 r.example.com/llama:v2 | jq '.platforms[0].nydus.chunk_bytes'`

func diffCommand() *cli.Command {
	flags := []cli.Flag{&cli.BoolFlag{Name: "files", Usage: "list the files of the model that differ"}}
	return command(&cli.Command{
		Name:        "diff",
		Usage:       "tell what a node that has one image must fetch for another one",
		ArgsUsage:   "A B",
		Description: diffHelp,
		Flags:       append(append(flags, accessFlags()...), outputFlags()...),
		Action: func(ctx *cli.Context) error {
			names, err := arguments(ctx, "two images: A, which a node has, and B, which it is to get", "the second image, which a node is to get")
			if err != nil {
				return err
			}
			cfg := converter.DiffConfig{From: names[0], To: names[1], Files: ctx.Bool("files")}
			return runTool(ctx, tool[converter.DiffResult]{
				run: func(a converter.Access, p converter.Progress) (*converter.DiffResult, error) {
					cfg.Access, cfg.Progress = a, p
					return converter.Diff(ctx.Context, cfg)
				},
				text: diffText,
			})
		},
	}, accessEnvironment()...)
}

func diffText(r *converter.DiffResult) string {
	var b strings.Builder
	fmt.Fprintf(&b, "from %s  %s\nto   %s  %s\n", printable(r.From), r.FromDigest, printable(r.To), r.ToDigest)
	for _, p := range r.Platforms {
		variantDiffText(&b, p.Platform+", plain", p.Plain)
		variantDiffText(&b, p.Platform+", nydus", p.Nydus)
	}
	if r.Files != nil {
		fmt.Fprintf(&b, "files of the model: %d differ\n", len(r.Files))
		rows := [][]string{}
		for _, f := range r.Files {
			size := bytesText(f.After)
			switch {
			case f.Change == "removed":
				size = bytesText(f.Before)
			case f.Change == "changed" && f.Before != f.After:
				size = bytesText(f.Before) + " to " + size
			}
			rows = append(rows, []string{"  " + f.Change, size, f.Path})
		}
		table(&b, rows)
	}
	for _, n := range r.Notes {
		fmt.Fprintf(&b, "note: %s\n", printable(n))
	}
	return b.String()
}

func variantDiffText(b *strings.Builder, name string, v *converter.VariantDiff) {
	if v == nil {
		return
	}
	fmt.Fprintf(b, "%s: %s\n", printable(name), bytesText(v.Bytes))
	fmt.Fprintf(b, "  by blobs   %s in %s, %s\n", bytesText(v.AbsentBytes), count(v.AbsentLayers, "layer"), percent(v.AbsentShare))
	fmt.Fprintf(b, "  by chunks  %s in %s, %s\n", bytesText(v.ChunkBytes), count(v.Chunks, "chunk"), percent(v.ChunkShare))
	rows := [][]string{}
	for _, l := range v.Layers {
		state := "present"
		switch {
		case !l.Present && l.Chunks > 0:
			state = fmt.Sprintf("%s in %d of %d chunks", bytesText(l.MissingBytes), l.MissingChunks, l.Chunks)
		case !l.Present:
			state = "whole"
		}
		rows = append(rows, []string{"  " + l.Kind, shortDigest(l.Digest), bytesText(l.Size), state, shorten(l.Holds, 60)})
	}
	table(b, rows)
}
