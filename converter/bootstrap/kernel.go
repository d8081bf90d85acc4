package bootstrap

import (
	"encoding/binary"
	"fmt"
)

// What the kernel goes by and RAFS does not. An image of which the two say different things is refused, since its readers would see bytes
// that were not compared with anything.

// checkFormat checks the format of an inode, of which b is the first part. What is in no inode of RAFS the kernel may read in some way.
func checkFormat(b []byte, format uint16) error {
	le := binary.LittleEndian
	switch layout := format >> 1; {
	case layout != layoutPlain && layout != layoutInline && layout != layoutChunks:
		return fmt.Errorf("format %#x: %w", format, ErrUnsupported)
	case layout == layoutChunks && le.Uint16(b[inodeUnion:])&^(chunkFormatIndex|chunkFormatBits) != 0:
		return fmt.Errorf("chunk format %#x: %w", le.Uint16(b[inodeUnion:]), ErrUnsupported)
	case format&1 != 0 && le.Uint16(b[inodeBlockHigh:]) != 0:
		return fmt.Errorf("block numbers of 48 bits: %w", ErrUnsupported)
	}
	return nil
}

// checkSpan checks that the chunks of a file lie where the kernel looks for them, which maps a span of the file at once: its first bytes are those of
// chunk n, if it is span n, and the others follow on the device.
func (d *decoder) checkSpan(in *diskInode, n *Inode) error {
	size, span := int64(d.img.ChunkSize), int64(blockSize)<<(in.union&chunkFormatBits)
	if span < min(size, n.Size) {
		return fmt.Errorf("chunks of %d bytes, mapped by %d: %w", size, span, ErrInvalid)
	}
	for i := range n.Chunks {
		off := int64(i) * size
		c, first := &d.img.Chunks[n.Chunks[i]], &d.img.Chunks[n.Chunks[off/span]]
		if c.Blob != first.Blob || c.DeviceOffset != first.DeviceOffset+off%span {
			return fmt.Errorf("chunk %d of a file that is mapped by %d bytes lies apart: %w", i, span, ErrInvalid)
		}
	}
	return nil
}
