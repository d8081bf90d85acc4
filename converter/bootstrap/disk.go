package bootstrap

// The on-disk layout. All values are little-endian. Names follow EROFS (fs/erofs/erofs_fs.h) and, for what RAFS adds,
// Nydus (RafsV6SuperBlockExt, RafsV6Blob, RafsV5ChunkInfo, BlobCompressionContextHeader).
const (
	blockBits = 12
	blockSize = 1 << blockBits
	slotBits  = 5
	slotSize  = 1 << slotBits

	// Superblock, 128 bytes.
	superOffset       = 1024
	superSize         = 128
	superMagic        = 0xE0F5E1E2
	sbMagic           = superOffset + 0  // u32
	sbChecksum        = superOffset + 4  // u32, must be 0
	sbFeatureCompat   = superOffset + 8  // u32
	sbBlockBits       = superOffset + 12 // u8
	sbExtSlots        = superOffset + 13 // u8, must be 0
	sbRootNid         = superOffset + 14 // u16
	sbInos            = superOffset + 16 // u64
	sbBlocks          = superOffset + 36 // u32, of the bootstrap; 0 without devices
	sbMetaBlock       = superOffset + 40 // u32
	sbXattrBlock      = superOffset + 44 // u32, must be 0
	sbFeatureIncompat = superOffset + 80 // u32
	sbUnion           = superOffset + 84 // u16, must be 0
	sbDevices         = superOffset + 86 // u16
	sbDeviceSlot      = superOffset + 88 // u16, in units of deviceSlotSize
	sbDirBits         = superOffset + 90 // u8, must be 0
	sbPrefixes        = superOffset + 91 // u8, must be 0

	compatRAFS            = 0x40000000
	compatKnown           = compatRAFS | 0x3 // a checksum of the superblock; times that are those of modification. Others change what attributes there are
	incompatChunkedFile   = 0x4
	incompatDeviceTable   = 0x8
	incompatWanted        = incompatChunkedFile | incompatDeviceTable
	maxDevices            = 254
	deviceTableOffset     = extOffset + extSize
	deviceSlotSize        = 128
	deviceBlocks          = 64 // u32, after the tag: 64 hexadecimal digits of the blob's sha256
	deviceMapped          = 68 // u32
	deviceMappedAlignment = 128
	tagSize               = 64
	// ownTag stands for the digest of the blob in which the bootstrap lies.
	ownTag = "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"

	// Extended superblock, 256 bytes behind the superblock.
	extOffset         = superOffset + superSize
	extSize           = 256
	extFlags          = extOffset + 0  // u64
	extBlobTable      = extOffset + 8  // u64
	extBlobTableSize  = extOffset + 16 // u32
	extChunkSize      = extOffset + 20 // u32
	extChunkTable     = extOffset + 24 // u64
	extChunkTableSize = extOffset + 32 // u64
	extPrefetch       = extOffset + 40 // u64
	extPrefetchSize   = extOffset + 48 // u32
	prefetchEntrySize = 4              // u32, the nid of an inode

	flagCompressNone = 0x1
	flagCompressLZ4  = 0x2
	flagBlake3       = 0x4
	flagSHA256       = 0x8
	flagUIDGID       = 0x10
	flagXattr        = 0x20
	flagCompressGzip = 0x40
	flagCompressZstd = 0x80
	flagTarfs        = 0x200
	compressFlags    = flagCompressNone | flagCompressLZ4 | flagCompressGzip | flagCompressZstd

	// Blob table entry, 256 bytes; it begins with the blob's id as in a device slot.
	blobEntrySize          = 256
	blobIndex              = 64  // u32
	blobChunkSize          = 68  // u32
	blobChunkCount         = 72  // u32
	blobCompressor         = 76  // u32
	blobDigester           = 80  // u32
	blobFeatures           = 84  // u32
	blobSize               = 88  // u64, whole
	blobDeviceSize         = 96  // u64
	blobForeign            = 104 // from here on it is what Blob.Foreign keeps
	blobTableOffset        = 112 // u64
	blobTableCompressedLen = 120 // u64
	blobTableLen           = 128 // u64

	featureAligned   = 0x1
	featureInlinedFS = 0x2
	featureV2        = 0x4
	featureZRAN      = 0x8
	featureSeparate  = 0x10
	featureTarfs     = 0x40
	featureBatch     = 0x80
	featureEncrypted = 0x100
	featureExternal  = 0x800
	featureTarTOC    = 0x40000000
	featuresOurs     = featureAligned | featureTarTOC
	// featuresForeign change what a chunk means; blobs that have one are listed but not read by this package.
	featuresForeign = featureZRAN | featureSeparate | featureTarfs | featureBatch | featureEncrypted | featureExternal

	// Chunk table entry of the bootstrap, 80 bytes; it begins with the digest.
	chunkEntrySize    = 80
	chunkBlob         = 32 // u32
	chunkFlags        = 36 // u32
	chunkLength       = 40 // u32
	chunkSize         = 44 // u32
	chunkOffset       = 48 // u64
	chunkDeviceOffset = 56 // u64
	chunkFileOffset   = 64 // u64
	chunkIndex        = 72 // u32
	chunkIsCompressed = 0x1

	// Inode, extended: 64 bytes, compact: 32.
	inodeExtended    = 64
	inodeCompact     = 32
	inodeFormat      = 0  // u16: bit 0 extended, bits 1–3 data layout
	inodeXattrCount  = 2  // u16
	inodeMode        = 4  // u16
	compactNlink     = 6  // u16
	inodeBlockHigh   = 6  // u16 if extended, must be 0
	inodeSize        = 8  // u64, u32 if compact
	inodeUnion       = 16 // u32: first block, device number or chunk format
	inodeIno         = 20 // u32
	inodeUID         = 24 // u32, u16 if compact
	compactGID       = 26 // u16
	inodeGID         = 28 // u32
	inodeMtime       = 32 // u64
	inodeMtimeNsec   = 40 // u32
	inodeNlink       = 44 // u32
	layoutPlain      = 0
	layoutInline     = 2
	layoutChunks     = 4
	chunkFormatBits  = 0x1f
	chunkFormatIndex = 0x20
	chunkAddrSize    = 8

	// Directory entry, 12 bytes, then the names.
	direntSize    = 12
	direntNameOff = 8  // u16
	direntType    = 10 // u8
	maxName       = 255

	// Inline xattrs: a 12-byte header, then entries of 4 bytes, name, value, padded to 4.
	xattrHeaderSize = 12
	xattrEntrySize  = 4

	// Chunk table behind a blob's data, entries of 16 bytes (version 1) or 24 (version 2), then a header of 4096 bytes.
	tableEntrySize     = 16
	tableEntrySizeV2   = 24
	tableHeaderSize    = 4096
	tableMagic         = 0xB10BB10B
	tableFeatures      = 4  // u32
	tableCompressor    = 8  // u32
	tableEntries       = 12 // u32
	tableOffset        = 16 // u64
	tableCompressedLen = 24 // u64
	tableLen           = 32 // u64
	tableMagic2        = tableHeaderSize - 4
	sizeLowMask        = 0xfffff
	sizeHighMask       = 0xf00000
	sizeLowShift       = 44
	sizeHighCompressed = 20 // << within the stored side
	sizeHighDevice     = 12 // >> within the device side
	storedOffsetMask   = 0xff_ffff_ffff
	deviceOffsetMask   = 0xfff_ffff_f000

	// An entry of version 2: u64 device block, size−1 and flags; u64 stored offset and length; u64 of other features.
	v2DeviceMask   = 0xffff_ffff
	v2SizeShift    = 32
	v2FlagsShift   = 56
	v2StoredShift  = 40
	v2SizeMask     = 0xff_ffff
	v2IsCompressed = 0x1
	v2ForeignFlags = 0xee // zran, batch, encrypted and what is not known; 0x10 is a checksum beside the digest
)

// Limits of the format.
const (
	// MaxBlobs is the number of data blobs an image can have.
	MaxBlobs = maxDevices
	// MaxBlobSize is the size in bytes below which a blob's chunks must lie.
	MaxBlobSize = 1 << 40

	minChunkSize     = blockSize
	maxChunkSize     = 16 << 20
	maxChunksPerBlob = 1 << 24
	maxDeviceSize    = 1 << 44
	// maxBootstrap bounds what Decode reads; the largest images have some hundred MiB.
	maxBootstrap = 2 << 30
	maxDepth     = 1024
	maxLink      = 4095
)
