package image

import (
	"encoding/json"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Names of the CNCF ModelPack specification, version 1.
const (
	// ArtifactTypeModel is how a ModelPack manifest is known in an index.
	ArtifactTypeModel = "application/vnd.cncf.model.manifest.v1+json"

	// AnnotationModelRoot of a ModelPack manifest names the folder that the files of all layers are in, without a slash in front. Who
	// reads the model takes it off their names.
	AnnotationModelRoot = "io.shoal.model.root"

	mediaTypeModelConfig  = "application/vnd.cncf.model.config.v1+json"
	mediaTypeWeights      = "application/vnd.cncf.model.weight.v1.tar"
	mediaTypeWeightConfig = "application/vnd.cncf.model.weight.config.v1.tar"

	annotationFilePath     = "org.cncf.model.filepath"
	annotationFileMetadata = "org.cncf.model.file.metadata+json"
	annotationUntested     = "org.cncf.model.file.mediatype.untested"
)

// ModelAbout is what a ModelPack manifest says of a model. What is empty is left out.
type ModelAbout struct {
	Descriptor ModelDescriptor `json:"descriptor"`
	ModelFS    modelFS         `json:"modelfs"`
	Config     ModelConfig     `json:"config"`
}

// ModelDescriptor is general information on a model.
type ModelDescriptor struct {
	Family    string `json:"family,omitempty"` // such as llama
	Name      string `json:"name,omitempty"`
	SourceURL string `json:"sourceURL,omitempty"`
	Revision  string `json:"revision,omitempty"`
}

// ModelConfig is what a program that runs the model wants to know first.
type ModelConfig struct {
	Architecture string `json:"architecture,omitempty"` // such as transformer
	Format       string `json:"format,omitempty"`       // such as safetensors
	Precision    string `json:"precision,omitempty"`    // such as bf16
}

type modelFS struct {
	Type    string          `json:"type"`
	DiffIDs []digest.Digest `json:"diffIds"`
}

// fileMetadata is the value of annotationFileMetadata.
type fileMetadata struct {
	Name     string    `json:"name"`
	Mode     uint32    `json:"mode"`
	UID      uint32    `json:"uid"`
	GID      uint32    `json:"gid"`
	Size     int64     `json:"size"`
	ModTime  time.Time `json:"mtime"`
	Typeflag byte      `json:"typeflag"`
}

// ModelLayer is a layer of a ModelPack manifest: an uncompressed tar.
type ModelLayer struct {
	Layer
	// Path is what the layer holds: the name of its file in the tar, or of the folder all its files are in.
	Path string
	// Weights tells large files from those that describe them.
	Weights    bool
	File       bool  // it holds one file
	Executable bool  // that file is
	Size       int64 // of that file
}

// ModelPack returns the model alone as an artifact of the CNCF ModelPack specification (version 1), with the layers of the image. There is no
// clock in it.
func ModelPack(about ModelAbout, layers []ModelLayer, annotations map[string]string) (Variant, error) {
	about.ModelFS = modelFS{Type: "layers", DiffIDs: []digest.Digest{}}
	var out []Layer
	for _, l := range layers {
		about.ModelFS.DiffIDs = append(about.ModelFS.DiffIDs, l.DiffID)
		described, err := l.described()
		if err != nil {
			return Variant{}, err
		}
		out = append(out, described)
	}
	raw, err := json.Marshal(about)
	if err != nil {
		return Variant{}, err
	}
	return manifest(ocispec.Manifest{ArtifactType: ArtifactTypeModel, Annotations: annotations},
		newBlob(mediaTypeModelConfig, raw), out)
}

// described returns the layer with the media type and the annotations of the specification.
func (l *ModelLayer) described() (Layer, error) {
	out := l.Layer
	out.MediaType = mediaTypeWeightConfig
	if l.Weights {
		out.MediaType = mediaTypeWeights
	}
	out.Annotations = map[string]string{
		annotationFilePath: l.Path,
		// The type was told by name and size, nobody looked into the file.
		annotationUntested: "true",
	}
	if !l.File {
		return out, nil
	}
	meta := fileMetadata{Name: l.Path, Mode: 0o644, Size: l.Size, ModTime: time.Unix(0, 0).UTC(), Typeflag: '0'}
	if l.Executable {
		meta.Mode = 0o755
	}
	raw, err := json.Marshal(meta)
	out.Annotations[annotationFileMetadata] = string(raw)
	return out, err
}
