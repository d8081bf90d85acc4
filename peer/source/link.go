package source

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"
)

// Link is a URL a reader asked for, taken apart: what names the content, what fetches it, and what other hosts may know of it.
type Link struct {
	// Name is the URL as all hosts write it, without user, fragment and the parameters that are to be ignored. It is hashed into
	// the identity of the content, and goes nowhere as it is.
	Name string
	// URL is what is asked for. It may hold secrets in its query.
	URL string
	// Header is sent with it, to the URL's own host only.
	Header http.Header
	// Shared is the URL for other hosts; empty when reading it takes a secret: a header, a user, or a parameter that is ignored or
	// looks like one. Then only hosts whose own readers bring the secret read the origin.
	Shared string
}

// IsPattern reports whether a text can say which parameters of a query to ignore: it is a name, or a pattern of package path.
func IsPattern(s string) bool {
	_, err := path.Match(s, "")
	return err == nil && s != ""
}

// ParseLink takes an http or https URL apart. ignore are patterns of query parameters that do not belong to the content's name, such
// as X-Amz-*; header is what the reader wants sent, and is copied.
func ParseLink(raw string, ignore []string, header http.Header) (Link, error) {
	u, err := url.Parse(raw)
	if err != nil {
		return Link{}, errors.New("this is no URL; want http://HOST/PATH or https://HOST/PATH") // the parser's words have the secrets
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.Opaque != "" {
		return Link{}, fmt.Errorf("URL of scheme %q: want http://HOST/PATH or https://HOST/PATH", u.Scheme)
	}
	for _, pattern := range ignore {
		if !IsPattern(pattern) {
			return Link{}, fmt.Errorf("parameter to ignore %q is not a name, nor a pattern like X-Amz-*", pattern)
		}
	}
	l := Link{Header: header.Clone()}
	if l.Header == nil {
		l.Header = http.Header{}
	}
	if u.User != nil {
		password, _ := u.User.Password()
		if l.Header.Get("Authorization") == "" {
			l.Header.Set("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(u.User.Username()+":"+password)))
		}
		u.User = nil
	}
	u.Fragment, u.RawFragment = "", ""
	u.Host = strings.ToLower(u.Host)
	if port := u.Port(); port == "80" && u.Scheme == "http" || port == "443" && u.Scheme == "https" {
		u.Host = strings.TrimSuffix(u.Host, ":"+port)
	}
	if u.Path == "" {
		u.Path = "/"
	}
	l.URL = u.String()
	query, dropped, secret := splitQuery(u.RawQuery, ignore)
	u.RawQuery, u.ForceQuery = query, false
	l.Name = u.String()
	if !dropped && !secret && len(l.Header) == 0 {
		l.Shared = l.URL
	}
	return l, nil
}

// Private reports whether reading the URL takes a secret.
func (l Link) Private() bool { return l.Shared == "" }

// splitQuery removes the parameters to be ignored, keeping the others as they are written and in their order.
func splitQuery(raw string, ignore []string) (rest string, dropped, secret bool) {
	var kept []string
	for part := range strings.SplitSeq(raw, "&") {
		key, _, _ := strings.Cut(part, "=")
		if name, err := url.QueryUnescape(key); err == nil {
			key = name
		}
		if slices.ContainsFunc(ignore, func(pattern string) bool { ok, _ := path.Match(pattern, key); return ok }) {
			dropped = true
			continue
		}
		secret = secret || looksSecret(key)
		kept = append(kept, part)
	}
	return strings.Join(kept, "&"), dropped, secret
}

// looksSecret tells parameters that grant access by their names: those of presigned URLs (S3, GCS, Azure, CloudFront, OSS) and what
// other services call theirs. Who takes a harmless one for a secret only keeps seeds from reading the URL.
func looksSecret(name string) bool {
	name = strings.ToLower(name)
	for _, part := range []string{"token", "sign", "secret", "passw", "pwd", "credential", "auth", "key", "session", "policy", "expires", "x-amz-", "x-goog-", "jwt", "code"} {
		if strings.Contains(name, part) {
			return true
		}
	}
	return slices.Contains([]string{"sig", "se", "sp", "sv", "sr", "st", "ticket", "sas", "hash", "hmac", "access"}, name)
}

// Redact returns a URL for logs and error messages: without user, and without the values of its query.
func Redact(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return "a URL that cannot be read"
	}
	u.User, u.Fragment, u.RawFragment = nil, "", ""
	if u.RawQuery != "" {
		u.RawQuery = "…"
	}
	return strings.ReplaceAll(u.String(), "%E2%80%A6", "…")
}
