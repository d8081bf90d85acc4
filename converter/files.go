package converter

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"path"
	"sort"
	"strings"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/shoal-project/shoal/converter/bootstrap"
)

// namedInode is a file with one of its names.
type namedInode struct {
	name  string // without a slash before it
	inode *bootstrap.Inode
}

// below returns what is at and below a path, parents first, in the order of the names. The path is not followed through
// symbolic links.
func below(root *bootstrap.Inode, at string) []namedInode {
	n := root
	for part := range strings.SplitSeq(at, "/") {
		if part == "" || part == "." {
			continue
		}
		if n = n.Children[part]; n == nil {
			return nil
		}
	}
	var out []namedInode
	_ = (&bootstrap.Image{Root: n}).Walk(func(name string, n *bootstrap.Inode) error { // visit never fails
		out = append(out, namedInode{strings.TrimPrefix(path.Join(at, name), "/"), n})
		return nil
	})
	return out
}

// listFiles lists the files that are wanted.
func (i *Inspection) listFiles(ctx context.Context, cfg *InspectConfig, opened []*openedVariant) error {
	var v *openedVariant
	var have []string
	for _, o := range opened {
		have = append(have, o.platform)
		if v == nil && (cfg.Platform == "" || o.platform == cfg.Platform) {
			v = o
		}
	}
	if v == nil {
		return classify(ErrSource, "%s has no image for %q; there are %s", cfg.Image, cfg.Platform, strings.Join(have, ", "))
	}
	at := cfg.Path
	if at == "" {
		at = "/" + v.root
	}
	at = strings.Trim(path.Clean("/"+at), "/")
	root, layerOf, err := v.files(ctx, cfg.Progress)
	if err != nil {
		return err
	}
	list := below(root, at)
	if list == nil {
		return classify(ErrSource, "%s has nothing at /%s", cfg.Image, at)
	}
	i.Files = []InspectedFile{}
	for _, f := range list {
		n := f.inode
		i.Files = append(i.Files, InspectedFile{
			Path: "/" + f.name, Mode: modeText(n.Mode), UID: n.UID, GID: n.GID, Size: n.Size,
			Mtime: time.Unix(n.Mtime, int64(n.MtimeNsec)).UTC(), Link: n.Link, Layer: layerOf(n),
		})
	}
	return nil
}

// files returns the tree of an image and where its files' content is. Without a bootstrap the plain layers are read.
func (v *openedVariant) files(ctx context.Context, progress Progress) (*bootstrap.Inode, func(*bootstrap.Inode) digest.Digest, error) {
	if v.content != nil {
		return v.content.image.Root, func(n *bootstrap.Inode) digest.Digest {
			if blobs := v.blobsOf(n); len(blobs) > 0 {
				return blobs[0]
			}
			return ""
		}, nil
	}
	if v.config == nil || len(v.config.RootFS.DiffIDs) == 0 {
		return nil, nil, classify(ErrSource, "%s is an artifact that has no tree of files", v.img.name)
	}
	layers := v.plain.manifest.Layers
	for _, d := range layers {
		progress.Plan(Read, d.Size)
	}
	var total atomic.Int64
	var entries [][]layerEntry
	for i, d := range layers {
		progress.Step(Read, fmt.Sprintf("read layer %d of %d", i+1, len(layers)))
		list, err := v.img.listLayer(ctx, d, &total, progress)
		if err != nil {
			return nil, nil, err
		}
		entries = append(entries, list)
	}
	t, err := merge(entries)
	if err != nil {
		return nil, nil, classify(ErrSource, "%s: %w", v.img.name, err)
	}
	return t.tree.Root, func(n *bootstrap.Inode) digest.Digest {
		if i, ok := t.layer[n]; ok && n.Size > 0 {
			return layers[i].Digest
		}
		return ""
	}, nil
}

