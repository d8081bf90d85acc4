package source

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"syscall"
)

// stamp tells a file from what it was: who writes to it, replaces it or turns back its time leaves another one. Times are
// nanoseconds since 1970.
type stamp struct{ size, modified, changed int64 }

func stampOf(info fs.FileInfo) stamp {
	s := stamp{size: info.Size(), modified: info.ModTime().UnixNano()}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		s.changed = st.Ctim.Nano()
	}
	return s
}

// localFile reads a file on disk. What is read once cannot be compared with anything, so at its end the file must still be the one that was
// listed.
type localFile struct {
	file *os.File
	seen stamp // when it was listed
}

func openLocalFile(path string, seen stamp, offset int64) (io.ReadCloser, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	if _, err := file.Seek(offset, io.SeekStart); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return &localFile{file, seen}, nil
}

func (f *localFile) Read(p []byte) (int, error) {
	n, err := f.file.Read(p)
	if !errors.Is(err, io.EOF) {
		return n, err
	}
	info, serr := f.file.Stat()
	if serr != nil {
		return n, serr
	}
	if stampOf(info) != f.seen {
		return n, changed(f.file.Name())
	}
	return n, err
}

func (f *localFile) Close() error { return f.file.Close() }
