package source

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/shoal-project/shoal/peer/challenge"
)

const (
	tokenMargin = 5 * time.Second // all are renewed a little early
	maxTokens   = 1024
)

// tokens keeps one Authorization header for each repository.
type tokens struct {
	keychain authn.Keychain
	now      func() time.Time

	mu    sync.Mutex // guards cache
	cache map[string]*token
}

// token is the header for one repository. Its lock is a channel, so that waiting for an exchange ends with the context.
type token struct {
	lock    chan struct{}
	header  string
	expires time.Time
}

func newTokens(keychain authn.Keychain) *tokens {
	return &tokens{keychain: keychain, now: time.Now, cache: map[string]*token{}}
}

func (t *tokens) entry(b Blob) *token {
	repository := b.Registry + "/" + b.Repository
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.cache[repository] == nil {
		if len(t.cache) >= maxTokens {
			clear(t.cache) // rare, and costs each repository one exchange
		}
		t.cache[repository] = &token{lock: make(chan struct{}, 1)}
	}
	return t.cache[repository]
}

// current returns the header to try first; empty when there is none.
func (t *tokens) current(ctx context.Context, b Blob) (string, error) {
	e := t.entry(b)
	select {
	case e.lock <- struct{}{}:
		defer func() { <-e.lock }()
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
	if t.now().After(e.expires) {
		return "", nil
	}
	return e.header, nil
}

// renew returns a header that answers the challenge. Of callers who were refused with the same header, one asks for a new one.
func (t *tokens) renew(ctx context.Context, r request, refused string, c challenge.Challenge) (string, error) {
	e := t.entry(r.Blob)
	select {
	case e.lock <- struct{}{}:
		defer func() { <-e.lock }()
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
	if e.header != "" && e.header != refused && t.now().Before(e.expires) {
		return e.header, nil
	}
	header, life, err := t.answer(ctx, r, c)
	if err != nil {
		return "", err
	}
	e.header, e.expires = header, t.now().Add(life-tokenMargin)
	return header, nil
}

// answer turns the keychain's credentials into the header a challenge asks for.
func (t *tokens) answer(ctx context.Context, r request, c challenge.Challenge) (string, time.Duration, error) {
	registry, err := name.NewRegistry(r.Registry)
	if err != nil {
		return "", 0, err
	}
	auth, err := t.keychain.Resolve(registry)
	if err != nil {
		return "", 0, fmt.Errorf("credentials for %s: %w", r.Registry, err)
	}
	config, err := authn.Authorization(ctx, auth)
	if err != nil {
		return "", 0, fmt.Errorf("credentials for %s: %w", r.Registry, err)
	}
	switch {
	case c.Scheme == "basic":
		if config.Username == "" && config.Password == "" && config.Auth == "" {
			return "", 0, &StatusError{Status: http.StatusUnauthorized, Text: "it asks for a user and a password; log in with docker login " + r.Registry}
		}
		basic := config.Auth
		if basic == "" {
			basic = base64.StdEncoding.EncodeToString([]byte(config.Username + ":" + config.Password))
		}
		return "Basic " + basic, time.Hour, nil
	case c.Scheme == "bearer" && config.RegistryToken != "":
		return "Bearer " + config.RegistryToken, time.Hour, nil
	case c.Scheme == "bearer":
		return exchange(ctx, r, auth, c)
	}
	return "", 0, &StatusError{Status: http.StatusUnauthorized, Text: fmt.Sprintf("challenge %q is not understood", c.Scheme)}
}

// exchange asks the registry's token server.
func exchange(ctx context.Context, r request, auth authn.Authenticator, c challenge.Challenge) (string, time.Duration, error) {
	header, life, err := c.Token(ctx, challenge.Place{Registry: r.Registry, Repository: r.Repository, Transport: r.client.Transport}, auth)
	if refused, ok := errors.AsType[*transport.Error](err); ok {
		return "", 0, fmt.Errorf("token server of %s: %w", r.Registry, &StatusError{Status: refused.StatusCode})
	}
	return header, life, err
}
