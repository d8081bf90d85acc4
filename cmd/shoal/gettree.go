package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"

	"github.com/urfave/cli/v2"

	"github.com/shoal-project/shoal/cmd/internal/fetch"
	models "github.com/shoal-project/shoal/converter/source"
	"github.com/shoal-project/shoal/peer/source"
)

// defaultHub is where hf:// leads without HF_ENDPOINT.
const defaultHub = "https://huggingface.co"

// getTree gets all files below a prefix.
func getTree(ctx *cli.Context, target string, asJSON bool) error {
	for _, name := range []string{"range", "digest"} {
		if ctx.IsSet(name) {
			return usageError(fmt.Errorf("get: --%s is of one file, and does not go with --recursive", name))
		}
	}
	output := ctx.String("out")
	if !ctx.Bool("dry-run") && (output == "" || output == "-") {
		return usageError(errors.New("get: --recursive wants a folder to write to, -o FOLDER"))
	}
	if info, err := os.Stat(output); err == nil && !info.IsDir() {
		return usageError(fmt.Errorf("get: output %s is no folder", output))
	}
	first := target
	if scheme, _, _ := strings.Cut(target, "://"); scheme == "hf" || scheme == "s3" {
		first = cmp.Or(os.Getenv("HF_ENDPOINT"), defaultHub) // its URLs are asked like others; which host that is matters to --plain-http only
	}
	cfg, closing, err := getConfig(ctx, first)
	if err != nil {
		return usageError(fmt.Errorf("get: %w", err))
	}
	defer closing()
	shown := startProgress(ctx)
	end := sync.OnceFunc(shown.end)
	defer end()
	if shown.Progress != nil {
		cfg.Progress = stage{shown.Progress}
	}
	cfg.Log = shown.warn
	items, ending, err := list(ctx, cfg, target)
	if err != nil {
		end()
		return treeError(ctx.Context, err)
	}
	defer ending()
	if ctx.Bool("dry-run") {
		end()
		return writeItems(ctx, items, asJSON)
	}
	result, err := fetch.Tree(ctx.Context, cfg, source.Redact(target), items)
	end()
	if result == nil {
		return treeError(ctx.Context, err)
	}
	if asJSON {
		err = errors.Join(err, writeJSON(ctx.App.Writer, result))
	} else {
		_, writeErr := ctx.App.Writer.Write([]byte(treeText(result)))
		err = errors.Join(err, writeErr)
	}
	if err != nil {
		return treeError(ctx.Context, fmt.Errorf("%d of %d files are not there; the same call again gets them:\n%w", result.Failed, len(items), err))
	}
	return nil
}

// list finds the files below a prefix. ending is called when they have been read.
func list(ctx *cli.Context, cfg fetch.Config, target string) (items []fetch.Item, ending func(), err error) {
	scheme, _, _ := strings.Cut(target, "://")
	if scheme != "hf" && scheme != "s3" {
		if ctx.IsSet("include") || ctx.IsSet("exclude") {
			return nil, nil, &fetch.RequestError{Err: errors.New("--include and --exclude are for hf:// and s3://")}
		}
		if cfg.Target.URL == "" {
			return nil, nil, &fetch.RequestError{Err: fmt.Errorf("%s is one blob; --recursive is for folders", target)}
		}
		items, err = fetch.Index(ctx.Context, cfg.Origin, target, cfg.Header)
		return items, func() {}, err
	}
	a, err := access(ctx)
	if err != nil {
		return nil, nil, err
	}
	from := sourceConfig(ctx, a)
	m, err := models.Open(ctx.Context, target, from)
	if err != nil {
		return nil, nil, err
	}
	for i := range m.Files {
		f := &m.Files[i]
		if !f.Mode.IsRegular() {
			continue
		}
		item := fetch.Item{Path: f.Path, Size: f.Size, Digest: f.Digest, Link: f.URL}
		if scheme == "s3" {
			item.Ignore = []string{"X-Amz-*", "x-id"}
		} else if from.Hub.Token != "" {
			item.Header = http.Header{"Authorization": {"Bearer " + from.Hub.Token}}
		}
		items = append(items, item)
	}
	return items, func() { _ = m.Close() }, nil // only read from
}

func writeItems(ctx *cli.Context, items []fetch.Item, asJSON bool) error {
	if asJSON {
		return writeJSON(ctx.App.Writer, items)
	}
	rows := [][]string{{"SIZE", "DIGEST", "PATH"}}
	for _, i := range items {
		size := "-"
		if i.Size >= 0 {
			size = bytesText(i.Size)
		}
		rows = append(rows, []string{size, cmp.Or(string(i.Digest[:min(len(i.Digest), 19)]), "-"), printable(i.Path)})
	}
	var b strings.Builder
	table(&b, rows)
	_, err := ctx.App.Writer.Write([]byte(b.String()))
	return err
}

func treeText(r *fetch.TreeResult) string {
	var b strings.Builder
	fmt.Fprintf(&b, "got %s\n  folder    %s\n  files     %d", printable(r.Target), printable(r.Output), len(r.Files)-r.Failed)
	if r.Failed > 0 {
		fmt.Fprintf(&b, " of %d", len(r.Files))
	}
	fmt.Fprintf(&b, "\n  size      %s\n", bytesText(r.Size))
	writeOrigins(&b, r.Bytes, r.Seconds)
	return b.String()
}

// treeError chooses the exit code: that of the first fault.
func treeError(ctx context.Context, err error) error {
	switch {
	case errors.As(err, new(*exitError)):
		return err
	case errors.Is(err, models.ErrModel), errors.Is(err, models.ErrService):
		return &exitError{exitSource, fmt.Errorf("get: %w", err)}
	}
	return getError(ctx, fetch.Target{URL: "http"}, err)
}
