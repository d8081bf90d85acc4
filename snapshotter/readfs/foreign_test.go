package readfs_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/shoal-project/shoal/converter/bootstrap"
	"github.com/shoal-project/shoal/snapshotter/readfs"
	"golang.org/x/sys/unix"
)

// writeSource makes a folder with every kind of file. The seed changes some of the content.
func writeSource(t testing.TB, seed byte) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "src")
	check(t, os.MkdirAll(filepath.Join(dir, "sub/deep"), 0o755))
	check(t, os.Chmod(filepath.Join(dir, "sub"), 0o1777))
	var lines bytes.Buffer
	for i := range 100_000 {
		fmt.Fprintf(&lines, "line %d compresses well\n", i)
	}
	text := lines.Bytes()
	mixed := append(bytes.Clone(text[:1<<20]), noise(9, 1<<20+5)...)
	for name, data := range map[string][]byte{
		"empty": nil, "one": {seed}, "text": text, "mixed": mixed, "noise": noise(seed, 3<<20), "again": text, "sub/part": text[:1<<20],
		"block": text[:4096], "sub/deep/4097": text[:4097], strings.Repeat("n", 255): []byte("long name"), "caf\xe9": []byte("no UTF-8"),
	} {
		check(t, os.WriteFile(filepath.Join(dir, name), data, 0o640))
	}
	for i := range 300 {
		check(t, os.WriteFile(filepath.Join(dir, fmt.Sprintf("sub/deep/file-with-a-longer-name-%03d", i)), fmt.Append(nil, i), 0o600))
	}
	sparse, err := os.Create(filepath.Join(dir, "sparse"))
	check(t, err)
	check(t, sparse.Truncate(5<<20))
	_, err = sparse.WriteAt([]byte("in the middle"), 3<<20)
	check(t, err)
	check(t, sparse.Close())
	check(t, os.Symlink("sub/part", filepath.Join(dir, "link")))
	check(t, os.Symlink(strings.Repeat("x/", 1000), filepath.Join(dir, "long link")))
	check(t, os.Link(filepath.Join(dir, "mixed"), filepath.Join(dir, "sub/hard")))
	check(t, unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600))
	check(t, unix.Mknod(filepath.Join(dir, "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	check(t, unix.Mknod(filepath.Join(dir, "disk"), unix.S_IFBLK|0o600, int(unix.Mkdev(259, 300))))
	check(t, os.Chown(filepath.Join(dir, "text"), 1000, 70000))
	check(t, os.Chmod(filepath.Join(dir, "one"), 0o755|fs.ModeSetuid))
	capability := "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	check(t, unix.Setxattr(filepath.Join(dir, "one"), "security.capability", []byte(capability), 0))
	check(t, unix.Setxattr(filepath.Join(dir, "sub"), "trusted.note", []byte("of a folder"), 0))
	check(t, unix.Setxattr(filepath.Join(dir, "text"), "user.big", noise(3, 2000), 0))
	check(t, unix.Setxattr(filepath.Join(dir, "text"), "user.empty", nil, 0))
	return dir
}

// image is an image somebody made: the file of its bootstrap and the folder of its blobs.
type image struct{ boot, blobs string }

func newImage(t testing.TB) image {
	dir := t.TempDir()
	check(t, os.Mkdir(filepath.Join(dir, "blobs"), 0o700))
	return image{filepath.Join(dir, "boot"), filepath.Join(dir, "blobs")}
}

// create runs nydus-image create; its options come before the source.
func (i image) create(t testing.TB, source string, options ...string) image {
	t.Helper()
	args := append([]string{"create", "--log-level", "warn", "--fs-version", "6", "-D", i.blobs, "-B", i.boot}, options...)
	run(t, need(t, "nydus-image"), append(args, source)...)
	return i
}

// tarOf archives a folder; names begin at its root.
func tarOf(t testing.TB, dir string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "layer.tar")
	file, err := os.Create(out)
	check(t, err)
	defer file.Close()
	tw := tar.NewWriter(file)
	seen := map[uint64]string{}
	check(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		info, err := d.Info()
		check(t, err)
		link, _ := os.Readlink(path)
		hdr, err := tar.FileInfoHeader(info, link)
		check(t, err)
		hdr.Name, _ = filepath.Rel(dir, path)
		hdr.Format = tar.FormatPAX
		if strings.Contains(hdr.Name, "\xe9") {
			hdr.Format = tar.FormatGNU
		}
		if d.IsDir() {
			hdr.Name += "/"
		} else if old, ok := seen[st.Ino]; ok && st.Nlink > 1 {
			hdr.Typeflag, hdr.Linkname, hdr.Size = tar.TypeLink, old, 0
		} else {
			seen[st.Ino] = hdr.Name
		}
		for name, value := range xattrsOf(t, path) {
			if strings.Contains(value, "\n") { // nydus-image ends a PAX record there
				continue
			}
			if hdr.PAXRecords == nil {
				hdr.PAXRecords = map[string]string{}
			}
			hdr.PAXRecords["SCHILY.xattr."+name] = value
		}
		if err := tw.WriteHeader(hdr); err != nil {
			return err
		}
		if hdr.Typeflag == tar.TypeReg {
			data, err := os.Open(path)
			check(t, err)
			defer data.Close()
			_, err = io.Copy(tw, data)
			return err
		}
		return nil
	}))
	check(t, tw.Close())
	return out
}

