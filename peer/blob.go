package peer

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-project/shoal/peer/piece"
	"github.com/shoal-project/shoal/peer/source"
	"github.com/shoal-project/shoal/scheduler/api"
)

// ErrClosed is returned by Open when the peer does not run (any more).
var ErrClosed = errors.New("peer is not running")

// Blob names a blob, or what a URL had at one time, and where its bytes are to be had when no peer holds them.
type Blob struct {
	// Digest is the blob's digest, whatever it is read from, or the identity that piece.URLID gives what a URL had and no digest tells.
	Digest digest.Digest `json:"digest"`
	Size   int64         `json:"size"` // bytes
	Origin Origin        `json:"origin"`
	// Access is how a reader of this host reads a URL. It never leaves the host.
	Access Access `json:"-"`
}

// Origin is a place in a registry, or a URL. It is told to other hosts. Without either only hosts with an Access read the origin.
type Origin struct {
	Registry   string           `json:"registry,omitempty"` // host[:port]
	Repository string           `json:"repository,omitempty"`
	Map        *MapRef          `json:"map,omitempty"` // where the blob's chunk map is; nil when it has none
	URL        string           `json:"url,omitempty"` // one that takes no secret
	Validator  source.Validator `json:"validator,omitzero"`
}

// none reports whether nobody may be told where the bytes are.
func (o Origin) none() bool { return o.Registry == "" && o.URL == "" }

// Access is a URL with what it takes to read it.
type Access struct {
	URL       string
	Header    http.Header
	Validator source.Validator
}

// MapRef names the bootstrap layer, in the same repository, that carries the chunk maps of an image.
type MapRef struct {
	Layer digest.Digest `json:"layer"`
	Size  int64         `json:"size"` // bytes
}

// spec is what peers and schedulers tell each other of a blob. Credentials never travel.
type spec struct {
	Size   int64  `json:"size"`
	Origin Origin `json:"origin"`
	Peer   string `json:"peer,omitempty"` // host:port of the piece server of who asks, where it may be asked in turn
	// Fetch asks a host that is no seed to fetch what it has not.
	Fetch bool `json:"fetch,omitempty"`
}

func (b Blob) encode() json.RawMessage { return b.ask("", false) }

// ask is encode for a host that is told whose piece server may be asked in turn, and that may be told to fetch.
func (b Blob) ask(from string, fetch bool) json.RawMessage {
	data, err := json.Marshal(spec{Size: b.Size, Origin: b.Origin, Peer: from, Fetch: fetch})
	if err != nil { // strings and numbers only
		panic(err)
	}
	return data
}

// decodeVisitor reads the address of who asks; ok is false when it told none.
func decodeVisitor(raw json.RawMessage) (addr string, ok bool) {
	var s spec
	if err := json.Unmarshal(raw, &s); err != nil {
		return "", false
	}
	host, port, err := net.SplitHostPort(s.Peer)
	return s.Peer, err == nil && host != "" && port != ""
}

// decodeBlob reads what another host said of a blob.
func decodeBlob(dgst string, raw json.RawMessage) (Blob, error) {
	d := digest.Digest(dgst)
	if err := piece.CheckID(d); err != nil {
		return Blob{}, fmt.Errorf("blob %q: %w", dgst, err)
	}
	var s spec
	if err := json.Unmarshal(raw, &s); err != nil {
		return Blob{}, fmt.Errorf("blob %s: %w", d, err)
	}
	b := Blob{Digest: d, Size: s.Size, Origin: s.Origin}
	return b, b.validate()
}

// fetches reports whether another host asks to fetch.
func fetches(raw json.RawMessage) bool {
	var s spec
	return json.Unmarshal(raw, &s) == nil && s.Fetch
}

// maxSize is the length of the longest blob, in bytes: 16 TiB, the most pieces that a scheduler takes. What is said of longer ones would cost
// memory for nothing.
const maxSize = 1 << 44

func (b Blob) validate() error {
	if err := piece.CheckID(b.Digest); err != nil {
		return fmt.Errorf("blob %q: %w", b.Digest, err)
	}
	if b.Size <= 0 || b.Size > maxSize {
		return fmt.Errorf("blob %s: size %d, want a positive number of bytes, %d at the most", b.Digest, b.Size, int64(maxSize))
	}
	if u := b.Origin.URL; u != "" {
		if l, err := source.ParseLink(u, nil, nil); err != nil || l.Shared != u {
			return fmt.Errorf("blob %s: its URL is not one for other hosts", b.Digest)
		}
	}
	if m := b.Origin.Map; m != nil {
		if err := m.Layer.Validate(); err != nil || m.Size <= 0 || m.Layer == b.Digest {
			return fmt.Errorf("blob %s: chunk map layer %q of %d bytes is not valid", b.Digest, m.Layer, m.Size)
		}
	}
	return nil
}

// task describes the blob to a scheduler.
func (b Blob) task(sequential bool) api.Task {
	l := piece.NewLayout(b.Size)
	return api.Task{ID: b.Digest.String(), Pieces: l.Count(), PieceSize: l.PieceSize, Sequential: sequential, Origin: b.encode()}
}

// at says where this host reads the blob's origin.
func (b Blob) at(authorization string) (source.Blob, string, error) {
	out := source.Blob{Registry: b.Origin.Registry, Repository: b.Origin.Repository, Digest: b.Digest, Size: b.Size}
	confirm := piece.IsURL(b.Digest) // the bytes of a blob are their own proof
	switch {
	case b.Access.URL != "":
		out.Web = &source.Web{URL: b.Access.URL, Header: b.Access.Header, Validator: b.Access.Validator, Confirm: confirm}
	case b.Origin.URL != "":
		out.Web = &source.Web{URL: b.Origin.URL, Validator: b.Origin.Validator, Confirm: confirm, Foreign: true}
	case b.Origin.none():
		return out, "", fmt.Errorf("reading it takes a secret that only its readers have: %w", piece.ErrDenied)
	default:
		return out, authorization, nil
	}
	if confirm && out.Web.Validator.IsZero() {
		return out, "", fmt.Errorf("nothing tells its content from the next: %w", piece.ErrAbsent)
	}
	return out, "", nil
}

// runs turns a set into half-open ranges.
func runs(s *piece.Set) []api.Run {
	var out []api.Run
	for i := range s.All() {
		if n := len(out); n > 0 && out[n-1][1] == int(i) {
			out[n-1][1]++
		} else {
			out = append(out, api.Run{int(i), int(i) + 1})
		}
	}
	return out
}
