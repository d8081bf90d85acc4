package mirror

import (
	"net/http"
	"slices"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// acceptable returns which kinds of manifests and indexes a caller accepts, in the same words for all callers that accept the same: a
// registry may answer those who accept no index with the manifest of its choice. All kinds are "all", whatever else is accepted.
func acceptable(header http.Header) string {
	kinds := [...]struct{ mediaType, word string }{
		{ocispec.MediaTypeImageIndex, "index"},
		{ocispec.MediaTypeImageManifest, "manifest"},
		{dockerList, "docker-list"},
		{dockerManifest, "docker-manifest"},
	}
	var named []string
	for _, line := range header.Values("Accept") {
		for element := range strings.SplitSeq(line, ",") {
			mediaType, _, _ := strings.Cut(element, ";")
			named = append(named, strings.ToLower(strings.TrimSpace(mediaType)))
		}
	}
	var words []string
	for _, kind := range kinds {
		if slices.Contains(named, kind.mediaType) {
			words = append(words, kind.word)
		}
	}
	if len(words) == len(kinds) {
		return "all"
	}
	if slices.Contains(named, "*/*") {
		words = append(words, "any")
	}
	return strings.Join(words, " ")
}
