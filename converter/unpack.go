package converter

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"strings"
	"sync/atomic"

	"github.com/shoal-project/shoal/converter/bootstrap"
	"github.com/zeebo/blake3"
)

const (
	// maxEntries bounds how many entries all layers of an image have that are held in memory, and maxEntryBytes the bytes of
	// their names and attributes.
	maxEntries    = 4 << 20
	maxEntryBytes = 1 << 30
	// entryWeight is what an entry counts for besides its names.
	entryWeight = maxEntryBytes / maxEntries
)

// layerEntry is an entry of a layer's tar and, if it is a file with content, the digests of that, cut as RAFS chunks are.
type layerEntry struct {
	header *tar.Header
	chunks [][32]byte
}

// readEntries reads a layer's tar; content is not hashed if chunkSize is 0. total counts what is held of all layers.
func readEntries(r io.Reader, chunkSize uint32, total *atomic.Int64) ([]layerEntry, error) {
	var out []layerEntry
	var bytes int64
	tr := tar.NewReader(r)
	for {
		hdr, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, tarError("", err)
		}
		if bytes += hdr.Size; hdr.Size < 0 || bytes > maxBaseLayer || bytes < 0 {
			return nil, fmt.Errorf("%s: the layer unpacks to more than %d bytes: %w", hdr.Name, int64(maxBaseLayer), errTar)
		}
		if total.Add(weight(hdr)) > maxEntryBytes {
			return nil, fmt.Errorf("the image's layers have more than %d entries or too long names: %w", maxEntries, errTar)
		}
		e := layerEntry{header: hdr}
		if hdr.Typeflag == tar.TypeReg && chunkSize > 0 {
			if e.chunks, err = hashChunks(tr, hdr.Size, chunkSize); err != nil {
				return nil, tarError(hdr.Name, err)
			}
		}
		out = append(out, e)
	}
}

func weight(hdr *tar.Header) int64 {
	n := entryWeight + len(hdr.Name) + len(hdr.Linkname)
	for key, value := range hdr.PAXRecords {
		n += len(key) + len(value)
	}
	return int64(n)
}

// hashChunks returns the digests of a file's cuts.
func hashChunks(r io.Reader, size int64, chunkSize uint32) ([][32]byte, error) {
	var out [][32]byte
	h := blake3.New()
	for done := int64(0); done < size; {
		n := min(int64(chunkSize), size-done)
		h.Reset()
		if _, err := io.CopyN(h, r, n); err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
		var sum [32]byte
		h.Sum(sum[:0])
		out = append(out, sum)
		done += n
	}
	return out, nil
}

// unpackedTree is what layers unpack to, with the digests of the files' cuts.
type unpackedTree struct {
	tree   *bootstrap.Tree
	chunks map[*bootstrap.Inode][][32]byte
	layer  map[*bootstrap.Inode]int // that brought the inode
}

// merge applies layers, lowest first, as a runtime does.
func merge(layers [][]layerEntry) (*unpackedTree, error) {
	p := &platform{tree: bootstrap.NewTree()}
	out := &unpackedTree{tree: p.tree, chunks: map[*bootstrap.Inode][][32]byte{}, layer: map[*bootstrap.Inode]int{}}
	for i, entries := range layers {
		p.tree.NextLayer()
		for _, e := range entries {
			n, err := p.mergeEntry(e.header)
			if err != nil {
				return nil, fmt.Errorf("layer %d: %w", i+1, err)
			}
			if n != nil {
				out.chunks[n], out.layer[n] = e.chunks, i
			}
		}
	}
	return out, nil
}

// compareTrees compares what the plain layers unpack to with the bootstrap.
func (c *checker) compareTrees(ctx context.Context, v *checkedVariant) error {
	var layers [][]layerEntry
	for _, d := range v.convertedVariant.plain.manifest.Layers {
		layers = append(layers, c.blobs[d.Digest].entries)
	}
	unpacked, err := merge(layers)
	if err != nil {
		return classify(ErrVerify, "%s for %s: %w", c.cfg.Image, v.platform, err)
	}
	t := &treeComparison{
		ctx: ctx, unpacked: unpacked, image: v.content.image,
		fromPlain: map[*bootstrap.Inode]*bootstrap.Inode{}, fromNydus: map[*bootstrap.Inode]*bootstrap.Inode{},
	}
	if err := t.compare("", unpacked.tree.Root, v.content.image.Root); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return classify(ErrVerify, "%s for %s: %w", c.cfg.Image, v.platform, err)
	}
	return nil
}

