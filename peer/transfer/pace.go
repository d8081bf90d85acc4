package transfer

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"time"
)

// Pacer holds the bytes of blobs back to a rate. It is called concurrently. limits.Chain is one.
type Pacer interface {
	// Step returns how many bytes to move between two calls of Pace; it may change at any time.
	Step() int
	// Pace waits until n more bytes of the task may pass. Only the end of ctx is an error.
	Pace(ctx context.Context, task string, n int) error
}

// unpaced is the Pacer of those who configure none.
type unpaced struct{}

func (unpaced) Step() int                               { return uploadStep }
func (unpaced) Pace(context.Context, string, int) error { return nil }

const (
	// uploadStep is the most bytes that are handed to the kernel at a time.
	uploadStep = 1 << 20
	// uploadLeast is how many bytes a receiver has to take within the stall time: who takes less blocks a slot for nothing.
	uploadLeast = 64 << 10
)

// upload passes ReadFrom on, without which sendfile is lost, holds the bytes back to the pacer's rate, and gives up when the receiver
// takes next to nothing.
type upload struct {
	http.ResponseWriter
	ctx   context.Context // of the request that this is the answer to
	task  string
	pacer Pacer
	stall time.Duration
	sent  int64
	err   error // of the last ReadFrom
}

// Unwrap lets http.ResponseController find the connection.
func (u *upload) Unwrap() http.ResponseWriter { return u.ResponseWriter }

// ReadFrom copies src in steps, each with its own deadline. What net/http and the socket below see is the file itself
// behind one io.LimitedReader, the only shape that sendfile takes.
func (u *upload) ReadFrom(src io.Reader) (int64, error) {
	limited, ok := src.(*io.LimitedReader)
	if !ok {
		return io.Copy(u.ResponseWriter, src)
	}
	var total int64
	for limited.N > 0 {
		step := min(limited.N, int64(u.pacer.Step()))
		if u.err = u.pacer.Pace(u.ctx, u.task, int(step)); u.err != nil {
			return total, u.err
		}
		n, err := u.step(limited.R, step)
		limited.N -= n
		total += n
		u.sent += n
		if u.err = err; err != nil || n < step {
			return total, err
		}
	}
	return total, nil
}

// step sends n bytes of the file; a receiver that takes some of them within the stall time gets more of it.
func (u *upload) step(file io.Reader, n int64) (sent int64, err error) {
	controller := http.NewResponseController(u.ResponseWriter)
	for sent < n {
		// A recorder in a test has no deadlines; a connection always does.
		_ = controller.SetWriteDeadline(time.Now().Add(u.stall))
		m, err := io.Copy(u.ResponseWriter, &io.LimitedReader{R: file, N: n - sent})
		sent += m
		if errors.Is(err, os.ErrDeadlineExceeded) && m >= min(uploadLeast, n) {
			continue
		}
		if err != nil || m == 0 {
			return sent, err
		}
	}
	return sent, nil
}
