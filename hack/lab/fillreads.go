package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// readModes are the ways to read the complete model: whether it is in memory before, and whether it is mapped.
var readModes = []struct {
	name  string
	warm  bool
	flags []string
}{
	{"cold", false, nil},
	{"warm", true, nil},
	{"mapped, cold", false, []string{"--mmap"}},
	{"mapped, warm", true, []string{"--mmap"}},
}

// readComplete reads the model from the driver's mount, of which nothing is missing, by turns with the plain files.
func (b *fillBench) readComplete(ctx context.Context, driver, root string) ([]readCase, error) {
	if err := b.awaitWhole(ctx, driver, root); err != nil {
		return nil, err
	}
	lazy, err := b.files(modelOf(root))
	if err != nil {
		return nil, err
	}
	plain, err := b.files(b.source)
	if err != nil {
		return nil, err
	}
	stored, err := b.stored()
	if err != nil {
		return nil, err
	}
	if err := syncDisk(b.Dir()); err != nil {
		return nil, err
	}
	var cases []readCase
	for _, mode := range readModes {
		c := readCase{Driver: driver, Mode: mode.name}
		turns := []turn{{lazy, append(slices.Clone(lazy), stored...), &c.All}, {plain, plain, &c.AllPlain}}
		for i := range b.cfg.reads {
			if err := b.takeTurns(ctx, turns, mode.warm, i == 0, mode.flags); err != nil {
				return nil, fmt.Errorf("%s, %s: %w", driver, mode.name, err)
			}
			slices.Reverse(turns) // who was second is first
		}
		fmt.Fprintf(b.cfg.log, "complete, %s, %s: %.0f MB/s, plain %.0f MB/s\n", driver, mode.name, median(c.All)/1e6, median(c.AllPlain)/1e6)
		cases = append(cases, c)
	}
	return cases, nil
}

// A turn is a model's files, those whose pages make it warm, and where its rates go.
type turn struct {
	files, pages []string
	rates        *[]float64
}

// takeTurns reads each once. Warm ones are read before that too, the first time.
func (b *fillBench) takeTurns(ctx context.Context, turns []turn, warm, first bool, flags []string) error {
	for _, t := range turns {
		if !warm {
			if err := forgetPages(t.pages); err != nil {
				return err
			}
		} else if first {
			if _, err := readFiles(ctx, t.files, b.cfg.size, flags...); err != nil {
				return err
			}
		}
		read, err := readFiles(ctx, t.files, b.cfg.size, flags...)
		if err != nil {
			return err
		}
		*t.rates = append(*t.rates, float64(b.cfg.size)/read.Seconds)
	}
	return nil
}

// awaitWhole waits until erofs has mounted the complete image anew, past the page cache of its blobs. Other drivers show nothing of the kind:
// what was read is there.
func (b *fillBench) awaitWhole(ctx context.Context, driver, root string) error {
	if driver != "erofs" {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, wholeWait, fmt.Errorf("%s is not mounted as complete after %v", root, wholeWait))
	defer cancel()
	tick := time.NewTicker(wholePoll)
	defer tick.Stop()
	for {
		mounts, err := mountsBelow(root)
		if err != nil {
			return err
		}
		if slices.ContainsFunc(mounts, func(m mounted) bool { return m.point == root && strings.Contains(m.options, "directio") }) {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// stored are the files in which the node's store has the model.
func (b *fillBench) stored() (files []string, err error) {
	for _, l := range b.image.layers() {
		if l.variant != "both" {
			continue
		}
		found, err := filepath.Glob(filepath.Join(b.registry.Host().Dir, "data", "blobs", "*"+l.digest.Encoded(), "data"))
		if err != nil {
			return nil, err
		}
		files = append(files, found...)
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("the store has no blob of the model in %s", b.registry.Host().Dir)
	}
	return files, nil
}

// forgetPages has the kernel drop the files from its memory.
func forgetPages(files []string) error {
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		err = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
		_ = f.Close() // only read
		if err != nil {
			return fmt.Errorf("drop %s from memory: %w", name, err)
		}
	}
	return nil
}
