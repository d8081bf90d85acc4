package converter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"strings"
	"unicode/utf8"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/opencontainers/go-digest"
	"github.com/shoal-project/shoal/converter/image"
	"github.com/shoal-project/shoal/converter/source"
	"golang.org/x/sync/errgroup"
)

// Config says what to convert. Model, Base and Target are required.
type Config struct {
	Model  string // folder
	Base   string // reference, or oci:FOLDER[:TAG]
	Target string // REGISTRY/NAME:TAG
	// Name is that of the model; default: the last component of Model.
	Name string
	// ModelPath is the folder in the image; default /models/NAME.
	ModelPath string
	// Platform is os/arch[/variant]; default: what the base has, linux/amd64 if it has several.
	Platform string
	// PlainHTTP speaks HTTP to the registries of Base and Target; loopback addresses always get it.
	PlainHTTP bool
	// Entrypoint, Cmd and Env change the base's; see image.Settings.
	Entrypoint, Cmd, Env []string
	// DryRun computes everything and pushes nothing.
	DryRun bool
	// TempDir is where the Nydus blobs of base layers are held until they are uploaded, at most Uploads+1 of them; default:
	// that of the system.
	TempDir string
	// Uploads is how many blobs are uploaded at once; default 3.
	Uploads int
	// Progress is told what happens; nil: nobody.
	Progress Progress
	// Logger gets what is of use when something goes wrong; nil discards.
	Logger *slog.Logger
	// Remote are further options for the registry client, for tests.
	Remote []remote.Option
}

// Stage is one of the two kinds of work that take time.
type Stage int

// The stages.
const (
	Read Stage = iota // base layers and model files, hashed
	Push              // blobs, uploaded or found in the registry
)

// Progress is told what Convert does. Its methods are called concurrently.
type Progress interface {
	// Step announces what begins, in a few words.
	Step(text string)
	// Plan adds n bytes to what a stage has to do.
	Plan(s Stage, n int64)
	// Done adds n bytes to what a stage has done; n is negative when an upload starts over.
	Done(s Stage, n int64)
}

// Result is what was made.
type Result struct {
	Target     string        `json:"target"`
	Digest     digest.Digest `json:"digest"` // of the index
	Plain      digest.Digest `json:"plain"`  // of the manifests
	Nydus      digest.Digest `json:"nydus"`
	Platform   string        `json:"platform"`
	ModelPath  string        `json:"model_path"`
	ModelFiles int           `json:"model_files"`
	ModelBytes int64         `json:"model_bytes"`
	Layers     []Layer       `json:"layers"`
	Pushed     bool          `json:"pushed"`
}

// Layer is one blob of the image.
type Layer struct {
	Kind   string        `json:"kind"` // base, framework, model or bootstrap
	Digest digest.Digest `json:"digest"`
	Size   int64         `json:"size"`
	Of     string        `json:"of,omitempty"` // the large file it holds, or how many small ones
}

