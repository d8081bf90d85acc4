package fetch_test

import (
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-project/shoal/cmd/internal/local"
	"github.com/shoal-project/shoal/peer/peertest"
	"github.com/shoal-project/shoal/peer/source"
)

// Somebody has said of another URL that it has this digest, and has read only its beginning.
func TestWrongBytesThatTheClusterHasOfAnotherURLAreReadAnew(t *testing.T) {
	s, w, other := peertest.NewSwarm(t), newSite(t, 3*mib+7), newSite(t, 3*mib+7)
	s.Host(peertest.Seed)
	other.set(func() {
		for i := range other.data {
			other.data[i] ^= 1
		}
	})
	link, err := source.ParseLink(other.URL+"/file", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	info, err := newSource(t).Probe(t.Context(), source.Web{URL: link.URL})
	if err != nil {
		t.Fatal(err)
	}
	wrong, err := local.Name(link, info, digest.FromBytes(w.data), false)
	if err != nil {
		t.Fatal(err)
	}
	r, err := s.Host().Open(t.Context(), wrong, "")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := r.ReadAt(t.Context(), make([]byte, 10), 0); err != nil {
		t.Fatal(err)
	}
	cfg := w.config(t)
	cfg.Node, cfg.Digest, cfg.NoFallback = node(t, s.Host()), digest.FromBytes(w.data), true
	if r := get(t, cfg, w.data); !r.Verified || r.Bytes.Origin != 0 {
		t.Errorf("%+v", r)
	}
}
