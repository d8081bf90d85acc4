package chunkmap

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	mathbits "math/bits"
	"slices"
)

// maxSafetensorsHeader is what readers of the format accept, in bytes.
const maxSafetensorsHeader = 100_000_000

// safetensors reads the header of a .safetensors file: the length of what follows in 8 bytes, then JSON.
type safetensors struct {
	size   int64  // of the file
	raw    []byte // what was seen, the length too
	length int64  // of the JSON
	done   bool
	fault  string
}

func (s *safetensors) feed(p []byte) (int, bool) {
	n := 0
	if len(s.raw) < 8 {
		n = min(len(p), 8-len(s.raw))
		if s.raw = append(s.raw, p[:n]...); len(s.raw) < 8 {
			return n, false
		}
		s.begin(binary.LittleEndian.Uint64(s.raw))
	}
	if s.done {
		return n, true
	}
	// append grows with the bytes that arrive, so a length that lies costs nothing.
	m := int(min(int64(len(p)-n), 8+s.length-int64(len(s.raw))))
	s.raw = append(s.raw, p[n:n+m]...)
	s.done = int64(len(s.raw)) == 8+s.length
	return n + m, s.done
}

func (s *safetensors) begin(length uint64) {
	s.done = true
	switch {
	case length > uint64(s.size-8):
		s.fault = fmt.Sprintf("it promises a header of %d bytes, the file has %d: it is truncated or no safetensors file", length, s.size)
	case length > maxSafetensorsHeader:
		s.fault = fmt.Sprintf("its header of %d bytes is longer than readers accept (%d)", length, maxSafetensorsHeader)
	case length > maxHeader:
		s.raw = nil // cut by content
	case length == 0:
		s.fault = "its header is empty"
	default:
		s.length, s.done = int64(length), false
	}
}

func (s *safetensors) tensors() ([]tensor, string) {
	switch {
	case s.fault != "":
		return nil, s.fault
	case !s.done:
		return nil, fmt.Sprintf("the file of %d bytes ends within its header: it is truncated", s.size)
	case s.length == 0:
		return nil, ""
	}
	list, misfit, err := parseSafetensors(s.raw[8:])
	s.raw = nil
	if err != nil {
		return nil, "its header is not that of a safetensors file: " + err.Error()
	}
	return list, cmp.Or(s.check(list), misfit)
}

// check sorts the tensors and wants them to cover the data exactly, as readers of the format do.
func (s *safetensors) check(list []tensor) string {
	slices.SortStableFunc(list, func(a, b tensor) int {
		return cmp.Or(cmp.Compare(a.off, b.off), cmp.Compare(a.end, b.end))
	})
	data, at, last := s.size-8-s.length, int64(0), ""
	for _, t := range list {
		switch {
		case t.off < 0 || t.end < t.off:
			return fmt.Sprintf("tensor %q has the range [%d, %d)", t.name, t.off, t.end)
		case t.off < at:
			return fmt.Sprintf("tensors %q and %q overlap", last, t.name)
		case t.off > at:
			return fmt.Sprintf("there is a hole of %d bytes before tensor %q", t.off-at, t.name)
		}
		at, last = t.end, t.name
	}
	switch {
	case at > data:
		return fmt.Sprintf("the header promises %d bytes of tensors, the file has %d: it is truncated", at, data)
	case at < data:
		return fmt.Sprintf("%d bytes behind the last tensor belong to none", data-at)
	}
	return ""
}

// fits says so if a tensor has not as many bytes as its shape needs. Of types that are not known only the shape is looked at.
func fits(t tensor, kind string, shape []int64) (misfit string) {
	bits, known := bitsOf(kind)
	for _, n := range shape {
		if n < 0 {
			return fmt.Sprintf("tensor %q has the shape %v", t.name, shape)
		}
		over, low := mathbits.Mul64(bits, uint64(n))
		if over != 0 {
			return fmt.Sprintf("tensor %q has the shape %v, which no file can hold", t.name, shape)
		}
		bits = low
	}
	if known && t.end >= t.off && bits/8 != uint64(t.end-t.off) {
		return fmt.Sprintf("tensor %q of type %s and shape %v has %d bytes, not %d", t.name, kind, shape, t.end-t.off, bits/8)
	}
	return ""
}

// bitsOf returns how many bits an element of a type has; 1 of one that is not known.
func bitsOf(kind string) (bits uint64, known bool) {
	switch kind {
	case "BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0":
		return 8, true
	case "U16", "I16", "F16", "BF16":
		return 16, true
	case "U32", "I32", "F32":
		return 32, true
	case "U64", "I64", "F64", "C64":
		return 64, true
	}
	return 1, false
}

// parseSafetensors reads one entry after the other, so that memory holds little more than the header. misfit is what is wrong with the shape of the first tensor
// that has a wrong one.
func parseSafetensors(raw []byte) (list []tensor, misfit string, err error) {
	dec := json.NewDecoder(bytes.NewReader(raw))
	if tok, err := dec.Token(); err != nil || tok != json.Delim('{') {
		return nil, "", errors.New("no JSON object")
	}
	for dec.More() {
		tok, err := dec.Token()
		if err != nil {
			return nil, "", err
		}
		name, _ := tok.(string) // a key is nothing else
		if name == "__metadata__" {
			var skip json.RawMessage
			if err := dec.Decode(&skip); err != nil {
				return nil, "", err
			}
			continue
		}
		var entry struct {
			Type    string  `json:"dtype"`
			Shape   []int64 `json:"shape"`
			Offsets []int64 `json:"data_offsets"`
		}
		if err := dec.Decode(&entry); err != nil {
			return nil, "", fmt.Errorf("tensor %q: %w", name, err)
		}
		if len(entry.Offsets) != 2 {
			return nil, "", fmt.Errorf("tensor %q has no two data_offsets", name)
		}
		t := tensor{name, entry.Offsets[0], entry.Offsets[1]}
		misfit = cmp.Or(misfit, fits(t, entry.Type, entry.Shape))
		list = append(list, t)
	}
	if _, err := dec.Token(); err != nil {
		return nil, "", err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, "", errors.New("more behind the JSON object")
	}
	return list, misfit, nil
}
