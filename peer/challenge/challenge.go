// Package challenge reads what a registry answers to who shows no credentials, and gets the token it asks for.
package challenge

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// defaultLife is how long a token without expires_in is good for, by the specification.
const defaultLife = time.Minute

// Challenge is a WWW-Authenticate header: RFC 9110, section 11.6.1.
type Challenge struct {
	Scheme     string // lower case
	Parameters map[string]string
	Insecure   bool // came over plain HTTP
}

// Parse returns the first Bearer or Basic challenge of a response, one for each header line.
func Parse(resp *http.Response) (Challenge, bool) {
	for _, line := range resp.Header.Values("WWW-Authenticate") {
		scheme, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		c := Challenge{Scheme: strings.ToLower(scheme), Parameters: parseParameters(rest), Insecure: resp.Request.URL.Scheme == "http"}
		if c.Scheme == "bearer" || c.Scheme == "basic" {
			return c, true
		}
	}
	return Challenge{}, false
}

// Place is where a token is for: a repository of a registry, and how that is reached.
type Place struct {
	Registry, Repository string
	Transport            http.RoundTripper
}

// Token asks the token server of a Bearer challenge for leave to pull, and returns an Authorization header and how long it is good. A server
// named by a private address literal other than the registry's own is refused: a challenge must not send us to the neighbours. A refusal of the
// server's is a *transport.Error.
func (c Challenge) Token(ctx context.Context, p Place, auth authn.Authenticator) (header string, life time.Duration, err error) {
	registry, err := name.NewRegistry(p.Registry)
	if err != nil {
		return "", 0, err
	}
	scope := c.Parameters["scope"]
	if scope == "" {
		scope = "repository:" + p.Repository + ":pull"
	}
	got, err := transport.Exchange(ctx, registry, auth, p.Transport, []string{scope},
		&transport.Challenge{Scheme: c.Scheme, Parameters: c.Parameters, Insecure: c.Insecure})
	if err != nil {
		return "", 0, fmt.Errorf("token server of %s: %w", registry, err)
	}
	life = time.Duration(got.ExpiresIn) * time.Second
	if life <= 0 {
		life = defaultLife
	}
	value := got.Token
	if value == "" {
		value = got.AccessToken
	}
	return "Bearer " + value, life, nil
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
