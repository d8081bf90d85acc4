package fetch

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	_ "crypto/sha512" // digests of blobs may be by it

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// sink takes bytes in order, hashes them, and knows how many it has.
type sink struct {
	w    io.Writer
	hash hash.Hash
	have int64
	file *partFile // nil for a stream
	// modified is the time the file is given, if it is one.
	modified time.Time
}

func (s *sink) Write(p []byte) (int, error) {
	n, err := s.w.Write(p)
	_, _ = s.hash.Write(p[:n]) // a hash never fails to write
	s.have += int64(n)
	if err != nil {
		return n, &writeError{err}
	}
	return n, nil
}

// writeError tells a failure of the sink from one of the place that is read.
type writeError struct{ err error }

func (e *writeError) Error() string { return "write: " + e.err.Error() }
func (e *writeError) Unwrap() error { return e.err }

// partSuffix ends the names of unfinished files.
const partSuffix = ".shoal-part"

// partFile is a file that is not complete yet.
type partFile struct {
	*os.File
	target string // where it belongs
}

// checkOutput returns the path a file is to be written to, and whether it is something else than a file: a device or a pipe, which is
// written to as it is. An output that cannot be one is refused before anything is fetched.
func checkOutput(path string) (target string, special bool, err error) {
	if path == "" || os.IsPathSeparator(path[len(path)-1]) {
		return "", false, fmt.Errorf("output %q names no file", path)
	}
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if _, err := os.Stat(filepath.Dir(path)); err != nil {
			return "", false, fmt.Errorf("output %s: %w", path, err)
		}
		return path, false, nil
	case err != nil:
		return "", false, fmt.Errorf("output: %w", err)
	case info.IsDir():
		return "", false, fmt.Errorf("output %s is a folder; name the file to write in it", path)
	case !info.Mode().IsRegular():
		return path, true, nil
	}
	target, err = filepath.EvalSymlinks(path) // a link keeps leading to the file
	return target, false, err
}

// openSink returns the sink for a content, which may have some of it from an earlier call.
func (cfg Config) openSink(id digest.Digest, s span) (*sink, error) {
	out := &sink{hash: hashFor(cfg.known())}
	if cfg.Output == "" {
		out.w = cfg.Stdout
		return out, nil
	}
	target, special, err := checkOutput(cfg.Output)
	if err != nil {
		return nil, err
	}
	if special {
		f, err := os.OpenFile(target, os.O_WRONLY, 0)
		if err != nil {
			return nil, fmt.Errorf("output: %w", err)
		}
		out.w, out.file = f, &partFile{File: f}
		return out, nil
	}
	if out.file, err = openPart(target, id, s); err != nil {
		return nil, err
	}
	out.w = out.file
	if out.have, err = resume(out.file.File, out.hash, id, s); err != nil {
		_ = out.file.Close() // nothing was written
		return nil, fmt.Errorf("output: %w", err)
	}
	return out, nil
}

// resume hashes what is there of a content and returns how much that is. What cannot be of this content is removed.
func resume(f *os.File, h hash.Hash, id digest.Digest, s span) (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	if id == "" || s.length < 0 || info.Size() > s.length {
		if err := f.Truncate(0); err != nil {
			return 0, err
		}
	}
	return io.Copy(h, f)
}

// openPart opens the unfinished file of a content. Its name tells the content and the part of it, so that what is of another one is never
// gone on with; a lock keeps two calls from writing the same one.
func openPart(target string, id digest.Digest, s span) (*partFile, error) {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %d %d", id, s.off, s.length))
	path := filepath.Join(filepath.Dir(target), "."+filepath.Base(target)+"."+hex.EncodeToString(sum[:8])+partSuffix)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o666)
	if err != nil {
		return nil, fmt.Errorf("output: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close() // nothing was written
		return nil, fmt.Errorf("output %s is being written by another call", target)
	}
	return &partFile{File: f, target: target}, nil
}

// commit puts a complete file in its place, durably, and removes what earlier calls left of other contents.
func (s *sink) commit() error {
	f := s.file
	if f == nil {
		return nil
	}
	if f.target == "" {
		return f.Close()
	}
	if err := f.Sync(); err != nil {
		return &writeError{err}
	}
	if !s.modified.IsZero() {
		_ = os.Chtimes(f.Name(), time.Time{}, s.modified) // without it the file is fetched again the next time
	}
	if err := os.Rename(f.Name(), f.target); err != nil {
		return &writeError{err}
	}
	dir := filepath.Dir(f.target)
	if d, err := os.Open(dir); err == nil {
		_ = d.Sync() // not every file system can
		_ = d.Close()
	}
	err := f.Close()
	others, globErr := filepath.Glob(filepath.Join(escapeGlob(dir), "."+escapeGlob(filepath.Base(f.target))+".????????????????"+partSuffix))
	if globErr != nil {
		return err
	}
	for _, other := range others {
		removeUnused(other)
	}
	return err
}

// removeUnused removes an unfinished file unless somebody writes it.
func removeUnused(path string) {
	f, err := os.Open(path)
	if err != nil {
		return
	}
	defer f.Close()
	if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
		_ = os.Remove(path) // only takes room
	}
}

func escapeGlob(s string) string {
	out := make([]byte, 0, len(s))
	for i := range len(s) {
		switch s[i] {
		case '*', '?', '[', '\\':
			out = append(out, '\\')
		}
		out = append(out, s[i])
	}
	return string(out)
}

// abandon ends the sink without a file; what is there of it stays for the next call when keep is set.
func (s *sink) abandon(keep bool) {
	if s.file == nil {
		return
	}
	if s.file.target != "" && (!keep || s.have == 0) {
		_ = os.Remove(s.file.Name()) // only takes room
	}
	_ = s.file.Close() // what is lost is fetched again
}

func hashFor(d digest.Digest) hash.Hash {
	if d != "" && d.Algorithm().Available() {
		return d.Algorithm().Hash()
	}
	return sha256.New()
}
