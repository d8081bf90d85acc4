package source

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	maxManifest = 8 << 20 // bytes
	maxNesting  = 3       // indexes in an index
)

// repository is where an artifact or image is.
type repository struct {
	s      *session
	client *http.Client
	ref    name.Reference
	base   string // URL, with a slash behind
	shown  string // for errors
}

// openOCI reads a model artifact or the files of an image. Everything hangs on the digest of the manifest.
func (s *session) openOCI(ctx context.Context, ref string) (*Model, error) {
	shown := printable(ref)
	spec, query, _ := strings.Cut(strings.TrimPrefix(ref, "oci://"), "?")
	values, err := url.ParseQuery(query)
	if err != nil || len(values) > 1 || len(values) == 1 && values.Get("path") == "" {
		return nil, fmt.Errorf("%w %s: what stands behind ? is %q; want path=/models/NAME", ErrModel, shown, query)
	}
	parsed, err := name.ParseReference(spec, s.NameOptions...)
	if err != nil {
		return nil, fmt.Errorf("%w %s: %w", ErrModel, shown, err)
	}
	r := &repository{s: s, ref: parsed, shown: shown}
	if err := r.connect(ctx); err != nil {
		return nil, err
	}
	m, top, err := r.resolve(ctx)
	if err != nil {
		return nil, err
	}
	model := &Model{Name: path.Base(parsed.Context().RepositoryStr()), Revision: top.String()}
	root := values.Get("path")
	switch {
	case root != "" && path.Clean("/"+root) == "/":
		return nil, fmt.Errorf("%w %s: that is the whole image; want ?path=/models/NAME", ErrModel, shown)
	case isImageManifest(m):
		if root != "" {
			model.Name = path.Base(path.Clean("/" + root))
		}
		return model, r.image(model, m, root)
	case root != "":
		return nil, fmt.Errorf("%w %s: ?path= is for images, and this is an artifact", ErrModel, shown)
	}
	return model, r.artifact(model, m)
}

// connect finds out how the registry wants to be spoken to.
func (r *repository) connect(ctx context.Context) error {
	keychain := r.s.Keychain
	if keychain == nil {
		keychain = authn.NewMultiKeychain()
	}
	repo := r.ref.Context()
	auth, err := authn.Resolve(ctx, keychain, repo)
	if err != nil {
		return classify(ErrService, "%s: credentials: %w", r.shown, err)
	}
	return r.s.retry(ctx, func(ctx context.Context) error {
		rt, err := transport.NewWithContext(ctx, repo.Registry, auth, r.s.http, []string{repo.Scope(transport.PullScope)})
		if err != nil {
			return r.fault(err)
		}
		r.client = &http.Client{Transport: rt, CheckRedirect: redirect}
		r.base = repo.Scheme() + "://" + repo.RegistryStr() + "/v2/" + repo.RepositoryStr() + "/"
		return nil
	})
}

// fault says what an error of the registry's client means.
func (r *repository) fault(err error) error {
	if terr, ok := errors.AsType[*transport.Error](err); ok {
		resp := &http.Response{StatusCode: terr.StatusCode, Request: &http.Request{URL: &url.URL{Host: r.ref.Context().RegistryStr()}}}
		advice := r.advise(resp)
		if advice == "" {
			advice = statusAdvice(terr.StatusCode, r.ref.Context().RegistryStr())
		}
		return refused(resp.Request.URL.Host, resp, classify(answerClass(terr.StatusCode), "%s: %s", r.shown, advice))
	}
	return serviceError(r.shown, r.ref.Context().RegistryStr(), err)
}

func (r *repository) advise(resp *http.Response) string {
	host := resp.Request.URL.Host
	switch resp.StatusCode {
	case http.StatusUnauthorized:
		return host + " wants credentials (401); log in with docker login, podman login or skopeo login, and check the name"
	case http.StatusForbidden:
		return host + " forbids it (403); these credentials lack the right to pull"
	case http.StatusNotFound:
		return fmt.Sprintf("%s has no %s (404); check repository and tag", host, r.ref.Context().RepositoryStr())
	}
	return ""
}

