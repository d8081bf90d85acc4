package mirror

import (
	"encoding/json"
	"errors"
	"maps"
	"net/http"

	"github.com/shoal-project/shoal/peer/piece"
	"github.com/shoal-project/shoal/registry-mirror/upstream"
)

// refuse answers with an error body of the distribution specification.
func (h *Handler) refuse(w http.ResponseWriter, status int, code, message string) {
	h.metrics.refusals.WithLabelValues(code).Inc()
	type ociError struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string][]ociError{"errors": {{code, message}}}) // the caller may have left
}

// answerError is an answer to give instead of content.
type answerError struct {
	status int
	code   string
	header http.Header // of the origin's answer, such as its challenge
	text   string
}

func (e *answerError) Error() string { return e.text }

// fromOrigin turns the origin's refusal of a request of a kind into ours. 429 becomes 503, since containerd would only repeat it.
func fromOrigin(kind string, resp *upstream.Response) *answerError {
	e := &answerError{status: resp.Status, header: resp.Header, text: "the origin answered " + http.StatusText(resp.Status)}
	switch resp.Status {
	case http.StatusUnauthorized:
		e.code = "UNAUTHORIZED"
	case http.StatusForbidden:
		e.code = "DENIED"
	case http.StatusNotFound:
		e.code = "MANIFEST_UNKNOWN"
		switch kind {
		case "blobs":
			e.code = "BLOB_UNKNOWN"
		case "tags":
			e.code = "NAME_UNKNOWN"
		}
	case http.StatusBadRequest:
		e.code = "UNSUPPORTED"
	default:
		e.code, e.status = "UNAVAILABLE", http.StatusServiceUnavailable
	}
	return e
}

// passing reports whether a failure of the origin may be bridged with what the cluster knows.
func passing(resp *upstream.Response, err error) bool {
	if err != nil {
		return errors.Is(err, piece.ErrTransient)
	}
	return resp.Status >= 500 || resp.Status == http.StatusTooManyRequests
}

// refuseError answers with err, whatever it is.
func (h *Handler) refuseError(w http.ResponseWriter, err error) {
	if e, ok := errors.AsType[*answerError](err); ok {
		maps.Copy(w.Header(), e.header)
		h.refuse(w, e.status, e.code, e.text)
		return
	}
	h.refuse(w, http.StatusServiceUnavailable, "UNAVAILABLE", err.Error())
}
