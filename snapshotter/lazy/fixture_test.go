package lazy

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/shoal-project/shoal/converter/bootstrap"
	"github.com/shoal-project/shoal/peer"
	"github.com/shoal-project/shoal/peer/chunkmap"
	"github.com/shoal-project/shoal/peer/piece"
	"github.com/shoal-project/shoal/peer/source"
	"github.com/shoal-project/shoal/peer/store"
	"github.com/shoal-project/shoal/peer/transfer"
	"github.com/shoal-project/shoal/snapshotter/fanotify"
	"github.com/shoal-project/shoal/snapshotter/keeper"
)

// The test binary is also the keeper, the daemon that gets killed, and what reads files: the driver's own process must not.
func TestMain(m *testing.M) {
	modes := map[string]func([]string) error{"keeper": runKeeper, "follow": runFollow, "daemon": runDaemon, "read": runRead, "mmap": runMmap,
		"sendfile": runSendfile, "direct": runDirect, "soak": runSoak, "change": runChange}
	mode := modes[os.Getenv("LAZY_TEST")]
	if mode == nil {
		os.Exit(m.Run())
	}
	if err := mode(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func runKeeper([]string) error {
	l, err := keeper.Inherited()
	if err != nil {
		return err
	}
	return keeper.Serve(context.Background(), l, mate())
}

func runFollow([]string) error { return keeper.Follow(context.Background(), mate()) }

// mate is the command of a keeper's mate, which inherits the mark of its world.
func mate() []string {
	self, err := os.Executable()
	if err != nil {
		panic(err)
	}
	return []string{"/usr/bin/env", "LAZY_TEST=follow", self}
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func missing(t testing.TB, what string) {
	t.Helper()
	if os.Getenv("REQUIRE_TOOLS") == "1" {
		t.Fatalf("%s and REQUIRE_TOOLS=1", what)
	}
	t.Skipf("SKIPPED: %s", what)
}

func needKernel(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		missing(t, "needs root")
	}
	if err := fanotify.Probe(t.TempDir()); err != nil {
		missing(t, err.Error())
	}
}

// origin is a registry: a folder of blobs named by the hex of their digest, which a test may take away.
type origin struct {
	dir  string
	pace time.Duration // for each 64 KiB
	upto int64         // ranges that end behind it are not answered; 0: all are
}

func (o origin) path(d digest.Digest) string { return filepath.Join(o.dir, d.Encoded()) }

func (o origin) Fetch(ctx context.Context, b source.Blob, off, length int64, _ string) (io.ReadCloser, error) {
	if o.upto > 0 && off+length > o.upto {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	f, err := os.Open(o.path(b.Digest))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", piece.ErrAbsent, err)
	}
	return struct {
		io.Reader
		io.Closer
	}{&paced{ctx, io.NewSectionReader(f, off, length), o.pace}, f}, nil
}

type paced struct {
	ctx  context.Context
	r    io.Reader
	pace time.Duration
}

func (p *paced) Read(b []byte) (int, error) {
	if p.pace > 0 {
		select {
		case <-time.After(p.pace):
		case <-p.ctx.Done():
			return 0, p.ctx.Err()
		}
	}
	return p.r.Read(b[:min(len(b), 64<<10)])
}

// sources is the image's blobs at a peer. maps is the layer with their chunk maps, if there is one.
type sources struct {
	peer *peer.Peer
	maps *peer.MapRef
}

func (s sources) Open(ctx context.Context, b Blob) (Reader, error) {
	return s.peer.Open(ctx, peer.Blob{Digest: b.Digest, Size: b.Size, Origin: peer.Origin{Registry: "origin", Repository: "r", Map: s.maps}}, "")
}

// world is what stays when a daemon dies: an image, its origin, and folders.
type world struct {
	dir    string
	origin origin
	boot   string
	target string
	files  map[string][]byte
	img    *bootstrap.Image
	pace   time.Duration
	upto   int64
	maps   *peer.MapRef
	fuse   bool
	quota  int64    // of the store in bytes; 0 is none
	log    *os.File // of daemons and their keepers; nil is standard error
	opened int      // how many descriptors a daemon has from the beginning
}

const chunkSize = 64 << 10

func noise(seed uint64, n int) []byte {
	data := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), 3}).Read(data) // never fails
	return data
}

