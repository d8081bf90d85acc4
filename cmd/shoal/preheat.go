package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/opencontainers/go-digest"
	"github.com/urfave/cli/v2"

	"github.com/shoal-project/shoal/cmd/internal/local"
	"github.com/shoal-project/shoal/converter"
	"github.com/shoal-project/shoal/peer"
	"github.com/shoal-project/shoal/peer/source"
)

const preheatHelp = `Has the seeds of the cluster, or the nodes that are named, fetch an image or what a URL has, and waits until they hold all of it. The
node of this machine passes it on.

Seeds and nodes read a registry with credentials of their own: those of docker login of the user they run as. A URL that needs a header, a
user, or a parameter that looks like a secret can be preheated nowhere: use shoal get on a machine that has the right.

Of an image, all manifests of an index are fetched, or those for one --platform.

EXAMPLES:
   shoal preheat registry.example.com/ml/llama:v1
   shoal preheat --platform linux/amd64 --nodes gpu-11 --nodes 10.0.0.12:7702 registry.example.com/ml/llama:v1
   shoal preheat https://host.example.com/llama/model.gguf`

// bootstrapNote marks the layer of a Nydus manifest that holds the chunk maps.
const bootstrapNote = "containerd.io/snapshot/nydus-bootstrap"

func preheatCommand() *cli.Command {
	flags := append([]cli.Flag{
		&cli.StringSliceFlag{Name: "nodes", Usage: "rather than the seeds, the `NODE` of this name, or whose piece server is at this HOST:PORT; may be repeated"},
		&cli.StringFlag{Name: "platform", Usage: "of an index only the manifests for `OS/ARCH`"},
		&cli.DurationFlag{Name: "patience", Value: time.Minute, Usage: "fail when a node gains nothing for `TIME`"},
	}, urlFlags()...)
	flags = append(append(append(flags, nodeFlag()), accessFlags()...), outputFlags()...)
	return command(&cli.Command{
		Name: "preheat", Usage: "have seeds or nodes fetch an image or a URL", ArgsUsage: "IMAGE|URL", Description: preheatHelp, Flags: flags,
		Action: preheatAction,
	}, append(nodeEnvironment(), accessEnvironment()...)...)
}

// preheated is the summary of a preheating.
type preheated struct {
	Target string   `json:"target"`
	Nodes  []string `json:"nodes"`
	Blobs  int      `json:"blobs"`
	Bytes  int64    `json:"bytes"` // over all nodes
}

func preheatAction(ctx *cli.Context) error {
	asJSON, err := checkOutput(ctx)
	if err != nil {
		return err
	}
	names, err := arguments(ctx, "an image, REGISTRY/NAME:TAG, or a URL")
	if err != nil {
		return err
	}
	req, err := preheatRequest(ctx, names[0])
	if err != nil {
		return err
	}
	client := local.NewClient(ctx.String("node"))
	defer client.Close()
	shown := startProgress(ctx)
	var planned, done int64
	state, err := client.Preheat(ctx.Context, req, func(s local.PreheatState) {
		if shown.Progress == nil {
			return
		}
		shown.Step(converter.Read, count(s.Blobs, "blob")+" to "+count(len(s.Nodes), "node"))
		shown.Plan(converter.Read, s.Total-planned)
		shown.Done(converter.Read, s.Held-done)
		planned, done = s.Total, s.Held
	})
	shown.end()
	if err != nil {
		return preheatError(req, err)
	}
	result := preheated{Target: names[0], Nodes: state.Nodes, Blobs: state.Blobs, Bytes: state.Held}
	if req.Content != nil {
		result.Target = source.Redact(names[0])
	}
	if asJSON {
		return writeJSON(ctx.App.Writer, result)
	}
	_, err = fmt.Fprintf(ctx.App.Writer, "preheated %s\n  nodes     %s\n  blobs     %d\n  held      %s\n", printable(result.Target),
		printable(strings.Join(result.Nodes, " ")), result.Blobs, bytesText(result.Bytes))
	return err
}

// preheatError gives an error its exit code.
func preheatError(req local.PreheatRequest, err error) error {
	code := exitFailure
	if refused, ok := errors.AsType[*local.Error](err); ok {
		switch refused.Code {
		case local.CodeBad:
			code = exitUsage
		case local.CodeMismatch:
			code = exitVerify
		case local.CodeDenied, local.CodeAbsent, local.CodeChanged:
			code = exitSource
			if req.Content == nil {
				code = exitRegistry
			}
		}
	}
	return &exitError{code, fmt.Errorf("preheat: %w", err)}
}

