// Command nydusconvert lets nydus-snapshotter's own code convert layers: nydusconvert COMPRESSOR FOLDER LAYER.tar... writes a blob
// for each layer, named by its digest, and the merged bootstrap "image.boot" into the folder. It is a module of its own so
// that what nydus-snapshotter depends on stays out of the project's.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/containerd/nydus-snapshotter/pkg/converter"
	"github.com/opencontainers/go-digest"
)

func main() {
	if err := convert(context.Background(), os.Args[1], os.Args[2], os.Args[3:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func convert(ctx context.Context, compressor, dir string, tars []string) error {
	var layers []converter.Layer
	for _, tar := range tars {
		name, err := pack(ctx, compressor, dir, tar)
		if err != nil {
			return fmt.Errorf("pack %s: %w", tar, err)
		}
		blob, err := os.Open(filepath.Join(dir, name.Encoded()))
		if err != nil {
			return err
		}
		defer blob.Close()
		info, err := blob.Stat()
		if err != nil {
			return err
		}
		layers = append(layers, converter.Layer{Digest: name, ReaderAt: readerAt{blob, info.Size()}})
	}
	out, err := os.Create(filepath.Join(dir, "image.boot"))
	if err != nil {
		return err
	}
	if _, err := converter.Merge(ctx, layers, out, converter.MergeOption{WorkDir: dir, FsVersion: "6"}); err != nil {
		return fmt.Errorf("merge: %w", err)
	}
	return out.Close()
}

func pack(ctx context.Context, compressor, dir, tar string) (digest.Digest, error) {
	in, err := os.Open(tar)
	if err != nil {
		return "", err
	}
	defer in.Close()
	out, err := os.CreateTemp(dir, "blob-")
	if err != nil {
		return "", err
	}
	sum := digest.SHA256.Digester()
	w, err := converter.Pack(ctx, io.MultiWriter(out, sum.Hash()), converter.PackOption{WorkDir: dir, FsVersion: "6", Compressor: compressor})
	if err != nil {
		return "", err
	}
	if _, err := io.Copy(w, in); err != nil {
		return "", err
	}
	if err := w.Close(); err != nil {
		return "", err
	}
	if err := out.Close(); err != nil {
		return "", err
	}
	return sum.Digest(), os.Rename(out.Name(), filepath.Join(dir, sum.Digest().Encoded()))
}

// readerAt is containerd's content.ReaderAt.
type readerAt struct {
	*os.File
	size int64
}

func (r readerAt) Size() int64 { return r.size }