// listLayer reads the names of a plain layer, and the whole of it, since it is verified at its end.
func (c *converted) listLayer(ctx context.Context, d ocispec.Descriptor, total *atomic.Int64, progress Progress) ([]layerEntry, error) {
	if err := checkDescriptor(c.name, d); err != nil {
		return nil, err
	}
	r, err := c.place.Blob(ctx, d, 0)
	if err != nil {
		return nil, c.blobError(d, err)
	}
	defer r.Close()
	counted := &readCounter{ctx: ctx, r: r, progress: progress}
	l := &baseLayer{compressed: bufio.NewReaderSize(counted, readBuffer)}
	plain, err := l.decompress()
	var out []layerEntry
	if err == nil {
		out, err = readEntries(plain, 0, total)
	}
	for _, done := range l.done { // what expands it may read ahead
		done()
	}
	if _, rerr := io.Copy(io.Discard, counted); rerr != nil { // wrong bytes are told before what follows from them
		return nil, c.blobError(d, rerr)
	}
	if err != nil {
		return nil, classify(ErrSource, "%s: layer %s: %w", c.name, d.Digest, err)
	}
	return out, nil
}

// modeText is a mode as ls shows it.
func modeText(mode uint32) string {
	kinds := map[uint32]byte{
		bootstrap.TypeDir: 'd', bootstrap.TypeSymlink: 'l', bootstrap.TypeChar: 'c', bootstrap.TypeBlock: 'b',
		bootstrap.TypeFIFO: 'p', bootstrap.TypeSocket: 's', bootstrap.TypeRegular: '-',
	}
	out := []byte("?rwxrwxrwx")
	if kind, ok := kinds[mode&bootstrap.TypeMask]; ok {
		out[0] = kind
	}
	for i := range 9 {
		if mode&(1<<(8-i)) == 0 {
			out[i+1] = '-'
		}
	}
	for _, special := range []struct {
		bit   uint32
		at    int
		exec  byte
		plain byte
	}{{0o4000, 3, 's', 'S'}, {0o2000, 6, 's', 'S'}, {0o1000, 9, 't', 'T'}} {
		if mode&special.bit == 0 {
			continue
		}
		if out[special.at] == 'x' {
			out[special.at] = special.exec
		} else {
			out[special.at] = special.plain
		}
	}
	return string(out)
}

// FileChange is a file of the model that is not the same in both images.
type FileChange struct {
	Path   string `json:"path"` // relative to the model's folder
	Change string `json:"change"`
	Before int64  `json:"before"` // sizes in bytes
	After  int64  `json:"after"`
}

// changedFiles compares two trees by the digests of their RAFS chunks.
func changedFiles(a, b *openedVariant) []FileChange {
	before, after := modelFiles(a), modelFiles(b)
	out := []FileChange{}
	for name, old := range before {
		next, ok := after[name]
		switch {
		case !ok:
			out = append(out, FileChange{name, "removed", old.Size, 0})
		case !sameFile(a.content.image, old, b.content.image, next):
			out = append(out, FileChange{name, "changed", old.Size, next.Size})
		}
	}
	for name, next := range after {
		if _, ok := before[name]; !ok {
			out = append(out, FileChange{name, "added", 0, next.Size})
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Path < out[j].Path })
	return out
}

// modelFiles returns the model's files and links by their name within its folder.
func modelFiles(v *openedVariant) map[string]*bootstrap.Inode {
	out := map[string]*bootstrap.Inode{}
	for _, f := range below(v.content.image.Root, v.root) {
		if !f.inode.IsDir() {
			out[strings.TrimPrefix(f.name, v.root+"/")] = f.inode
		}
	}
	return out
}

func sameFile(a *bootstrap.Image, x *bootstrap.Inode, b *bootstrap.Image, y *bootstrap.Inode) bool {
	if x.Mode != y.Mode || x.Size != y.Size || x.Link != y.Link || len(x.Chunks) != len(y.Chunks) {
		return false
	}
	for i := range x.Chunks {
		if a.Chunks[x.Chunks[i]].Digest != b.Chunks[y.Chunks[i]].Digest {
			return false
		}
	}
	return true
}
