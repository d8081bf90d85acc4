package mirror

import (
	"errors"
	"strings"
)

// Longest names that are passed on, in bytes: a tag's by the distribution specification, a repository's by what clients take.
const (
	maxTag        = 128
	maxRepository = 255
)

const (
	lowerCase = "abcdefghijklmnopqrstuvwxyz0123456789"
	upperCase = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
)

// nameError is a fault of a request's names, with the specification's code for it.
type nameError struct {
	code string
	err  error
}

func (e *nameError) Error() string { return e.err.Error() }
func (e *nameError) Unwrap() error { return e.err }

// faultCode returns the code for a request that could not be read.
func faultCode(err error) string {
	if named, ok := errors.AsType[*nameError](err); ok {
		return named.code
	}
	return "NAME_UNKNOWN"
}

// isRepository reports whether a registry could have a repository of that name. It allows a little more than the specification.
func isRepository(name string) bool {
	for part := range strings.SplitSeq(name, "/") {
		if part == "" || !only(part, lowerCase+"._-") || !strings.Contains(lowerCase, part[:1]) {
			return false
		}
	}
	return len(name) <= maxRepository
}

// isTag reports whether a registry could have a tag of that name.
func isTag(name string) bool {
	const first = lowerCase + upperCase + "_"
	return len(name) <= maxTag && only(name, first+".-") && strings.Contains(first, name[:1])
}

// only reports whether all bytes of s are among those allowed.
func only(s, allowed string) bool { return strings.Trim(s, allowed) == "" }
