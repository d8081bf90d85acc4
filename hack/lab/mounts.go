package main

import (
	"archive/tar"
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/shoal-project/shoal/hack/lab/cluster"
)

// nydusVariant is the Nydus variant of an image as a host reads it: from the registry, or through its mirror.
type nydusVariant struct {
	host       *cluster.Host
	server     string // host and port of the mirror or registry
	registry   string // that the mirror is asked for; "" when the server is the registry
	repository string
	manifest   ocispec.Manifest

	name     string // of nydusd's folder and log on the host; "" is nydusd
	mirror   string // URL of a mirror that nydusd is to ask before the server
	prefetch bool   // nydusd fetches all behind what is read
	insecure bool   // the registry need not show a certificate; nydus-snapshotter takes that for plain HTTP
}

// variant is what a node reads through its mirror.
func (d *demo) variant(i int) nydusVariant {
	n := d.nodes[i]
	return nydusVariant{host: n.Host(), server: strings.TrimPrefix(n.MirrorURL(), "http://"), registry: d.registry.Addr(),
		repository: demoRepository, manifest: d.image.nydus}
}

// mountEROFS mounts the variant by the kernel alone: the bootstrap as file system, the blobs as its devices. It returns the mount point.
func (v nydusVariant) mountEROFS(ctx context.Context) (string, error) {
	dir := filepath.Join(v.host.Dir, "erofs")
	mount := filepath.Join(dir, "mount")
	if err := os.MkdirAll(mount, 0o755); err != nil {
		return "", err
	}
	boot, err := v.bootstrap(ctx, dir)
	if err != nil {
		return "", err
	}
	ids, err := deviceTable(boot)
	if err != nil {
		return "", err
	}
	var devices []string
	for _, id := range ids {
		file := filepath.Join(dir, id)
		if err := v.download(ctx, digest.NewDigestFromEncoded(digest.SHA256, id), file); err != nil {
			return "", err
		}
		devices = append(devices, file)
	}
	return mount, cluster.MountEROFS(ctx, boot, devices, mount)
}

// mountNydusd has nydusd mount the variant and puts a writable folder over it. It returns the container's root.
func (v nydusVariant) mountNydusd(ctx context.Context) (string, error) {
	lower, nydusd, err := v.startNydusd(ctx)
	if err != nil {
		return "", err
	}
	if err := nydusd.WaitMounted(ctx, lower); err != nil {
		return "", err
	}
	dir := filepath.Dir(lower)
	root, upper, work := filepath.Join(dir, "root"), filepath.Join(dir, "upper"), filepath.Join(dir, "work")
	for _, folder := range []string{root, upper, work} {
		if err := os.MkdirAll(folder, 0o755); err != nil {
			return "", err
		}
	}
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", lower, upper, work)
	if err := unix.Mount("overlay", root, "overlay", 0, options); err != nil {
		return "", fmt.Errorf("mount overlay on %s: %w", root, err)
	}
	return root, nil
}

// startNydusd starts a nydusd that mounts the variant on the folder lower.
func (v nydusVariant) startNydusd(ctx context.Context) (lower string, nydusd *cluster.Process, err error) {
	name := cmp.Or(v.name, "nydusd")
	dir := filepath.Join(v.host.Dir, name)
	lower, cache := filepath.Join(dir, "lower"), filepath.Join(dir, "cache")
	for _, folder := range []string{lower, cache} {
		if err := os.MkdirAll(folder, 0o755); err != nil {
			return "", nil, err
		}
	}
	boot, err := v.bootstrap(ctx, dir)
	if err != nil {
		return "", nil, err
	}
	config, err := json.Marshal(v.nydusdConfig(cache))
	if err != nil {
		return "", nil, err
	}
	configFile := filepath.Join(dir, "config.json")
	if err := os.WriteFile(configFile, config, 0o600); err != nil {
		return "", nil, err
	}
	nydusd, err = v.host.Start(name, []string{
		"nydusd", "fuse", "--config", configFile, "--bootstrap", boot, "--mountpoint", lower,
		"--rlimit-nofile", "0", "--log-level", "warn",
	}, nil)
	return lower, nydusd, err
}

