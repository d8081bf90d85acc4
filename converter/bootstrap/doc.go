// Package bootstrap reads and writes the metadata of Nydus images: the RAFS v6 bootstrap, which is at the same time an
// EROFS image the kernel mounts with the data blobs as devices, and the chunk table that ends every data blob.
//
//	Tree     merges the layers of an image: whiteouts, opaque directories, hard links
//	Packer   cuts the regular files of one framework layer into the chunks of one data blob
//	Dict     the chunks of earlier images, to which a Packer refers in place of storing them again
//	Builder  lists blobs and chunks in an image, each once
//	Image    what a bootstrap says: blobs, their RAFS chunks, the tree of inodes
//	Encode   Image → bootstrap, deterministic
//	Decode   bootstrap → Image, for untrusted bytes
//	Expander reads single chunks: expanded and verified
//	Table    the chunk table and header behind a blob's data, alone also known as blob.meta
//
// A RAFS chunk is a cut of one file at multiples of the image's chunk size and the unit by which the file system reads;
// it is not a chunk of the chunk map. Each lies at two offsets: in the blob as it is stored, perhaps compressed, and on
// the device, which is the blob as the kernel wants it: uncompressed, every file at a multiple of 4 KiB. For an aligned
// layer tar both are the same. A blob with compressed chunks becomes a device by Expand.
//
// The package does no I/O but through the readers and writers it is given and imports nothing else of the project.
package bootstrap

import "errors"

var (
	// ErrInvalid is the class of bootstraps and chunk tables that contradict themselves or their length.
	ErrInvalid = errors.New("invalid RAFS metadata")
	// ErrUnsupported is the class of those that need a feature this package does not have, and of trees RAFS v6 cannot
	// express.
	ErrUnsupported = errors.New("unsupported RAFS metadata")
	// ErrTooLarge is the class of those that would take more memory than they may.
	ErrTooLarge = errors.New("too large to be decoded here")
)
