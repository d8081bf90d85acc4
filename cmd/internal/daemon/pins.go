package daemon

import (
	"encoding/json"
	"errors"
	"net/http"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-project/shoal/peer/store"
)

// pinner keeps blobs from being evicted. *store.Store is one.
type pinner interface {
	Pin(d digest.Digest, owner string) error
	Unpin(d digest.Digest, owner string) error
	Pins() map[digest.Digest][]string
}

// servePins serves the pins: GET /pins lists the owners by digest, PUT and DELETE /pins/DIGEST/OWNER set and remove one. Both may be
// repeated; an owner may have slashes in its name.
func servePins(p pinner) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /pins", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(p.Pins()) // the caller may have left
	})
	change := func(f func(digest.Digest, string) error) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			d, err := digest.Parse(r.PathValue("digest"))
			if err != nil {
				http.Error(w, "digest: "+err.Error()+"; name a blob like sha256:…", http.StatusBadRequest)
				return
			}
			switch err := f(d, r.PathValue("owner")); {
			case errors.Is(err, store.ErrOwner):
				http.Error(w, err.Error(), http.StatusBadRequest)
			case errors.Is(err, store.ErrNoSpace):
				http.Error(w, err.Error(), http.StatusInsufficientStorage)
			case err != nil:
				http.Error(w, err.Error(), http.StatusInternalServerError)
			default:
				w.WriteHeader(http.StatusNoContent)
			}
		}
	}
	mux.HandleFunc("PUT /pins/{digest}/{owner...}", change(p.Pin))
	mux.HandleFunc("DELETE /pins/{digest}/{owner...}", change(p.Unpin))
	return mux
}