// nydusdConfig points nydusd's registry backend at the server. What it fetches ahead is what nydus-snapshotter has it fetch by default.
func (v nydusVariant) nydusdConfig(cache string) map[string]any {
	type object = map[string]any
	backend := object{
		"scheme": "http", "host": v.server, "repo": v.repository,
		"timeout": 30, "connect_timeout": 5, "retry_limit": 1,
	}
	if v.insecure {
		backend["skip_verify"] = true
	}
	if v.mirror != "" {
		// Without auth_through nydusd asks mirrors only what it has a token for.
		backend["mirrors"] = []object{{"host": v.mirror, "auth_through": true}}
	}
	config := object{
		"device": object{
			"backend": object{"type": "registry", "config": backend},
			"cache":   object{"type": "blobcache", "config": object{"work_dir": cache}},
		},
		"mode":            "direct",
		"digest_validate": false,
	}
	if v.prefetch {
		config["amplify_io"] = 1 << 20
		config["fs_prefetch"] = object{"enable": true, "threads_count": 8, "merging_size": 1 << 20, "prefetch_all": true}
	}
	return config
}

// bootstrap reads the last layer of the manifest, and unpacks the RAFS image into dir.
func (v nydusVariant) bootstrap(ctx context.Context, dir string) (string, error) {
	if len(v.manifest.Layers) == 0 {
		return "", errors.New("the Nydus manifest has no layers")
	}
	layer := v.manifest.Layers[len(v.manifest.Layers)-1]
	packed := filepath.Join(dir, "bootstrap.tar.gz")
	if err := v.download(ctx, layer.Digest, packed); err != nil {
		return "", err
	}
	f, err := os.Open(packed)
	if err != nil {
		return "", err
	}
	defer f.Close()
	zr, err := gzip.NewReader(f)
	if err != nil {
		return "", fmt.Errorf("bootstrap layer %s: %w", layer.Digest, err)
	}
	for tr := tar.NewReader(zr); ; {
		header, err := tr.Next()
		if err != nil {
			return "", fmt.Errorf("bootstrap layer %s: no image/image.boot: %w", layer.Digest, err)
		}
		if path.Clean(header.Name) == "image/image.boot" {
			boot := filepath.Join(dir, "image.boot")
			return boot, writeFile(boot, tr)
		}
	}
}

// download reads a blob into a file and checks its digest.
func (v nydusVariant) download(ctx context.Context, blob digest.Digest, file string) error {
	url := "http://" + v.server + "/v2/" + v.repository + "/blobs/" + blob.String()
	if v.registry != "" {
		url += "?ns=" + v.registry
	}
	body, err := get(ctx, v.host.Client(), url, "")
	if err != nil {
		return err
	}
	defer body.Close()
	verifier := blob.Verifier()
	if err := writeFile(file, io.TeeReader(body, verifier)); err != nil {
		return err
	}
	if !verifier.Verified() {
		return fmt.Errorf("%s: wrong digest", url)
	}
	return nil
}

// Where an EROFS image lists the blobs it reads file data from.
const (
	superOffset    = 1024
	extraDevicesAt = superOffset + 86 // u16, number of devices
	deviceSlotAt   = superOffset + 88 // u16, in units of a slot
	deviceSlotSize = 128
	deviceTagSize  = 64
)

