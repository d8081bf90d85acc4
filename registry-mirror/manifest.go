package mirror

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-project/shoal/registry-mirror/upstream"
)

func (h *Handler) serveManifest(w http.ResponseWriter, r *http.Request, req request) {
	rec, err := h.manifest(r.Context(), req)
	if err != nil {
		h.refuseError(w, err)
		return
	}
	h.callers.note(req.Registry, req.Repository, req.authorization())
	h.learn(r.Context(), req, rec)
	w.Header().Set("Content-Type", rec.MediaType)
	w.Header().Set("Content-Length", strconv.Itoa(len(rec.Body)))
	w.Header().Set("Docker-Content-Digest", rec.Digest.String())
	w.Header().Set("ETag", `"`+rec.Digest.String()+`"`)
	if age := time.Since(rec.Checked); age > h.cfg.VerdictTTL {
		w.Header().Set("Warning", `110 shoal "the origin is down, this is `+age.Round(time.Second).String()+` old"`)
	}
	h.metrics.manifests.Inc()
	if sameETag(r.Header.Get("If-None-Match"), rec.Digest) {
		w.Header().Del("Content-Length")
		w.WriteHeader(http.StatusNotModified)
		return
	}
	if req.method == http.MethodGet {
		_, _ = w.Write(rec.Body) // the caller may have left
	}
}

// manifest returns the record of a manifest: a fresh one of our own, the origin's, or, while that is down, an old one
// of our own or of the seeds.
func (h *Handler) manifest(ctx context.Context, req request) (Record, error) {
	q := Query{req.Registry, req.Repository, req.Reference, credential(req.authorization()), ""}
	if _, err := digest.Parse(req.Reference); err != nil {
		q.Accept = acceptable(req.header)
	}
	if rec, err := h.records.lookup(q); err == nil && h.fresh(rec) {
		return rec, nil
	}
	// One question at a time for the same manifest with the same credentials, however many ask.
	key := fmt.Sprintf("%q %q", q, req.header.Values("Accept"))
	answer := h.flights.DoChan(key, func() (any, error) {
		// The first asker's leaving must not fail the others; upstream has its own timeout.
		return h.askOnce(context.WithoutCancel(ctx), q, req.header)
	})
	select {
	case res := <-answer:
		if res.Err != nil {
			return Record{}, res.Err
		}
		return res.Val.(Record), nil
	case <-ctx.Done():
		return Record{}, ctx.Err()
	}
}

// askOnce asks the origin, unless somebody else has just done so: between the look at the records and the flight, another flight may have ended.
func (h *Handler) askOnce(ctx context.Context, q Query, header http.Header) (Record, error) {
	if rec, err := h.records.lookup(q); err == nil && h.fresh(rec) {
		return rec, nil
	}
	return h.askOrigin(ctx, q, header)
}

// fresh reports whether a record may be served without asking the origin.
func (h *Handler) fresh(rec Record) bool {
	ttl := h.cfg.TagTTL
	if _, err := digest.Parse(rec.Reference); err == nil {
		ttl = h.cfg.VerdictTTL // a digest never points elsewhere, only the verdict ages
	}
	return within(rec.Checked, ttl, 0)
}

// clockSkew is how far ahead the clock of another host may be.
const clockSkew = time.Minute

// within reports whether at is less than limit ago. What a clock that was wrong put into the future, by more than skew, is
// not: it would be believed until that time has come.
func within(at time.Time, limit, skew time.Duration) bool {
	age := time.Since(at)
	return age < limit && age >= -skew
}

func (h *Handler) askOrigin(ctx context.Context, q Query, header http.Header) (Record, error) {
	resp, err := h.origin.Manifest(ctx, q.ref(), http.MethodGet, header)
	switch {
	case err == nil && resp.Status == http.StatusOK:
		rec := Record{Registry: q.Registry, Repository: q.Repository, Reference: q.Reference, Digest: resp.Digest,
			MediaType: resp.MediaType, Body: resp.Body, Credential: q.Credential, Accept: q.Accept, Checked: time.Now()}
		h.keep(rec)
		if h.cluster != nil {
			h.cluster.Publish(rec)
		}
		return rec, nil
	case passing(resp, err):
		return h.bridge(ctx, q, resp, err)
	case err != nil:
		return Record{}, err
	}
	if resp.Status == http.StatusUnauthorized || resp.Status == http.StatusForbidden {
		h.revoke(q.Registry, q.Repository, q.Credential)
	}
	h.noteChallenge(q.Registry, q.Repository, resp)
	return Record{}, fromOrigin("manifests", resp)
}

