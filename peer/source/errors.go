package source

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/shoal-project/shoal/peer/piece"
)

var (
	// ErrStalled means that the origin sent nothing for the stall time. It is piece.ErrTransient.
	ErrStalled = fmt.Errorf("origin stalled: %w", piece.ErrTransient)
	// ErrRangeIgnored means that the origin answers a range behind the blob's start with the whole blob. Only Fetch from 0 works
	// there. It is piece.ErrTransient.
	ErrRangeIgnored = fmt.Errorf("origin ignores ranges: %w", piece.ErrTransient)
)

// StatusError is a refusal by the origin. It answers errors.Is for the class its status stands for.
type StatusError struct {
	Who        string        // refused: "registry", which is what empty means too, or a URL's host
	Status     int           // of HTTP
	RetryAfter time.Duration // as the registry asked, or 0
	Text       string        // what it said, cut short; may be empty
}

func (e *StatusError) Error() string {
	text := fmt.Sprintf("%s answered %d %s", cmp.Or(e.Who, "registry"), e.Status, http.StatusText(e.Status))
	if e.Text != "" {
		text += ": " + e.Text
	}
	return text
}

// Unwrap returns the class: piece.ErrDenied for 401 and 403, piece.ErrAbsent for 404 and 410, else piece.ErrTransient.
func (e *StatusError) Unwrap() error {
	switch e.Status {
	case http.StatusUnauthorized, http.StatusForbidden:
		return piece.ErrDenied
	case http.StatusNotFound, http.StatusGone:
		return piece.ErrAbsent
	}
	return piece.ErrTransient
}

// maxRetryAfter bounds what a registry can make callers wait.
const maxRetryAfter = 10 * time.Minute

// parseRetryAfter understands seconds and dates; anything else is 0.
func parseRetryAfter(value string, now time.Time) time.Duration {
	var wait time.Duration
	if seconds, err := strconv.ParseUint(value, 10, 31); err == nil {
		wait = time.Duration(seconds) * time.Second
	} else if date, err := http.ParseTime(value); err == nil {
		wait = date.Sub(now)
	}
	return min(max(wait, 0), maxRetryAfter)
}

// classify gives err the class piece.ErrTransient unless it has one.
func classify(err error) error {
	for _, class := range []error{piece.ErrAbsent, piece.ErrDenied, piece.ErrTransient, piece.ErrMismatch} {
		if errors.Is(err, class) {
			return err
		}
	}
	return fmt.Errorf("%w: %w", piece.ErrTransient, err)
}
