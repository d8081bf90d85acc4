package chunkmap

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"math/bits"
	"slices"
)

const (
	ggufMagic   = "GGUF"
	ggufAlign   = 32 // when no key says otherwise
	ggufKeyword = "general.alignment"
	// What is beyond these is skipped, not kept, or more than any reader takes.
	maxGGUFName    = 256
	maxGGUFDims    = 8
	maxGGUFNesting = 8
	maxGGUFTensors = 1 << 20
)

// The types of values that need words of their own.
const (
	ggufUint32 = 4
	ggufString = 8
	ggufArray  = 9
)

// gguf reads the header of a GGUF file, version 1 to 3 of either byte order, as its bytes pass: it keeps the tensors and
// the field it is in, and skips what it does not need. Each step names the length of the next field and what takes it.
type gguf struct {
	size  int64 // of the file
	named bool  // it is called .gguf

	at    int64 // bytes seen
	skip  int64 // bytes that come first and are not looked at
	need  int   // length of the field
	field []byte
	next  func(field []byte)

	order   binary.ByteOrder
	word    int      // length in bytes of a count
	infos   uint64   // tensors to come
	pairs   uint64   // keys to come
	arrays  []elem   // those begun, the innermost last
	align   uint64   // of the data
	aligned bool     // the key just read says how the data is aligned
	list    []info   // tensors seen
	name    string   // of the tensor begun
	outcome *outcome // nil before the end
}

// elem is an array begun.
type elem struct {
	kind uint32
	left uint64
}

// info is a tensor as the header has it: its length is -1 when its type is not known.
type info struct {
	name        string
	off, length int64
}

// outcome is how the header ended; all empty means that the file is to be cut by content.
type outcome struct {
	fault  string
	layout bool // the tensors are known
}

func newGGUF(size int64, named bool) *gguf {
	g := &gguf{size: size, named: named, align: ggufAlign}
	g.want(len(ggufMagic), g.magic)
	return g
}

func (g *gguf) want(n int, next func(field []byte)) { g.need, g.next = n, next }

func (g *gguf) feed(p []byte) (n int, done bool) {
	for n < len(p) && g.outcome == nil {
		if g.skip > 0 {
			m := min(g.skip, int64(len(p)-n))
			n, g.skip, g.at = n+int(m), g.skip-m, g.at+m
			if g.skip == 0 && g.next == nil {
				g.outcome = &outcome{layout: true}
			}
			continue
		}
		m := min(g.need-len(g.field), len(p)-n)
		g.field = append(g.field, p[n:n+m]...)
		n, g.at = n+m, g.at+int64(m)
		if len(g.field) == g.need {
			field := g.field
			g.field = g.field[:0]
			g.next(field)
		}
		if g.at+g.skip > maxHeader && g.outcome == nil {
			g.outcome = &outcome{}
		}
	}
	return n, g.outcome != nil
}

func (g *gguf) fail(format string, args ...any) {
	g.outcome = &outcome{fault: fmt.Sprintf(format, args...)}
}

// pass skips count items of width bytes each. It reports false, and fails, when the file is too short for them.
func (g *gguf) pass(count uint64, width int64) bool {
	if count > uint64((g.size-g.at)/width) {
		g.fail("its header promises %d times %d bytes at byte %d, the file has %d bytes: it is truncated", count, width, g.at, g.size)
		return false
	}
	g.skip = int64(count) * width
	return true
}

// count reads the count that field begins with.
func (g *gguf) count(field []byte) uint64 {
	if g.word == 4 {
		return uint64(g.order.Uint32(field))
	}
	return g.order.Uint64(field)
}

func (g *gguf) magic(field []byte) {
	switch {
	case string(field) == ggufMagic:
		g.want(4, g.version)
	case g.named:
		g.fail("it begins with %q in place of %q", field, ggufMagic)
	default:
		g.outcome = &outcome{}
	}
}

