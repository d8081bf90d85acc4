package converter

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/shoal-project/shoal/converter/image"
	"github.com/shoal-project/shoal/peer/chunkmap"
	"github.com/shoal-project/shoal/peer/piece"
)

func mapOf(name string, groups, chunks int) *chunkmap.Map {
	m := &chunkmap.Map{Blob: digest.FromString(name), Size: int64(groups) * piece.GroupSize, Groups: make([]piece.Digest, groups)}
	for i := range chunks {
		length := m.Size / int64(chunks)
		if i == chunks-1 {
			length = m.Size - length*int64(chunks-1)
		}
		m.Chunks = append(m.Chunks, chunkmap.Chunk{Length: uint32(length)})
	}
	return m
}

func TestChunkMapsThatReadersDoNotTakeLoseTheirChunks(t *testing.T) {
	maps := map[digest.Digest]*chunkmap.Map{}
	total := 0
	for _, m := range []*chunkmap.Map{mapOf("tensors", 100, 10), mapOf("opaque", 100, 400), mapOf("more opaque", 100, 900)} {
		maps[m.Blob] = m
		total += m.EncodedSize()
	}
	const chunk = 20
	for _, tc := range []struct {
		limit int
		want  string // chunks of each
	}{
		{total, "10 400 900"}, {total - 1, "10 400 0"}, {total - 900*chunk, "10 400 0"}, {total - 900*chunk - 1, "10 0 0"},
		{total - 1310*chunk, "0 0 0"}, {total - 1310*chunk - 1, ""},
	} {
		got, err := fitMaps(maps, tc.limit)
		if tc.want == "" {
			if !errors.Is(err, ErrSource) || !strings.Contains(err.Error(), "several images") {
				t.Errorf("limit %d: %v", tc.limit, err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		var chunks []string
		files := map[string][]byte{}
		for _, name := range []string{"tensors", "opaque", "more opaque"} {
			m := got[digest.FromString(name)]
			chunks = append(chunks, fmt.Sprint(len(m.Chunks)))
			files[chunkmap.FileName(m.Blob)] = m.Encode()
		}
		if s := strings.Join(chunks, " "); s != tc.want {
			t.Errorf("limit %d: want chunks %s, got %s", tc.limit, tc.want, s)
		}
		var layer bytes.Buffer
		if _, err := image.WriteBootstrapLayer(&layer, image.Files(files)); err != nil {
			t.Fatal(err)
		}
		if all, err := chunkmap.AllFromLayer(&layer); err != nil || len(all) != 3 {
			t.Errorf("limit %d: %d maps, %v", tc.limit, len(all), err)
		}
	}
	if len(maps[digest.FromString("more opaque")].Chunks) != 900 {
		t.Error("the map of another platform was changed")
	}
}