// treeComparison compares two trees. It lives no longer than the call its context belongs to.
type treeComparison struct {
	ctx      context.Context
	unpacked *unpackedTree
	image    *bootstrap.Image
	// Which inode of one tree stands for which of the other: a file with several names is one file in both.
	fromPlain, fromNydus map[*bootstrap.Inode]*bootstrap.Inode
}

// compare descends as deep as trees may be, which both their makers bound.
func (t *treeComparison) compare(path string, plain, nydus *bootstrap.Inode) error {
	if err := t.ctx.Err(); err != nil {
		return err
	}
	if what, a, b := t.difference(plain, nydus); what != "" {
		return fmt.Errorf("/%s has %s %s in the plain variant and %s in the Nydus variant", path, what, a, b)
	}
	below := func(name string) string { return strings.TrimPrefix(path+"/"+name, "/") }
	for _, name := range plain.Names() {
		child := below(name)
		if nydus.Children[name] == nil {
			return fmt.Errorf("/%s is in the plain variant, not in the Nydus variant", child)
		}
		if err := t.compare(child, plain.Children[name], nydus.Children[name]); err != nil {
			return err
		}
	}
	for _, name := range nydus.Names() {
		if plain.Children[name] == nil {
			return fmt.Errorf("/%s is in the Nydus variant, not in the plain variant", below(name))
		}
	}
	return nil
}

// difference names the first thing in which two inodes differ; what is empty if there is none.
func (t *treeComparison) difference(p, n *bootstrap.Inode) (what, inPlain, inNydus string) {
	text := func(v any) string { return fmt.Sprintf("%v", v) }
	switch {
	case p.Mode != n.Mode:
		return "mode", fmt.Sprintf("%o", p.Mode), fmt.Sprintf("%o", n.Mode)
	case p.UID != n.UID || p.GID != n.GID:
		return "owner", fmt.Sprintf("%d:%d", p.UID, p.GID), fmt.Sprintf("%d:%d", n.UID, n.GID)
	case p.Mtime != n.Mtime || p.MtimeNsec != n.MtimeNsec:
		return "time", fmt.Sprintf("%d.%09d", p.Mtime, p.MtimeNsec), fmt.Sprintf("%d.%09d", n.Mtime, n.MtimeNsec)
	case p.Link != n.Link:
		return "target", fmt.Sprintf("%q", p.Link), fmt.Sprintf("%q", n.Link)
	case p.Size != n.Size:
		return "size", text(p.Size), text(n.Size)
	case p.Major != n.Major || p.Minor != n.Minor:
		return "device", fmt.Sprintf("%d:%d", p.Major, p.Minor), fmt.Sprintf("%d:%d", n.Major, n.Minor)
	case !maps.Equal(p.Xattrs, n.Xattrs):
		return "attributes", fmt.Sprintf("%q", p.Xattrs), fmt.Sprintf("%q", n.Xattrs)
	}
	if p.IsDir() {
		return "", "", ""
	}
	if other, ok := t.fromPlain[p]; ok && other != n || !ok && t.fromNydus[n] != nil {
		return "other names", "for the same file", "for another"
	}
	t.fromPlain[p], t.fromNydus[n] = n, p
	want := t.unpacked.chunks[p]
	if len(want) != len(n.Chunks) {
		return "content of", fmt.Sprintf("%d cuts", len(want)), fmt.Sprintf("%d RAFS chunks", len(n.Chunks))
	}
	for i, at := range n.Chunks {
		if t.image.Chunks[at].Digest != want[i] {
			return "content with", fmt.Sprintf("%x", want[i][:8]), fmt.Sprintf("%x from byte %d on", t.image.Chunks[at].Digest[:8], int64(i)*int64(t.image.ChunkSize))
		}
	}
	return "", "", ""
}