// version tells the byte order too: versions are small numbers.
func (g *gguf) version(field []byte) {
	g.order = binary.LittleEndian
	if g.order.Uint16(field) == 0 {
		g.order = binary.BigEndian
	}
	switch g.order.Uint32(field) {
	case 1:
		g.word = 4
	case 2, 3:
		g.word = 8
	default: // one that comes after this program
		g.outcome = &outcome{}
		return
	}
	g.want(2*g.word, func(field []byte) {
		g.infos, g.pairs = g.count(field[:g.word]), g.count(field[g.word:])
		g.pair()
	})
}

// pair begins the next key and value, or the tensors.
func (g *gguf) pair() {
	if g.pairs == 0 {
		g.info()
		return
	}
	g.pairs--
	g.want(g.word, func(field []byte) {
		g.aligned = false
		g.text(g.count(field), func(key []byte) {
			g.aligned = string(key) == ggufKeyword
			g.want(4, func(field []byte) { g.value(g.order.Uint32(field)) })
		})
	})
}

// text reads a string, or skips it if it is long.
func (g *gguf) text(length uint64, next func(text []byte)) {
	if length > 0 && length <= maxGGUFName {
		g.want(int(length), next)
	} else if g.pass(length, 1) {
		next(nil)
	}
}

func (g *gguf) value(kind uint32) {
	width := ggufWidth(kind)
	switch {
	case g.aligned && kind == ggufUint32:
		g.want(4, func(field []byte) {
			if g.align = uint64(g.order.Uint32(field)); g.align == 0 {
				g.fail("%s is 0", ggufKeyword)
				return
			}
			g.pair()
		})
	case kind == ggufString:
		g.want(g.word, func(field []byte) {
			if g.pass(g.count(field), 1) {
				g.element()
			}
		})
	case kind == ggufArray:
		g.want(4+g.word, func(field []byte) { g.array(g.order.Uint32(field), g.count(field[4:])) })
	case width == 0:
		g.fail("at byte %d stands a value of type %d, which does not exist", g.at, kind)
	default:
		g.skip = width
		g.element()
	}
}

func (g *gguf) array(kind uint32, count uint64) {
	width := ggufWidth(kind)
	switch {
	case width > 0:
		if g.pass(count, width) {
			g.element()
		}
	case kind != ggufString && kind != ggufArray:
		g.fail("at byte %d stands an array of type %d, which does not exist", g.at, kind)
	case len(g.arrays) == maxGGUFNesting:
		g.outcome = &outcome{} // no reader takes it
	default:
		g.arrays = append(g.arrays, elem{kind, count})
		g.element()
	}
}

// element goes on behind a value: with the next one of the innermost array, or with the next key.
func (g *gguf) element() {
	for len(g.arrays) > 0 {
		if a := &g.arrays[len(g.arrays)-1]; a.left > 0 {
			a.left--
			g.value(a.kind)
			return
		}
		g.arrays = g.arrays[:len(g.arrays)-1]
	}
	g.pair()
}

// info begins the next tensor, or ends the header.
func (g *gguf) info() {
	if g.infos == 0 {
		g.pad()
		return
	}
	g.infos--
	g.want(g.word, func(field []byte) {
		g.text(g.count(field), func(name []byte) {
			g.name = string(name)
			g.want(4, func(field []byte) {
				dims := g.order.Uint32(field)
				if dims > maxGGUFDims {
					g.fail("tensor %q has %d dimensions", g.name, dims)
					return
				}
				g.want(int(dims)*g.word+12, g.tensor)
			})
		})
	})
}

// tensor takes the dimensions, the type and the offset.
func (g *gguf) tensor(field []byte) {
	dims, tail := field[:len(field)-12], field[len(field)-12:]
	kind, off := g.order.Uint32(tail), g.order.Uint64(tail[4:])
	elements := uint64(1)
	for ; len(dims) > 0; dims = dims[g.word:] {
		hi, lo := bits.Mul64(elements, g.count(dims))
		if elements = lo; hi != 0 {
			g.fail("tensor %q has more elements than a file can have bytes", g.name)
			return
		}
	}
	length := int64(-1)
	if block, ok := ggufBlocks[kind]; ok && elements%block.elements == 0 {
		hi, lo := bits.Mul64(elements/block.elements, block.width)
		length = int64(min(lo, uint64(g.size)+1))
		if hi != 0 {
			length = g.size + 1
		}
	}
	if off > uint64(g.size) || max(length, 0) > g.size-int64(off) {
		g.fail("tensor %q at byte %d of the data ends behind the file's %d bytes: it is truncated", g.name, off, g.size)
		return
	}
	if len(g.list) == maxGGUFTensors {
		g.outcome = &outcome{} // cut by content
		return
	}
	g.list = append(g.list, info{g.name, int64(off), length})
	g.info()
}