// resolve returns the manifest to read, which may be one in an index, and the digest of what the reference names.
func (r *repository) resolve(ctx context.Context) (m *ocispec.Manifest, top digest.Digest, err error) {
	at := r.ref.Identifier()
	for range maxNesting {
		raw, dgst, err := r.manifest(ctx, at)
		if err != nil {
			return nil, "", err
		}
		if top == "" {
			top = dgst
		}
		var both struct {
			ocispec.Manifest
			Manifests []ocispec.Descriptor `json:"manifests"`
		}
		if err := json.Unmarshal(raw, &both); err != nil {
			return nil, "", fmt.Errorf("%w %s: its manifest: %w", ErrModel, r.shown, err)
		}
		if len(both.Manifests) == 0 {
			return &both.Manifest, top, nil
		}
		next, err := chooseModel(both.Manifests)
		if err != nil {
			return nil, "", fmt.Errorf("%w %s: %w", ErrModel, r.shown, err)
		}
		at = next.String()
	}
	return nil, "", fmt.Errorf("%w %s: an index in an index in an index", ErrModel, r.shown)
}

// chooseModel prefers an artifact of a model to images, and among images that of the default platform.
func chooseModel(manifests []ocispec.Descriptor) (digest.Digest, error) {
	var images, fit []ocispec.Descriptor
	var have []string
	for _, d := range manifests {
		if isModelType(d.ArtifactType) {
			return d.Digest, d.Digest.Validate()
		}
		if !isImage(v1.Descriptor{ArtifactType: d.ArtifactType, MediaType: types.OCIManifestSchema1}) || d.Platform != nil && d.Platform.OS == "unknown" {
			continue
		}
		images = append(images, d)
		if d.Platform != nil {
			have = append(have, d.Platform.OS+"/"+d.Platform.Architecture)
			if have[len(have)-1] == DefaultPlatform {
				fit = append(fit, d)
			}
		}
	}
	if len(fit) == 0 && len(images) == 1 {
		fit = images
	}
	if len(fit) == 0 {
		return "", fmt.Errorf("the index holds neither a model nor an image for %s; there are %q; name one by its digest", DefaultPlatform, have)
	}
	return fit[0].Digest, fit[0].Digest.Validate()
}

// manifest reads a manifest and compares it with the digest it is asked by.
func (r *repository) manifest(ctx context.Context, at string) (raw []byte, dgst digest.Digest, err error) {
	w := &webFile{client: r.client, what: r.shown, url: r.base + "manifests/" + at, advise: r.advise, header: http.Header{}}
	for _, t := range []types.MediaType{types.OCIManifestSchema1, types.OCIImageIndex, types.DockerManifestSchema2, types.DockerManifestList} {
		w.header.Add("Accept", string(t))
	}
	err = r.s.retry(ctx, func(ctx context.Context) error {
		resp, err := w.ask(ctx, http.MethodGet, w.header.Clone())
		if terr, ok := errors.AsType[*transport.Error](err); ok {
			return r.fault(terr)
		}
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if raw, err = io.ReadAll(io.LimitReader(resp.Body, maxManifest+1)); err != nil {
			return r.fault(err)
		}
		return nil
	})
	if err != nil {
		return nil, "", err
	}
	if len(raw) > maxManifest {
		return nil, "", fmt.Errorf("%w %s: its manifest has more than %d bytes", ErrModel, r.shown, maxManifest)
	}
	dgst = digest.FromBytes(raw)
	if want := digest.Digest(at); want.Validate() == nil && want != dgst {
		return nil, "", classify(ErrDigest, "%s: its manifest has the digest %s, not %s", r.shown, dgst, want)
	}
	return raw, dgst, nil
}

// isModelType reports whether a media type is one of a model's artifact or configuration.
func isModelType(mediaType string) bool {
	for _, family := range []string{"application/vnd.cncf.model.", "application/vnd.cnai.model.", "application/vnd.docker.ai.model."} {
		if strings.HasPrefix(mediaType, family) {
			return true
		}
	}
	return false
}

func isImageManifest(m *ocispec.Manifest) bool {
	return !isModelType(m.ArtifactType) && !isModelType(m.Config.MediaType) &&
		(types.MediaType(m.Config.MediaType) == types.OCIConfigJSON || types.MediaType(m.Config.MediaType) == types.DockerConfigJSON)
}

// modelLayer is one layer of a model's artifact.
type modelLayer struct {
	ocispec.Descriptor
	tar  bool
	name string // of a layer that is one file
	mode int64  // of that file
}

