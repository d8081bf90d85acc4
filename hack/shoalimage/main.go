// Command shoalimage builds the container image of shoal without Docker: a static binary for each platform on no base, with the
// certificates of well-known authorities, /tmp and a user that is not root. The same source, toolchain and certificates give the same
// digest.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/urfave/cli/v2"
)

func main() { os.Exit(main1()) }

func main1() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := newApp(os.Stdout, os.Stderr).RunContext(ctx, os.Args)
	switch {
	case err == nil:
		return 0
	case ctx.Err() != nil:
		fmt.Fprintln(os.Stderr, "shoalimage: interrupted")
		return 130
	default:
		fmt.Fprintf(os.Stderr, "shoalimage: %v\n", err)
		return 1
	}
}

func newApp(stdout, stderr io.Writer) *cli.App {
	return &cli.App{
		Name:            "shoalimage",
		Usage:           "build the container image of shoal as an OCI layout, and push it",
		HideHelpCommand: true,
		Writer:          stdout,
		ErrWriter:       stderr,
		ExitErrHandler:  func(*cli.Context, error) {}, // main1 says it
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "version", Value: "devel", Usage: "`VERSION` that the binary tells"},
			&cli.StringSliceFlag{Name: "platform", Value: cli.NewStringSlice("linux/amd64", "linux/arm64"), Usage: "`OS/ARCH` to build for (may be repeated)"},
			&cli.PathFlag{Name: "ca-file", Value: "/etc/ssl/certs/ca-certificates.crt", Usage: "`FILE` with the certificates to trust"},
			&cli.PathFlag{Name: "output", Usage: "write the OCI layout to `FOLDER`, in the place of what is there"},
			&cli.StringFlag{Name: "push", Usage: "push to `REGISTRY/NAME:TAG`, with the credentials of docker login or podman login"},
		},
		Action: build,
	}
}

// build is the whole of the command. It prints the digest of the index.
func build(ctx *cli.Context) error {
	if ctx.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q; see --help", ctx.Args().First())
	}
	output, push := ctx.Path("output"), ctx.String("push")
	if output == "" && push == "" {
		return errors.New("give it --output, --push or both")
	}
	var target name.Reference
	if push != "" {
		var err error
		if target, err = name.ParseReference(push, name.StrictValidation); err != nil {
			return fmt.Errorf("--push: %w; name it as REGISTRY/NAME:TAG", err)
		}
	}
	certificates, err := os.ReadFile(ctx.Path("ca-file"))
	if err != nil {
		return fmt.Errorf("--ca-file: %w; install ca-certificates or name a file", err)
	}
	index, err := newIndex(ctx.Context, ctx.String("version"), ctx.StringSlice("platform"), certificates)
	if err != nil {
		return err
	}
	digest, err := index.Digest()
	if err != nil {
		return err
	}
	if output != "" {
		if err := writeLayout(output, index); err != nil {
			return fmt.Errorf("layout %s: %w", output, err)
		}
	}
	if push != "" {
		if err := remote.WriteIndex(target, index, remote.WithContext(ctx.Context), remote.WithAuthFromKeychain(authn.DefaultKeychain)); err != nil {
			return fmt.Errorf("push %s: %w", push, err)
		}
	}
	_, err = fmt.Fprintln(ctx.App.Writer, digest)
	return err
}

// writeLayout puts a complete layout in the place of what is there, tagged latest.
func writeLayout(folder string, index v1.ImageIndex) error {
	if err := replaceable(folder); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(folder), 0o755); err != nil {
		return err
	}
	work, err := os.MkdirTemp(filepath.Dir(folder), ".shoalimage.")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(work) }() // whose loss is said by the rename
	if err := os.Chmod(work, 0o755); err != nil {
		return err
	}
	path, err := layout.Write(work, empty.Index)
	if err != nil {
		return err
	}
	tag := layout.WithAnnotations(map[string]string{ocispec.AnnotationRefName: "latest"})
	if err := path.AppendIndex(index, tag); err != nil {
		return err
	}
	if err := os.RemoveAll(folder); err != nil {
		return err
	}
	return os.Rename(work, folder)
}

// replaceable reports an error unless the folder is a layout, or is not there: nothing else is to be removed by mistake.
func replaceable(folder string) error {
	entries, err := os.ReadDir(folder)
	if errors.Is(err, os.ErrNotExist) || err == nil && len(entries) == 0 {
		return nil
	}
	if err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(folder, ocispec.ImageLayoutFile)); err != nil {
		return errors.New("it is not empty and no OCI layout; remove it or name another folder")
	}
	return nil
}
