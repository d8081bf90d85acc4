// Command sums prints the sha256 and the name of every regular file below the folders that are named.
package main

import (
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"log"
	"os"
	"path/filepath"
)

func main() {
	for _, dir := range os.Args[1:] {
		if err := filepath.WalkDir(dir, sum); err != nil {
			log.Fatal(err)
		}
	}
}

func sum(name string, entry fs.DirEntry, err error) error {
	if err != nil || !entry.Type().IsRegular() {
		return err
	}
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return err
	}
	_, err = fmt.Printf("%x %s\n", h.Sum(nil), name)
	return err
}
