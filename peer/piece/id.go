package piece

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
)

// urlKind stands where a digest names its hash function, in the identity of what a URL had. No function is called so, and so no
// blob can have such a name.
const urlKind = "url"

// URLID returns the identity of what a URL had at one time. Everything the cluster shares has an identity, written like a digest. There
// are two kinds:
//
//	sha256:HEX   a blob: the digest of its bytes, which anybody can check
//	url:HEX      what a URL had: SHA-256 over its name, its validator and its size. It says which bytes are meant and nothing of what
//	             they are: they are right by the word of who read them from the origin in one go
//
// name is the URL as all hosts write it, validator the origin's ETag or Last-Modified, size the
// number of bytes.
func URLID(name, validator string, size int64) digest.Digest {
	// Quoted strings and a number on lines of their own: no two different lists give the same text.
	sum := sha256.Sum256([]byte("shoal url 1\n" + strconv.Quote(name) + "\n" + strconv.Quote(validator) + "\n" +
		strconv.FormatInt(size, 10) + "\n"))
	return digest.Digest(urlKind + ":" + hex.EncodeToString(sum[:]))
}

// IsURL reports whether an identity is that of a URL's content.
func IsURL(id digest.Digest) bool { return strings.HasPrefix(string(id), urlKind+":") }

// CheckID reports what is wrong with an identity that another host sent, or that a folder is named by.
func CheckID(id digest.Digest) error {
	if !IsURL(id) {
		return id.Validate()
	}
	sum := strings.TrimPrefix(string(id), urlKind+":")
	if raw, err := hex.DecodeString(sum); err != nil || len(raw) != sha256.Size || strings.ToLower(sum) != sum {
		return fmt.Errorf("identity %q: want url: and %d lower hexadecimal digits", id, hex.EncodedLen(sha256.Size))
	}
	return nil
}
