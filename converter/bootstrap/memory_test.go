package bootstrap

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"runtime"
	"strings"
	"testing"
)

// shapes are trees of n files of the kinds that take most memory for what they take in a bootstrap.
var shapes = map[string]func(root *Inode, n int){
	"empty files": func(root *Inode, n int) {
		for i := range n {
			root.Children[fmt.Sprint(i)] = &Inode{Mode: TypeRegular | 0o644}
		}
	},
	"empty folders": func(root *Inode, n int) {
		for i := range n {
			root.Children[fmt.Sprint(i)] = &Inode{Mode: TypeDir | 0o755, Children: map[string]*Inode{}}
		}
	},
	"folders of one file": func(root *Inode, n int) {
		for i := range n {
			root.Children[fmt.Sprint(i)] = &Inode{Mode: TypeDir | 0o755, Children: map[string]*Inode{"f": {Mode: TypeRegular}}}
		}
	},
	"names of one file": func(root *Inode, n int) {
		f := &Inode{Mode: TypeRegular}
		for i := range n {
			root.Children[fmt.Sprint(i)] = f
		}
	},
	"attributes": func(root *Inode, n int) {
		for i := range n {
			root.Children[fmt.Sprint(i)] = &Inode{Mode: TypeRegular, Xattrs: map[string]string{"user.a": "", "user.b": ""}}
		}
	},
	"links": func(root *Inode, n int) {
		for i := range n {
			root.Children[fmt.Sprint(i)] = &Inode{Mode: TypeSymlink | 0o777, Link: strings.Repeat("x", 200)}
		}
	},
}

// What is counted for a decoded image is what it takes, or more, and what would take more than it may is refused.
func TestMemoryOfDecodedImagesIsBounded(t *testing.T) {
	for name, shape := range shapes {
		t.Run(name, func(t *testing.T) {
			img := &Image{ChunkSize: 1 << 20, Root: &Inode{Mode: TypeDir | 0o755, Children: map[string]*Inode{}}}
			shape(img.Root, 58_000) // maps of so many have just grown
			raw, err := Encode(img)
			check(t, err)
			before := heap()
			d := newDecoder(bytes.NewReader(raw), int64(len(raw)), math.MaxInt64)
			got, err := d.decode()
			check(t, err)
			taken, counted := heap()-before, math.MaxInt64-d.memory
			runtime.KeepAlive(d)
			runtime.KeepAlive(got)
			t.Logf("%d bytes of file, %d taken, %d counted", len(raw), taken, counted)
			if taken > counted {
				t.Errorf("it takes %d bytes, %d are counted", taken, counted)
			}
			if _, err := DecodeWithin(bytes.NewReader(raw), int64(len(raw)), counted-1); !errors.Is(err, ErrTooLarge) {
				t.Errorf("with a byte less: %v", err)
			}
			if _, err := DecodeWithin(bytes.NewReader(raw), int64(len(raw)), counted); err != nil {
				t.Error(err)
			}
		})
	}
}

// heap returns how many bytes are in use.
func heap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
