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
	spec, ok := strings.CutPrefix(header, "bytes=")
	first, last, dash := strings.Cut(strings.TrimSpace(spec), "-")
	if !ok || !dash || strings.ContainsRune(spec, ',') {
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
		if end, err = strconv.ParseInt(last, 10, 64); err != nil || end < off {
			return 0, size, false, nil
		}
		end = min(end, size-1)
	}
	if off >= size {
		return 0, 0, false, errRange
	}
	length = end - off + 1
	return off, length, length < size, nil
}