// newWorld returns the image of a model of one large file, as an aligned blob, and of a framework with many small and some larger files, in
// one compressed blob for each compressor.
func newWorld(t testing.TB, modelSize int) *world {
	t.Helper()
	dir := t.TempDir()
	w := &world{dir: dir, origin: origin{dir: filepath.Join(dir, "origin")}, boot: filepath.Join(dir, "boot"), target: filepath.Join(dir, "mnt"),
		files: map[string][]byte{}}
	check(t, os.MkdirAll(w.origin.dir, 0o755))
	check(t, os.MkdirAll(w.target, 0o755))
	w.img = &bootstrap.Image{ChunkSize: chunkSize}
	b, tree := bootstrap.NewBuilder(w.img), bootstrap.NewTree()
	for _, kind := range []bootstrap.Compressor{bootstrap.Zstd, bootstrap.LZ4, bootstrap.None} {
		tree.NextLayer()
		w.addFramework(t, b, tree, kind)
	}
	w.addModel(t, b, tree, modelSize)
	for name, n := range map[string]*bootstrap.Inode{
		"odd/link": {Mode: bootstrap.TypeSymlink | 0o777, Link: "../models/model.bin"}, "odd/fifo": {Mode: bootstrap.TypeFIFO | 0o600, Mtime: 5},
		"odd/null": {Mode: bootstrap.TypeChar | 0o666, Major: 1, Minor: 3}, "odd/empty": {Mode: bootstrap.TypeRegular | 0o4755, UID: 7, GID: 8},
		"odd/dir": {Mode: bootstrap.TypeDir | 0o1777, Xattrs: map[string]string{"trusted.a": "1", "user.b": "two"}},
	} {
		check(t, tree.Add(name, n))
	}
	check(t, tree.Link("odd/hard", "models/model.bin"))
	w.img.Root = tree.Root
	raw, err := bootstrap.Encode(w.img)
	check(t, err)
	check(t, os.WriteFile(w.boot, raw, 0o600))
	w.img, err = readBootstrap(w.boot)
	check(t, err)
	w.addMaps(t)
	t.Cleanup(func() {
		_ = unix.Unmount(w.target, unix.MNT_DETACH) // if it is there
		w.endKeepers(t)
	})
	return w
}

// addMaps adds the layer with the blobs' chunk maps.
func (w *world) addMaps(t testing.TB) {
	t.Helper()
	var out bytes.Buffer
	layer := tar.NewWriter(&out)
	for _, b := range w.img.Blobs {
		data, err := os.ReadFile(w.origin.path(b.Digest))
		check(t, err)
		cutter := chunkmap.NewCutter()
		_, err = cutter.Write(data)
		check(t, err)
		encoded := cutter.Map(b.Digest).Encode()
		check(t, layer.WriteHeader(&tar.Header{Name: chunkmap.FileName(b.Digest), Size: int64(len(encoded)), Mode: 0o444}))
		_, err = layer.Write(encoded)
		check(t, err)
	}
	check(t, layer.Close())
	d := digest.FromBytes(out.Bytes())
	check(t, os.WriteFile(w.origin.path(d), out.Bytes(), 0o600))
	w.maps = &peer.MapRef{Layer: d, Size: int64(out.Len())}
}

func (w *world) addFramework(t testing.TB, b *bootstrap.Builder, tree *bootstrap.Tree, kind bootstrap.Compressor) {
	t.Helper()
	var out bytes.Buffer
	p, err := bootstrap.NewPacker(&out, chunkSize, kind, nil)
	check(t, err)
	defer p.Close()
	add := func(name string, mode uint32, data []byte) {
		n := &bootstrap.Inode{Mode: bootstrap.TypeRegular | mode, Mtime: 1, Size: int64(len(data))}
		if strings.HasSuffix(name, "0") {
			n.Xattrs = map[string]string{"user.note": "of " + name}
		}
		check(t, p.Add(n, bytes.NewReader(data)))
		check(t, tree.Add(name, n))
		w.files[name] = data
	}
	for i := range 100 {
		add(fmt.Sprintf("fw%d/small/f%03d", kind, i), 0o644, append(fmt.Appendf(nil, "file %d of %d ", i, kind), noise(uint64(i), i*50)...))
	}
	for i := range 4 {
		add(fmt.Sprintf("fw%d/lib%d.so", kind, i), 0o755, slices.Concat(bytes.Repeat([]byte("text "), 40<<10), noise(uint64(kind)<<8|uint64(i), 600<<10+i)))
	}
	if kind == bootstrap.Zstd {
		self, err := os.ReadFile("/bin/true")
		check(t, err)
		add("fw3/true", 0o755, self)
	}
	packed, err := p.Finish()
	check(t, err)
	b.Add(packed)
	check(t, os.WriteFile(w.origin.path(packed.Blob.Digest), out.Bytes(), 0o600))
}