func preheatRequest(ctx *cli.Context, target string) (local.PreheatRequest, error) {
	req := local.PreheatRequest{Nodes: ctx.StringSlice("nodes"), Patience: ctx.Duration("patience")}
	if req.Patience < time.Second {
		return req, usageError(fmt.Errorf("preheat: --patience %v: want at least a second", req.Patience))
	}
	if strings.HasPrefix(target, "http://") || strings.HasPrefix(target, "https://") {
		if ctx.IsSet("platform") {
			return req, usageError(errors.New("preheat: --platform is for images"))
		}
		if err := checkPatterns(ctx.StringSlice("ignore-query")); err != nil {
			return req, usageError(fmt.Errorf("preheat: %w", err))
		}
		req.Content = &local.ContentRequest{URL: target, Digest: digest.Digest(ctx.String("digest")), Ignore: ctx.StringSlice("ignore-query"),
			Share: ctx.Bool("share")}
		return req, nil
	}
	if scheme, _, ok := strings.Cut(target, "://"); ok && scheme != "oci" {
		return req, usageError(fmt.Errorf("preheat: %s:// cannot be preheated: give an image, or a URL of http:// or https://", scheme))
	}
	var options []name.Option
	if ctx.Bool("plain-http") {
		options = append(options, insecureNames())
	}
	ref, err := name.ParseReference(strings.TrimPrefix(target, "oci://"), options...)
	if err != nil {
		return req, usageError(fmt.Errorf("preheat: %w", err))
	}
	var platform *v1.Platform
	if text := ctx.String("platform"); text != "" {
		if platform, err = v1.ParsePlatform(text); err != nil {
			return req, usageError(fmt.Errorf("--platform %q: %w", text, err))
		}
	}
	transport, err := newTransport(ctx.String("ca-file"))
	if err != nil {
		return req, usageError(err)
	}
	if req.Blobs, err = blobsOf(ctx.Context, ref, platform, remote.WithAuthFromKeychain(authn.DefaultKeychain), remote.WithTransport(transport)); err != nil {
		return req, &exitError{exitRegistry, fmt.Errorf("preheat: %w", err)}
	}
	return req, nil
}

// blobsOf returns the blobs of an image, each once, with the place of its chunk map.
func blobsOf(ctx context.Context, ref name.Reference, platform *v1.Platform, options ...remote.Option) ([]peer.Blob, error) {
	options = append(options, remote.WithContext(ctx))
	desc, err := remote.Get(ref, options...)
	if err != nil {
		return nil, err
	}
	byPlatform := map[string][]v1.Image{}
	if desc.MediaType.IsIndex() {
		index, err := desc.ImageIndex()
		if err != nil {
			return nil, err
		}
		manifest, err := index.IndexManifest()
		if err != nil {
			return nil, err
		}
		for _, m := range manifest.Manifests {
			key := ""
			if m.Platform != nil {
				key = m.Platform.OS + "/" + m.Platform.Architecture + "/" + m.Platform.Variant
				if platform != nil && (m.Platform.OS != platform.OS || m.Platform.Architecture != platform.Architecture) {
					continue
				}
			}
			if !m.MediaType.IsImage() {
				continue
			}
			img, err := index.Image(m.Digest)
			if err != nil {
				return nil, err
			}
			byPlatform[key] = append(byPlatform[key], img)
		}
	} else {
		img, err := desc.Image()
		if err != nil {
			return nil, err
		}
		byPlatform[""] = []v1.Image{img}
	}
	return blobsIn(ref.Context(), byPlatform)
}

// blobsIn collects the blobs of images, which share chunk maps where they are for one platform.
func blobsIn(repository name.Repository, byPlatform map[string][]v1.Image) ([]peer.Blob, error) {
	origin := peer.Origin{Registry: repository.RegistryStr(), Repository: repository.RepositoryStr()}
	if origin.Registry == name.DefaultRegistry {
		origin.Registry = "docker.io"
	}
	seen, out := map[digest.Digest]bool{}, []peer.Blob{}
	for _, images := range byPlatform {
		var maps *peer.MapRef
		var found []v1.Descriptor
		for _, img := range images {
			m, err := img.Manifest()
			if err != nil {
				return nil, err
			}
			for _, l := range m.Layers {
				if l.Annotations[bootstrapNote] == "true" {
					maps = &peer.MapRef{Layer: digest.Digest(l.Digest.String()), Size: l.Size}
				}
			}
			found = append(append(found, m.Config), m.Layers...)
		}
		for _, l := range found {
			b := peer.Blob{Digest: digest.Digest(l.Digest.String()), Size: l.Size, Origin: origin}
			if maps != nil && maps.Layer != b.Digest {
				b.Origin.Map = maps
			}
			if l.Size > 0 && !seen[b.Digest] {
				seen[b.Digest] = true
				out = append(out, b)
			}
		}
	}
	return out, nil
}
