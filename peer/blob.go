package peer

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-project/shoal/peer/piece"
	"github.com/shoal-project/shoal/scheduler/api"
)

// ErrClosed is returned by Open when the peer does not run (any more).
var ErrClosed = errors.New("peer is not running")

// Blob names a blob and where its bytes are to be had when no peer holds them.
type Blob struct {
	Digest digest.Digest
	Size   int64 // bytes
	Origin Origin
}

// Origin is a place in a registry.
type Origin struct {
	Registry   string  `json:"registry"` // host[:port]
	Repository string  `json:"repository"`
	Map        *MapRef `json:"map,omitempty"` // where the blob's chunk map is; nil when it has none
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
}

func (b Blob) encode() json.RawMessage { return b.encodeFrom("") }

// encodeFrom says too whose piece server can be asked in turn.
func (b Blob) encodeFrom(addr string) json.RawMessage {
	data, err := json.Marshal(spec{Size: b.Size, Origin: b.Origin, Peer: addr})
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
	d, err := digest.Parse(dgst)
	if err != nil {
		return Blob{}, fmt.Errorf("blob %q: %w", dgst, err)
	}
	var s spec
	if err := json.Unmarshal(raw, &s); err != nil {
		return Blob{}, fmt.Errorf("blob %s: %w", d, err)
	}
	b := Blob{Digest: d, Size: s.Size, Origin: s.Origin}
	return b, b.validate()
}

func (b Blob) validate() error {
	if err := b.Digest.Validate(); err != nil {
		return fmt.Errorf("blob %q: %w", b.Digest, err)
	}
	if b.Size <= 0 {
		return fmt.Errorf("blob %s: size %d, want a positive number of bytes", b.Digest, b.Size)
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
