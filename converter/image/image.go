// Package image writes the JSON of a converted image and its bootstrap layer: one index with two manifests, the plain one
// any client takes, and the Nydus one with the same model blobs.
//
//	index (the tag)
//	├── plain manifest            config · base layers as they are · model layers
//	└── Nydus manifest            config · framework blobs · the same model layers · bootstrap layer
//	    artifactType …nydus…          image/image.boot, image/<blob>.blob.meta, image/<blob>.chunks
//
// All functions are pure: the same arguments give the same bytes. There is no clock in an image; what must have a time says
// 1970-01-01.
package image

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"sort"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip" // not the toolchain's: its output may change from one Go to the next
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Media types and annotations by which nydus-snapshotter knows the Nydus variant.
const (
	ArtifactTypeNydus = "application/vnd.nydus.image.manifest.v1+json"
	MediaTypeBlob     = "application/vnd.oci.image.layer.nydus.blob.v1"
	MediaTypeConfig   = "application/vnd.nydus.image.config.v1+json"
	BootstrapName     = "image/image.boot"

	AnnotationBlob      = "containerd.io/snapshot/nydus-blob"
	AnnotationBootstrap = "containerd.io/snapshot/nydus-bootstrap"
	AnnotationFSVersion = "containerd.io/snapshot/nydus-fs-version"
)

// Layer is a layer of a manifest with its DiffID.
type Layer struct {
	ocispec.Descriptor
	DiffID digest.Digest
}

// BlobLayer returns the layer of a Nydus manifest for a data blob. By convention its DiffID is the blob's digest.
func BlobLayer(blob digest.Digest, size int64) Layer {
	return Layer{DiffID: blob, Descriptor: ocispec.Descriptor{
		MediaType: MediaTypeBlob, Digest: blob, Size: size, Annotations: map[string]string{AnnotationBlob: "true"},
	}}
}

// BootstrapLayer returns the last layer of a Nydus manifest.
func BootstrapLayer(blob, diffID digest.Digest, size int64) Layer {
	return Layer{DiffID: diffID, Descriptor: ocispec.Descriptor{
		MediaType: ocispec.MediaTypeImageLayerGzip, Digest: blob, Size: size,
		Annotations: map[string]string{AnnotationBootstrap: "true", AnnotationFSVersion: "6"},
	}}
}

// Settings are what a conversion changes in the base image's configuration.
type Settings struct {
	Entrypoint []string          // nil keeps the base's; otherwise the base's Cmd is dropped too
	Cmd        []string          // nil keeps the base's
	Env        []string          // NAME=VALUE, added to the base's or replacing them
	User       string            // empty keeps the base's
	Labels     map[string]string // added to the base's or replacing them
	History    []string          // one line for each new layer: what made it
}

// Config returns the configuration of the image: the base's with other layers. Fields this package does not know are kept.
func Config(base []byte, s Settings, diffIDs []digest.Digest) ([]byte, error) {
	fields := map[string]json.RawMessage{}
	if err := json.Unmarshal(base, &fields); err != nil {
		return nil, fmt.Errorf("configuration of the base image: %w", err)
	}
	epoch := time.Unix(0, 0).UTC()
	var history []ocispec.History
	if raw, ok := fields["history"]; ok {
		if err := json.Unmarshal(raw, &history); err != nil {
			return nil, fmt.Errorf("history of the base image: %w", err)
		}
	}
	for _, line := range s.History {
		history = append(history, ocispec.History{Created: &epoch, CreatedBy: line})
	}
	run, err := runConfig(fields["config"], s)
	if err != nil {
		return nil, fmt.Errorf("configuration of the base image: %w", err)
	}
	for key, value := range map[string]any{
		"created": epoch, "history": history, "config": run,
		"rootfs": ocispec.RootFS{Type: "layers", DiffIDs: diffIDs},
	} {
		if fields[key], err = json.Marshal(value); err != nil {
			return nil, err
		}
	}
	return json.Marshal(fields)
}

