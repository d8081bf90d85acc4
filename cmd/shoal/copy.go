package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/shoal-project/shoal/converter"
	"github.com/urfave/cli/v2"
)

const copyAbout = `All of it is copied, whatever it is: the index, every manifest, configuration and blob, and what refers to them: signatures and
attestations, found by the referrers API, its fallback tag, and the tags cosign uses; of these again what refers to them. No digest
changes. Images of Docker's schema 2 and other OCI artifacts are copied too.

Blobs that the target has are not sent, within one registry they are mounted, and what breaks off is resumed or tried again. Those
that a layout has are read first, to see whether they are whole. The tag is written last. What was sent is not sent again by the next run.`

const copyHelp = copyAbout + `

There is no choice of platforms: it would change the index and so its digest. To copy the image for one platform alone, name the
digest of its manifest, which shoal inspect shows.

EXAMPLES:
   shoal copy registry.example.com/ml/llama:v1 eu.example.com/ml/llama:v1
   shoal copy --dry-run registry.example.com/ml/llama:v1 eu.example.com/ml/llama:v1
   shoal copy registry.example.com/ml/llama@sha256:7f1b… eu.example.com/ml/llama:v1
   shoal copy oci:./out:v1 oci:/mnt/backup:v1`

const pushHelp = copyAbout + `

EXAMPLES:
   shoal push oci:./out:v1 registry.example.com/ml/llama:v1
   shoal push ./out registry.example.com/ml/llama:v1`

const pullHelp = copyAbout + `

The layout can be carried to where there is no network, and pushed there: signatures come along.

EXAMPLES:
   shoal pull registry.example.com/ml/llama:v1 oci:/mnt/stick:v1
   shoal push oci:/mnt/stick:v1 registry.inside.example/ml/llama:v1`

func copyFlags() []cli.Flag {
	return append(append([]cli.Flag{
		&cli.BoolFlag{Name: "dry-run", Usage: "tell what would be sent, ask whether the target may be written, write nothing"},
		&cli.BoolFlag{Name: "no-referrers", Usage: "leave out signatures, attestations and all else that refers to the image"},
		&cli.IntFlag{Name: "uploads", Value: 4, Usage: "copy `N` blobs at once"},
		&cli.StringSliceFlag{Name: "platform", Hidden: true},
	}, accessFlags()...), outputFlags()...)
}

func copyCommand() *cli.Command {
	return command(&cli.Command{
		Name: "copy", Usage: "copy an image with all that belongs to it", ArgsUsage: "SOURCE TARGET", Description: copyHelp, Flags: copyFlags(),
		Action: func(ctx *cli.Context) error {
			names, err := arguments(ctx, "source and target, each REGISTRY/NAME:TAG or oci:FOLDER:TAG", "the target, REGISTRY/NAME:TAG or oci:FOLDER:TAG")
			if err != nil {
				return err
			}
			return copyAction(ctx, names[0], names[1])
		},
	}, accessEnvironment()...)
}

func pushCommand() *cli.Command {
	return command(&cli.Command{
		Name: "push", Usage: "copy an image from an OCI layout to a registry", ArgsUsage: "LAYOUT IMAGE", Description: pushHelp, Flags: copyFlags(),
		Action: func(ctx *cli.Context) error {
			names, err := arguments(ctx, "a layout, oci:FOLDER[:TAG], and the image to make of it, REGISTRY/NAME:TAG", "the image, REGISTRY/NAME:TAG")
			if err != nil {
				return err
			}
			layout, image := layoutName(names[0]), layoutName(names[1])
			if !isLayout(layout) || isLayout(image) {
				return usageError(fmt.Errorf("push: it goes from a layout, oci:FOLDER[:TAG], to a registry, REGISTRY/NAME:TAG, not from %s to %s; see pull and copy",
					names[0], names[1]))
			}
			return copyAction(ctx, layout, image)
		},
	}, accessEnvironment()...)
}

func pullCommand() *cli.Command {
	return command(&cli.Command{
		Name: "pull", Usage: "copy an image from a registry to an OCI layout", ArgsUsage: "IMAGE LAYOUT", Description: pullHelp, Flags: copyFlags(),
		Action: func(ctx *cli.Context) error {
			names, err := arguments(ctx, "an image, REGISTRY/NAME:TAG, and the layout to write, oci:FOLDER:TAG", "the layout, oci:FOLDER:TAG")
			if err != nil {
				return err
			}
			image, layout := layoutName(names[0]), layoutName(names[1])
			if isLayout(image) || !isLayout(layout) {
				return usageError(fmt.Errorf("pull: it goes from a registry, REGISTRY/NAME:TAG, to a layout, oci:FOLDER:TAG, not from %s to %s; see push and copy",
					names[0], names[1]))
			}
			return copyAction(ctx, image, layout)
		},
	}, accessEnvironment()...)
}

func isLayout(name string) bool { return strings.HasPrefix(name, "oci:") }

// layoutName takes what looks like a path for a layout: no registry is called so.
func layoutName(name string) string {
	if strings.HasPrefix(name, "/") || strings.HasPrefix(name, "./") || strings.HasPrefix(name, "../") {
		return "oci:" + name
	}
	return name
}

func copyAction(ctx *cli.Context, source, target string) error {
	if ctx.IsSet("platform") {
		return usageError(errors.New(ctx.Command.Name + ": --platform would change the index and its digest; name the digest of one platform's manifest instead, see shoal inspect"))
	}
	if ctx.Int("uploads") < 1 {
		return usageError(fmt.Errorf("--uploads %d: want 1 or more", ctx.Int("uploads")))
	}
	cfg := converter.CopyConfig{
		Source: source, Target: target, NoReferrers: ctx.Bool("no-referrers"), DryRun: ctx.Bool("dry-run"), Uploads: ctx.Int("uploads"),
	}
	return runTool(ctx, tool[converter.CopyResult]{
		run: func(a converter.Access, p converter.Progress) (*converter.CopyResult, error) {
			cfg.Access, cfg.Progress = a, p
			return converter.Copy(ctx.Context, cfg)
		},
		text: copyText,
	})
}

func copyText(r *converter.CopyResult) string {
	var b strings.Builder
	verb := "copied"
	if !r.Copied {
		verb = "would copy"
	}
	fmt.Fprintf(&b, "%s %s to %s\n  digest    %s\n", verb, printable(r.Source), printable(r.Target), r.Digest)
	fmt.Fprintf(&b, "  manifests %d\n  blobs     %d, %s\n", r.Manifests, r.Blobs, bytesText(r.Bytes))
	for _, c := range []struct {
		name string
		converter.CopyCount
	}{{"sent", r.Sent}, {"mounted", r.Mounted}, {"present", r.Present}} {
		fmt.Fprintf(&b, "  %-9s %d, %s\n", c.name, c.Blobs, bytesText(c.Bytes))
	}
	for _, ref := range r.Referrers {
		where := ref.Tag
		if where == "" {
			where = "to " + string(ref.Subject)
		}
		fmt.Fprintf(&b, "  referrer  %s  %s  %s\n", ref.Digest, printable(ref.ArtifactType), printable(where))
	}
	for _, d := range r.Foreign {
		fmt.Fprintf(&b, "  left out  %s, which may not be distributed\n", d)
	}
	return b.String()
}
