package mirror

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/opencontainers/go-digest"
	"go.etcd.io/bbolt"
	bbolterrors "go.etcd.io/bbolt/errors"

	"github.com/shoal-project/shoal/registry-mirror/upstream"
)

// Record is a manifest as the origin served it to somebody with these credentials at that time.
type Record struct {
	Registry   string        `json:"registry"`
	Repository string        `json:"repository"`
	Reference  string        `json:"reference"` // tag or digest
	Digest     digest.Digest `json:"digest"`
	MediaType  string        `json:"media_type"`
	Body       []byte        `json:"body"`
	Credential string        `json:"credential"`       // as credential returns it
	Accept     string        `json:"accept,omitempty"` // of a tag, as acceptable returns it
	Checked    time.Time     `json:"checked"`
}

// Query asks for a record, by what a Record has in these fields.
type Query struct {
	Registry, Repository, Reference, Credential, Accept string
}

// ErrUnknown is returned when there is no record of what is asked.
var ErrUnknown = errors.New("not known here")

// credential is what stands for an Authorization header in records: its hash. Of a caller without one it is the empty string.
func credential(authorization string) string {
	if authorization == "" {
		return ""
	}
	sum := sha256.Sum256([]byte("shoal credential\x00" + authorization))
	return hex.EncodeToString(sum[:])
}

// blobInfo is what manifests told of a blob.
type blobInfo struct {
	Size     int64         `json:"size"` // 0 when it is not known, or the blob is empty
	MapLayer digest.Digest `json:"map_layer,omitempty"`
	MapSize  int64         `json:"map_size,omitempty"`
}

type manifestRecord struct {
	MediaType string `json:"media_type"`
	Body      []byte `json:"body"`
}

type tagRecord struct {
	Digest  digest.Digest `json:"digest"`
	Checked time.Time     `json:"checked"`
}

// Records is the mirror's memory, in one file: manifests by digest, tags, verdicts on credentials, and what manifests told of blobs.
// It is safe for concurrent use.
type Records struct{ db *bbolt.DB }

// Buckets of the file, each a map from a string to JSON.
const (
	bucketManifests = "manifests" // digest → manifestRecord
	bucketTags      = "tags"      // tagKey of a tag with what was acceptable, and of a digest the repository has → tagRecord
	bucketVerdicts  = "verdicts"  // verdictKey → time of the last acceptance
	bucketBlobs     = "sizes"     // blobKey → blobInfo
	bucketSiblings  = "variants"  // blobKey of a plain manifest → digest of the Nydus one beside it; learnedKey → true

	bucketChallenges = "challenges" // registry/repository → WWW-Authenticate
)

// oldBuckets are of versions that believed more of what manifests say.
func oldBuckets() []string { return []string{"blobs", "siblings", "told", "learned"} }

// OpenRecords opens or creates the file. One that is broken, as a power failure may leave it, is started anew: all in it can
// be asked again.
func OpenRecords(path string) (*Records, error) {
	r, err := openFile(path)
	if err != nil && !errors.Is(err, bbolterrors.ErrTimeout) && os.Remove(path) == nil {
		r, err = openFile(path)
	}
	if err != nil {
		return nil, fmt.Errorf("records %s: %w", path, err)
	}
	return r, nil
}

