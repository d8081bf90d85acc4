package chunkmap

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"maps"
	"slices"
	"testing"
)

// safetensorsFile writes tensors in the order of their names.
func safetensorsFile(t testing.TB, tensors map[string][]byte) []byte {
	t.Helper()
	return safetensorsInOrder(t, slices.Sorted(maps.Keys(tensors)), tensors, nil)
}

func safetensorsInOrder(t testing.TB, order []string, tensors map[string][]byte, metadata map[string]string) []byte {
	t.Helper()
	entries, at := map[string]any{}, 0
	if metadata != nil {
		entries["__metadata__"] = metadata
	}
	var data bytes.Buffer
	for _, name := range order {
		n := len(tensors[name])
		entries[name] = map[string]any{"dtype": "U8", "shape": []int{n}, "data_offsets": []int{at, at + n}}
		at += n
		data.Write(tensors[name])
	}
	head, err := json.Marshal(entries)
	if err != nil {
		t.Fatal(err)
	}
	return append(rawSafetensors(string(head)), data.Bytes()...)
}

// rawSafetensors puts the length before a header.
func rawSafetensors(head string) []byte {
	return append(binary.LittleEndian.AppendUint64(nil, uint64(len(head))), head...)
}
