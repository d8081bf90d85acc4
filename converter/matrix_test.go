package converter_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/opencontainers/go-digest"
	"github.com/shoal-project/shoal/converter"
	"github.com/shoal-project/shoal/converter/source"
)

// judgement is an image for the judges. What its containers print is compared by output.
type judgement struct {
	*judged
	name    string
	command []string // of the container; nil for that of the image
	large   bool     // it is shown to few, since it takes long
	output  func(t *testing.T, out string)
	// sameAs names an image with the same plain variant, which is not judged again.
	sameAs string
}

// judgements converts one image of each kind into the registry.
func judgements(t *testing.T, registry string) []*judgement {
	t.Helper()
	model := writeModel(t, time.Now(), 0o600)
	want := sums(t, model)
	base := runnableBase(t)
	arm, err := base.ConfigFile()
	check(t, err)
	arm = arm.DeepCopy()
	arm.Architecture = "arm64"
	armBase, err := mutate.ConfigFile(base, arm)
	check(t, err)
	// One RAFS chunk of the new file is in the first image, the other is not.
	newer := withLayers(t, base, tarOf(t, dir("usr"), dir("usr/lib"), file("usr/lib/new", strings.Repeat("library ", 1<<17)+string(noise(5, 1<<20)))))
	layout := writeLayout(t, base)
	var out []*judgement
	add := func(name, sameAs string, cfg converter.Config) *judgement {
		j := &judgement{name: name, sameAs: sameAs, judged: &judged{registry: registry, model: want}}
		j.target = registry + "/ml/" + strings.ReplaceAll(name, " ", "-") + ":v1"
		j.output = j.wantOutput
		cfg.Target = j.target
		if cfg.Image == "" && cfg.Model == "" {
			cfg.Model = model
		}
		if cfg.Image == "" && cfg.Base == "" {
			cfg.Base = layout
		}
		j.result, err = converter.Convert(t.Context(), cfg)
		check(t, err)
		out = append(out, j)
		return j
	}
	first := add("zstd", "", converter.Config{})
	add("lz4_block", "zstd", converter.Config{Compressor: "lz4_block"})
	add("none", "zstd", converter.Config{Compressor: "none"})
	add("stdin tar", "zstd", converter.Config{Model: "-", Name: "tiny", Source: source.Config{Stdin: bytes.NewReader(tarFolder(t, model))}})
	add("previous", "", converter.Config{Base: writeLayout(t, newer), Previous: first.target})
	add("platforms", "", converter.Config{Base: writeLayout(t, base, armBase)})
	debian := add("image", "", converter.Config{Image: writeLayout(t, debianBase(t))})
	debian.model = map[string]string{}
	debian.command, debian.large = []string{"/bin/cat", "/etc/os-release"}, true
	debian.output = func(t *testing.T, out string) {
		if !strings.Contains(out, "Debian") {
			t.Errorf("a container printed %q", out)
		}
	}
	return out
}

// TestRootJudges shows each kind of image to each tool of the field. docs/compatibility.md has its table.
func TestRootJudges(t *testing.T) {
	needRoot(t)
	registry := dockerRegistry(t)
	images := judgements(t, registry)
	t.Run("plain variant", func(t *testing.T) {
		for _, runner := range []struct {
			name  string
			start func(t *testing.T) func(t *testing.T, j *judgement) string
			few   bool // it gets no large image
		}{
			{"podman", startPodman, true}, {"docker", startDocker, false},
			{"containerd 1", func(t *testing.T) func(*testing.T, *judgement) string {
				return startContainerd(t, "/usr/bin/containerd", "1.")
			}, true},
			{"containerd 2", func(t *testing.T) func(*testing.T, *judgement) string {
				return startContainerd(t, need(t, "containerd"), "2.")
			}, false},
		} {
			t.Run(runner.name, func(t *testing.T) {
				printed := runner.start(t)
				for _, j := range images {
					if j.sameAs == "" && !(runner.few && j.large) {
						t.Run(j.name, func(t *testing.T) { j.output(t, printed(t, j)) })
					}
				}
			})
		}
	})
	plain := map[string]digest.Digest{}
	for _, j := range images {
		plain[j.name] = j.result.Variants[0].Plain
		if j.sameAs != "" && plain[j.sameAs] != plain[j.name] {
			t.Errorf("%s has the plain manifest %s, %s has %s", j.name, plain[j.name], j.sameAs, plain[j.sameAs])
		}
		t.Run(j.name, j.judgeNydus)
	}
	nydus := images[0].fetchNydus(t)
	t.Run("nydus-snapshotter finds the Nydus variant", func(t *testing.T) { images[0].detect(t, nydus) })
	t.Run("nydus-image inspect shows the prefetch table", func(t *testing.T) { images[0].inspect(t, nydus) })
}