// runConfig applies the settings to the part of the configuration that says how a container is run.
func runConfig(base json.RawMessage, s Settings) (map[string]json.RawMessage, error) {
	run := map[string]json.RawMessage{}
	if len(base) > 0 && string(base) != "null" {
		if err := json.Unmarshal(base, &run); err != nil {
			return nil, err
		}
	}
	set := func(key string, value []string) error {
		raw, err := json.Marshal(value)
		run[key] = raw
		return err
	}
	if s.Entrypoint != nil {
		delete(run, "Cmd")
		if err := set("Entrypoint", s.Entrypoint); err != nil {
			return nil, err
		}
	}
	if s.Cmd != nil {
		if err := set("Cmd", s.Cmd); err != nil {
			return nil, err
		}
	}
	if err := s.applyUser(run); err != nil {
		return nil, err
	}
	if len(s.Env) == 0 {
		return run, nil
	}
	var env []string
	if raw, ok := run["Env"]; ok {
		if err := json.Unmarshal(raw, &env); err != nil {
			return nil, err
		}
	}
	return run, set("Env", mergeEnv(env, s.Env))
}

// applyUser sets user and labels.
func (s *Settings) applyUser(run map[string]json.RawMessage) (err error) {
	if s.User != "" {
		if run["User"], err = json.Marshal(s.User); err != nil {
			return err
		}
	}
	if len(s.Labels) == 0 {
		return nil
	}
	labels := map[string]string{}
	if raw, ok := run["Labels"]; ok {
		if err := json.Unmarshal(raw, &labels); err != nil {
			return err
		}
	}
	if labels == nil { // the base said null
		labels = map[string]string{}
	}
	maps.Copy(labels, s.Labels)
	run["Labels"], err = json.Marshal(labels)
	return err
}

func mergeEnv(base, add []string) []string {
	out := append([]string(nil), base...)
	for _, kv := range add {
		name, _, _ := strings.Cut(kv, "=")
		replaced := false
		for i := range out {
			if strings.HasPrefix(out[i], name+"=") {
				out[i], replaced = kv, true
			}
		}
		if !replaced {
			out = append(out, kv)
		}
	}
	return out
}

// Blob is a piece of JSON with the descriptor that names it.
type Blob struct {
	ocispec.Descriptor
	Bytes []byte
}

func newBlob(mediaType string, raw []byte) Blob {
	return Blob{Bytes: raw, Descriptor: ocispec.Descriptor{
		MediaType: mediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw)),
	}}
}

// Variant is one of the manifests with its configuration.
type Variant struct{ Manifest, Config Blob }

// Plain returns the variant for every client.
func Plain(base []byte, s Settings, layers []Layer, annotations map[string]string) (Variant, error) {
	return variant(base, s, layers, ocispec.Manifest{
		Config: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig}, Annotations: annotations,
	})
}

// Nydus returns the variant for nydus-snapshotter; the bootstrap layer is the last of layers. The configuration has a media
// type no other client knows, so that none takes this manifest for an image to unpack.
func Nydus(base []byte, s Settings, layers []Layer, annotations map[string]string) (Variant, error) {
	return variant(base, s, layers, ocispec.Manifest{
		Config: ocispec.Descriptor{MediaType: MediaTypeConfig}, ArtifactType: ArtifactTypeNydus, Annotations: annotations,
	})
}

func variant(base []byte, s Settings, layers []Layer, m ocispec.Manifest) (Variant, error) {
	var diffIDs []digest.Digest
	for _, l := range layers {
		diffIDs = append(diffIDs, l.DiffID)
	}
	raw, err := Config(base, s, diffIDs)
	if err != nil {
		return Variant{}, err
	}
	return manifest(m, newBlob(m.Config.MediaType, raw), layers)
}

