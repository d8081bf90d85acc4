package transfer

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"unicode"

	"github.com/shoal-project/shoal/peer/piece"
)

const (
	frameAlive    = 0
	frameAll      = 1
	frameAdded    = 2
	frameRemoved  = 3
	frameSkipped  = 128 // and above, by who does not know them
	frameWatchers = 128
	frameFailed   = 129

	frameHeader = 5
	maxPieces   = 1 << 20 // 16 TiB in the largest pieces
	maxPayload  = 4 + maxPieces/8
	maxWatchers = 64
	maxText     = 1024 // bytes of an error's text
)

// errFrame is the class of frames that break the format.
var errFrame = errors.New("invalid frame")

// Have is one frame of what a peer holds. All is set in the first one and replaces everything said before; the others
// tell what changed since. All are empty in the frame that only says that the peer is alive.
type Have struct {
	All            *piece.Set
	Added, Removed []piece.Index
	Watchers       []string // addresses of others who watch the blob at the same peer
	Failed         error    // what keeps the peer from fetching the blob now; it has a class of package piece
}

func appendFrame(b []byte, kind byte, payload []byte) []byte {
	b = append(b, kind)
	b = binary.BigEndian.AppendUint32(b, uint32(len(payload)))
	return append(b, payload...)
}

// appendAll appends the frame that says all of have. A set of more than maxPieces cannot be said.
func appendAll(b []byte, have *piece.Set) []byte {
	payload := binary.BigEndian.AppendUint32(nil, uint32(have.Len()))
	return appendFrame(b, frameAll, append(payload, have.Bytes()...))
}

// appendChanges appends the frames that turn sent into now; none when they are equal.
func appendChanges(b []byte, sent, now *piece.Set) []byte {
	added, removed := difference(now, sent), difference(sent, now)
	if len(added)+len(removed) > 0 && len(added)+len(removed) >= 4+now.Len()/8 {
		return appendAll(b, now)
	}
	if len(added) > 0 {
		b = appendFrame(b, frameAdded, encodeIndices(added))
	}
	if len(removed) > 0 {
		b = appendFrame(b, frameRemoved, encodeIndices(removed))
	}
	return b
}

// appendWatchers appends the frame that says who else watches: addresses, a line each.
func appendWatchers(b []byte, addrs []string) []byte {
	return appendFrame(b, frameWatchers, []byte(strings.Join(addrs, "\n")))
}

// decodeWatchers accepts addresses with host and port, maxWatchers at the most.
func decodeWatchers(b []byte) ([]string, error) {
	if len(b) == 0 {
		return nil, nil
	}
	addrs := strings.Split(string(b), "\n")
	if len(addrs) > maxWatchers {
		return nil, fmt.Errorf("%w: %d watchers", errFrame, len(addrs))
	}
	for _, addr := range addrs {
		if host, port, err := net.SplitHostPort(addr); err != nil || host == "" || port == "" {
			return nil, fmt.Errorf("%w: watcher %q is no address", errFrame, addr)
		}
	}
	return addrs, nil
}

// failures returns the classes of errors, each at the number that stands for it.
func failures() []error {
	return []error{piece.ErrTransient, piece.ErrDenied, piece.ErrAbsent, piece.ErrMismatch}
}

// appendFailed appends the frame that says what keeps the peer from fetching: its class, and a text for people.
func appendFailed(b []byte, err error) []byte {
	class := 1 + slices.IndexFunc(failures()[1:], func(e error) bool { return errors.Is(err, e) }) // in passing, if it has no other
	text := err.Error()
	return appendFrame(b, frameFailed, append([]byte{byte(class)}, text[:min(len(text), maxText)]...))
}

// failure is what another host says of its failing.
type failure struct {
	class error
	text  string
}

func (f *failure) Error() string { return f.text }
func (f *failure) Unwrap() error { return f.class }

