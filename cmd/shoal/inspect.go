package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/shoal-project/shoal/converter"
	"github.com/urfave/cli/v2"
)

const inspectHelp = `Says what an image is: its platforms and variants, the model with its source, what each layer holds, chunks and their mean
size, how the Nydus variant is packed and what it prefetches, the ModelPack manifest, and what refers to the index. Only
manifests, configurations and bootstraps are read.

With --files it lists files as ls -l does, with the layer their content is in: the model's, or with --path all below a
folder. Of an image without a Nydus variant all layers are read for that.

Images that shoal convert has not made, and other artifacts, are described as far as that goes; what they lack is said.

EXAMPLES:
   shoal inspect registry.example.com/ml/llama:v1
   shoal inspect --files registry.example.com/ml/llama:v1
   shoal inspect --files --path /etc --platform linux/arm64 oci:./out:v1
   shoal inspect --output json registry.example.com/ml/llama:v1 | jq .model.revision`

func inspectCommand() *cli.Command {
	flags := []cli.Flag{
		&cli.BoolFlag{Name: "files", Usage: "list files"},
		&cli.StringFlag{Name: "path", Usage: "list the files below `PATH` (default: the model's folder); implies --files"},
		&cli.StringFlag{Name: "platform", Usage: "list the files for `OS/ARCH` (default: the first)"},
	}
	return command(&cli.Command{
		Name:        "inspect",
		Usage:       "say what an image is made of",
		ArgsUsage:   "IMAGE",
		Description: inspectHelp,
		Flags:       append(append(flags, accessFlags()...), outputFlags()...),
		Action: func(ctx *cli.Context) error {
			names, err := arguments(ctx, "the image, REGISTRY/NAME:TAG or oci:FOLDER:TAG")
			if err != nil {
				return err
			}
			cfg := converter.InspectConfig{
				Image: names[0], Files: ctx.Bool("files") || ctx.IsSet("path"), Path: ctx.String("path"), Platform: ctx.String("platform"),
			}
			return runTool(ctx, tool[converter.Inspection]{
				run: func(a converter.Access, p converter.Progress) (*converter.Inspection, error) {
					cfg.Access, cfg.Progress = a, p
					return converter.Inspect(ctx.Context, cfg)
				},
				text: inspectText,
			})
		},
	}, accessEnvironment()...)
}

func inspectText(i *converter.Inspection) string {
	if i.Files != nil {
		return filesText(i.Files)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n  digest     %s\n  type       %s\n", printable(i.Target), i.Digest, printable(i.MediaType))
	if len(i.Lacks) > 0 {
		fmt.Fprintf(&b, "  lacks      %s\n", printable(strings.Join(i.Lacks, "; ")))
	}
	for _, key := range slices.Sorted(maps.Keys(i.Annotations)) {
		fmt.Fprintf(&b, "  annotation %s\n", printable(key+"="+i.Annotations[key]))
	}
	if m := i.Model; m != nil {
		fmt.Fprintf(&b, "model %s\n", printable(m.Name))
		fmt.Fprintf(&b, "  path       %s\n  files      %d, %s\n", printable(m.Path), m.Files, bytesText(m.Bytes))
		optional(&b, "formats", strings.Join(m.Formats, ", "))
		optional(&b, "source", m.Source)
		optional(&b, "revision", m.Revision)
	}
	if m := i.ModelPack; m != nil {
		fmt.Fprintf(&b, "modelpack\n  digest     %s\n  layers     %d, %s\n", m.Digest, m.Layers, bytesText(m.Bytes))
	}
	for _, p := range i.Platforms {
		platformText(&b, &p, i.Model)
	}
	for _, list := range []struct {
		what string
		of   []converter.InspectedManifest
	}{{"other", i.Others}, {"referrer", i.Referrers}} {
		for _, m := range list.of {
			kind := m.ArtifactType
			if kind == "" {
				kind = m.MediaType
			}
			fmt.Fprintf(&b, "%s %s  %s\n", list.what, m.Digest, printable(kind))
		}
	}
	return b.String()
}

func optional(b *strings.Builder, name, value string) {
	if value != "" {
		fmt.Fprintf(b, "  %-10s %s\n", name, printable(value))
	}
}

func platformText(b *strings.Builder, p *converter.InspectedPlatform, model *converter.InspectedModel) {
	platform := p.Platform
	if platform == "" {
		platform = "artifact"
	}
	for _, v := range []struct {
		name string
		of   *converter.InspectedVariant
	}{{"plain", p.Plain}, {"nydus", p.Nydus}} {
		if v.of == nil {
			continue
		}
		fmt.Fprintf(b, "%s, %s\n  digest     %s\n  layers     %d, %s\n", printable(platform), v.name, v.of.Digest, len(v.of.Layers), bytesText(v.of.Bytes))
		if v.name == "nydus" && p.ChunkSize > 0 {
			fmt.Fprintf(b, "  files      %d\n  packed     RAFS chunks of %s, %d of them, %s\n", p.Files, bytesText(int64(p.ChunkSize)), p.RAFSChunks,
				strings.Join(p.Compressors, " and "))
			prefetchText(b, p.Prefetch, model)
		}
		rows := [][]string{}
		for _, l := range v.of.Layers {
			chunks := ""
			if l.Chunks > 0 {
				chunks = fmt.Sprintf("%s of %s", count(l.Chunks, "chunk"), bytesText(l.MeanChunk))
			}
			rows = append(rows, []string{"  " + l.Kind, shortDigest(l.Digest), bytesText(l.Size), chunks, shorten(l.Holds, 60)})
		}
		table(b, rows)
	}
}

// prefetchText names the first files that are fetched ahead, those of the model within its folder.
func prefetchText(b *strings.Builder, list []string, model *converter.InspectedModel) {
	const shown = 4
	var names []string
	for _, name := range list[:min(shown, len(list))] {
		if model != nil {
			name = strings.TrimPrefix(name, model.Path+"/")
		}
		names = append(names, name)
	}
	text := strings.Join(names, ", ")
	if more := len(list) - shown; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	optional(b, "prefetch", text)
}

// filesText lists files as ls -l does.
func filesText(files []converter.InspectedFile) string {
	rows := make([][]string, 0, len(files))
	for _, f := range files {
		name := f.Path
		if f.Link != "" {
			name += " -> " + f.Link
		}
		rows = append(rows, []string{
			f.Mode, fmt.Sprintf("%d:%d", f.UID, f.GID), fmt.Sprint(f.Size), f.Mtime.Format("2006-01-02 15:04"), shortDigest(f.Layer), name,
		})
	}
	var b strings.Builder
	table(&b, rows)
	return b.String()
}
