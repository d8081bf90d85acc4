package mirror

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"runtime/debug"
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
type Records struct {
	db       *bbolt.DB
	unsynced *unsynced
}

// Buckets of the file, each a map from a string to JSON.
const (
	bucketManifests = "manifests" // digest → manifestRecord
	bucketTags      = "tags"      // tagKey of a tag with what was acceptable, and of a digest the repository has → tagRecord
	bucketVerdicts  = "verdicts"  // verdictKey → time of the last acceptance
	bucketBlobs     = "sizes"     // blobKey → blobInfo
	bucketSiblings  = "variants"  // blobKey of a plain manifest → digest of the Nydus one beside it; learnedKey → true

	bucketChallenges = "challenges" // registry/repository → WWW-Authenticate
)

func buckets() []string {
	return []string{bucketManifests, bucketTags, bucketVerdicts, bucketBlobs, bucketSiblings, bucketChallenges}
}

// oldBuckets are of versions that believed more of what manifests say.
func oldBuckets() []string { return []string{"blobs", "siblings", "told", "learned"} }

// OpenRecords opens or creates the file. One that is damaged, or that a power failure may have damaged, is set aside, of which log is told (nil
// discards), and started anew: all in it can be asked again.
func OpenRecords(path string, log *slog.Logger) (*Records, error) {
	log = cmp.Or(log, slog.New(slog.DiscardHandler))
	r, err := openFile(path)
	if err != nil && !errors.Is(err, bbolterrors.ErrTimeout) {
		aside := path + ".damaged"
		log.Warn("records are set aside and started anew", "file", path, "aside", aside, "error", err)
		if err = setAside(path, aside); err == nil {
			r, err = openFile(path)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("records %s: %w", path, err)
	}
	return r, nil
}

// setAside moves the file away, and then removes what says of which boot its last writes are.
func setAside(path, aside string) error {
	if err := os.Rename(path, aside); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Remove(path + unsyncedSuffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

var errPowerFailure = errors.New("the machine failed before all that was written was on the disk")

// openFile opens or creates the file. The library panics where it finds that one is damaged; what it has opened of such a file stays open.
func openFile(path string) (r *Records, err error) {
	r = &Records{unsynced: &unsynced{path: path + unsyncedSuffix}}
	if r.unsynced.left() {
		return nil, errPowerFailure
	}
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true)) // at pages behind the end of a file that was cut off
	defer func() {
		if p := recover(); p != nil {
			r, err = nil, fmt.Errorf("it is damaged: %v", p)
		}
	}()
	if r.db, err = bbolt.Open(path, 0o600, &bbolt.Options{Timeout: time.Second, NoSync: true}); err != nil { // see unsynced
		return nil, err
	}
	r.unsynced.sync = r.db.Sync
	if err := r.db.View(hasBuckets); err != nil { // else nothing is written, for which a full disk may have no room
		if err := r.update(makeBuckets); err != nil {
			return nil, errors.Join(err, r.Close())
		}
	}
	return r, nil
}

// hasBuckets returns an error unless there is nothing for makeBuckets to do.
func hasBuckets(tx *bbolt.Tx) error {
	for _, b := range oldBuckets() {
		if tx.Bucket([]byte(b)) != nil {
			return bbolterrors.ErrBucketExists
		}
	}
	for _, b := range buckets() {
		if tx.Bucket([]byte(b)) == nil {
			return bbolterrors.ErrBucketNotFound
		}
	}
	return nil
}

func makeBuckets(tx *bbolt.Tx) error {
	for _, b := range oldBuckets() {
		if err := tx.DeleteBucket([]byte(b)); err != nil && !errors.Is(err, bbolterrors.ErrBucketNotFound) {
			return err
		}
	}
	for _, b := range buckets() {
		if _, err := tx.CreateBucketIfNotExists([]byte(b)); err != nil {
			return err
		}
	}
	return nil
}

// Close brings all to the disk and closes the file.
func (r *Records) Close() error { return errors.Join(r.unsynced.settle(true), r.db.Close()) }

// update writes.
func (r *Records) update(change func(tx *bbolt.Tx) error) error {
	end, err := r.unsynced.begin()
	if err != nil {
		return err
	}
	defer end()
	return r.db.Update(change)
}

func (r *Records) put(bucket string, key string, value any) error {
	data, err := json.Marshal(value)
	if err != nil {
		return err
	}
	return r.update(func(tx *bbolt.Tx) error { return tx.Bucket([]byte(bucket)).Put([]byte(key), data) })
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
	return r.update(func(tx *bbolt.Tx) error {
		return tx.Bucket([]byte(bucketVerdicts)).Delete([]byte(verdictKey(registry, repository, credential)))
	})
}

// forget removes the verdicts from before a time: where callers bring tokens, each pull leaves one.
func (r *Records) forget(before time.Time) error {
	return r.update(func(tx *bbolt.Tx) error {
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
	if !r.get(bucketManifests, tag.Digest.String(), &m) || !names(tag.Digest, m.Body) {
		return Record{}, ErrUnknown
	}
	rec.Digest, rec.MediaType, rec.Body = tag.Digest, m.MediaType, m.Body
	return rec, nil
}

// names reports whether d is the digest of a body.
func names(d digest.Digest, body []byte) bool {
	return d.Validate() == nil && d.Algorithm().FromBytes(body) == d
}

func (q Query) ref() upstream.Ref {
	return upstream.Ref{Registry: q.Registry, Repository: q.Repository, Reference: q.Reference}
}
