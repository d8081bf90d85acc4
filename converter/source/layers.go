package source

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"path"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	opaqueMark  = whiteoutPrefix + whiteoutPrefix + ".opq"
	modelsAbove = "models" // where images have their models
	maxLayers   = 1000

	// rootAnnotation of an artifact names the folder that the files of its archives are in; see package image.
	rootAnnotation = "io.shoal.model.root"
)

// eachLayer reads a model's artifact in which some layers are archives. An archive has the files' whole names, below root if there is one.
func (r *repository) eachLayer(ctx context.Context, layers []modelLayer, root string, visit Visit) error {
	c := r.s.collector(r.shown)
	for i := range layers {
		l := &layers[i]
		if !l.tar {
			if !c.wants(l.name) {
				continue
			}
			f := r.layerFile(l)
			if err := c.add(&f); err != nil {
				return err
			}
			if err := visitFile(ctx, &f, visit); err != nil {
				return err
			}
			continue
		}
		err := r.readLayer(ctx, l.Descriptor, func(h *tar.Header, content io.Reader) error {
			if !belowRoot(h, root) {
				return nil
			}
			return c.tarEntry(h, content, visit)
		})
		if err != nil {
			return err
		}
	}
	return c.visitEmpty(visit)
}

// belowRoot takes the root off an entry's name. Of the folders down to the root nothing is left.
func belowRoot(h *tar.Header, root string) bool {
	rest, below := strings.CutPrefix(h.Name, root+"/")
	switch {
	case root == "":
		return true
	case below:
		h.Name = rest
		return true
	}
	return h.Typeflag != tar.TypeDir // it is not where the artifact says, and keeps its name
}

func (r *repository) readLayer(ctx context.Context, d ocispec.Descriptor, entry func(h *tar.Header, content io.Reader) error) error {
	what := fmt.Sprintf("%s: layer %s", r.shown, d.Digest)
	in, err := r.s.openRemote(ctx, r.blob(d, what), span{})
	if err != nil {
		return err
	}
	defer in.Close()
	return r.s.readTar(ctx, in, what, entry)
}

// image makes a stream of the files below a folder of an image.
func (r *repository) image(model *Model, m *ocispec.Manifest, root string) error {
	if len(m.Layers) > maxLayers {
		return fmt.Errorf("%w %s: the image has %d layers", ErrModel, r.shown, len(m.Layers))
	}
	for i, l := range m.Layers {
		if err := l.Digest.Validate(); err != nil || l.Size < 0 || l.Digest.Algorithm() != "sha256" {
			return fmt.Errorf("%w %s: its layer %d has the digest %q and %d bytes, which cannot be", ErrModel, r.shown, i+1, l.Digest, l.Size)
		}
	}
	root = strings.TrimPrefix(path.Clean("/"+root), "/")
	model.each = func(ctx context.Context, visit Visit) error {
		v := &imageReader{c: r.s.collector(r.shown), visit: visit, root: root, above: map[string]mark{}}
		for i := len(m.Layers) - 1; i >= 0 && !v.covered(); i-- {
			v.marks = map[string]mark{}
			if err := r.readLayer(ctx, m.Layers[i], v.entry); err != nil {
				return err
			}
			v.endLayer()
		}
		if v.root == "" {
			return fmt.Errorf("%w %s: the image has no files below /%s; name the folder with ?path=", ErrModel, r.shown, modelsAbove)
		}
		return v.c.visitEmpty(visit)
	}
	return nil
}

// mark is what a layer says about a name to those below it.
type mark byte

const (
	isDir  mark = 1 << iota // it is a folder here: one below is the same folder
	isFile                  // it is something else here: what is below it is hidden
	gone                    // it is removed
	opaque                  // it is a folder, but what layers below have in it is removed
)

// imageReader reads an image from the uppermost layer down, so that what is replaced or removed is never passed on. Without a
// root it takes the folder below /models where the first file is, if it is the only one there.
type imageReader struct {
	c     *collector
	visit Visit
	root  string
	auto  bool            // the root was found, not given
	dirs  []*tar.Header   // met before the root was found
	above map[string]mark // of the layers above
	marks map[string]mark // of this layer
}

// covered reports whether no layer below can hold anything of the model.
func (v *imageReader) covered() bool {
	root := v.root
	if root == "" {
		root = modelsAbove
	}
	return v.above[root]&(gone|isFile|opaque) != 0 || v.buried(root)
}