// wantAsNydusd mounts an image by nydusd and compares all files.
func (i image) wantAsNydusd(t *testing.T) *bootstrap.Image {
	t.Helper()
	img, f := openImage(t, i.boot, i.blobs)
	got := treeOf(t, f)
	if len(got) < 5 {
		t.Errorf("only %d files", len(got))
	}
	want := treeIn(t, mountNydusd(t, i.boot, i.blobs))
	root := want["."]
	root.Mtime, root.Nsec = got["."].Mtime, got["."].Nsec // nydusd's mount point has the time of the mount
	want["."] = root
	wantSame(t, "files as nydusd and as readfs shows them (-nydusd +readfs)", want, got)
	return img
}

func TestRootImagesOfNydusImageReadAsNydusdShowsThem(t *testing.T) {
	needRoot(t)
	src := writeSource(t, 1)
	for _, options := range [][]string{
		{"--compressor", "none", "--digester", "sha256"}, {"--compressor", "none", "--digester", "blake3"},
		{"--compressor", "lz4_block", "--digester", "sha256"}, {"--compressor", "lz4_block", "--digester", "blake3"},
		{"--compressor", "zstd", "--digester", "sha256"}, {"--compressor", "zstd", "--digester", "blake3"},
		{"--chunk-size", "0x1000"}, {"--chunk-size", "0x10000"}, {"--chunk-size", "0x1000000"},
		{"--features", "blob-toc"},
	} {
		t.Run(strings.Trim(strings.Join(options, " "), "-"), func(t *testing.T) {
			i := newImage(t).create(t, src, options...)
			_, f := openImage(t, i.boot, i.blobs)
			want, got := treeIn(t, src), treeOf(t, f)
			want["."] = got["."] // nydus-image gives the root no time
			wantSame(t, "files of the source and as readfs shows them (-source +readfs)", want, got)
			img := i.wantAsNydusd(t)
			again, err := bootstrap.Encode(img)
			check(t, err)
			check(t, os.WriteFile(i.boot, again, 0o600))
			i.wantAsNydusd(t) // encoded by this project
			// The blob ends with its table, which says the same as the bootstrap.
			b := img.Blobs[0]
			blob, err := os.ReadFile(filepath.Join(i.blobs, b.Digest.Encoded()))
			check(t, err)
			if options[0] == "--features" { // parts follow
				return
			}
			at, chunks, err := bootstrap.DecodeMeta(blob[b.TableOffset:])
			check(t, err)
			if at != b.TableOffset || len(chunks) != int(b.ChunkCount) {
				t.Errorf("table of %d chunks at %d, want %d at %d", len(chunks), at, b.ChunkCount, b.TableOffset)
			}
			for _, c := range img.Chunks {
				got := chunks[c.Index]
				got.Digest, got.FileOffset = c.Digest, c.FileOffset
				if got != c {
					t.Errorf("chunk %d: %+v, in the table %+v", c.Index, c, got)
				}
			}
		})
	}
}