func (w *world) addModel(t testing.TB, b *bootstrap.Builder, tree *bootstrap.Tree, size int) {
	t.Helper()
	data := noise(77, size)
	var chunks []bootstrap.Chunk
	blob := bootstrap.Blob{Digester: bootstrap.Blake3}
	var places []uint32
	for off := 0; off < size; off += chunkSize {
		part := data[off:min(off+chunkSize, size)]
		chunks = append(chunks, bootstrap.Chunk{Index: uint32(off / chunkSize), Digest: [32]byte(piece.HashGroup(part)), Offset: int64(off),
			Length: uint32(len(part)), DeviceOffset: int64(off), Size: uint32(len(part)), FileOffset: int64(off)})
	}
	end := (int64(size) + 4095) / 4096 * 4096
	stored := slices.Concat(data, make([]byte, end-int64(size)), bootstrap.Table(end, slices.Values(chunks)))
	blob.Digest, blob.Size, blob.TableOffset, blob.DeviceSize, blob.ChunkCount = digest.FromBytes(stored), int64(len(stored)), end, end, uint32(len(chunks))
	places = b.AddBlob(blob, slices.Values(chunks))
	check(t, os.WriteFile(w.origin.path(blob.Digest), stored, 0o600))
	check(t, tree.Add("models/model.bin", &bootstrap.Inode{Mode: bootstrap.TypeRegular | 0o644, Mtime: 1, Size: int64(size), Chunks: places}))
	w.files["models/model.bin"] = data
}

// model is the digest of the model's blob.
func (w *world) model() digest.Digest { return w.img.Blobs[len(w.img.Blobs)-1].Digest }

// node is a driver over a peer, as a daemon has them.
type node struct {
	Mounter
	driver *Driver // nil with FUSE
	peer   *peer.Peer
	store  *store.Store
	stop   func() error // ends the driver and the peer
}

func (w *world) keeper() keeper.Config {
	self, err := os.Executable()
	if err != nil {
		panic(err)
	}
	return keeper.Config{Socket: filepath.Join(w.dir, "keeper.sock"), Command: []string{"/usr/bin/env", "LAZY_TEST=keeper", "LAZY_WORLD=" + w.dir, self}, Stderr: os.Stderr}
}

// noKeeper is for a node that lives as long as its mounts.
func (w *world) noKeeper() keeper.Config { return keeper.Config{} }

// allWhole reports whether nothing is missing of any device.
func (n *node) allWhole() bool {
	n.driver.mu.Lock()
	defer n.driver.mu.Unlock()
	for _, dev := range n.driver.devices {
		if !dev.whole.Load() {
			return false
		}
	}
	return true
}

// start returns a node that runs.
func (w *world) start(ctx context.Context, k keeper.Config, log io.Writer) (*node, error) {
	logger := slog.New(slog.NewTextHandler(log, nil))
	st, err := store.Open(filepath.Join(w.dir, "store"), store.Config{MaxBytes: w.quota})
	if err != nil {
		return nil, err
	}
	wire, err := transfer.NewClient(transfer.ClientConfig{})
	if err != nil {
		return nil, err
	}
	o := w.origin
	o.pace, o.upto = w.pace, w.upto
	p, err := peer.New(peer.Config{Log: logger}, st, wire, o, nil)
	if err != nil {
		return nil, err
	}
	n := &node{peer: p, store: st}
	kind := EROFS
	if w.fuse {
		kind = FUSE
	}
	if n.Mounter, _, err = Open(ctx, kind, Config{Dir: filepath.Join(w.dir, "lazy"), Keeper: k, Room: st, Log: logger}); err != nil {
		return nil, err
	}
	n.driver, _ = n.Mounter.(*Driver)
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var tasks sync.WaitGroup
	errs := make([]error, 2)
	tasks.Go(func() { errs[0] = p.Run(ctx) })
	tasks.Go(func() { errs[1] = n.Run(ctx) })
	n.stop = sync.OnceValue(func() error {
		cancel()
		tasks.Wait()
		err := n.Close()
		wire.Close()
		for _, e := range append(errs, st.Close()) {
			if e != nil {
				err = e
			}
		}
		return err
	})
	return n, nil
}

