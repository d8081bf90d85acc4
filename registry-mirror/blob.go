package mirror

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
)

func (h *Handler) serveBlob(w http.ResponseWriter, r *http.Request, req request) {
	dgst := digest.Digest(req.Reference) // parse has checked it
	size, err := h.permitted(r.Context(), req)
	if err != nil {
		h.refuseError(w, err)
		return
	}
	if h.isRefused(blobKey(req, dgst)) {
		h.fallback(w, dgst, "refused", errors.New("it failed a moment ago; ask the origin"))
		return
	}
	ref, err := h.blobRef(r.Context(), req, dgst, size)
	if err != nil {
		h.refuseError(w, err)
		return
	}
	w.Header().Set("Docker-Content-Digest", dgst.String())
	w.Header().Set("ETag", `"`+dgst.String()+`"`)
	w.Header().Set("Accept-Ranges", "bytes")
	w.Header().Set("Content-Type", "application/octet-stream")
	if sameETag(r.Header.Get("If-None-Match"), dgst) {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	asked := r.Header.Get("Range")
	if cond := r.Header.Get("If-Range"); r.Method == http.MethodHead || cond != "" && cond != w.Header().Get("ETag") {
		asked = "" // RFC 9110: 14.2, and 13.1.5
	}
	off, length, partial, err := parseRange(asked, ref.Size)
	if err != nil {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes */%d", ref.Size))
		h.refuse(w, http.StatusRequestedRangeNotSatisfiable, "RANGE_INVALID", err.Error())
		return
	}
	if r.Method == http.MethodHead || ref.Size == 0 {
		w.Header().Set("Content-Length", strconv.FormatInt(ref.Size, 10))
		w.WriteHeader(http.StatusOK)
		return
	}
	h.stream(w, r, req, ref, span{off, length, partial})
}

// sameETag reports whether If-None-Match names the content with the digest: its ETag is the digest in quotes.
func sameETag(header string, d digest.Digest) bool {
	for tag := range strings.SplitSeq(header, ",") {
		tag = strings.TrimPrefix(strings.TrimSpace(tag), "W/")
		if tag == "*" || tag == `"`+d.String()+`"` {
			return true
		}
	}
	return false
}

// isEmpty reports whether a digest is that of a blob without a byte.
func isEmpty(d digest.Digest) bool { return d == d.Algorithm().FromBytes(nil) }

// span is the part of a blob to be served.
type span struct {
	off, length int64
	partial     bool
}

// blobRef completes what is known of a blob; its size is asked of the origin when no manifest told it.
func (h *Handler) blobRef(ctx context.Context, req request, d digest.Digest, size int64) (BlobRef, error) {
	var info blobInfo
	if !h.records.get(bucketBlobs, blobKey(req, d), &info) || info.Size == 0 && !isEmpty(d) {
		info.Size = size
		if size == 0 {
			resp, err := h.origin.Blob(ctx, req.Ref, req.header)
			if err != nil {
				return BlobRef{}, err
			}
			if resp.Status != http.StatusOK {
				return BlobRef{}, fromOrigin("blobs", resp)
			}
			if resp.Size < 0 || resp.Size == 0 && !isEmpty(d) {
				return BlobRef{}, &answerError{status: http.StatusNotFound, code: "BLOB_UNKNOWN", text: "the origin does not tell the blob's size"}
			}
			info.Size = resp.Size
		}
		_ = h.records.put(bucketBlobs, blobKey(req, d), info) // not kept: the origin is asked again
	}
	return BlobRef{Registry: req.Registry, Repository: req.Repository, Digest: d, Size: info.Size, MapLayer: info.MapLayer,
		MapSize: info.MapSize}, nil
}

// stream serves a part of a blob: nothing before the first bytes are at hand, then bytes as they come, and when no more can come, a
// clean end short of the announced length.
func (h *Handler) stream(w http.ResponseWriter, r *http.Request, req request, ref BlobRef, s span) {
	blob, ready, err := h.open(r.Context(), req, ref, s)
	if err != nil && (s.off == 0 || r.Context().Err() != nil) {
		h.fallback(w, ref.Digest, "first_byte", err)
		return
	}
	if blob != nil {
		defer blob.Close()
	}
	w.Header().Set("Content-Length", strconv.FormatInt(s.length, 10))
	if s.partial {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", s.off, s.off+s.length-1, ref.Size))
		w.WriteHeader(http.StatusPartialContent)
	} else {
		w.WriteHeader(http.StatusOK)
	}
	if err != nil { // a later range: refusing it would fail the pull, an early end sends containerd on
		h.cut(w, req, ref.Digest, &copyError{err})
		return
	}
	if err := h.copy(r.Context(), w, blob, s, ready); err != nil && r.Context().Err() == nil {
		h.cut(w, req, ref.Digest, err) // when the caller has left, nothing is wrong with the blob
	}
}

// open opens a blob and waits for its first bytes.
func (h *Handler) open(ctx context.Context, req request, ref BlobRef, s span) (Blob, int64, error) {
	opening, cancel := context.WithTimeoutCause(ctx, h.cfg.FirstByte, fmt.Errorf("not opened within %v", h.cfg.FirstByte))
	defer cancel()
	blob, err := h.blobs.Open(opening, ref, req.authorization())
	if err != nil {
		return nil, 0, err
	}
	ready, err := blob.AwaitMoving(ctx, s.off, s.length, h.cfg.FirstByte)
	if err != nil {
		_ = blob.Close() // only read from
		return nil, 0, err
	}
	return blob, ready, nil
}

// copyError is a failure to get bytes, as against one to deliver them.
type copyError struct{ err error }

func (e *copyError) Error() string { return e.err.Error() }
func (e *copyError) Unwrap() error { return e.err }

// copy sends the span piece by piece, by sendfile. ready bytes at its start are at hand.
func (h *Handler) copy(ctx context.Context, w io.Writer, blob Blob, s span, ready int64) error {
	f, err := blob.File()
	if err != nil {
		return &copyError{err}
	}
	if _, err := f.Seek(s.off, io.SeekStart); err != nil {
		return &copyError{err}
	}
	for left := s.length; ; {
		n, err := io.CopyN(w, f, ready)
		h.metrics.sent.Add(float64(n))
		if err != nil {
			return err
		}
		if left -= ready; left == 0 {
			return nil
		}
		if ready, err = blob.AwaitMoving(ctx, s.off+s.length-left, left, h.cfg.Stall); err != nil {
			return &copyError{err}
		}
	}
}

// cut ends a stream early. The server closes the connection in order once the handler returns, because fewer bytes
// were written than announced.
func (h *Handler) cut(w http.ResponseWriter, req request, d digest.Digest, err error) {
	if _, ours := errors.AsType[*copyError](err); !ours {
		return // the caller has left
	}
	h.metrics.fallbacks.WithLabelValues("cut").Inc()
	h.log.Warn("stream cut, the caller is sent to the origin", "digest", d, "error", err)
	now := time.Now()
	h.mu.Lock()
	maps.DeleteFunc(h.refused, func(_ string, until time.Time) bool { return now.After(until) })
	h.refused[blobKey(req, d)] = now.Add(h.cfg.RefuseFor)
	h.mu.Unlock()
	_ = http.NewResponseController(w).Flush() // the header at least; the connection ends anyway
}

// fallback sends the caller to the origin before anything was served.
func (h *Handler) fallback(w http.ResponseWriter, d digest.Digest, reason string, err error) {
	h.metrics.fallbacks.WithLabelValues(reason).Inc()
	h.log.Warn("the caller is sent to the origin", "digest", d, "reason", reason, "error", err)
	w.Header().Del("Content-Length")
	h.refuse(w, http.StatusNotFound, "BLOB_UNKNOWN", err.Error())
}

func (h *Handler) isRefused(key string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return time.Now().Before(h.refused[key])
}