// TestRootImagesOfNydusSnapshotterReadAsNydusdShowsThem builds a program of nydus-snapshotter's packages, which takes a minute
// the first time.
func TestRootImagesOfNydusSnapshotterReadAsNydusdShowsThem(t *testing.T) {
	needRoot(t)
	need(t, "nydus-image")
	bin := filepath.Join(t.TempDir(), "nydusconvert")
	cmd := exec.Command(need(t, "go"), "build", "-o", bin, ".")
	cmd.Dir = "../../converter/testdata/nydusconvert"
	cmd.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=-buildvcs=false -mod=readonly")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	lower, upper := tarOf(t, writeSource(t, 1)), tarOf(t, writeUpper(t))
	for _, compressor := range []string{"none", "lz4_block", "zstd"} {
		t.Run(compressor, func(t *testing.T) {
			dir := t.TempDir()
			run(t, bin, compressor, dir, lower, upper)
			img := image{filepath.Join(dir, "image.boot"), dir}.wantAsNydusd(t)
			if img.Root.Children["noise"] != nil || len(img.Blobs) != 2 {
				t.Errorf("not merged: %d blobs", len(img.Blobs))
			}
			again, err := bootstrap.Encode(img)
			check(t, err)
			check(t, os.WriteFile(filepath.Join(dir, "again"), again, 0o600))
			image{filepath.Join(dir, "again"), dir}.wantAsNydusd(t) // encoded by this project
		})
	}
}

func TestImagesThatReferToTheOriginalLayerAreRefusedByName(t *testing.T) {
	dir := t.TempDir()
	check(t, os.WriteFile(filepath.Join(dir, "file"), noise(1, 3<<20), 0o600))
	i := newImage(t)
	run(t, need(t, "nydus-image"), "create", "--log-level", "warn", "-t", "targz-ref", "-B", i.boot, "-D", i.blobs, gzipped(t, tarOf(t, dir)))
	raw, err := os.ReadFile(i.boot)
	check(t, err)
	img, err := bootstrap.Decode(bytes.NewReader(raw), int64(len(raw)))
	check(t, err)
	if _, err := readfs.New(img, readfs.Config{}); !errors.Is(err, bootstrap.ErrUnsupported) || !strings.Contains(err.Error(), "zran") {
		t.Errorf("want ErrUnsupported for zran, got %v", err)
	}
}

func TestRootImagesMadeOfTarsReadAsNydusdShowsThem(t *testing.T) {
	needRoot(t)
	layer := tarOf(t, writeSource(t, 1))
	t.Run("tar", func(t *testing.T) { newImage(t).create(t, layer, "-t", "tar-rafs").wantAsNydusd(t) })
	t.Run("tar.gz", func(t *testing.T) { newImage(t).create(t, gzipped(t, layer), "-t", "targz-rafs").wantAsNydusd(t) })
}

func gzipped(t testing.TB, file string) string {
	t.Helper()
	data, err := os.ReadFile(file)
	check(t, err)
	var out bytes.Buffer
	zw := gzip.NewWriter(&out)
	_, err = zw.Write(data)
	check(t, err)
	check(t, zw.Close())
	check(t, os.WriteFile(file+".gz", out.Bytes(), 0o600))
	return file + ".gz"
}

func TestRootImageWithDictionaryReadsAsNydusdShowsIt(t *testing.T) {
	needRoot(t)
	first := newImage(t).create(t, writeSource(t, 1))
	second := newImage(t)
	second.blobs = first.blobs
	img := second.create(t, writeSource(t, 2), "--chunk-dict", "bootstrap="+first.boot).wantAsNydusd(t)
	if len(img.Blobs) != 2 {
		t.Errorf("%d blobs", len(img.Blobs))
	}
}