// decodeFailed makes an error of it again.
func decodeFailed(b []byte) (*failure, error) {
	classes := failures()
	if len(b) < 2 || len(b) > 1+maxText || int(b[0]) >= len(classes) {
		return nil, fmt.Errorf("%w: failure of %d bytes", errFrame, len(b))
	}
	text := strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?' // it is shown to people, in a terminal
	}, string(b[1:]))
	return &failure{classes[b[0]], text}, nil
}

// difference returns what is in a but not in b.
func difference(a, b *piece.Set) []piece.Index {
	var out []piece.Index
	for i := range a.All() {
		if !b.Has(i) {
			out = append(out, i)
		}
	}
	return out
}

func encodeIndices(indices []piece.Index) []byte {
	var b []byte
	last := piece.Index(0)
	for _, i := range indices {
		b = binary.AppendUvarint(b, uint64(i-last))
		last = i
	}
	return b
}

// decodeIndices accepts only what encodeIndices writes for indices below count.
func decodeIndices(b []byte, count int) ([]piece.Index, error) {
	var out []piece.Index
	last := uint64(0)
	for len(b) > 0 {
		gap, n := binary.Uvarint(b)
		if n <= 0 {
			return nil, fmt.Errorf("%w: cut index", errFrame)
		}
		if gap == 0 && len(out) > 0 {
			return nil, fmt.Errorf("%w: indices do not ascend", errFrame)
		}
		if gap >= uint64(count) || last+gap >= uint64(count) {
			return nil, fmt.Errorf("%w: index behind the last of %d pieces", errFrame, count)
		}
		last += gap
		out = append(out, piece.Index(last))
		b = b[n:]
	}
	return out, nil
}

// frameReader reads the frames of one stream.
type frameReader struct {
	r     *bufio.Reader
	count int // of pieces; -1 before the first frame
}

func newFrameReader(r io.Reader) *frameReader {
	return &frameReader{r: bufio.NewReader(r), count: -1}
}

// next returns the next frame. Errors are errFrame or those of the reader; a cut stream is io.ErrUnexpectedEOF or io.EOF.
func (f *frameReader) next() (Have, error) {
	var header [frameHeader]byte
	if _, err := io.ReadFull(f.r, header[:]); err != nil {
		return Have{}, err
	}
	length := binary.BigEndian.Uint32(header[1:])
	if length > maxPayload {
		return Have{}, fmt.Errorf("%w: payload of %d bytes", errFrame, length)
	}
	payload := make([]byte, length)
	if _, err := io.ReadFull(f.r, payload); err != nil {
		return Have{}, fmt.Errorf("payload: %w", noEOF(err))
	}
	return f.decode(header[0], payload)
}

func (f *frameReader) decode(kind byte, payload []byte) (Have, error) {
	switch {
	case kind == frameWatchers:
		addrs, err := decodeWatchers(payload)
		return Have{Watchers: addrs}, err
	case kind == frameFailed:
		failed, err := decodeFailed(payload)
		if err != nil {
			return Have{}, err
		}
		return Have{Failed: failed}, nil
	case kind >= frameSkipped:
		return Have{}, nil
	case kind == frameAlive && len(payload) == 0:
		return Have{}, nil
	case kind == frameAll && len(payload) >= 4:
		count := binary.BigEndian.Uint32(payload)
		if count > maxPieces {
			return Have{}, fmt.Errorf("%w: %d pieces", errFrame, count)
		}
		set, err := piece.SetFromBytes(int(count), payload[4:])
		if err != nil {
			return Have{}, fmt.Errorf("%w: %w", errFrame, err)
		}
		f.count = int(count)
		return Have{All: set}, nil
	case (kind == frameAdded || kind == frameRemoved) && f.count >= 0:
		indices, err := decodeIndices(payload, f.count)
		if err != nil {
			return Have{}, err
		}
		if kind == frameAdded {
			return Have{Added: indices}, nil
		}
		return Have{Removed: indices}, nil
	}
	return Have{}, fmt.Errorf("%w: type %d with %d bytes is not expected here", errFrame, kind, len(payload))
}

// noEOF makes an end where more was due an error that says so.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
