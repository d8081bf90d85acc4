package cluster

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/bcrypt"
)

const htpasswdConfig = `auth:
  htpasswd: {realm: lab, path: %s}
`

// StartPasswordRegistry is StartRegistry with users who may read and write all of it, by name and password; the first one pushes.
func (c *Cluster) StartPasswordRegistry(ctx context.Context, users ...Login) (*Registry, error) {
	r, err := c.newRegistry(ctx, registryPort, "docker-registry")
	if err != nil {
		return nil, err
	}
	r.login = users[0]
	if err := r.SetUsers(users...); err != nil {
		return nil, err
	}
	if err := r.configure(fmt.Sprintf(htpasswdConfig, r.passwords())); err != nil {
		return nil, err
	}
	return r, r.Start(ctx)
}

func (r *Registry) passwords() string { return filepath.Join(r.host.Dir, "htpasswd") }

// SetUsers replaces the users of a registry that StartPasswordRegistry started; it notices by itself.
func (r *Registry) SetUsers(users ...Login) error {
	var file strings.Builder
	for _, u := range users {
		hash, err := bcrypt.GenerateFromPassword([]byte(u.Password), bcrypt.MinCost)
		if err != nil {
			return err
		}
		fmt.Fprintf(&file, "%s:%s\n", u.User, hash)
	}
	return os.WriteFile(r.passwords(), []byte(file.String()), 0o644)
}

const (
	tokenConfig = `auth:
  token: {realm: %s, service: lab, issuer: lab, rootcertbundle: %s}
`
	tokenLife = 5 * time.Minute
)

// Grants say who may pull which repositories. The user without a name is everybody.
type Grants map[Login][]string

// StartTokenRegistry is StartProxiedRegistry with a token server, which stands at the registry's own address. The owner pushes.
func (c *Cluster) StartTokenRegistry(ctx context.Context, owner Login, grants Grants) (*Registry, error) {
	r, err := c.newRegistry(ctx, registryBack, "docker-registry")
	if err != nil {
		return nil, err
	}
	r.login = owner
	server, err := newTokenServer(owner, grants)
	if err != nil {
		return nil, err
	}
	if r.Proxy, err = r.host.StartProxy(ctx, registryPort, registryBack); err != nil {
		return nil, err
	}
	r.Proxy.answerOwn(server)
	bundle := filepath.Join(r.host.Dir, "issuer.pem")
	if err := os.WriteFile(bundle, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.cert}), 0o644); err != nil {
		return nil, err
	}
	if err := r.configure(fmt.Sprintf(tokenConfig, "http://"+r.Addr()+ownPath, bundle)); err != nil {
		return nil, err
	}
	return r, r.Start(ctx)
}

// tokenServer gives out tokens as the distribution project specifies them: JSON web tokens that say what their bearer may do.
type tokenServer struct {
	owner  Login
	grants Grants
	key    *ecdsa.PrivateKey
	cert   []byte
}

func newTokenServer(owner Login, grants Grants) (*tokenServer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "lab"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(24 * time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	return &tokenServer{owner: owner, grants: grants, key: key, cert: cert}, err
}

// access is what a token allows, as it stands in it.
type access struct {
	Type    string   `json:"type"`
	Name    string   `json:"name"`
	Actions []string `json:"actions"`
}

// ServeHTTP answers with a token for as much of what is asked for as the user may; a wrong password gets none.
func (s *tokenServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var who Login
	who.User, who.Password, _ = r.BasicAuth()
	if r.Method == http.MethodPost { // OAuth 2, which containerd tries first
		who = Login{r.FormValue("username"), r.FormValue("password")}
	}
	_, known := s.grants[who]
	if !known && who != s.owner && who != (Login{}) {
		http.Error(w, `{"errors":[{"code":"UNAUTHORIZED"}]}`, http.StatusUnauthorized)
		return
	}
	allowed := []access{}
	scopes := r.Form["scope"]
	if r.Form == nil {
		scopes = r.URL.Query()["scope"]
	}
	for scope := range strings.FieldsSeq(strings.Join(scopes, " ")) {
		parts := strings.Split(scope, ":")
		if len(parts) != 3 {
			continue
		}
		switch name := parts[1]; {
		case who == s.owner:
			allowed = append(allowed, access{parts[0], name, []string{"pull", "push"}})
		case slices.Contains(s.grants[who], name) || slices.Contains(s.grants[Login{}], name):
			allowed = append(allowed, access{parts[0], name, []string{"pull"}})
		}
	}
	token, err := s.sign(allowed, who.User)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{"token": token, "access_token": token, "expires_in": int(tokenLife.Seconds())}) // the caller may have left
}

// sign makes a token, by RFC 7515 with ES256.
func (s *tokenServer) sign(allowed []access, user string) (string, error) {
	now := time.Now()
	part := func(v any) string {
		data, _ := json.Marshal(v) // maps of strings and numbers always can be
		return base64.RawURLEncoding.EncodeToString(data)
	}
	text := part(map[string]any{"typ": "JWT", "alg": "ES256", "x5c": []string{base64.StdEncoding.EncodeToString(s.cert)}}) + "." +
		part(map[string]any{"iss": "lab", "aud": "lab", "sub": user, "iat": now.Unix(), "nbf": now.Add(-time.Minute).Unix(),
			"exp": now.Add(tokenLife).Unix(), "jti": now.String(), "access": allowed})
	sum := sha256.Sum256([]byte(text))
	a, b, err := ecdsa.Sign(rand.Reader, s.key, sum[:])
	if err != nil {
		return "", err
	}
	signature := append(a.FillBytes(make([]byte, 32)), b.FillBytes(make([]byte, 32))...)
	return text + "." + base64.RawURLEncoding.EncodeToString(signature), nil
}
