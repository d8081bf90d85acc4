package chunkmap

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
)

// ErrFormat is the class of files that are not what their name or their first bytes say.
var ErrFormat = errors.New("broken model file")

// FormatError says what is wrong with a file. It answers errors.Is(ErrFormat).
type FormatError struct {
	Name   string // of the file, as it was given to BeginFile
	Format string // "safetensors", "GGUF" or "Git LFS"
	Reason string // what is wrong and what helps
}

func (e *FormatError) Error() string { return fmt.Sprintf("%s: %s: %s", e.Name, e.Format, e.Reason) }

// Is makes errors.Is(err, ErrFormat) true.
func (e *FormatError) Is(target error) bool { return target == ErrFormat }

const (
	// maxHeader bounds what is kept of a file's header; behind it the file is cut by content.
	maxHeader = 64 << 20
	// minPart is the length in bytes below which files and tensors get no cuts of their own.
	minPart = 16 << 10
	// maxPointer is the size in bytes above which a file is no pointer of Git LFS.
	maxPointer = 1024
)

// headReader reads the header of a file as its bytes pass.
type headReader interface {
	// feed takes the next bytes and returns how many of them belong to the header, and whether it ends there. It takes at
	// least one.
	feed(p []byte) (n int, done bool)
	// tensors returns the tensors in order, relative to the end of the header, once feed has said that it is done; none
	// when the file is to be cut by content. A fault says why it is broken. Before, the fault is that the header is not
	// complete.
	tensors() (list []tensor, fault string)
}

// tensor is a range of bytes behind a header.
type tensor struct {
	name     string
	off, end int64
}

// headerOf chooses by name; whether the first bytes are those of GGUF shows as they pass.
func headerOf(name string, size int64) headReader {
	if strings.HasSuffix(name, ".safetensors") {
		return &safetensors{size: size}
	}
	return newGGUF(size, strings.HasSuffix(name, ".gguf"))
}

// Empty returns the *FormatError of a file without bytes whose name says that it has a header, else nil.
func Empty(name string) error {
	h := headerOf(name, 0)
	if _, fault := h.tensors(); fault != "" {
		return &FormatError{name, formatOf(h), fault}
	}
	return nil
}

func formatOf(h headReader) string {
	if _, ok := h.(*safetensors); ok {
		return "safetensors"
	}
	return "GGUF"
}

// part is a range of a file that is cut in one way. It begins where the one before it ends.
type part struct {
	end  int64 // from the file's start
	runs bool  // of small tensors: cut by content, else at MaxChunk
}

// partsOf merges small neighbours. The list is in order and without holes from 0 on.
func partsOf(list []tensor, start int64) []part {
	var parts []part
	for _, t := range list {
		small := t.end-t.off < minPart
		switch last := len(parts) - 1; {
		case t.end == t.off:
		case small && last >= 0 && parts[last].runs:
			parts[last].end = start + t.end
		default:
			parts = append(parts, part{end: start + t.end, runs: small})
		}
	}
	return parts
}

// isPointer recognises what git leaves in place of a file that Git LFS has not fetched.
func isPointer(content []byte) bool {
	return bytes.HasPrefix(content, []byte("version https://git-lfs.github.com/spec/")) &&
		bytes.Contains(content, []byte("\noid sha256:"))
}
