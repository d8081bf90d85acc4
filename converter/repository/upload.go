package repository

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"
)

// upload is one upload session of a registry.
type upload struct {
	r        *Registry
	client   *http.Client
	location *url.URL
	minChunk int64 // what the registry asks for
}

// startUpload opens a session, or mounts the blob from another repository if it can be had there.
func (r *Registry) startUpload(ctx context.Context, client *http.Client, d digest.Digest, from *name.Repository) (u *upload, mounted bool, err error) {
	ctx, w := newWatch(ctx, r.cfg.Retry.Idle)
	defer w.end()
	at := r.url("blobs/uploads/")
	if from != nil {
		at.RawQuery = url.Values{"mount": {d.String()}, "from": {from.RepositoryStr()}}.Encode()
	}
	resp, err := r.send(ctx, client, call{method: http.MethodPost, url: at})
	if err != nil {
		return nil, false, err
	}
	defer resp.Body.Close()
	if err := wantStatus(resp, http.StatusCreated, http.StatusAccepted); err != nil {
		return nil, false, err
	}
	if resp.StatusCode == http.StatusCreated {
		return nil, true, nil
	}
	u = &upload{r: r, client: client}
	u.minChunk, _ = strconv.ParseInt(resp.Header.Get("OCI-Chunk-Min-Length"), 10, 64)
	return u, false, u.moveTo(resp)
}

// moveTo takes over where the session goes on.
func (u *upload) moveTo(resp *http.Response) error {
	raw := resp.Header.Get("Location")
	if raw == "" {
		if u.location != nil {
			return nil
		}
		return fmt.Errorf("%s answered an upload without a Location; is it a registry?", u.r.repo.RegistryStr())
	}
	next, err := url.Parse(raw)
	if err != nil {
		return fmt.Errorf("%s answered an upload with an unusable Location: %w", u.r.repo.RegistryStr(), err)
	}
	u.location = resp.Request.URL.ResolveReference(next)
	return nil
}

// patch appends n bytes, which come to stand at offset.
func (u *upload) patch(ctx context.Context, body io.Reader, offset, n int64) error {
	ctx, w := newWatch(ctx, u.r.cfg.Retry.Idle)
	defer w.end()
	once := &sentOnce{r: aliveReader{body, w}}
	defer once.retire()
	resp, err := u.r.send(ctx, u.client, call{
		method: http.MethodPatch, url: u.location, body: once, length: n,
		header: http.Header{
			"Content-Type":  {"application/octet-stream"},
			"Content-Range": {fmt.Sprintf("%d-%d", offset, offset+n-1)},
		},
	})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if err := wantStatus(resp, http.StatusAccepted, http.StatusNoContent, http.StatusCreated); err != nil {
		return err
	}
	return u.moveTo(resp)
}

// sentOnce is the body of a request that must not be sent again. A client that renews its token sends the request once more, with what the first
// sending has not read of the body yet; those bytes would come to stand at the wrong place. The client may also still read for a request that was
// answered or has failed, when the bytes are others' already.
type sentOnce struct {
	sent atomic.Bool

	mu sync.Mutex
	r  io.Reader // guarded by mu; nil once the request has ended
}

func (b *sentOnce) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.r == nil {
		return 0, io.ErrClosedPipe
	}
	return b.r.Read(p)
}

// retire waits for a Read under way. There is none afterwards.
func (b *sentOnce) retire() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.r = nil
}

// Close does nothing: the bytes belong to who made the request.
func (b *sentOnce) Close() error { return nil }

// errSent is why a request was not sent again.
var errSent = errors.New("the request's body was sent already")

// onceTransport sends each sentOnce once. It stands below what renews tokens.
type onceTransport struct{ http.RoundTripper }

func (t onceTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	if b, ok := r.Body.(*sentOnce); ok && b.sent.Swap(true) {
		return nil, errSent
	}
	return t.RoundTripper.RoundTrip(r)
}

// status asks how many bytes the registry has. An error of class ErrLost says that it knows nothing of the session any more.
func (u *upload) status(ctx context.Context) (int64, error) {
	ctx, w := newWatch(ctx, u.r.cfg.Retry.Idle)
	defer w.end()
	resp, err := u.r.send(ctx, u.client, call{method: http.MethodGet, url: u.location})
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	if err := wantStatus(resp, http.StatusNoContent, http.StatusOK, http.StatusAccepted); err != nil {
		if _, again := temporary(err); !again {
			err = fmt.Errorf("%w (%w)", ErrLost, err)
		}
		return 0, err
	}
	_, last, ok := strings.Cut(strings.TrimPrefix(resp.Header.Get("Range"), "bytes="), "-")
	end, err := strconv.ParseInt(last, 10, 64)
	if !ok || err != nil || end < 0 {
		return 0, fmt.Errorf("%w: the registry says it has %q", ErrLost, resp.Header.Get("Range"))
	}
	if end > 0 { // 0-0 stands for nothing; one that means a byte refuses what comes next, and the upload begins anew
		end++
	}
	return end, u.moveTo(resp)
}

// commit ends the upload: the blob is there under its digest.
func (u *upload) commit(ctx context.Context, d digest.Digest) error {
	ctx, w := newWatch(ctx, u.r.cfg.Retry.Commit)
	defer w.end()
	at := *u.location
	query := at.Query()
	query.Set("digest", d.String())
	at.RawQuery = query.Encode()
	resp, err := u.r.send(ctx, u.client, call{
		method: http.MethodPut, url: &at, header: http.Header{"Content-Type": {"application/octet-stream"}},
	})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return wantStatus(resp, http.StatusCreated, http.StatusNoContent, http.StatusOK)
}

// cancel tells the registry to forget the session. Nobody minds if it does not.
func (u *upload) cancel(ctx context.Context) {
	ctx, w := newWatch(context.WithoutCancel(ctx), cancelTimeout)
	defer w.end()
	if resp, err := u.r.send(ctx, u.client, call{method: http.MethodDelete, url: u.location}); err == nil {
		resp.Body.Close()
	}
}

// lost reports whether an error of a session means that it cannot go on: the registry has forgotten it, or has other bytes
// of it than were sent. Registries that keep the bytes of a request which broke off (distribution 2 and 3 do) refuse all
// that follows.
func lost(err error) bool {
	switch status(err) {
	case http.StatusNotFound, http.StatusRequestedRangeNotSatisfiable, http.StatusBadRequest, http.StatusConflict, http.StatusGone:
		return true
	}
	return errors.Is(err, ErrLost)
}
