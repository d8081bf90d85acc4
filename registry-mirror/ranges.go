package mirror

import (
	"errors"
	"strconv"
	"strings"
)

// errRange is the answer to a range that is not within the blob.
var errRange = errors.New("range is not within the blob")

// parseRange reads a Range header for a blob of the given size. partial is false when the whole blob is to be served: without a header,
// for a form that is not understood, for several ranges, and for one that covers everything.
func parseRange(header string, size int64) (off, length int64, partial bool, err error) {
	set, ok := strings.CutPrefix(header, "bytes=")
	spec, only := onlyRange(set)
	first, last, dash := strings.Cut(spec, "-")
	if !ok || !only || !dash {
		return 0, size, false, nil
	}
	if first == "" { // the last n bytes
		n, err := strconv.ParseInt(last, 10, 64)
		if err != nil {
			return 0, size, false, nil
		}
		if n <= 0 || size == 0 {
			return 0, 0, false, errRange
		}
		n = min(n, size)
		return size - n, n, n < size, nil
	}
	off, err = strconv.ParseInt(first, 10, 64)
	if err != nil || off < 0 {
		return 0, size, false, nil
	}
	end := size - 1
	if last != "" {
		if end, err = strconv.ParseInt(last, 10, 64); err != nil {
			return 0, size, false, nil
		}
		if end < off {
			return 0, 0, false, errRange // might be ignored too; registries refuse it
		}
		end = min(end, size-1)
	}
	if off >= size {
		return 0, 0, false, errRange
	}
	length = end - off + 1
	return off, length, length < size, nil
}

// onlyRange returns the one range of a list, whose other elements are empty, as RFC 9110, 5.6.1 has it.
func onlyRange(set string) (spec string, only bool) {
	for part := range strings.SplitSeq(set, ",") {
		switch part = strings.TrimSpace(part); {
		case part == "":
		case spec != "":
			return "", false
		default:
			spec = part
		}
	}
	return spec, spec != ""
}
