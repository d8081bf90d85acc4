package converter

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/shoal-project/shoal/converter/bootstrap"
	"github.com/shoal-project/shoal/converter/repository"
	"github.com/shoal-project/shoal/converter/source"
	"golang.org/x/sync/errgroup"
)

// Config says what to convert. Target is required, and either Model and Base or Image.
type Config struct {
	Model string // where the model is, see source.Open
	Base  string // image reference, oci:FOLDER[:TAG] or docker-archive:FILE
	// Image is one that is given its Nydus variant as it is, without a model. Its plain manifests stay what they are.
	Image  string
	Target string // REGISTRY/NAME:TAG or oci:FOLDER[:TAG]
	// Previous is an image made before: what the base's layers have in common with it is not stored again.
	Previous string

	// Source says how the model is read and which of its files are wanted.
	Source source.Config
	// Access says how registries are spoken to.
	Access Access

	// Name is that of the model; default: what its source calls it.
	Name string
	// ModelPath is the folder in the image; default /models/NAME.
	ModelPath string
	// Platforms are os/arch[/variant]; default: all the base has.
	Platforms []string
	// Entrypoint, Cmd, Env, User and Labels change the base's; see image.Settings.
	Entrypoint, Cmd, Env []string
	User                 string
	Labels               map[string]string
	// Annotations are those of the index and of all manifests made.
	Annotations map[string]string
	// Compressor of the base's files in the Nydus variant: zstd, which is the default, lz4_block or none.
	Compressor string
	// ModelPack adds the model alone as a third manifest.
	ModelPack bool
	// AnyFormat takes model files whose header contradicts them.
	AnyFormat bool
	// DryRun computes everything, asks the target whether it may be written, and writes nothing.
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
}

// Stage is one of the kinds of work that take time, and go on at once.
type Stage int

// The stages.
const (
	Read Stage = iota // model files, hashed; of other commands than convert, whatever is read
	Base              // layers of the base image, or of the one that is converted
	Push              // blobs, uploaded or found at the target
)

// Progress is told what Convert does. Its methods are called concurrently.
type Progress interface {
	// Step announces what begins in a stage, in a few words; what was announced before goes on at once, or is over.
	Step(s Stage, text string)
	// Ended says that a step is over which others may outlast.
	Ended(s Stage, text string)
	// Plan adds n bytes to what a stage has to do.
	Plan(s Stage, n int64)
	// Done adds n bytes to what a stage has done; n is negative when an upload starts over.
	Done(s Stage, n int64)
}

// Result is what was made.
type Result struct {
	Target     string        `json:"target"`
	Digest     digest.Digest `json:"digest"` // of the index
	Variants   []Variant     `json:"variants"`
	ModelPack  digest.Digest `json:"modelpack,omitempty"` // of its manifest
	Source     string        `json:"source,omitempty"`
	Revision   string        `json:"revision,omitempty"` // what the source's name stood for
	ModelPath  string        `json:"model_path,omitempty"`
	ModelFiles int           `json:"model_files"`
	ModelBytes int64         `json:"model_bytes"`
	Layers     []Layer       `json:"layers"`
	// Kept are the manifests of the image's index that stay as they were: attestations, the model alone.
	Kept   []digest.Digest `json:"kept,omitempty"`
	Pushed bool            `json:"pushed"`
}

// Variant are the manifests for one platform.
type Variant struct {
	Platform string        `json:"platform"`
	Plain    digest.Digest `json:"plain"`
	Nydus    digest.Digest `json:"nydus"`
}

// Layer is one blob of the image.
type Layer struct {
	Kind   string        `json:"kind"` // base, framework, model or bootstrap
	Digest digest.Digest `json:"digest"`
	Size   int64         `json:"size"`
	Of     string        `json:"of,omitempty"` // the large file it holds, how many small ones, or the platform
	// Outcome is what became of it: sent, mounted from another repository, or present; empty in a dry run.
	Outcome repository.Outcome `json:"outcome,omitempty"`
}

