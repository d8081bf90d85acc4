package mirror

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-project/shoal/registry-mirror/upstream"
)

const (
	recordsPath   = "/v1/manifests"
	askTimeout    = 2 * time.Second
	publishQueue  = 256
	maxRecordSize = 2 * upstream.MaxManifest // in bytes, as JSON
)

// SeedConfig configures Seeds.
type SeedConfig struct {
	// Addrs returns the addresses, HOST:PORT, of the piece servers of the seeds known now.
	Addrs func() []string
	// Token is the cluster's; empty sends none.
	Token string
	// TLS, if not nil, has seeds spoken to in TLS by it; it is not copied.
	TLS *tls.Config
	// Log is where failures are reported; nil discards.
	Log *slog.Logger
}

// Seeds is the Cluster kept by the seeds: each is told what any host learned from the origin.
type Seeds struct {
	cfg   SeedConfig
	http  *http.Client
	queue chan Record
}

// NewSeeds returns the cluster; Run must run for Publish to have an effect.
func NewSeeds(cfg SeedConfig) *Seeds {
	cfg.Log = cmp.Or(cfg.Log, slog.New(slog.DiscardHandler))
	dialer := &net.Dialer{Timeout: 500 * time.Millisecond}
	return &Seeds{cfg: cfg, queue: make(chan Record, publishQueue),
		http: &http.Client{Timeout: askTimeout, Transport: &http.Transport{DialContext: dialer.DialContext, TLSClientConfig: cfg.TLS,
			MaxIdleConnsPerHost: 2}}}
}

// Publish implements Cluster. When too much waits already, the record is not told: that only matters while the origin is down.
func (s *Seeds) Publish(rec Record) {
	select {
	case s.queue <- rec:
	default:
		s.cfg.Log.Warn("seeds not told of a manifest, too many wait", "registry", rec.Registry, "repository", rec.Repository)
	}
}

// Run tells the seeds what is published until ctx ends.
func (s *Seeds) Run(ctx context.Context) error {
	defer s.http.CloseIdleConnections()
	for {
		select {
		case <-ctx.Done():
			return nil
		case rec := <-s.queue:
			s.tell(ctx, rec)
		}
	}
}

func (s *Seeds) tell(ctx context.Context, rec Record) {
	body, err := json.Marshal(rec)
	if err != nil {
		s.cfg.Log.Warn("seeds not told of a manifest", "error", err)
		return
	}
	for _, addr := range s.cfg.Addrs() {
		resp, err := s.do(ctx, http.MethodPut, addr, nil, body)
		if err != nil {
			s.cfg.Log.Debug("seed not told of a manifest", "seed", addr, "error", err)
			continue
		}
		_ = resp.Body.Close() // nothing to read
	}
}

// Lookup implements Cluster.
func (s *Seeds) Lookup(ctx context.Context, q Query) (Record, error) {
	err := ErrUnknown
	for _, addr := range s.cfg.Addrs() {
		rec, askErr := s.ask(ctx, addr, q)
		if askErr == nil {
			return rec, nil
		}
		if !errors.Is(askErr, ErrUnknown) {
			err = fmt.Errorf("seed %s: %w", addr, askErr)
		}
	}
	return Record{}, err
}

func (s *Seeds) ask(ctx context.Context, addr string, q Query) (Record, error) {
	var rec Record
	resp, err := s.do(ctx, http.MethodGet, addr, url.Values{"registry": {q.Registry}, "repository": {q.Repository},
		"reference": {q.Reference}, "credential": {q.Credential}, "accept": {q.Accept}}, nil)
	if err != nil {
		return rec, err
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK:
		err = json.NewDecoder(io.LimitReader(resp.Body, maxRecordSize)).Decode(&rec)
	case http.StatusNotFound:
		err = ErrUnknown
	default:
		err = errors.New(resp.Status)
	}
	if err == nil && (Query{rec.Registry, rec.Repository, rec.Reference, rec.Credential, rec.Accept}) != q {
		err = errors.New("answered another question")
	}
	return rec, err
}

func (s *Seeds) do(ctx context.Context, method, addr string, query url.Values, body []byte) (*http.Response, error) {
	scheme := "http"
	if s.cfg.TLS != nil {
		scheme = "https"
	}
	target := url.URL{Scheme: scheme, Host: addr, Path: recordsPath, RawQuery: query.Encode()}
	req, err := http.NewRequestWithContext(ctx, method, target.String(), bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if s.cfg.Token != "" {
		req.Header.Set("Authorization", "Bearer "+s.cfg.Token)
	}
	return s.http.Do(req)
}

// ServeRecords is what a host answers to Seeds of other hosts, at GET and PUT /v1/manifests. The caller of this function checks the
// cluster's token.
func ServeRecords(r *Records) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+recordsPath, func(w http.ResponseWriter, req *http.Request) {
		v := req.URL.Query()
		rec, err := r.lookup(Query{v.Get("registry"), v.Get("repository"), v.Get("reference"), v.Get("credential"), v.Get("accept")})
		if err != nil {
			http.Error(w, err.Error(), http.StatusNotFound)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(rec) // the caller may have left
	})
	mux.HandleFunc("PUT "+recordsPath, func(w http.ResponseWriter, req *http.Request) {
		var rec Record
		if err := json.NewDecoder(http.MaxBytesReader(w, req.Body, maxRecordSize)).Decode(&rec); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		if rec.Digest != digest.FromBytes(rec.Body) || rec.Checked.After(time.Now().Add(clockSkew)) {
			http.Error(w, "record contradicts itself", http.StatusBadRequest)
			return
		}
		if err := r.store(rec); err != nil {
			http.Error(w, err.Error(), http.StatusInsufficientStorage)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	})
	return mux
}