func openFile(path string) (*Records, error) {
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: time.Second, NoSync: true}) // see OpenRecords
	if err != nil {
		return nil, err
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		for _, b := range oldBuckets() {
			if err := tx.DeleteBucket([]byte(b)); err != nil && !errors.Is(err, bbolterrors.ErrBucketNotFound) {
				return err
			}
		}
		for _, b := range []string{bucketManifests, bucketTags, bucketVerdicts, bucketBlobs, bucketSiblings, bucketChallenges} {
			if _, err := tx.CreateBucketIfNotExists([]byte(b)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		_ = db.Close() // it is of no use
		return nil, err
	}
	return &Records{db: db}, nil
}

// Close closes the file.
func (r *Records) Close() error { return r.db.Close() }

func (r *Records) put(bucket string, key string, value any) error {
	data, err := json.Marshal(value)
	if err != nil {
		return err
	}
	return r.db.Update(func(tx *bbolt.Tx) error { return tx.Bucket([]byte(bucket)).Put([]byte(key), data) })
}

func (r *Records) get(bucket string, key string, value any) bool {
	found := false
	_ = r.db.View(func(tx *bbolt.Tx) error { // fails only when closed: then nothing is known
		data := tx.Bucket([]byte(bucket)).Get([]byte(key))
		found = data != nil && json.Unmarshal(data, value) == nil
		return nil
	})
	return found
}

func tagKey(registry, repository, tag string) string { return registry + "/" + repository + ":" + tag }

// acceptedKey names a tag of which a caller accepts some types only: the registry may answer each with another manifest.
func acceptedKey(reference, accept string) string {
	if accept == "" {
		return reference
	}
	return reference + "\x00" + accept
}

func verdictKey(registry, repository, credential string) string {
	return registry + "/" + repository + "\x00" + credential
}

// store keeps a record: the manifest, the tag if the reference is one, and the verdict.
func (r *Records) store(rec Record) error {
	err := r.put(bucketManifests, rec.Digest.String(), manifestRecord{rec.MediaType, rec.Body})
	for _, reference := range []string{acceptedKey(rec.Reference, rec.Accept), rec.Digest.String()} {
		if err == nil {
			err = r.put(bucketTags, tagKey(rec.Registry, rec.Repository, reference), tagRecord{rec.Digest, rec.Checked})
		}
	}
	if err == nil {
		err = r.accept(rec.Registry, rec.Repository, rec.Credential, rec.Checked)
	}
	return err
}

// accept notes that the origin accepted a credential for a repository.
func (r *Records) accept(registry, repository, credential string, at time.Time) error {
	var before time.Time
	key := verdictKey(registry, repository, credential)
	if r.get(bucketVerdicts, key, &before) && !at.After(before) && !before.After(time.Now().Add(clockSkew)) {
		return nil
	}
	return r.put(bucketVerdicts, key, at)
}

// revoke notes that the origin refused a credential.
func (r *Records) revoke(registry, repository, credential string) error {
	return r.db.Update(func(tx *bbolt.Tx) error {
		return tx.Bucket([]byte(bucketVerdicts)).Delete([]byte(verdictKey(registry, repository, credential)))
	})
}

// forget removes the verdicts from before a time: where callers bring tokens, each pull leaves one.
func (r *Records) forget(before time.Time) error {
	return r.db.Update(func(tx *bbolt.Tx) error {
		verdicts := tx.Bucket([]byte(bucketVerdicts))
		var old [][]byte
		err := verdicts.ForEach(func(key, value []byte) error {
			var at time.Time
			if json.Unmarshal(value, &at) != nil || at.Before(before) {
				old = append(old, key)
			}
			return nil
		})
		for _, key := range old {
			err = errors.Join(err, verdicts.Delete(key))
		}
		return err
	})
}

// accepted returns when the origin accepted the credential last; the zero time when it never did.
func (r *Records) accepted(registry, repository, credential string) time.Time {
	var at time.Time
	r.get(bucketVerdicts, verdictKey(registry, repository, credential), &at)
	return at
}

// lookup returns the record of a reference, if the credential was ever accepted for its repository. Checked is the older of the times of the
// tag and of the verdict.
func (r *Records) lookup(q Query) (Record, error) {
	rec := Record{Registry: q.Registry, Repository: q.Repository, Reference: q.Reference, Credential: q.Credential, Accept: q.Accept}
	rec.Checked = r.accepted(q.Registry, q.Repository, q.Credential)
	if rec.Checked.IsZero() {
		return Record{}, ErrUnknown
	}
	var tag tagRecord
	if !r.get(bucketTags, tagKey(q.Registry, q.Repository, acceptedKey(q.Reference, q.Accept)), &tag) {
		return Record{}, ErrUnknown // also of a manifest that only another repository is known to have
	}
	if _, err := digest.Parse(q.Reference); err != nil && tag.Checked.Before(rec.Checked) {
		rec.Checked = tag.Checked // what a digest names does not age
	}
	var m manifestRecord
	if !r.get(bucketManifests, tag.Digest.String(), &m) {
		return Record{}, ErrUnknown
	}
	rec.Digest, rec.MediaType, rec.Body = tag.Digest, m.MediaType, m.Body
	return rec, nil
}

func (q Query) ref() upstream.Ref {
	return upstream.Ref{Registry: q.Registry, Repository: q.Repository, Reference: q.Reference}
}