// setDefaults fills in what was left empty.
func (c *Config) setDefaults() {
	if c.Uploads == 0 {
		c.Uploads = 3
	}
	if c.Compressor == "" {
		c.Compressor = compressorZstd
	}
	if c.Progress == nil {
		c.Progress = silent{}
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Access.Logger == nil {
		c.Access.Logger = c.Logger
	}
}

// Validate fills in defaults and reports all faults at once, of class ErrConfig.
func (c *Config) Validate() error {
	c.setDefaults()
	faults := c.missing()
	if strings.ContainsAny(c.Name, "/\x00") || c.Name == "." || c.Name == ".." {
		faults = append(faults, fmt.Errorf("--name %q: want one path component", c.Name))
	}
	if c.ModelPath != "" {
		faults = appendFault(faults, checkModelPath(c.ModelPath))
	}
	for _, p := range c.Platforms {
		if _, err := source.ParsePlatform(p); err != nil {
			faults = append(faults, fmt.Errorf("--platform %q: want os/architecture, such as linux/amd64", p))
		}
	}
	faults = append(faults, c.checkSettings()...)
	if _, ok := compressors[c.Compressor]; !ok {
		faults = append(faults, fmt.Errorf("--compressor %q: want zstd, lz4_block or none", c.Compressor))
	}
	faults = appendFault(faults, c.Source.Validate())
	if c.Target != "" {
		_, err := c.target()
		faults = appendFault(faults, err)
	}
	if len(faults) == 0 {
		return nil
	}
	return &classified{ErrConfig, errors.Join(faults...)}
}

// checkSettings reports what no image configuration should hold.
func (c *Config) checkSettings() []error {
	var faults []error
	odd := func(r rune) bool { return unicode.IsSpace(r) || !unicode.IsPrint(r) }
	for _, kv := range c.Env {
		if name, value, ok := strings.Cut(kv, "="); !ok || name == "" || strings.ContainsFunc(name, odd) || strings.ContainsRune(value, 0) {
			faults = append(faults, fmt.Errorf("--env %q: want NAME=VALUE, without spaces in the name", kv))
		}
	}
	user, group, hasGroup := strings.Cut(c.User, ":")
	if c.User != "" && (user == "" || hasGroup && group == "" || strings.Contains(group, ":") || strings.ContainsFunc(c.User, odd)) {
		faults = append(faults, fmt.Errorf("--user %q: want USER or USER:GROUP, without spaces, such as 1000:1000", c.User))
	}
	for flag, pairs := range map[string]map[string]string{"--label": c.Labels, "--annotation": c.Annotations} {
		for name := range pairs {
			if name == "" || strings.ContainsFunc(name, odd) {
				faults = append(faults, fmt.Errorf("%s %q: want NAME=VALUE, without spaces in the name", flag, name+"="+pairs[name]))
			}
		}
	}
	return faults
}

func appendFault(faults []error, err error) []error {
	if err == nil {
		return faults
	}
	return append(faults, err)
}

// missing reports what is required and not there, and what contradicts each other.
func (c *Config) missing() []error {
	type need struct{ name, value, example string }
	needs := []need{{"--target", c.Target, "REGISTRY/NAME:TAG or oci:FOLDER:TAG"}}
	if c.Image == "" {
		needs = append([]need{
			{"--model", c.Model, "a folder, a file, -, hf://ORG/NAME, s3://BUCKET/PREFIX, https://… or oci://REF"},
			{"--base", c.Base, "REGISTRY/NAME:TAG, oci:FOLDER or docker-archive:FILE; or give --image alone"},
		}, needs...)
	}
	var faults []error
	for _, n := range needs {
		if n.value == "" {
			faults = append(faults, fmt.Errorf("%s is missing: give it %s", n.name, n.example))
		}
	}
	if c.Image == "" {
		return faults
	}
	for _, other := range []struct {
		flag string
		set  bool
	}{
		{"--model", c.Model != ""}, {"--base", c.Base != ""}, {"--modelpack", c.ModelPack}, {"--name", c.Name != ""},
		{"--model-path", c.ModelPath != ""}, {"--entrypoint", c.Entrypoint != nil}, {"--cmd", c.Cmd != nil},
		{"--env", c.Env != nil}, {"--user", c.User != ""}, {"--label", len(c.Labels) > 0},
	} {
		if other.set {
			faults = append(faults, fmt.Errorf("%s does not go with --image, which is taken as it is", other.flag))
		}
	}
	return faults
}

func checkModelPath(p string) error {
	if !path.IsAbs(p) || path.Clean(p) != p || p == "/" {
		return fmt.Errorf("--model-path %q: want an absolute path below /, such as /models/llama", p)
	}
	if !utf8.ValidString(p) || strings.ContainsRune(p, 0) || strings.Contains(p, "/.wh.") {
		return fmt.Errorf("--model-path %q: want UTF-8 without names that begin with .wh., which hide files", p)
	}
	return nil
}

// target reads where the image goes.
func (c *Config) target() (repository.Reference, error) {
	r, err := newPlaces(c.Access).parse("--target", c.Target)
	switch {
	case err != nil:
		return r, err
	case r.Digest != "":
		return r, fmt.Errorf("--target %s names a digest; give it a tag, such as :v1", c.Target)
	case r.Tag == "":
		return r, fmt.Errorf("--target %s has no tag; add one, such as %s:v1", c.Target, c.Target)
	}
	return r, nil
}

type silent struct{}

func (silent) Step(Stage, string)  {}
func (silent) Ended(Stage, string) {}
func (silent) Plan(Stage, int64)   {}
func (silent) Done(Stage, int64)   {}

// conversion is one Convert under way.
type conversion struct {
	cfg    *Config
	places *places
	target repository.Reference
	sink   sink
	// asks: the sink is worth asking for a blob before it is made again from the source.
	asks bool
	temp string

	uploads errgroup.Group
	fail    context.CancelCauseFunc

	images source.Images        // where the base or the image is
	others []ocispec.Descriptor // manifests of its index that are no images

	model  *source.Model // nil for an image that is taken as it is
	layers []*modelLayer
	files  int
	bytes  int64
}

// Convert makes the image and, unless it is a dry run, writes it to the target. It validates the configuration first.
func Convert(ctx context.Context, cfg Config) (*Result, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	c, err := newConversion(&cfg)
	if err != nil {
		return nil, err
	}
	if cfg.DryRun {
		if err := foresee(ctx, c.places.at(c.target), c.target, cfg.Progress); err != nil {
			return nil, err
		}
	}
	defer c.closeModel()
	if err := c.openModel(ctx); err != nil {
		return nil, err
	}
	platforms, err := c.openBases(ctx)
	if err != nil {
		return nil, err
	}
	temp, err := newTempFolder(cfg.TempDir)
	if err != nil {
		return nil, fmt.Errorf("temporary folder: %w; set TMPDIR to a folder that can be written", err)
	}
	c.temp = temp.path
	defer func() {
		if err := temp.remove(); err != nil {
			cfg.Logger.WarnContext(ctx, "temporary folder stays", "error", err)
		}
	}()
	if err := c.read(ctx, platforms); err != nil {
		return nil, err
	}
	return c.finish(ctx, platforms)
}

func newConversion(cfg *Config) (*conversion, error) {
	target, err := cfg.target()
	if err != nil {
		return nil, &classified{ErrConfig, err}
	}
	c := &conversion{cfg: cfg, places: newPlaces(cfg.Access), target: target}
	c.sink, c.asks = c.places.at(target), !target.IsLayout()
	if cfg.DryRun {
		c.sink, c.asks = repository.Discard{}, false
	}
	return c, nil
}

// openModel finds the model and decides what it is called.
func (c *conversion) openModel(ctx context.Context) error {
	cfg := c.cfg
	if cfg.Image != "" {
		return nil
	}
	cfg.Progress.Step(Read, "open "+cfg.Model)
	m, err := source.Open(ctx, cfg.Model, cfg.Source)
	if err != nil {
		return sourceError(err)
	}
	c.model = m
	if cfg.Name == "" {
		cfg.Name = m.Name
	}
	if cfg.ModelPath == "" {
		if cfg.Name == "" {
			return classify(ErrConfig, "--model %s has no name of its own: give it one with --name", m.Ref)
		}
		cfg.ModelPath = "/models/" + cfg.Name
	}
	if err := checkModelPath(cfg.ModelPath); err != nil {
		return &classified{ErrConfig, err}
	}
	return nil
}

func (c *conversion) closeModel() {
	if c.model != nil {
		_ = c.model.Close() // it was only read
	}
}

// openBases finds the base image, or the image to be converted, for each platform.
func (c *conversion) openBases(ctx context.Context) ([]*platform, error) {
	flag, ref := "--base", c.cfg.Base
	if c.model == nil {
		flag, ref = "--image", c.cfg.Image
	}
	c.cfg.Progress.Step(Base, "open "+ref)
	images, tag, err := c.places.images(flag, ref)
	if err != nil {
		return nil, err
	}
	bases, others, err := source.OpenBases(ctx, images, ref, tag, c.cfg.Platforms)
	if err != nil {
		return nil, c.baseError(flag, ref, err)
	}
	c.images, c.others = images, others
	var out []*platform
	for _, base := range bases {
		if c.model == nil && len(base.Manifest.Layers) == 0 {
			return nil, classify(ErrSource, "image %s has no layers for %s, so there is nothing to mount; to put a model into it give it as --base, with --model",
				ref, base.Platform)
		}
		p := newPlatform(c, base, ref)
		if registry, ok := images.(*repository.Registry); ok {
			from := registry.Repository()
			p.from = &from
		}
		out = append(out, p)
	}
	if err := c.openPrevious(ctx, out); err != nil {
		return nil, err
	}
	return out, c.openOwn(ctx, tag, out)
}

// read reads and merges everything, and starts the uploads. What fails first cancels the rest.
func (c *conversion) read(ctx context.Context, platforms []*platform) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	c.uploads.SetLimit(c.cfg.Uploads)
	c.fail = cancel
	for _, p := range platforms {
		for _, l := range p.base.Manifest.Layers {
			c.cfg.Progress.Plan(Base, l.Size)
		}
	}
	var reading errgroup.Group
	start := func(f func() error) {
		reading.Go(func() error { return c.failing(f()) })
	}
	start(func() error {
		for _, p := range platforms {
			if err := p.readBase(ctx); err != nil {
				return err
			}
		}
		return nil
	})
	if c.model != nil {
		start(func() error { return c.readModel(ctx) })
	}
	err := reading.Wait()
	c.cfg.Progress.Step(Push, "push blobs")
	for _, p := range platforms {
		if err == nil {
			err = c.failing(p.addModel(c.layers))
		}
	}
	if uerr := c.uploads.Wait(); err == nil {
		err = uerr
	}
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	for _, m := range c.layers {
		if err == nil {
			m.forget()
		}
	}
	return err
}

// failing cancels everything when err is not nil, which it returns.
func (c *conversion) failing(err error) error {
	if err != nil {
		c.fail(err)
	}
	return err
}

// upload brings a blob to the target in the background and records what became of it.
func (c *conversion) upload(ctx context.Context, b repository.Blob, record *Layer, done func()) {
	c.uploads.Go(func() error {
		if done != nil {
			defer done()
		}
		return c.failing(c.push(ctx, b, record))
	})
}

func (c *conversion) push(ctx context.Context, b repository.Blob, record *Layer) error {
	c.cfg.Progress.Plan(Push, b.Size)
	b.Progress = func(n int64) { c.cfg.Progress.Done(Push, n) }
	outcome, err := c.sink.Push(ctx, b)
	if err != nil {
		return c.pushError(fmt.Sprintf("push blob %s (%d bytes)", b.Digest, b.Size), err)
	}
	if record != nil && !c.cfg.DryRun {
		record.Outcome = outcome
	}
	return nil
}

// compressors are the names by which those of the Nydus variant are chosen; nydus-image has the same.
var compressors = map[string]bootstrap.Compressor{compressorZstd: bootstrap.Zstd, "lz4_block": bootstrap.LZ4, "none": bootstrap.None}

const compressorZstd = "zstd"
