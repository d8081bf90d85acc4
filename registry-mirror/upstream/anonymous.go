package upstream

import (
	"errors"
	"net/http"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/shoal-project/shoal/peer/challenge"
)

const (
	// privateFor is how long a repository that is closed to the public is taken to be so.
	privateFor = time.Minute
	// tokenMargin is how long before its end a token is not used any more.
	tokenMargin = 5 * time.Second
	// maxAnonymous bounds the repositories that are remembered.
	maxAnonymous = 1024
)

// anonymous keeps the tokens that registries give to everybody, one for each repository. Many registries want one even for public images,
// and clients like podman and dockerd fetch none for a mirror.
type anonymous struct {
	mu    sync.Mutex // guards known
	known map[string]anonymousToken
}

// anonymousToken is what a repository's token server said. An empty header means that the repository is not public.
type anonymousToken struct {
	header string
	until  time.Time
}

// current returns what is known of a repository.
func (a *anonymous) current(repository string, now time.Time) (t anonymousToken, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	t = a.known[repository]
	return t, now.Before(t.until)
}

func (a *anonymous) keep(repository string, t anonymousToken) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.known == nil || len(a.known) >= maxAnonymous {
		a.known = map[string]anonymousToken{} // rare, and costs each repository one exchange
	}
	a.known[repository] = t
}

// ask sends the request. For a caller who shows no credentials it is sent once more, with a token for everybody, when the registry wants
// one; the first answer holds, with its challenge, when that does not open the repository.
func (c *Client) ask(client *http.Client, req *http.Request, ref Ref) (*http.Response, error) {
	if req.Header.Get("Authorization") != "" {
		return client.Do(req)
	}
	repository := ref.Registry + "/" + ref.Repository
	known, ok := c.anonymous.current(repository, time.Now())
	if ok && known.header != "" {
		resp, err := client.Do(authorized(req, known.header))
		if err != nil || !refuses(resp) {
			return resp, err
		}
		resp.Body.Close() // revoked, it seems
		ok = false
	}
	resp, err := client.Do(req)
	if err != nil || resp.StatusCode != http.StatusUnauthorized || ok {
		return resp, err
	}
	asked, isChallenge := challenge.Parse(resp)
	if !isChallenge || asked.Scheme != "bearer" {
		return resp, nil
	}
	place := challenge.Place{Registry: ref.Registry, Repository: ref.Repository, Transport: transportOf(client)}
	header, life, err := asked.Token(req.Context(), place, authn.Anonymous)
	if err != nil {
		if refused, ok := errors.AsType[*transport.Error](err); ok && refused.StatusCode < http.StatusInternalServerError && refused.StatusCode != http.StatusTooManyRequests {
			c.closed(repository)
		}
		return resp, nil //nolint:nilerr // the caller can do better with its own credentials
	}
	second, err := client.Do(authorized(req, header))
	if err != nil || refuses(second) {
		if err == nil {
			second.Body.Close()
			c.closed(repository)
		}
		return resp, nil //nolint:nilerr // as above
	}
	resp.Body.Close()
	c.anonymous.keep(repository, anonymousToken{header: header, until: time.Now().Add(life - tokenMargin)})
	return second, nil
}

// closed remembers that a repository is not public.
func (c *Client) closed(repository string) {
	c.anonymous.keep(repository, anonymousToken{until: time.Now().Add(privateFor)})
}

// authorized returns the request with an Authorization header.
func authorized(req *http.Request, header string) *http.Request {
	out := req.Clone(req.Context())
	out.Header.Set("Authorization", header)
	return out
}

func refuses(resp *http.Response) bool {
	return resp.StatusCode == http.StatusUnauthorized || resp.StatusCode == http.StatusForbidden
}

func transportOf(client *http.Client) http.RoundTripper {
	if client.Transport == nil {
		return http.DefaultTransport
	}
	return client.Transport
}