// buried reports whether a layer above replaced, removed or emptied a folder that a name is in.
func (v *imageReader) buried(name string) bool {
	for at := path.Dir(name); ; at = path.Dir(at) {
		if v.above[at]&(gone|isFile|opaque) != 0 {
			return true
		}
		if at == "." {
			return false
		}
	}
}

// endLayer lets what the layer says count for those below.
func (v *imageReader) endLayer() {
	for name, m := range v.marks {
		v.above[name] |= m
		for dir := path.Dir(name); m&(isDir|isFile|opaque) != 0 && dir != "." && v.above[dir]&isDir == 0; dir = path.Dir(dir) {
			v.above[dir] |= isDir
		}
	}
}

// hidden reports whether a layer above replaced or removed a name.
func (v *imageReader) hidden(name string, dir bool) bool {
	m := v.above[name]
	return m&(gone|isFile) != 0 || m&isDir != 0 && !dir || v.buried(name)
}

func (v *imageReader) entry(h *tar.Header, content io.Reader) error {
	name := strings.TrimPrefix(path.Clean("/"+h.Name), "/")
	if name == "" || h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	dir, base := path.Split(name)
	dir = path.Clean(dir)
	switch {
	case base == opaqueMark:
		v.mark(dir, opaque)
		return nil
	case strings.HasPrefix(base, whiteoutPrefix+whiteoutPrefix):
		return nil // notes of old storage drivers
	case strings.HasPrefix(base, whiteoutPrefix):
		v.mark(path.Join(dir, strings.TrimPrefix(base, whiteoutPrefix)), gone)
		return nil
	}
	isFolder := h.Typeflag == tar.TypeDir
	if v.hidden(name, isFolder) || !v.concerns(name) {
		return nil
	}
	if isFolder {
		v.mark(name, isDir)
	} else {
		v.mark(name, isFile)
	}
	return v.pass(h, name, content)
}

func (v *imageReader) mark(name string, m mark) {
	if v.concerns(name) {
		v.marks[name] |= m
	}
}

// concerns reports whether a name is the root, in it, or a folder it is in.
func (v *imageReader) concerns(name string) bool {
	root := v.root
	if root == "" || v.auto {
		root = modelsAbove
	}
	return name == root || name == "." || strings.HasPrefix(name, root+"/") || strings.HasPrefix(root, name+"/")
}

// pass gives what is below the root to the visitor, named from there.
func (v *imageReader) pass(h *tar.Header, name string, content io.Reader) error {
	isFolder := h.Typeflag == tar.TypeDir
	rest, below := strings.CutPrefix(name, modelsAbove+"/")
	if v.root == "" && below && !isFolder {
		if err := v.find(rest); err != nil {
			return err
		}
	}
	switch {
	case v.root == "" && below:
		v.dirs = append(v.dirs, h)
		if len(v.dirs) > v.c.max {
			return tooMany(v.c.ref, v.c.max)
		}
		return nil
	case !isFolder && (name == v.root || name == modelsAbove && v.root == "" || strings.HasPrefix(v.root, name+"/")):
		return v.c.fault(fmt.Errorf("/%s is no folder in the image; name the folder with ?path=", name))
	}
	rel, inside := strings.CutPrefix(name, v.root+"/")
	if v.root == "" || !inside {
		if v.auto && below && !isFolder {
			return v.c.fault(fmt.Errorf("the image has /%s besides the folder /%s; choose with ?path=/%s or ?path=/%s",
				name, v.root, v.root, modelsAbove))
		}
		return nil
	}
	entry := *h
	entry.Name = rel
	return v.c.tarEntry(&entry, content, v.visit)
}

// find takes the folder of the first file for the model, or /models itself if the file is right there.
func (v *imageReader) find(rest string) error {
	v.auto, v.root = true, modelsAbove
	if folder, _, ok := strings.Cut(rest, "/"); ok {
		v.root = path.Join(modelsAbove, folder)
	}
	dirs := v.dirs
	v.dirs = nil
	for _, h := range dirs {
		name := strings.TrimPrefix(path.Clean("/"+h.Name), "/")
		if err := v.pass(h, name, nil); err != nil {
			return err
		}
	}
	return nil
}