func TestRootImageWithPrefetchTable(t *testing.T) {
	needRoot(t)
	i := newImage(t)
	cmd := exec.Command(need(t, "nydus-image"), "create", "-B", i.boot, "-D", i.blobs, "--prefetch-policy", "fs", writeSource(t, 1))
	cmd.Stdin = strings.NewReader("/text\n/sub/deep\n/nowhere\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	img := i.wantAsNydusd(t)
	if len(img.Prefetch) != 2 || img.Prefetch[0] != img.Root.Children["text"] || img.Prefetch[1] != img.Root.Children["sub"].Children["deep"] {
		t.Errorf("prefetch: %d inodes", len(img.Prefetch))
	}
}

// upper changes what is below: it hides, replaces and adds.
func writeUpper(t testing.TB) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "upper")
	check(t, os.MkdirAll(filepath.Join(dir, "sub"), 0o755))
	check(t, os.MkdirAll(filepath.Join(dir, "fresh"), 0o755))
	for name, data := range map[string]string{".wh.noise": "", "sub/.wh.deep": "", "text": "other", "fresh/file": "fresh", ".wh.never": ""} {
		check(t, os.WriteFile(filepath.Join(dir, name), []byte(data), 0o644))
	}
	return dir
}

func TestRootMergedImagesReadAsNydusdShowsThem(t *testing.T) {
	needRoot(t)
	lower, upper := newImage(t), newImage(t)
	upper.blobs = lower.blobs
	src, over := writeSource(t, 1), writeUpper(t)
	t.Run("on a parent bootstrap", func(t *testing.T) {
		lower.create(t, src)
		upper.create(t, over, "--parent-bootstrap", lower.boot).wantAsNydusd(t)
	})
	for _, options := range [][]string{{"--compressor", "lz4_block"}, {"--features", "blob-toc"}, {"-t", "tar-rafs"}} {
		t.Run("merge "+options[1], func(t *testing.T) {
			merged := newImage(t)
			args := []string{"merge", "--log-level", "warn", "-B", merged.boot}
			for _, source := range []string{src, over} {
				if options[0] == "-t" {
					source = tarOf(t, source)
				}
				args = append(args, merged.inlined(t, source, options...))
			}
			run(t, need(t, "nydus-image"), args...)
			img := merged.wantAsNydusd(t)
			// A folder's whiteouts are applied, and gone, when it becomes an image; those of a tar are kept for the merge.
			hidden := img.Root.Children["noise"] == nil && img.Root.Children["sub"].Children["deep"] == nil
			if hidden != (options[0] == "-t") || img.Root.Children["fresh"] == nil || len(img.Blobs) != 2 {
				t.Errorf("not merged: %d blobs", len(img.Blobs))
			}
		})
	}
}

// inlined builds a blob that has its bootstrap within and returns a file with that. Both have the name of the blob's digest,
// from which nydus-image takes it.
func (i image) inlined(t testing.TB, source string, options ...string) (boot string) {
	t.Helper()
	made := filepath.Join(t.TempDir(), "blob")
	args := append([]string{"create", "--log-level", "warn", "--fs-version", "6", "--blob-inline-meta", "-b", made}, options...)
	run(t, need(t, "nydus-image"), append(args, source)...)
	file, err := os.Open(made)
	check(t, err)
	defer file.Close()
	name := sumOf(t, file)
	check(t, os.Rename(made, filepath.Join(i.blobs, name)))
	info, err := file.Stat()
	check(t, err)
	raw, err := bootstrap.Inlined(file, info.Size())
	check(t, err)
	boot = filepath.Join(t.TempDir(), name)
	check(t, os.WriteFile(boot, raw, 0o600))
	return boot
}

func TestRootInlinedBootstrapShowsTheSource(t *testing.T) {
	needRoot(t)
	i := newImage(t)
	src := writeSource(t, 1)
	for _, options := range [][]string{nil, {"--features", "blob-toc"}, {"--compressor", "lz4_block", "--digester", "sha256"}} {
		t.Run(strings.Join(options, " "), func(t *testing.T) {
			name := filepath.Base(i.inlined(t, src, options...))
			blob, err := os.Open(filepath.Join(i.blobs, name))
			check(t, err)
			info, err := blob.Stat()
			check(t, err)
			img, err := bootstrap.DecodeInlined(blob, info.Size(), digest.NewDigestFromEncoded(digest.SHA256, name))
			check(t, err)
			f, err := readfs.New(img, readfs.Config{Open: func(*bootstrap.Blob) (io.ReaderAt, error) { return blob, nil }})
			check(t, err)
			defer func() { check(t, f.Close()) }()
			want, got := treeIn(t, src), treeOf(t, f)
			want["."] = got["."]
			wantSame(t, "files of the source and as readfs shows them (-source +readfs)", want, got)
		})
	}
}
