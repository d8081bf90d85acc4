package lazy

import (
	"cmp"
	"path"
	"slices"
	"strings"

	"github.com/shoal-project/shoal/converter/bootstrap"
)

const (
	// firstTotal is how many bytes are fetched before all else at the most: what a container reads while its blobs are on the way.
	firstTotal = 16 << 20
	// firstWhole is how long a file may be of which all is fetched first; of longer ones it is firstHead bytes: a library's table of contents, or that of
	// a model's shard, which loaders read of all shards before they read any.
	firstWhole = 8 << 20
	firstHead  = 256 << 10
	// firstLeast is what each file counts for at the least, so that there are not too many of them.
	firstLeast = 4 << 10
	// firstStep is how many bytes are asked for at a time: who waits for something else meanwhile does not wait for long.
	firstStep = 1 << 20
)

// planFirst returns what is fetched before the blobs: the beginning of a prefetch table that lists programs, which somebody has seen run; else the
// starters, the beginning of what the table lists, and what is likely.
func planFirst(img *bootstrap.Image) []step {
	table := slices.DeleteFunc(slices.Clone(img.Prefetch), (*bootstrap.Inode).IsDir) // which say nothing of an order
	b := builder{img: img, room: firstTotal, step: firstStep, seen: map[uint32]bool{}}
	parts := [][]*bootstrap.Inode{table}
	if !slices.ContainsFunc(table, isProgram) {
		called := calledAs(img, starters(), likely())
		parts = [][]*bootstrap.Inode{called[0], table, called[1]}
	}
	for _, n := range slices.Concat(parts...) {
		b.addFirst(n)
	}
	return b.out
}

// starters returns patterns of the names of files that containers read whatever they run, in their order: what the runtime itself reads, the dynamic loader,
// the library of all programs, and shells.
func starters() []string {
	return []string{
		"passwd", "group", "ld.so.cache",
		"ld-linux*.so.*", "ld-musl-*.so.1", "ld-2.*.so",
		"libc.so.6", "libc-2.*.so",
		"dash", "busybox", "tini", "bash", "libtinfo.so.6*",
	}
}

// likely returns the same of files that most containers of models read next: the interpreter, and libraries of many programs.
func likely() []string {
	return []string{
		"env", "coreutils", "libm.so.6", "libz.so.1*", "libexpat.so.1*", "python3.[0-9]*", "libpython3.*.so.1.0",
		"libgcc_s.so.1", "libstdc++.so.6*",
	}
}

// calledAs returns, for each list of patterns, the files of an image that these are about, in their order: accounts and the like in /etc, programs, and
// libraries. Each is there once, however many names it has.
func calledAs(img *bootstrap.Image, lists ...[]string) [][]*bootstrap.Inode {
	type match struct {
		rank int
		node *bootstrap.Inode
	}
	var found []match
	patterns := slices.Concat(lists...)
	at := map[*bootstrap.Inode]int{}                           // in found
	_ = img.Walk(func(name string, n *bootstrap.Inode) error { // visit never fails
		dir, base := path.Split(name)
		if n.Type() != bootstrap.TypeRegular || n.Size > firstWhole || dir != "etc/" && (!isProgram(n) && !strings.Contains(base, ".so") || n.Size < 4096) {
			return nil
		}
		for rank, pattern := range patterns {
			matches, _ := path.Match(pattern, base)
			if !matches {
				continue
			}
			if i, known := at[n]; known {
				found[i].rank = min(found[i].rank, rank)
			} else {
				at[n] = len(found)
				found = append(found, match{rank, n})
			}
			break
		}
		return nil
	})
	slices.SortStableFunc(found, func(a, b match) int { return cmp.Compare(a.rank, b.rank) })
	out, end := make([][]*bootstrap.Inode, len(lists)), 0
	for i, list := range lists {
		for end += len(list); len(found) > 0 && found[0].rank < end; found = found[1:] {
			out[i] = append(out[i], found[0].node)
		}
	}
	return out
}

// builder makes steps of parts of files.
type builder struct {
	img  *bootstrap.Image
	room int64 // bytes that addFirst may still add
	step int64 // how long steps become of several chunks
	seen map[uint32]bool
	out  []step
}

// addFirst adds a file, or its beginning when it is long, while there is room.
func (b *builder) addFirst(n *bootstrap.Inode) {
	length := n.Size
	if length > firstWhole {
		length = firstHead
	}
	if max(length, firstLeast) <= b.room {
		b.room -= max(b.add(n, length), firstLeast)
	}
}

// add adds the first bytes of a file, as far as they are not there already, and returns how many these were. What lies together is one step.
func (b *builder) add(n *bootstrap.Inode, length int64) (added int64) {
	for _, i := range n.Chunks {
		c := &b.img.Chunks[i]
		size := min(int64(c.Size), length)
		if size <= 0 {
			break
		}
		length -= size
		if b.seen[i] {
			continue
		}
		b.seen[i] = true
		added += size
		if last := len(b.out) - 1; last >= 0 && b.out[last].blob == int(c.Blob) && b.out[last].off+b.out[last].length == c.DeviceOffset &&
			b.out[last].length+size <= b.step {
			b.out[last].length += size
			continue
		}
		b.out = append(b.out, step{blob: int(c.Blob), off: c.DeviceOffset, length: size})
	}
	return added
}