// deviceTable returns the blob ids of an EROFS image in the order in which its device= options have to stand.
func deviceTable(boot string) ([]string, error) {
	f, err := os.Open(boot)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var count, slot [2]byte
	_, errCount := f.ReadAt(count[:], extraDevicesAt)
	_, errSlot := f.ReadAt(slot[:], deviceSlotAt)
	if err := errors.Join(errCount, errSlot); err != nil {
		return nil, fmt.Errorf("super block of %s: %w", boot, err)
	}
	var ids []string
	for i := range int64(binary.LittleEndian.Uint16(count[:])) {
		var tag [deviceTagSize]byte
		if _, err := f.ReadAt(tag[:], (int64(binary.LittleEndian.Uint16(slot[:]))+i)*deviceSlotSize); err != nil {
			return nil, fmt.Errorf("device %d of %s: %w", i, boot, err)
		}
		ids = append(ids, string(bytes.TrimRight(tag[:], "\x00")))
	}
	return ids, nil
}

// inspect reads the index and both manifests straight from the registry.
func inspect(ctx context.Context, r *cluster.Registry, repository, tag string) (pushedImage, error) {
	var image pushedImage
	var index ocispec.Index
	base := "http://" + r.Addr() + "/v2/" + repository + "/manifests/"
	if err := getJSON(ctx, r.Host().Client(), base+tag, ocispec.MediaTypeImageIndex, &index); err != nil {
		return image, err
	}
	for _, desc := range index.Manifests {
		into := &image.plain
		if desc.ArtifactType == artifactTypeNydus {
			into = &image.nydus
		}
		if err := getJSON(ctx, r.Host().Client(), base+desc.Digest.String(), desc.MediaType, into); err != nil {
			return image, err
		}
	}
	if len(image.plain.Layers) == 0 || len(image.nydus.Layers) == 0 {
		return image, fmt.Errorf("index of %s:%s: want a plain and a Nydus manifest, have %d manifests", repository, tag, len(index.Manifests))
	}
	return image, nil
}

func getJSON(ctx context.Context, client *http.Client, url, accept string, into any) error {
	body, err := get(ctx, client, url, accept)
	if err != nil {
		return err
	}
	defer body.Close()
	if err := json.NewDecoder(body).Decode(into); err != nil {
		return fmt.Errorf("%s: %w", url, err)
	}
	return nil
}

func get(ctx context.Context, client *http.Client, url, accept string) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	if accept != "" {
		req.Header.Set("Accept", accept)
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		return nil, fmt.Errorf("%s: %s", url, resp.Status)
	}
	return resp.Body, nil
}

func writeFile(name string, from io.Reader) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := io.Copy(f, from); err != nil {
		return err
	}
	return f.Close()
}

// mounted is a line of mountinfo.
type mounted struct {
	point, kind string
	options     string // of the file system
}

// mountsBelow lists what is mounted at a folder and below it, the oldest first.
func mountsBelow(dir string) ([]mounted, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var out []mounted
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		if len(fields) < 8 || fields[4] != dir && !strings.HasPrefix(fields[4], dir+"/") {
			continue
		}
		out = append(out, mounted{fields[4], fields[len(fields)-3], fields[len(fields)-1]})
	}
	return out, nil
}

// mountedBelow reports whether a file system of a kind, such as fuse, is mounted at a folder or below it.
func mountedBelow(dir, kind string) bool {
	mounts, err := mountsBelow(dir)
	return err == nil && slices.ContainsFunc(mounts, func(m mounted) bool { return m.kind == kind || strings.HasPrefix(m.kind, kind+".") })
}

// sameFiles compares each regular file below source with the one of the same name below mounted, by sha256, and returns how many
// there are.
func sameFiles(source, mounted string) (files int, err error) {
	err = filepath.WalkDir(source, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		name, err := filepath.Rel(source, path)
		if err != nil {
			return err
		}
		want, err := fileDigest(path)
		if err != nil {
			return err
		}
		got, err := fileDigest(filepath.Join(mounted, name))
		if err != nil {
			return err
		}
		if got != want {
			return fmt.Errorf("%s in %s has %s, its source %s", name, mounted, got, want)
		}
		files++
		return nil
	})
	if err == nil && files == 0 {
		err = fmt.Errorf("no file in %s", source)
	}
	return files, err
}

func fileDigest(path string) (digest.Digest, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	return digest.FromReader(f)
}
