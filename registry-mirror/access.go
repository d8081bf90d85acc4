package mirror

import (
	"io"
	"log/slog"
	"net/http"
	"time"
)

// AccessLog logs a line for each request that next has answered: who asked for what, and what was sent in which time. Credentials are not
// logged. Bytes of blobs still go by sendfile.
func AccessLog(next http.Handler, log *slog.Logger) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		began, seen := time.Now(), &accessWriter{ResponseWriter: w}
		defer func() { // also when the handler panics to break the connection off
			log.InfoContext(r.Context(), "request", "method", r.Method, "path", r.URL.Path, "registry", r.URL.Query().Get("ns"),
				"range", r.Header.Get("Range"), "status", seen.status, "bytes", seen.sent, "seconds", time.Since(began).Seconds(),
				"agent", r.UserAgent())
		}()
		next.ServeHTTP(seen, r)
	})
}

// accessWriter notes what is answered.
type accessWriter struct {
	http.ResponseWriter
	status int   // 0 before there is one
	sent   int64 // bytes of the body
}

func (w *accessWriter) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *accessWriter) Write(p []byte) (int, error) {
	w.begin()
	n, err := w.ResponseWriter.Write(p)
	w.sent += int64(n)
	return n, err
}

// ReadFrom implements io.ReaderFrom, which is how files are sent without a copy.
func (w *accessWriter) ReadFrom(r io.Reader) (int64, error) {
	w.begin()
	n, err := io.Copy(w.ResponseWriter, r)
	w.sent += n
	return n, err
}

func (w *accessWriter) begin() {
	if w.status == 0 {
		w.status = http.StatusOK
	}
}

// Unwrap lets http.ResponseController reach the connection.
func (w *accessWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
