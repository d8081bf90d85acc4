package chunkmap

// Missing returns how many bytes of the blob of want have to be fetched by who holds the blobs of have, and in how many
// chunks: those no map of have lists. A chunk that want lists twice is fetched once. Nothing is known about a blob whose
// map has no chunks: it is missing as a whole, unless have names the blob itself.
func Missing(want *Map, have ...*Map) (size int64, chunks int) {
	held := map[ID]struct{}{}
	for _, m := range have {
		if m.Blob == want.Blob {
			return 0, 0
		}
		for i := range m.Chunks {
			held[m.Chunks[i].ID] = struct{}{}
		}
	}
	if len(want.Chunks) == 0 {
		return want.Size, 0
	}
	for i := range want.Chunks {
		c := &want.Chunks[i]
		if _, ok := held[c.ID]; ok {
			continue
		}
		held[c.ID] = struct{}{}
		size, chunks = size+int64(c.Length), chunks+1
	}
	return size, chunks
}
