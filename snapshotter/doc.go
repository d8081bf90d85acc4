// Package snapshotter gives containerd the file systems of images. It is a snapshotter that containerd reaches over a socket (a proxy
// plugin): what an ordinary layer holds is unpacked below an overlay, as containerd's own snapshotter does it, and an image with a Nydus
// variant is not unpacked at all but mounted.
//
//	containerd                     Snapshotter                                        Mounter
//	Prepare(layer of an image) ─▶  is the image known to have a Nydus variant?
//	◀─ already there ───────────   yes: an empty placeholder with a note (note.go);
//	                               the last layer's has the bootstrap and is mounted ─▶ Mount
//	◀─ mounts to unpack into ───   no: an overlay
//	Prepare(container) ─────────▶  the parents from above, down to the first mounted image: the lower folders of an overlay
//	Remove, Cleanup ────────────▶  unmounted, unpinned, removed                       ─▶ Unmount
//
// On disk, below the root: metadata.db (containerd's format), and a folder for each snapshot, snapshots/ID, with fs, where the layer's
// files are or the image is mounted; work, of a container; note.json and image.boot, of a layer that was not unpacked. What stands in a
// folder decides after a restart; a folder the metadata does not know is removed.
//
// Of an image that is mounted, the layers below its last one have no files. When something needs them all the same, because another
// image ends there or builds on them, they are fetched and unpacked then (unpack.go).
package snapshotter
