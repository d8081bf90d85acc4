package source

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
)

// Errors of a model are of one of these classes, or of ErrDigest, or come from the context or the local disk.
var (
	// ErrModel: the model is missing, or cannot be converted as it is. The error names the file.
	ErrModel = errors.New("model")
	// ErrService: a hub, bucket, server or registry refused, or could not be reached.
	ErrService = errors.New("service")
	// ErrChanged: a file is not what it was when the model was opened.
	ErrChanged = errors.New("changed while it was read; run again when nobody writes to it")
)

// classified gives an error a class without a word of its own in the text.
type classified struct {
	class error
	err   error
}

func (e *classified) Error() string        { return e.err.Error() }
func (e *classified) Unwrap() error        { return e.err }
func (e *classified) Is(target error) bool { return target == e.class }

func classify(class error, format string, args ...any) error {
	return &classified{class, fmt.Errorf(format, args...)}
}

// printable is a reference without what may be secret: user, password and query.
func printable(ref string) string {
	if !strings.Contains(ref, "://") {
		return ref
	}
	u, err := url.Parse(ref)
	if err != nil {
		head, _, _ := strings.Cut(ref, "?")
		scheme, rest, _ := strings.Cut(head, "://")
		return scheme + "://" + rest[strings.LastIndexByte(rest, '@')+1:]
	}
	if u.Scheme == "http" || u.Scheme == "https" {
		u.RawQuery = ""
	}
	u.User = nil
	return u.String()
}