// keep stores a record. A full disk costs the memory of it, never the answer.
func (h *Handler) keep(rec Record) {
	if err := h.records.store(rec); err != nil {
		h.log.Warn("manifest not kept", "registry", rec.Registry, "repository", rec.Repository, "reference", rec.Reference, "error", err)
	}
	h.sweep()
}

// revoke forgets a verdict after the origin has refused the credential.
func (h *Handler) revoke(registry, repository, credential string) {
	if err := h.records.revoke(registry, repository, credential); err != nil {
		h.log.Warn("verdict not revoked", "registry", registry, "repository", repository, "error", err)
	}
}

// forgetEvery is after how many verdicts those too old to be of use are removed.
const forgetEvery = 4096

// sweep is called after each verdict that was kept.
func (h *Handler) sweep() {
	if h.kept.Add(1)%forgetEvery == 0 {
		h.forget()
	}
}

func (h *Handler) forget() {
	if err := h.records.forget(time.Now().Add(-h.cfg.StaleFor)); err != nil {
		h.log.Warn("old verdicts are kept", "error", err)
	}
}

// bridge answers out of what is known while the origin cannot.
func (h *Handler) bridge(ctx context.Context, q Query, resp *upstream.Response, cause error) (Record, error) {
	if rec, err := h.records.lookup(q); err == nil && within(rec.Checked, h.cfg.StaleFor, clockSkew) {
		h.metrics.stale.WithLabelValues("own").Inc()
		return rec, nil
	}
	if h.cluster != nil {
		rec, err := h.cluster.Lookup(ctx, q)
		if err == nil && answers(rec, q) && within(rec.Checked, h.cfg.StaleFor, clockSkew) {
			h.metrics.stale.WithLabelValues("seed").Inc()
			h.keep(rec)
			return rec, nil
		}
		if err != nil && !errors.Is(err, ErrUnknown) {
			h.log.Warn("seeds not asked", "error", err)
		}
	}
	if err := h.challenge(q.Registry, q.Repository, q.Credential); err != nil {
		return Record{}, err
	}
	if cause == nil {
		cause = fromOrigin("manifests", resp)
		h.log.Warn("the origin cannot answer", "image", q.ref(), "error", cause)
		return Record{}, cause
	}
	if ctx.Err() == nil { // else the caller has left
		h.log.Warn("the origin cannot be asked", "image", q.ref(), "error", cause)
	}
	return Record{}, &answerError{status: http.StatusServiceUnavailable, code: "UNAVAILABLE",
		text: fmt.Sprintf("the origin is down and nobody here knows %s: %v", q.ref(), cause)}
}

// answers reports whether a record has the content it claims, and that is what was asked for.
func answers(rec Record, q Query) bool {
	d, err := digest.Parse(q.Reference)
	return rec.Digest == digest.FromBytes(rec.Body) && (err != nil || d == rec.Digest)
}

// permitted returns nil when the caller may read the repository: the origin said so lately, says so now, or is down and
// said so within Config.StaleFor. Otherwise the error is the answer to give. The size of the blob is returned when it was
// learned on the way, else 0.
func (h *Handler) permitted(ctx context.Context, req request) (size int64, err error) {
	cred := credential(req.authorization())
	at := h.records.accepted(req.Registry, req.Repository, cred)
	if within(at, h.cfg.VerdictTTL, 0) {
		return 0, nil
	}
	resp, err := h.origin.Blob(ctx, req.Ref, req.header)
	switch {
	case err == nil && resp.Status == http.StatusOK:
		if err := h.records.accept(req.Registry, req.Repository, cred, time.Now()); err != nil {
			h.log.Warn("verdict not kept", "registry", req.Registry, "repository", req.Repository, "error", err)
		}
		h.sweep()
		return max(resp.Size, 0), nil
	case passing(resp, err) && within(at, h.cfg.StaleFor, clockSkew):
		h.metrics.stale.WithLabelValues("verdict").Inc()
		return 0, nil
	case passing(resp, err) && h.challenge(req.Registry, req.Repository, cred) != nil:
		return 0, h.challenge(req.Registry, req.Repository, cred)
	case err != nil:
		return 0, err
	}
	h.noteChallenge(req.Registry, req.Repository, resp)
	if resp.Status == http.StatusUnauthorized || resp.Status == http.StatusForbidden {
		h.revoke(req.Registry, req.Repository, cred)
	}
	return 0, fromOrigin("blobs", resp)
}
