package cluster

import (
	"iter"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
)

// parseAccessLog adds up the bytes sent for each blob in a log of the combined format:
//
//	10.77.0.3 - - [22/Nov/2026:01:42:46 +0000] "GET /v2/NAME/blobs/sha256:… HTTP/1.1" 200 32141681 "" "AGENT"
//
// Whole replies and ranges count, other methods and lines do not.
func parseAccessLog(lines iter.Seq[string]) map[digest.Digest]int64 {
	served := map[digest.Digest]int64{}
	for line := range lines {
		_, line, ok := strings.Cut(line, `"GET /v2/`)
		if !ok {
			continue
		}
		request, answer, ok := strings.Cut(line, `" `)
		if !ok {
			continue
		}
		path, _, _ := strings.Cut(request, " ")
		path, _, _ = strings.Cut(path, "?")
		_, blob, ok := strings.Cut(path, "/blobs/")
		if !ok {
			continue
		}
		fields := strings.Fields(answer)
		if len(fields) < 2 || fields[0] != "200" && fields[0] != "206" {
			continue
		}
		dgst, err := digest.Parse(blob)
		size, sizeErr := strconv.ParseInt(fields[1], 10, 64)
		if err == nil && sizeErr == nil {
			served[dgst] += size
		}
	}
	return served
}