// artifact lists a model whose layers are its files. If some are archives it is a stream.
func (r *repository) artifact(model *Model, m *ocispec.Manifest) error {
	if !isModelType(m.ArtifactType) && !isModelType(m.Config.MediaType) {
		return fmt.Errorf("%w %s: neither a model nor an image: artifact type %q, configuration %q", ErrModel, r.shown, m.ArtifactType, m.Config.MediaType)
	}
	layers, archives := make([]modelLayer, len(m.Layers)), false
	for i := range m.Layers {
		l, err := newModelLayer(m.Layers, i)
		if err != nil {
			return fmt.Errorf("%w %s: %w", ErrModel, r.shown, err)
		}
		layers[i] = l
		archives = archives || l.tar
	}
	if archives {
		root := strings.Trim(m.Annotations[rootAnnotation], "/")
		model.each = func(ctx context.Context, visit Visit) error { return r.eachLayer(ctx, layers, root, visit) }
		return nil
	}
	c := r.s.collector(r.shown)
	var files []File
	for i := range layers {
		if !c.wants(layers[i].name) {
			continue
		}
		f := r.layerFile(&layers[i])
		if err := c.add(&f); err != nil {
			return err
		}
		files = append(files, f)
	}
	var err error
	model.Files, err = c.listed(files)
	return err
}

// newModelLayer tells from the media type how a layer is packed, and from annotations what its file is called.
func newModelLayer(all []ocispec.Descriptor, i int) (modelLayer, error) {
	l := modelLayer{Descriptor: all[i]}
	if err := l.Digest.Validate(); err != nil || l.Digest.Algorithm() != digest.SHA256 || l.Size < 0 {
		return l, fmt.Errorf("its layer %d has the digest %q and %d bytes, which cannot be", i+1, l.Digest, l.Size)
	}
	kind := strings.TrimSuffix(strings.TrimSuffix(l.MediaType, "+gzip"), "+zstd")
	l.tar = strings.HasSuffix(kind, ".tar") || strings.HasSuffix(kind, ".archive")
	known := strings.HasPrefix(kind, "application/vnd.cncf.model.") || strings.HasPrefix(kind, "application/vnd.cnai.model.") ||
		strings.HasPrefix(kind, "application/vnd.docker.ai.")
	if !known || !l.tar && kind != l.MediaType {
		return l, fmt.Errorf("its layer %d is of media type %s, which is not read", i+1, l.MediaType)
	}
	for _, key := range []string{"org.cncf.model.filepath", "org.cnai.model.filepath", ocispec.AnnotationTitle} {
		if l.name == "" {
			l.name = l.Annotations[key]
		}
	}
	for _, key := range []string{"org.cncf.model.file.metadata+json", "org.cnai.model.file.metadata+json"} {
		var meta struct {
			Mode int64 `json:"mode"`
		}
		if json.Unmarshal([]byte(l.Annotations[key]), &meta) == nil && l.mode == 0 {
			l.mode = meta.Mode
		}
	}
	if l.name == "" && !l.tar {
		if l.name = defaultName(all, i); l.name == "" {
			return l, fmt.Errorf("its layer %d, %s, has no name; it wants the annotation org.cncf.model.filepath", i+1, l.MediaType)
		}
	}
	return l, nil
}

// defaultName is what a layer without a name is called, as Docker's model tools leave them: by its kind, and by its place if
// there are several of a kind.
func defaultName(all []ocispec.Descriptor, i int) string {
	stem, end := "model", ""
	switch t := all[i].MediaType; {
	case strings.Contains(t, ".gguf"):
		end = ".gguf"
	case strings.Contains(t, ".safetensors"):
		end = ".safetensors"
	case strings.HasSuffix(t, ".license"):
		stem = "LICENSE"
	case strings.HasSuffix(t, ".mmproj"):
		stem, end = "mmproj", ".gguf"
	case strings.Contains(t, ".chat.template"):
		stem, end = "chat_template", ".jinja"
	default:
		return ""
	}
	place, count := 0, 0
	for j := range all {
		if all[j].MediaType == all[i].MediaType {
			if count++; j <= i {
				place++
			}
		}
	}
	if count == 1 {
		return stem + end
	}
	return fmt.Sprintf("%s-%05d-of-%05d%s", stem, place, count, end)
}

func (r *repository) blob(d ocispec.Descriptor, what string) *remoteFile {
	w := &webFile{
		client: r.client, what: what, url: r.base + "blobs/" + d.Digest.String(), advise: r.advise,
		sums: func() ([]checksum, error) { return sha256Sum(d.Digest) },
	}
	return &remoteFile{name: what, size: d.Size, get: w.get}
}

func (r *repository) layerFile(l *modelLayer) File {
	blob := r.blob(l.Descriptor, r.shown+": "+l.name)
	return File{
		Path: l.name, Size: l.Size, Digest: l.Digest, Executable: l.mode&0o111 != 0,
		open: func(ctx context.Context, offset int64) (io.ReadCloser, error) {
			return r.s.openRemote(ctx, blob, span{from: offset})
		},
	}
}
