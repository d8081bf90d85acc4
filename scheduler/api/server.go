package api

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"net/http"
	"time"
)

const (
	// Beat is how often either side speaks at least.
	Beat = 500 * time.Millisecond
	// maxBody bounds one batch of events, in bytes.
	maxBody = 64 << 20
)

// ErrNoSession is answered to events of a session that has ended; the host opens a new one.
var ErrNoSession = errors.New("no such session")

// Backend is what a Handler serves.
type Backend interface {
	// Open begins a session. The queue carries its commands; the backend ends it when it ends the session. The
	// handler calls closed exactly once when the host is gone. ctx bounds the session.
	Open(ctx context.Context, h Host) (session string, commands *Queue, closed func(), err error)
	// Events takes a batch in order, or answers ErrNoSession.
	Events(session string, events []Event) error
	// Hosts returns who has a session, in the order of their names.
	Hosts() []Host
}

// NewHandler serves the API below /v1/. An empty token admits everybody.
func NewHandler(b Backend, token string) http.Handler {
	h := &handler{backend: b}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/sessions", h.open)
	mux.HandleFunc("POST /v1/sessions/{id}/events", h.events)
	mux.HandleFunc("GET /v1/hosts", h.hosts)
	return authorize(mux, token)
}

func authorize(next http.Handler, token string) http.Handler {
	want := sha256.Sum256([]byte("Bearer " + token)) // digests are of one length, and say nothing of the token's
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got := sha256.Sum256([]byte(r.Header.Get("Authorization")))
		if token != "" && subtle.ConstantTimeCompare(got[:], want[:]) != 1 {
			http.Error(w, "wrong or missing cluster token", http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	})
}

type handler struct{ backend Backend }

func (h *handler) open(w http.ResponseWriter, r *http.Request) {
	var host Host
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 64<<10)).Decode(&host); err != nil {
		http.Error(w, "host: "+err.Error(), http.StatusBadRequest)
		return
	}
	session, commands, closed, err := h.backend.Open(r.Context(), host)
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	defer closed()
	w.Header().Set("Content-Type", "application/x-ndjson")
	out := &lineWriter{w: w, rc: http.NewResponseController(w), enc: json.NewEncoder(w)}
	if out.write(Command{Welcome: &Welcome{Session: session}}) != nil {
		return
	}
	beat := time.NewTicker(Beat)
	defer beat.Stop()
	for {
		select {
		case <-commands.Wake():
			batch, ended := commands.Take()
			if out.write(batch...) != nil || ended {
				return
			}
		case <-beat.C:
			if out.write(Command{}) != nil {
				return
			}
		case <-r.Context().Done():
			return
		}
	}
}

// lineWriter writes commands, one a line, and gives up on a host that does not read.
type lineWriter struct {
	w   http.ResponseWriter
	rc  *http.ResponseController
	enc *json.Encoder
}

func (l *lineWriter) write(commands ...Command) error {
	if err := l.rc.SetWriteDeadline(time.Now().Add(10 * Beat)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	for _, c := range commands {
		if err := l.enc.Encode(c); err != nil {
			return err
		}
	}
	return l.rc.Flush()
}

func (h *handler) hosts(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(h.backend.Hosts()) // who asked may be gone
}

func (h *handler) events(w http.ResponseWriter, r *http.Request) {
	var events []Event
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody)).Decode(&events); err != nil {
		http.Error(w, "events: "+err.Error(), http.StatusBadRequest)
		return
	}
	switch err := h.backend.Events(r.PathValue("id"), events); {
	case errors.Is(err, ErrNoSession):
		http.Error(w, err.Error(), http.StatusNotFound)
	case err != nil:
		http.Error(w, err.Error(), http.StatusBadRequest)
	default:
		w.WriteHeader(http.StatusNoContent)
	}
}
