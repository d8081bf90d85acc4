package source

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync/atomic"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

const (
	freeBytes   = 1 << 30   // may be made of anything, whatever the ratio
	maxWindow   = 128 << 20 // bytes a zstd frame may ask us to remember; the zstd tool takes no more either unless told
	streamAhead = 1 << 20   // bytes read at once from a source
)

type archiveKind int

const (
	noArchive archiveKind = iota
	tarArchive
	zipArchive
)

// archiveOf tells by its name what kind of archive a file is, and what its name is without that. How a tar is compressed is
// seen from its first bytes.
func archiveOf(base string) (archiveKind, string) {
	lower := strings.ToLower(base)
	for _, end := range []string{".tar", ".tar.gz", ".tgz", ".tar.zst", ".tzst", ".tar.zstd"} {
		if strings.HasSuffix(lower, end) && len(base) > len(end) {
			return tarArchive, base[:len(base)-len(end)]
		}
	}
	if strings.HasSuffix(lower, ".zip") && len(base) > len(".zip") {
		return zipArchive, base[:len(base)-len(".zip")]
	}
	return noArchive, stem(base)
}

// stem is a file's name without its ending.
func stem(base string) string {
	if i := strings.LastIndexByte(base, '.'); i > 0 {
		return base[:i]
	}
	return base
}

// meter bounds what is made of the bytes of an archive.
type meter struct {
	in       *atomic.Int64 // read of the source
	out      int64
	max      int64
	maxRatio int64
}

func (m *meter) spend(n int64) error {
	m.out += n
	switch {
	case m.out > m.max:
		return fmt.Errorf("it expands to more than %d bytes, the limit that is set", m.max)
	case m.maxRatio > 0 && m.out > freeBytes && m.out/m.maxRatio > m.in.Load():
		return fmt.Errorf("it expands to more than %d times its size, as archives do that mean harm; expand it yourself if you trust it", m.maxRatio)
	}
	return nil
}

// metered spends what is read.
type metered struct {
	r     io.Reader
	meter *meter
}

func (m *metered) Read(p []byte) (int, error) {
	n, err := m.r.Read(p)
	if fault := m.meter.spend(int64(n)); fault != nil {
		return 0, &classified{ErrModel, fault}
	}
	return n, err
}

// counted counts what is read, and ends when ctx does.
type counted struct {
	ctx context.Context
	r   io.Reader
	n   *atomic.Int64
}

func (c *counted) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := c.r.Read(p)
	c.n.Add(int64(n))
	return n, err
}

// expanded is a stream without its compression.
type expanded struct {
	io.Reader
	head  string // its first bytes
	raw   *bufio.Reader
	meter *meter
	free  func()
}

// expand finds out how a stream is compressed. The stream belongs to the caller; close frees what expands it.
func (s *session) expand(ctx context.Context, r io.Reader) (*expanded, error) {
	in := &atomic.Int64{}
	raw := bufio.NewReaderSize(&counted{ctx, r, in}, streamAhead)
	e := &expanded{raw: raw, meter: s.meter(in), free: func() {}}
	head, err := raw.Peek(6)
	e.head = string(head)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	switch {
	case len(head) == 0:
		return nil, errors.New("it is empty")
	case bytes.HasPrefix(head, []byte("\x1f\x8b")):
		z, err := gzip.NewReader(raw)
		if err != nil {
			return nil, err
		}
		e.Reader = &metered{z, s.meter(in)}
	case bytes.HasPrefix(head, []byte("\x28\xb5\x2f\xfd")), len(head) > 3 && head[0]&0xf0 == 0x50 && string(head[1:4]) == "\x2a\x4d\x18":
		z, err := zstd.NewReader(raw, zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, err
		}
		e.Reader, e.free = &metered{z, s.meter(in)}, z.Close
	default:
		e.Reader = raw
	}
	return e, nil
}

func inflate(r io.Reader) io.Reader { return flate.NewReader(bufio.NewReader(r)) }

func (s *session) meter(in *atomic.Int64) *meter {
	return &meter{in: in, max: s.MaxExpanded, maxRatio: s.MaxRatio}
}

// noTar says what to do with what is no tar, nor one that we can expand.
func (e *expanded) noTar() error {
	for magic, what := range map[string]string{
		"\xfd7zXZ":   "it is compressed by xz: give what xz -dc makes of it",
		"BZh":        "it is compressed by bzip2: give what bzip2 -dc makes of it",
		"PK\x03\x04": "it is a zip archive, which is not read in order: give it as a file whose name ends in .zip",
		"GGUF":       "it is a GGUF file and no tar archive: give it as a file",
	} {
		if strings.HasPrefix(e.head, magic) {
			return errors.New(what)
		}
	}
	return errors.New("it is no tar archive")
}

// drain reads to the end, where checksums are compared.
func (e *expanded) drain() error {
	if _, err := io.Copy(io.Discard, e.Reader); err != nil {
		return err
	}
	_, err := io.Copy(io.Discard, e.raw)
	return err
}

// archiveError gives an error met while an archive was read its class, unless it has one already.
func archiveError(ref string, err error) error {
	switch {
	case err == nil, hasClass(err), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("%w %s: it ends too early; it was cut off on its way", ErrModel, ref)
	case errors.Is(err, gzip.ErrChecksum), errors.Is(err, zstd.ErrCRCMismatch):
		return classify(ErrDigest, "%s: its content has not the checksum it should: %w", ref, err)
	case errors.Is(err, zstd.ErrWindowSizeExceeded):
		return fmt.Errorf("%w %s: its zstd window is above %d MiB; compress it without --long or --ultra", ErrModel, ref, maxWindow>>20)
	}
	return fmt.Errorf("%w %s: %w", ErrModel, ref, err)
}

func hasClass(err error) bool {
	return errors.Is(err, ErrModel) || errors.Is(err, ErrService) || errors.Is(err, ErrChanged) || errors.Is(err, ErrDigest)
}
