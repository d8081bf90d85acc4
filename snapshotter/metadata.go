package snapshotter

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"

	"go.etcd.io/bbolt"
)

const metadataName = "metadata.db"

// ErrDamaged means that the file of the snapshots' metadata cannot be read. Nothing else has what it says.
var ErrDamaged = errors.New("it is damaged")

// checkMetadata reads all of the metadata once. The library panics where it finds that the file is damaged, then as whenever it is used; what it has opened of such a file stays open.
func checkMetadata(root string) (err error) {
	path := filepath.Join(root, metadataName)
	if info, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) || err == nil && info.Size() == 0 { // it is made then
		return nil
	}
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true)) // at pages behind the end of a file that was cut off
	defer func() {
		if p := recover(); p != nil {
			err = damaged(root, fmt.Errorf("%v", p))
		}
	}()
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true, PreLoadFreelist: true, NoStatistics: true})
	if errors.As(err, new(*fs.PathError)) {
		return err
	}
	if err != nil {
		return damaged(root, err)
	}
	err = db.View(func(tx *bbolt.Tx) error {
		return tx.ForEach(func(_ []byte, b *bbolt.Bucket) error { return visit(b) })
	})
	return errors.Join(err, db.Close())
}

// visit reads all there is in a bucket.
func visit(b *bbolt.Bucket) error {
	return b.ForEach(func(key, value []byte) error {
		if value == nil {
			return visit(b.Bucket(key))
		}
		return nil
	})
}

func damaged(root string, why error) error {
	return fmt.Errorf("%s: %w: %w; move %s away, start the node, and have containerd remove the containers and images of this snapshotter and pull them anew",
		metadataName, ErrDamaged, why, root)
}
