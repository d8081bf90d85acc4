package mirror

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Docker's names for what is an index and a manifest too.
const (
	dockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
)

// document is what is looked for in an index and in a manifest: the former has manifests, the latter has layers.
type document struct {
	Manifests []ocispec.Descriptor `json:"manifests"`
	Config    *ocispec.Descriptor  `json:"config"`
	Layers    []ocispec.Descriptor `json:"layers"`

	Annotations map[string]string `json:"annotations"`
}

var (
	errAmbiguous = errors.New("it has a name twice, or in upper and lower case")
	errKind      = errors.New("it is not what its media type says")
)

// parse reads what a registry gave as being of a media type. A registry has looked only at what it takes the document for: of an index it has seen no
// layers, and of two members whose names differ in case perhaps another one. So what it may not have seen is not read, or an error.
func parse(mediaType string, body []byte) (document, error) {
	var named struct {
		MediaType string `json:"mediaType"`
		document
	}
	if err := json.Unmarshal(body, &named); err != nil {
		return document{}, err
	}
	mediaType, _, _ = strings.Cut(mediaType, ";")
	if mediaType = strings.ToLower(strings.TrimSpace(mediaType)); named.MediaType != "" && named.MediaType != mediaType {
		return document{}, fmt.Errorf("%q as %q: %w", named.MediaType, mediaType, errKind)
	}
	if ambiguous(body) {
		return document{}, errAmbiguous
	}
	switch mediaType {
	case ocispec.MediaTypeImageIndex, dockerList:
		if named.Config != nil || named.Layers != nil {
			return document{}, fmt.Errorf("an index with layers: %w", errKind)
		}
	case ocispec.MediaTypeImageManifest, dockerManifest:
		if named.Manifests != nil {
			return document{}, fmt.Errorf("a manifest with manifests: %w", errKind)
		}
	default:
		return document{}, nil
	}
	return named.document, nil
}

// ambiguous reports whether an object of a JSON text has two members whose names are equal, or differ in case alone: readers differ in which they see.
func ambiguous(text []byte) bool {
	type level struct {
		names map[string]bool // nil in an array
		name  bool            // a name comes next
	}
	var open []level
	tokens := json.NewDecoder(bytes.NewReader(text))
	for {
		token, err := tokens.Token()
		if err != nil {
			return !errors.Is(err, io.EOF)
		}
		top := len(open) - 1
		name, isName := token.(string)
		switch {
		case isName && top >= 0 && open[top].name:
			name = strings.ToLower(strings.ToUpper(name)) // some letters have two lower cases
			if open[top].names[name] {
				return true
			}
			open[top].names[name], open[top].name = true, false
			continue
		case token == json.Delim('{'):
			open = append(open, level{map[string]bool{}, true})
			continue
		case token == json.Delim('['):
			open = append(open, level{})
			continue
		case token == json.Delim('}') || token == json.Delim(']'):
			open = open[:top]
			top--
		}
		if top >= 0 {
			open[top].name = open[top].names != nil
		}
	}
}