// manifest completes m by its configuration and layers.
func manifest(m ocispec.Manifest, config Blob, layers []Layer) (Variant, error) {
	m.Versioned = specs.Versioned{SchemaVersion: 2}
	m.MediaType = ocispec.MediaTypeImageManifest
	m.Config = config.Descriptor
	m.Layers = []ocispec.Descriptor{}
	for _, l := range layers {
		m.Layers = append(m.Layers, l.Descriptor)
	}
	raw, err := json.Marshal(m)
	if err != nil {
		return Variant{}, err
	}
	return Variant{Manifest: newBlob(ocispec.MediaTypeImageManifest, raw), Config: config}, nil
}

// Index returns the index with the given manifests in their order. Clients take the first that has their platform, so the plain ones
// come first.
func Index(manifests []ocispec.Descriptor, annotations map[string]string) (Blob, error) {
	raw, err := json.Marshal(ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex,
		Manifests: manifests, Annotations: annotations,
	})
	if err != nil {
		return Blob{}, err
	}
	return newBlob(ocispec.MediaTypeImageIndex, raw), nil
}

// File is what a file of a layer has in it: Size bytes, which WriteTo writes. A bytes.Reader that nothing was read from is one.
type File interface {
	io.WriterTo
	Size() int64
}

// Files returns files that are in memory as WriteBootstrapLayer takes them.
func Files(raw map[string][]byte) map[string]File {
	out := make(map[string]File, len(raw))
	for name, data := range raw {
		out[name] = bytes.NewReader(data)
	}
	return out
}

// WriteBootstrapLayer writes the bootstrap layer, a gzip-compressed tar with the given files in the order of their names but
// the bootstrap first, and returns its DiffID. Files are written one after the other.
func WriteBootstrapLayer(w io.Writer, files map[string]File) (diffID digest.Digest, err error) {
	zw := gzip.NewWriter(w)
	sum := sha256.New()
	tw := tar.NewWriter(io.MultiWriter(zw, sum))
	names := make([]string, 0, len(files))
	for name := range files {
		names = append(names, name)
	}
	sort.Slice(names, func(i, j int) bool {
		if first := names[i] == BootstrapName; first != (names[j] == BootstrapName) {
			return first
		}
		return names[i] < names[j]
	})
	epoch := time.Unix(0, 0)
	err = tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: "image/", Mode: 0o755, ModTime: epoch})
	for _, name := range names {
		if err == nil {
			err = tw.WriteHeader(&tar.Header{
				Typeflag: tar.TypeReg, Name: name, Mode: 0o444, Size: files[name].Size(), ModTime: epoch,
			})
		}
		if err == nil {
			_, err = files[name].WriteTo(tw)
		}
	}
	for _, end := range []func() error{tw.Close, zw.Close} {
		if err == nil {
			err = end()
		}
	}
	if err != nil {
		return "", fmt.Errorf("bootstrap layer: %w", err)
	}
	return digest.NewDigest(digest.SHA256, sum), nil
}

// IsMetadata reports whether a file of a bootstrap layer is the bootstrap or the chunk table of a blob.
func IsMetadata(name string) bool {
	return name == BootstrapName || strings.HasPrefix(name, "image/") && strings.HasSuffix(name, ".blob.meta")
}

// FilesOfLayer returns the files of a gzip-compressed tar that are wanted. It need not be trusted; limit bounds what the files may have
// in all, in bytes.
func FilesOfLayer(r io.Reader, wanted func(name string) bool, limit int64) (map[string][]byte, error) {
	zr, err := gzip.NewReader(r)
	if err != nil {
		return nil, err
	}
	files := map[string][]byte{}
	tr := tar.NewReader(io.LimitReader(zr, 4*limit))
	for {
		hdr, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return files, nil
		}
		if err != nil {
			return nil, err
		}
		name := strings.TrimPrefix(hdr.Name, "./")
		if hdr.Typeflag != tar.TypeReg || !wanted(name) {
			continue
		}
		if limit -= hdr.Size; limit < 0 {
			return nil, fmt.Errorf("%s: %d bytes are too many", name, hdr.Size)
		}
		if files[name], err = io.ReadAll(tr); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
}
