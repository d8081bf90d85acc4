package piece

import "errors"

// Every way to obtain a piece, from a parent or from the origin, fails in one of four classes, and the class alone
// decides what happens next. ErrMismatch is the fourth.
var (
	// ErrAbsent: whoever was asked does not have it; ask another.
	ErrAbsent = errors.New("not held")
	// ErrTransient: busy, cut, timed out; ask again later or elsewhere.
	ErrTransient = errors.New("temporarily unavailable")
	// ErrDenied: the origin refused these credentials; only other credentials help.
	ErrDenied = errors.New("access denied")
)
