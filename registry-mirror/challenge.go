package mirror

import (
	"net/http"
	"slices"

	"github.com/shoal-project/shoal/registry-mirror/upstream"
)

const challengeHeader = "WWW-Authenticate"

// noteChallenge remembers how the origin asks for credentials for a repository.
func (h *Handler) noteChallenge(registry, repository string, resp *upstream.Response) {
	asked := resp.Header.Values(challengeHeader)
	if resp.Status != http.StatusUnauthorized || len(asked) == 0 {
		return
	}
	var known []string
	key := registry + "/" + repository
	if h.records.get(bucketChallenges, key, &known) && slices.Equal(known, asked) {
		return
	}
	_ = h.records.put(bucketChallenges, key, asked) // not kept: nobody is asked for credentials while the origin is down
}

// challenge returns, while the origin is down, its own question for credentials to a caller that shows none; nil when there is none. Without it
// containerd, which shows credentials only when asked, could not have what an earlier verdict allows.
func (h *Handler) challenge(registry, repository, credential string) error {
	var asked []string
	if credential != "" || h.cfg.StaleFor < 0 || !h.records.get(bucketChallenges, registry+"/"+repository, &asked) {
		return nil
	}
	return &answerError{status: http.StatusUnauthorized, code: "UNAUTHORIZED", header: http.Header{http.CanonicalHeaderKey(challengeHeader): asked},
		text: "the origin is down; who showed it credentials before gets what is known here"}
}