// judgeNydus shows the Nydus variants to whoever reads such.
func (j *judgement) judgeNydus(t *testing.T) {
	for _, made := range j.result.Variants {
		v := j.fetchVariant(t, made)
		out := run(t, nil, need(t, "nydus-image"), "check", "--bootstrap", v.bootstrap)
		if !strings.Contains(out, "valid") {
			t.Errorf("nydus-image says of %s: %s", made.Platform, out)
		}
		j.chunkMaps(t, v)
	}
	nydus := j.fetchNydus(t)
	if !j.large { // TestRootEveryReaderShowsTheSameImage shows umoci such a base
		t.Run("skopeo and umoci unpack what the kernel mounts", func(t *testing.T) { j.umociAndKernel(t, nydus) })
	}
	t.Run("nydusd with blobs in a folder", func(t *testing.T) {
		j.nydusd(t, nydus, map[string]any{"type": "localfs", "config": map[string]any{"dir": nydus.blobs}})
	})
	t.Run("nydusd with a registry", func(t *testing.T) { j.nydusd(t, nydus, registryBackend(j.registry, j.repo())) })
}

// inspect compares the prefetch table as nydus-image reads it with the order of loaders.
func (j *judged) inspect(t *testing.T, v *nydusVariant) {
	out := run(t, nil, need(t, "nydus-image"), "inspect", "--request", "prefetch", v.bootstrap)
	last := -1
	for _, name := range []string{"config.json", "vocab.txt", "weights.bin"} {
		at := strings.Index(out, name)
		if at <= last {
			t.Errorf("%s is not where it should be in %s", name, out)
		}
		last = at
	}
}

func startPodman(t *testing.T) func(t *testing.T, j *judgement) string {
	podman, global := podmanStore(t)
	return func(t *testing.T, j *judgement) string {
		run(t, nil, podman, append(global, "pull", "--quiet", "--tls-verify=false", j.target)...)
		return run(t, nil, podman, append(global, "run", "--rm", "--network=none", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=512:512", j.target)...)
	}
}

func startDocker(t *testing.T) func(t *testing.T, j *judgement) string {
	docker, env := dockerDaemon(t)
	return func(t *testing.T, j *judgement) string {
		run(t, env, docker, "pull", "--quiet", j.target)
		args := []string{"run", "--rm", "--network=none", j.target}
		if len(j.command) > 0 {
			args = append([]string{"run", "--rm", "--network=none", "--entrypoint", j.command[0], j.target}, j.command[1:]...)
		}
		return run(t, env, docker, args...)
	}
}

func startContainerd(t *testing.T, path, major string) func(t *testing.T, j *judgement) string {
	path = need(t, path)
	if out := run(t, nil, path, "--version"); !strings.Contains(out, " "+major) && !strings.Contains(out, " v"+major) {
		if os.Getenv("REQUIRE_TOOLS") == "1" {
			t.Fatalf("%s is not version %s: %s", path, major, out)
		}
		t.Skipf("SKIPPED: %s is not version %s: %s", path, major, out)
	}
	dir := t.TempDir()
	config := filepath.Join(dir, "config.toml")
	check(t, os.WriteFile(config, fmt.Appendf(nil, `version = 2
root = %q
state = %q
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", "io.containerd.internal.v1.opt"]
[grpc]
address = %q
`, dir+"/root", dir+"/state", dir+"/s"), 0o600))
	env := []string{"PATH=" + filepath.Dir(path) + ":/usr/sbin:/usr/bin:/sbin:/bin"}
	daemon(t, path, env, "--config", config)
	ctr := []string{"--address", dir + "/s"}
	bin := filepath.Join(filepath.Dir(path), "ctr")
	eventually(t, path, func() bool { return exec.Command(bin, append(ctr, "version")...).Run() == nil })
	return func(t *testing.T, j *judgement) string {
		run(t, env, bin, append(ctr, "images", "pull", "--plain-http", j.target)...)
		args := append(ctr, "run", "--rm", j.target, "judge-"+filepath.Base(j.repo()))
		return run(t, env, bin, append(args, j.command...)...)
	}
}