// pad skips to where the data begins.
func (g *gguf) pad() {
	pad := (g.align - uint64(g.at)%g.align) % g.align
	switch {
	case len(g.list) == 0:
		g.outcome = &outcome{} // no more than a vocabulary
	case pad == 0:
		g.outcome = &outcome{layout: true}
	default:
		g.next = nil
		g.pass(pad, 1)
	}
}

func (g *gguf) tensors() ([]tensor, string) {
	switch {
	case g.outcome == nil && g.at < int64(len(ggufMagic)) && !g.named:
		return nil, ""
	case g.outcome == nil:
		return nil, fmt.Sprintf("the file of %d bytes ends within its header: it is truncated", g.size)
	case !g.outcome.layout:
		return nil, g.outcome.fault
	}
	return g.ranges()
}

// ranges makes tensors reach to the next one's start and the last to the file's end, with the padding between them.
func (g *gguf) ranges() ([]tensor, string) {
	slices.SortStableFunc(g.list, func(a, b info) int { return cmp.Or(cmp.Compare(a.off, b.off), cmp.Compare(a.length, b.length)) })
	data := g.size - g.at
	list := make([]tensor, 0, len(g.list)+1)
	list = append(list, tensor{end: g.list[0].off}) // what is before the first
	for i, t := range g.list {
		end := data
		if i+1 < len(g.list) {
			end = g.list[i+1].off
		}
		switch {
		case max(t.length, 0) > data-t.off:
			return nil, fmt.Sprintf("tensor %q ends at byte %d of the data, the file has %d: it is truncated", t.name, t.off+max(t.length, 0), data)
		case t.off+max(t.length, 0) > end:
			return nil, fmt.Sprintf("tensors %q and %q overlap", t.name, g.list[i+1].name)
		}
		list = append(list, tensor{t.name, t.off, end})
	}
	return list, ""
}

// ggufWidth returns the length in bytes of a value of a fixed length, else 0.
func ggufWidth(kind uint32) int64 {
	switch kind {
	case 0, 1, 7: // uint8, int8, bool
		return 1
	case 2, 3: // uint16, int16
		return 2
	case ggufUint32, 5, 6: // int32, float32
		return 4
	case 10, 11, 12: // uint64, int64, float64
		return 8
	}
	return 0
}

// ggufBlocks tells how many elements of a tensor type make a block and the block's length in bytes. Types whose layout
// changed over time are left out.
var ggufBlocks = map[uint32]struct{ elements, width uint64 }{
	0: {1, 4}, 1: {1, 2}, 28: {1, 8}, 30: {1, 2}, // F32, F16, F64, BF16
	24: {1, 1}, 25: {1, 2}, 26: {1, 4}, 27: {1, 8}, // integers
	2: {32, 18}, 3: {32, 20}, 6: {32, 22}, 7: {32, 24}, 8: {32, 34}, // Q4_0, Q4_1, Q5_0, Q5_1, Q8_0
	10: {256, 84}, 11: {256, 110}, 12: {256, 144}, 13: {256, 176}, 14: {256, 210}, // Q2_K to Q6_K
	20: {32, 18}, 23: {256, 136}, 34: {256, 54}, 35: {256, 66}, 39: {32, 17}, // IQ4_NL, IQ4_XS, TQ1_0, TQ2_0, MXFP4
	16: {256, 66}, 17: {256, 74}, 18: {256, 98}, 21: {256, 110}, 22: {256, 82}, // IQ2_XXS to IQ3_S
}
