package converter

import (
	"fmt"

	"github.com/shoal-project/shoal/converter/bootstrap"
	"github.com/shoal-project/shoal/converter/layer"
)

// fits refuses a model layer that would change what the base image has beside files of the same name: its folders are
// written with mode 0755 and owner root, whatever the base says, so that model layers do not depend on the base.
func (p *platform) fits(entries []*layer.Entry) error {
	for _, e := range entries {
		old := p.tree.Lookup(e.Name)
		if old == nil {
			continue
		}
		if fault := clash(e.Kind, old); fault != "" {
			return classify(ErrSource, "base image %s: /%s is %s; choose another --model-path", p.ref, e.Name, fault)
		}
	}
	return nil
}

// clash says what an entry of the given kind would destroy of the old one at its place.
func clash(kind layer.Kind, old *bootstrap.Inode) string {
	switch {
	case kind != layer.Dir && old.IsDir():
		return "a folder where the model has a file"
	case kind != layer.Dir:
		return ""
	case old.Type() == bootstrap.TypeSymlink:
		return "a symbolic link to " + old.Link + ", which the model's folder would replace"
	case !old.IsDir():
		return "a file where the model has a folder"
	case old.Mode&0o7777 != 0o755 || old.UID != 0 || old.GID != 0 || len(old.Xattrs) > 0:
		return fmt.Sprintf("a folder with mode %04o and owner %d:%d, which the model's would replace by 0755 and 0:0",
			old.Mode&0o7777, old.UID, old.GID)
	}
	return ""
}
