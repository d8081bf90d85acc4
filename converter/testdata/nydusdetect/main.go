// Command nydusdetect asks nydus-snapshotter's own code for the Nydus variant beside a plain manifest and unpacks its
// bootstrap: nydusdetect REFERENCE DIGEST-OF-PLAIN-MANIFEST FILE. It is a module of its own so that what nydus-snapshotter
// depends on stays out of the project's.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"

	"github.com/containerd/nydus-snapshotter/pkg/index"
	"github.com/containerd/nydus-snapshotter/pkg/label"
	"github.com/opencontainers/go-digest"
)

func main() {
	if err := detect(context.Background(), os.Args[1], digest.Digest(os.Args[2]), os.Args[3]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func detect(ctx context.Context, ref string, plain digest.Digest, file string) error {
	m := index.NewManager(true)
	desc, err := m.CheckIndexAlternative(ctx, ref, plain)
	if err != nil {
		return err
	}
	if !label.IsNydusMetaLayer(desc.Annotations) || label.IsNydusDataLayer(desc.Annotations) {
		return fmt.Errorf("layer %s has annotations %v", desc.Digest, desc.Annotations)
	}
	if err := m.TryFetchMetadata(ctx, ref, plain, file); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(desc)
}
