package bootstrap

import (
	"fmt"
	"sort"
	"strings"

	"github.com/opencontainers/go-digest"
)

// Compressor is how the chunks of a blob are compressed. The values are those of the format.
type Compressor uint32

// The compressors of the format. This package writes all but Gzip.
const (
	None Compressor = 0
	LZ4  Compressor = 1
	Gzip Compressor = 2
	Zstd Compressor = 3
)

// Digester is the algorithm of the digests of RAFS chunks. The values are those of the format.
type Digester uint32

// The digesters of the format. This package writes Blake3.
const (
	Blake3 Digester = 0
	SHA256 Digester = 1
)

// Image is the content of a bootstrap.
type Image struct {
	// ChunkSize is the length in bytes at which files are cut, a power of two from 4 KiB to 16 MiB.
	ChunkSize uint32
	Blobs     []Blob
	// Chunks are the RAFS chunks of all blobs; inodes refer to them by their place here.
	Chunks []Chunk
	Root   *Inode
	// Prefetch are the inodes that are wanted first, in that order; each stands in the tree, and here once. A directory
	// stands for all below it.
	Prefetch []*Inode
}

// Blob is a data blob of an image and, expanded, an EROFS device.
type Blob struct {
	Digest     digest.Digest // sha256 of the whole blob
	Size       int64         // of the whole blob in bytes
	Compressor Compressor
	Digester   Digester
	// TableOffset is where the chunk table begins, which is where the chunks have ended.
	TableOffset int64
	// ChunkCount is the number of chunks of the blob; the image may list fewer.
	ChunkCount uint32
	// DeviceSize is the length in bytes of the device, a multiple of 4 KiB.
	DeviceSize int64
	// Features are those of the format; zero stands for the ones this package writes.
	Features uint32
	// Foreign is what a bootstrap says of a blob that others wrote and this package does not use: how its table is compressed,
	// and the digests of parts behind it. It is kept for an image that is encoded again, and nil for a blob of this package.
	Foreign []byte
}

// Readable reports whether the chunks of the blob are what this package understands, and names the feature in the way.
func (b *Blob) Readable() error {
	if names := foreignFeatures(b.Features); names != "" {
		return fmt.Errorf("blob %s: %s: %w", b.Digest, names, ErrUnsupported)
	}
	return nil
}

// foreignFeatures names the features that are not understood, and is empty if all are.
func foreignFeatures(features uint32) string {
	var names []string
	for _, f := range [...]struct {
		bit  uint32
		name string
	}{
		{featureZRAN, "zran: chunks within the gzip stream of an OCI layer"}, {featureSeparate, "data and tables in separate blobs"},
		{featureTarfs, "tarfs: chunks within an OCI layer's tar"}, {featureBatch, "batch: several chunks compressed as one"},
		{featureEncrypted, "encrypted chunks"}, {featureExternal, "chunks outside of the registry"},
	} {
		if features&f.bit != 0 {
			names = append(names, f.name)
		}
	}
	return strings.Join(names, "; ")
}

// Chunk is a RAFS chunk: one cut of one file.
type Chunk struct {
	Blob         uint32   // place in Image.Blobs
	Index        uint32   // number of the chunk in the blob
	Digest       [32]byte // of the uncompressed bytes, by the blob's digester
	Length       uint32   // in the blob, in bytes; equal to Size if not compressed
	Size         uint32   // uncompressed, in bytes
	Offset       int64    // in the blob, in bytes
	DeviceOffset int64    // on the device, a multiple of 4 KiB
	FileOffset   int64    // in the first file that has it
}

// Compressed reports whether the chunk is stored compressed. The format tells it by the lengths.
func (c *Chunk) Compressed() bool { return c.Length != c.Size }

// File types in Inode.Mode, as in stat(2).
const (
	TypeMask    = 0o170000
	TypeFIFO    = 0o010000
	TypeChar    = 0o020000
	TypeDir     = 0o040000
	TypeBlock   = 0o060000
	TypeRegular = 0o100000
	TypeSymlink = 0o120000
	TypeSocket  = 0o140000
)

// Inode is a file of any type. A file with several names (hard links) is one Inode under several names.
type Inode struct {
	Mode      uint32 // type, permissions, setuid, setgid, sticky as in stat(2)
	UID, GID  uint32
	MtimeNsec uint32
	Mtime     int64 // seconds since 1970
	Size      int64 // of a regular file in bytes
	Major     uint32
	Minor     uint32
	Link      string            // target of a symbolic link
	Xattrs    map[string]string // by full name
	Chunks    []uint32          // of a regular file, places in Image.Chunks in order
	Children  map[string]*Inode // of a directory

	number uint32           // that an Encoder gave it
	layer  int32            // of the Tree that made it
	linked map[string]int32 // of a directory: the layers that gave names to inodes of earlier layers
}

// Type returns the file type of the mode.
func (n *Inode) Type() uint32 { return n.Mode & TypeMask }

// IsDir reports whether the inode is a directory.
func (n *Inode) IsDir() bool { return n.Type() == TypeDir }

// Names returns the names of the directory's children in byte order.
func (n *Inode) Names() []string {
	names := make([]string, 0, len(n.Children))
	for name := range n.Children {
		names = append(names, name)
	}
	sort.Strings(names)
	return names
}

// Walk calls visit for every name below root and root itself (as ""), parents first, in byte order. A file with several
// names is visited once under each. It ends with the first error.
func (img *Image) Walk(visit func(path string, n *Inode) error) error {
	return walk(img.Root, "", visit)
}

func walk(n *Inode, path string, visit func(string, *Inode) error) error {
	if err := visit(path, n); err != nil {
		return err
	}
	for _, name := range n.Names() {
		child := name
		if path != "" {
			child = path + "/" + name
		}
		if err := walk(n.Children[name], child, visit); err != nil {
			return err
		}
	}
	return nil
}

func roundUp(n, to int64) int64 { return (n + to - 1) / to * to }