// setDefaults fills in what was left empty.
func (c *Config) setDefaults() {
	if c.Name == "" && c.Model != "" {
		if abs, err := filepath.Abs(c.Model); err == nil {
			c.Name = filepath.Base(abs)
		}
	}
	if c.ModelPath == "" && c.Name != "" {
		c.ModelPath = "/models/" + c.Name
	}
	if c.Uploads == 0 {
		c.Uploads = 3
	}
	if c.Progress == nil {
		c.Progress = silent{}
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
}

// Validate fills in defaults and reports all faults at once, of class ErrConfig.
func (c *Config) Validate() error {
	c.setDefaults()
	var faults []error
	for _, need := range []struct{ name, value, example string }{
		{"--model", c.Model, "a folder with model files"},
		{"--base", c.Base, "REGISTRY/NAME:TAG or oci:FOLDER"},
		{"--target", c.Target, "REGISTRY/NAME:TAG"},
	} {
		if need.value == "" {
			faults = append(faults, fmt.Errorf("%s is missing: give it %s", need.name, need.example))
		}
	}
	if strings.ContainsAny(c.Name, "/\x00") || c.Name == "." || c.Name == ".." {
		faults = append(faults, fmt.Errorf("--name %q: want one path component", c.Name))
	} else if err := checkModelPath(c.ModelPath); c.Name != "" && err != nil {
		faults = append(faults, err)
	}
	if _, err := source.ParsePlatform(c.Platform); err != nil {
		faults = append(faults, fmt.Errorf("--platform %q: want os/architecture, such as %s", c.Platform, source.DefaultPlatform))
	}
	for _, kv := range c.Env {
		if name, _, ok := strings.Cut(kv, "="); !ok || name == "" {
			faults = append(faults, fmt.Errorf("--env %q: want NAME=VALUE", kv))
		}
	}
	if c.Target != "" {
		if _, err := c.target(); err != nil {
			faults = append(faults, err)
		}
	}
	if len(faults) == 0 {
		return nil
	}
	return &classified{ErrConfig, errors.Join(faults...)}
}

// checkModelPath refuses paths that a layer's tar cannot carry to one place in the image.
func checkModelPath(p string) error {
	if !path.IsAbs(p) || path.Clean(p) != p || p == "/" {
		return fmt.Errorf("--model-path %q: want an absolute path below /, such as /models/llama", p)
	}
	if !utf8.ValidString(p) || strings.ContainsRune(p, 0) || strings.Contains(p, "/.wh.") {
		return fmt.Errorf("--model-path %q: want UTF-8 without names that begin with .wh., which hide files", p)
	}
	return nil
}

func (c *Config) nameOptions() []name.Option {
	if c.PlainHTTP {
		return []name.Option{name.Insecure}
	}
	return nil
}

// target parses the target, which must name a tag: a forgotten one would silently be "latest".
func (c *Config) target() (name.Tag, error) {
	if scheme, _, ok := strings.Cut(c.Target, "://"); ok {
		return name.Tag{}, fmt.Errorf("--target %s: leave out %s://; registries that speak plain HTTP want --plain-http", c.Target, scheme)
	}
	tag, err := name.NewTag(c.Target, append(c.nameOptions(), name.StrictValidation)...)
	if err == nil {
		return tag, nil
	}
	if _, derr := name.NewDigest(c.Target); derr == nil || strings.Contains(c.Target, "@") {
		return name.Tag{}, fmt.Errorf("--target %s names a digest; give it a tag, such as :v1", c.Target)
	}
	host, rest, _ := strings.Cut(c.Target, "/")
	if rest == "" || !strings.ContainsAny(host, ".:") && host != "localhost" {
		return name.Tag{}, fmt.Errorf("--target %s names no registry: want REGISTRY/NAME:TAG, such as registry.example.com/ml/llama:v1", c.Target)
	}
	if _, werr := name.NewTag(c.Target); werr == nil && !strings.Contains(c.Target[strings.LastIndexByte(c.Target, '/')+1:], ":") {
		return name.Tag{}, fmt.Errorf("--target %s has no tag; add one, such as %s:v1", c.Target, c.Target)
	}
	return name.Tag{}, fmt.Errorf("--target %q: %w", c.Target, err)
}

type silent struct{}

func (silent) Step(string)       {}
func (silent) Plan(Stage, int64) {}
func (silent) Done(Stage, int64) {}

// Convert makes the image and, unless it is a dry run, pushes it. It validates the configuration first.
func Convert(ctx context.Context, cfg Config) (*Result, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	target, err := cfg.target()
	if err != nil {
		return nil, &classified{ErrConfig, err}
	}
	files, err := source.Walk(cfg.Model)
	if err != nil {
		return nil, &classified{ErrSource, err}
	}
	out, err := newSink(&cfg, target)
	if err != nil {
		return nil, err
	}
	base, err := source.OpenBase(ctx, cfg.Base, cfg.Platform, cfg.nameOptions(), remoteOptions(&cfg))
	if err != nil {
		return nil, sourceError(cfg.Base, err)
	}
	temp, err := os.MkdirTemp(cfg.TempDir, "shoal-convert-")
	if err != nil {
		return nil, fmt.Errorf("temporary folder: %w; set TMPDIR to a folder that can be written", err)
	}
	defer func() {
		if err := os.RemoveAll(temp); err != nil {
			cfg.Logger.WarnContext(ctx, "temporary folder stays", "error", err)
		}
	}()

	work, wctx := errgroup.WithContext(ctx)
	work.SetLimit(cfg.Uploads)
	b := &build{cfg: &cfg, base: base, sink: out, temp: temp, work: work, merged: newMerged()}
	err = b.layers(wctx, files)
	if werr := work.Wait(); werr != nil && (err == nil || errors.Is(err, context.Canceled)) {
		err = werr // what failed first canceled the rest
	}
	if err != nil {
		return nil, err
	}
	return b.finish(ctx, target)
}

// finish writes and pushes what names the layers: bootstrap, configurations, manifests and, last of all, the tag.
func (b *build) finish(ctx context.Context, target name.Tag) (*Result, error) {
	cfg := b.cfg
	bootstrap, raw, err := b.bootstrapLayer()
	if err != nil {
		return nil, err
	}
	b.record("bootstrap", bootstrap, "")
	settings := image.Settings{Entrypoint: cfg.Entrypoint, Cmd: cfg.Cmd, Env: cfg.Env, History: b.history}
	plain, err := image.Plain(b.base.Config, settings, append(b.plainBase, b.model...))
	if err != nil {
		return nil, &classified{ErrSource, err}
	}
	layers := append(append(b.framework, b.nydusModel...), bootstrap)
	settings.History = append(b.history, "shoal convert: bootstrap")
	nydus, err := image.Nydus(b.base.Config, settings, layers)
	if err != nil {
		return nil, &classified{ErrSource, err}
	}
	index, err := image.Index(plain, nydus, platformOf(b.base))
	if err != nil {
		return nil, err
	}
	cfg.Progress.Step("push manifests")
	blobs := []blobLayer{
		{desc: bootstrap.Descriptor, open: func() io.ReadCloser { return byteReader(raw) }},
		{desc: plain.Config.Descriptor, open: func() io.ReadCloser { return byteReader(plain.Config.Bytes) }},
		{desc: nydus.Config.Descriptor, open: func() io.ReadCloser { return byteReader(nydus.Config.Bytes) }},
	}
	for i := range blobs {
		if err := b.sink.blob(ctx, &blobs[i]); err != nil {
			return nil, err
		}
	}
	for _, m := range []image.Blob{plain.Manifest, nydus.Manifest} {
		if err := b.sink.manifest(ctx, target.Context().Digest(m.Digest.String()), m); err != nil {
			return nil, err
		}
	}
	if err := b.sink.manifest(ctx, target, index); err != nil {
		return nil, err
	}
	return &Result{
		Target: target.String(), Digest: index.Digest, Plain: plain.Manifest.Digest, Nydus: nydus.Manifest.Digest,
		Platform: b.base.Platform.String(), ModelPath: cfg.ModelPath, ModelFiles: b.modelFiles, ModelBytes: b.modelBytes,
		Layers: b.result, Pushed: !cfg.DryRun,
	}, nil
}
