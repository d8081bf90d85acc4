package store

import (
	"errors"
	"fmt"

	"github.com/shoal-project/shoal/peer/piece"
)

var (
	// ErrNotFound means that the store has nothing of this blob, or has dropped it. It is also piece.ErrAbsent.
	ErrNotFound = fmt.Errorf("blob not in the store: %w", piece.ErrAbsent)
	// ErrNoSpace means that neither the quota nor the disk has room and nothing more can be evicted.
	ErrNoSpace = errors.New("no space left for the blob")
	// ErrSize means that the blob is already stored with another size. One of the two is wrong.
	ErrSize = errors.New("blob is stored with another size")
	// ErrLocked means that another process uses the folder.
	ErrLocked = errors.New("store is in use by another process")
	// ErrClosed means that the Store or the Blob was closed.
	ErrClosed = errors.New("store: already closed")
)

// errFormat is the class of index files that cannot be read; the blob is removed then.
var errFormat = errors.New("invalid index")
