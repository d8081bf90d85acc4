package source

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

const (
	// A token without expires_in is good for 60 seconds by the specification; all are renewed a little early.
	defaultTokenLife = time.Minute
	tokenMargin      = 5 * time.Second
	maxTokens        = 1024
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
func (t *tokens) renew(ctx context.Context, r request, refused string, c challenge) (string, error) {
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
func (t *tokens) answer(ctx context.Context, r request, c challenge) (string, time.Duration, error) {
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
	case c.scheme == "basic":
		if config.Username == "" && config.Password == "" && config.Auth == "" {
			return "", 0, &StatusError{Status: http.StatusUnauthorized, Text: "it asks for a user and a password; log in with docker login " + r.Registry}
		}
		basic := config.Auth
		if basic == "" {
			basic = base64.StdEncoding.EncodeToString([]byte(config.Username + ":" + config.Password))
		}
		return "Basic " + basic, time.Hour, nil
	case c.scheme == "bearer" && config.RegistryToken != "":
		return "Bearer " + config.RegistryToken, time.Hour, nil
	case c.scheme == "bearer":
		return exchange(ctx, registry, r, auth, c)
	}
	return "", 0, &StatusError{Status: http.StatusUnauthorized, Text: fmt.Sprintf("challenge %q is not understood", c.scheme)}
}

// exchange asks the registry's token server. A server named by a private address literal other than the registry's own is
// refused: a challenge must not send us to the neighbours.
func exchange(ctx context.Context, registry name.Registry, r request, auth authn.Authenticator, c challenge) (string, time.Duration, error) {
	scope := c.parameters["scope"]
	if scope == "" {
		scope = "repository:" + r.Repository + ":pull"
	}
	got, err := transport.Exchange(ctx, registry, auth, r.client.Transport, []string{scope},
		&transport.Challenge{Scheme: c.scheme, Parameters: c.parameters, Insecure: c.insecure})
	if err != nil {
		if refused, ok := errors.AsType[*transport.Error](err); ok {
			return "", 0, fmt.Errorf("token server of %s: %w", registry, &StatusError{Status: refused.StatusCode})
		}
		return "", 0, fmt.Errorf("token server of %s: %w", registry, err)
	}
	life := time.Duration(got.ExpiresIn) * time.Second
	if life <= 0 {
		life = defaultTokenLife
	}
	value := got.Token
	if value == "" {
		value = got.AccessToken
	}
	return "Bearer " + value, life, nil
}

// challenge is a WWW-Authenticate header: RFC 9110, section 11.6.1.
type challenge struct {
	scheme     string // lower case
	parameters map[string]string
	insecure   bool // came over plain HTTP
}

// parseChallenge returns the first Bearer or Basic challenge of a response, one for each header line.
func parseChallenge(resp *http.Response) (challenge, bool) {
	for _, line := range resp.Header.Values("WWW-Authenticate") {
		scheme, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		c := challenge{scheme: strings.ToLower(scheme), parameters: parseParameters(rest), insecure: resp.Request.URL.Scheme == "http"}
		if c.scheme == "bearer" || c.scheme == "basic" {
			return c, true
		}
	}
	return challenge{}, false
}

// parseParameters reads key=value and key="value" pairs between commas, and stops at what is neither.
func parseParameters(s string) map[string]string {
	out := map[string]string{}
	for {
		key, rest, ok := strings.Cut(strings.TrimLeft(s, " ,\t"), "=")
		if !ok {
			return out
		}
		var value string
		if strings.HasPrefix(rest, `"`) {
			if value, s, ok = cutQuoted(rest[1:]); !ok {
				return out
			}
		} else {
			value, s, _ = strings.Cut(rest, ",")
		}
		out[strings.ToLower(strings.TrimSpace(key))] = strings.TrimSpace(value)
	}
}

// cutQuoted returns what stands before the closing quote, without backslashes, and what follows it.
func cutQuoted(s string) (value, rest string, ok bool) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '"':
			return b.String(), s[i+1:], true
		case s[i] == '\\' && i+1 < len(s):
			i++
		}
		b.WriteByte(s[i])
	}
	return "", "", false
}