// node starts a node that ends with the test.
func (w *world) node(t testing.TB, log io.Writer) *node {
	t.Helper()
	n, err := w.start(t.Context(), w.noKeeper(), log)
	check(t, err)
	t.Cleanup(func() {
		check(t, n.stop())
	})
	return n
}

func (w *world) image(n *node, ahead Prefetch) Image {
	return Image{Name: "example.com/image:tag", Bootstrap: w.boot, Blobs: sources{n.peer, w.maps}, Prefetch: ahead}
}

// spec is what a daemon in a process of its own has to know.
type spec struct {
	Dir, Boot, Target string
	Pace              time.Duration
	Upto              int64
	Ahead             Prefetch
	Maps              *peer.MapRef
	Fuse              bool
}

// runDaemon mounts the image and serves it until it is killed or its input ends.
func runDaemon(args []string) error {
	var s spec
	if err := json.Unmarshal([]byte(args[0]), &s); err != nil {
		return err
	}
	w := &world{dir: s.Dir, origin: origin{dir: filepath.Join(s.Dir, "origin")}, boot: s.Boot, target: s.Target, pace: s.Pace, upto: s.Upto, maps: s.Maps, fuse: s.Fuse}
	n, err := w.start(context.Background(), w.keeper(), os.Stderr)
	if err != nil {
		return err
	}
	if err := n.Mount(context.Background(), w.image(n, s.Ahead), w.target); err != nil {
		return err
	}
	n.Settled()
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, os.Stdin) // until the test lets go
	return n.stop()
}

// daemon is a node in a process of its own.
type daemon struct {
	cmd   *exec.Cmd
	stdin io.Closer
}

// daemon starts a daemon and waits until it has mounted the image.
func (w *world) daemon(t testing.TB, ahead Prefetch) *daemon {
	t.Helper()
	arg, err := json.Marshal(spec{Dir: w.dir, Boot: w.boot, Target: w.target, Pace: w.pace, Upto: w.upto, Ahead: ahead, Maps: w.maps, Fuse: w.fuse})
	check(t, err)
	cmd := self(t, "daemon", string(arg))
	if w.log != nil {
		cmd.Stderr = w.log
	}
	for range w.opened {
		null, err := os.Open(os.DevNull)
		check(t, err)
		defer null.Close()
		cmd.ExtraFiles = append(cmd.ExtraFiles, null)
	}
	stdin, err := cmd.StdinPipe()
	check(t, err)
	out, err := cmd.StdoutPipe()
	check(t, err)
	check(t, cmd.Start())
	d := &daemon{cmd, stdin}
	t.Cleanup(func() { d.kill() })
	line := make([]byte, 6)
	if _, err := io.ReadFull(out, line); err != nil {
		t.Fatalf("daemon is not ready: %v", err)
	}
	return d
}

func (d *daemon) kill() {
	_ = d.cmd.Process.Kill() // it may have ended
	_ = d.cmd.Wait()         // killed
}

// self returns a command that is this binary in one of its modes. It is killed when the test hangs.
func self(t testing.TB, mode string, args ...string) *exec.Cmd {
	t.Helper()
	path, err := os.Executable()
	check(t, err)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 2*time.Minute)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = append(os.Environ(), "LAZY_TEST="+mode)
	cmd.Stderr = os.Stderr
	return cmd
}

// keepers returns the processes that keep the world's group.
func (w *world) keepers() (out []int) {
	environs, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, name := range environs {
		data, err := os.ReadFile(name)
		if err != nil || !slices.Contains(strings.Split(string(data), "\x00"), "LAZY_WORLD="+w.dir) {
			continue // or it has gone
		}
		if pid, err := strconv.Atoi(strings.Split(name, "/")[2]); err == nil {
			out = append(out, pid)
		}
	}
	return out
}

// endKeepers kills all keepers of the world at once and waits until they have gone.
func (w *world) endKeepers(t testing.TB) {
	t.Helper()
	pids := w.keepers()
	for _, signal := range []syscall.Signal{syscall.SIGSTOP, syscall.SIGKILL} {
		for _, pid := range pids {
			if err := syscall.Kill(pid, signal); err != nil && !errors.Is(err, syscall.ESRCH) {
				t.Error(err)
			}
		}
	}
	eventually(t, "keepers have gone", func() bool { return len(w.keepers()) == 0 })
}
