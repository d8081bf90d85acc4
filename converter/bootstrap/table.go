package bootstrap

import (
	"encoding/binary"
	"fmt"
	"iter"
	"slices"
)

// Table returns the chunk table of a blob and its header, which are appended to the blob's data at offset, where the data
// ends. It is version 1 of the format: 16 bytes a chunk. The chunks are all those of the blob in the order of their index.
func Table(offset int64, chunks iter.Seq[Chunk]) []byte {
	out := appendEntries(nil, chunks)
	return append(out, tableHeader(offset, len(out)/tableEntrySize)...)
}

// Meta returns the same as a file of its own, as the bootstrap layer carries it under the name image/<blob>.blob.meta: the
// table padded to 4 KiB, then the header.
func Meta(offset int64, chunks []Chunk) []byte {
	size := roundUp(int64(tableEntrySize*len(chunks)), blockSize)
	out := appendEntries(make([]byte, 0, size+tableHeaderSize), slices.Values(chunks))
	return append(out[:size:size+tableHeaderSize], tableHeader(offset, len(chunks))...)
}

// MetaName returns the name of a blob's table in the tar of the bootstrap layer.
func MetaName(b *Blob) string { return "image/" + b.Digest.Encoded() + ".blob.meta" }

func appendEntries(out []byte, chunks iter.Seq[Chunk]) []byte {
	le := binary.LittleEndian
	for c := range chunks {
		size, length := uint64(c.Size)-1, uint64(c.Length)-1
		out = le.AppendUint64(out, (size&sizeLowMask)<<sizeLowShift|(size&sizeHighMask)>>sizeHighDevice|uint64(c.DeviceOffset))
		out = le.AppendUint64(out, (length&sizeLowMask)<<sizeLowShift|(length&sizeHighMask)<<sizeHighCompressed|uint64(c.Offset))
	}
	return out
}

func tableHeader(offset int64, count int) []byte {
	le := binary.LittleEndian
	h := make([]byte, tableHeaderSize)
	le.PutUint32(h, tableMagic)
	le.PutUint32(h[tableFeatures:], featuresOurs)
	le.PutUint32(h[tableEntries:], uint32(count))
	le.PutUint64(h[tableOffset:], uint64(offset))
	le.PutUint64(h[tableCompressedLen:], uint64(tableEntrySize*count))
	le.PutUint64(h[tableLen:], uint64(tableEntrySize*count))
	le.PutUint32(h[tableMagic2:], tableMagic)
	return h
}

// DecodeMeta is the inverse of Meta for untrusted bytes. It takes what nydusd keeps as a file, where the table is padded to
// 4 KiB, and the end of a blob of nydus-image, where it is not and may be compressed; entries of version 1 and 2. The chunks
// have no digests and no file offsets, which stand in the bootstrap only. It also returns the offset of the table in the blob.
func DecodeMeta(data []byte) (offset int64, chunks []Chunk, err error) {
	le := binary.LittleEndian
	if len(data) < tableHeaderSize {
		return 0, nil, fmt.Errorf("blob.meta of %d bytes: %w", len(data), ErrInvalid)
	}
	h, table := data[len(data)-tableHeaderSize:], data[:len(data)-tableHeaderSize]
	if le.Uint32(h) != tableMagic || le.Uint32(h[tableMagic2:]) != tableMagic {
		return 0, nil, fmt.Errorf("blob.meta without its magic: %w", ErrInvalid)
	}
	features := le.Uint32(h[tableFeatures:])
	if names := foreignFeatures(features); names != "" || features&featureAligned == 0 {
		return 0, nil, fmt.Errorf("blob.meta with features %#x (%s): %w", features, names, ErrUnsupported)
	}
	entry := uint64(tableEntrySize)
	if features&featureV2 != 0 {
		entry = tableEntrySizeV2
	}
	count, length, at := uint64(le.Uint32(h[tableEntries:])), le.Uint64(h[tableLen:]), le.Uint64(h[tableOffset:])
	if length != count*entry || at > MaxBlobSize || count > maxChunksPerBlob {
		return 0, nil, fmt.Errorf("blob.meta of %d chunks in %d bytes at %d: %w", count, length, at, ErrInvalid)
	}
	if table, err = plainTable(h, table, int64(length)); err != nil {
		return 0, nil, fmt.Errorf("blob.meta: %w", err)
	}
	chunks = make([]Chunk, count)
	for i := range chunks {
		c := &chunks[i]
		if entry == tableEntrySize {
			*c = entryV1(table[tableEntrySize*i:])
		} else if *c, err = entryV2(table[tableEntrySizeV2*i:]); err != nil {
			return 0, nil, fmt.Errorf("blob.meta: chunk %d: %w", i, err)
		}
		if c.Index = uint32(i); c.Offset+int64(c.Length) > int64(at) {
			return 0, nil, fmt.Errorf("blob.meta: chunk %d reaches behind the data: %w", i, ErrInvalid)
		}
	}
	return int64(at), chunks, nil
}

// plainTable returns the table of length bytes from what stands before the header h: padded, or as it is in the blob.
func plainTable(h, table []byte, length int64) ([]byte, error) {
	le := binary.LittleEndian
	kind, stored := Compressor(le.Uint32(h[tableCompressor:])), le.Uint64(h[tableCompressedLen:])
	switch {
	case int64(len(table)) == roundUp(length, blockSize), kind == None && int64(len(table)) == length:
		return table[:length], nil
	case kind > Zstd:
		return nil, fmt.Errorf("compressor %d: %w", kind, ErrUnsupported)
	case kind == None || uint64(len(table)) != stored:
		return nil, fmt.Errorf("%d bytes before the header: %w", len(table), ErrInvalid)
	}
	return expandAll(kind, table, length)
}

func entryV1(b []byte) Chunk {
	device, stored := binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:])
	return Chunk{
		DeviceOffset: int64(device & deviceOffsetMask),
		Size:         uint32(device>>sizeLowShift|device<<sizeHighDevice&sizeHighMask) + 1,
		Offset:       int64(stored & storedOffsetMask),
		Length:       uint32(stored>>sizeLowShift|stored>>sizeHighCompressed&sizeHighMask) + 1,
	}
}

func entryV2(b []byte) (Chunk, error) {
	device, stored := binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:])
	c := Chunk{
		DeviceOffset: int64(device&v2DeviceMask) * blockSize,
		Size:         uint32(device>>v2SizeShift&v2SizeMask) + 1,
		Offset:       int64(stored & storedOffsetMask),
		Length:       uint32(stored >> v2StoredShift),
	}
	flags := byte(device >> v2FlagsShift)
	if flags&v2ForeignFlags != 0 {
		return c, fmt.Errorf("flags %#x: %w", flags, ErrUnsupported)
	}
	if c.Length == 0 || c.Compressed() != (flags&v2IsCompressed != 0) {
		return c, fmt.Errorf("%d bytes, %d stored, flags %#x: %w", c.Size, c.Length, flags, ErrInvalid)
	}
	return c, nil
}
