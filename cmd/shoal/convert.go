package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/shoal-project/shoal/converter"
	"github.com/shoal-project/shoal/converter/source"
	"github.com/urfave/cli/v2"
)

const convertHelp = `Writes one image with two variants under one tag: a plain one that any runtime pulls and runs, and a Nydus one that
is mounted without being unpacked. Both hold the model's bytes in the same blobs, one for each large file.

The model is a folder, a file, or
   -                        a tar on standard input, perhaps compressed by gzip or zstd
   hf://ORG/NAME[@REV]      a repository of a model hub (HF_ENDPOINT, HF_TOKEN or the token hf auth login wrote)
   s3://BUCKET/PREFIX       of an object store (the chain of all AWS tools: AWS_* variables, ~/.aws, the machine's role)
   https://HOST/PATH        a .tar, .tar.gz, .tar.zst, .zip or any file; #sha256=HEX behind it is verified
   oci://REF                a ModelPack artifact, a Docker model, or the /models folder of an image
It is streamed: no second copy of it is made on disk. What its source says of checksums is verified.

It lies in /models/NAME of the image, owned by root, readable by all; of permissions only "executable" is kept, of times
nothing. The same content gives the same digests, on any machine at any time.

The base is an image of a registry, an OCI layout (oci:FOLDER[:TAG]) or what docker save wrote (docker-archive:FILE[:NAME:TAG]). If it is for
several platforms, so is the image, with the model once. With --image in place of --model and --base an image gets its Nydus variant and
stays what it is: pipelines that build with docker or buildah publish both variants so.

Credentials are those of docker login, podman login or skopeo login, and their helpers. Registries on loopback addresses are spoken to in plain
HTTP. What breaks off is resumed or tried again; the tag is written last.

EXAMPLES:
   shoal convert --model ./llama --base docker.io/library/python:3.12-slim --target registry.example.com/ml/llama:v1
   shoal convert --model hf://org/llama@v1.2 --include '*.safetensors' --include '*.json' --base r.example.com/serving:3 --target r.example.com/llama:v1.2
   shoal convert --model s3://models/llama/7 --base oci:./base --target oci:./out:v7 --modelpack
   shoal convert --image r.example.com/app:1 --target r.example.com/app:1 --previous r.example.com/app:0
   tar -c llama | shoal convert --model - --name llama --base r.example.com/serving:3 --target r.example.com/llama:v1 --output json`

func convertCommand() *cli.Command {
	flags := []cli.Flag{
		&cli.StringFlag{Name: "model", Usage: "`SOURCE` of the model, see above"},
		&cli.StringSliceFlag{Name: "include", Usage: "take only files that match the `GLOB`; ** spans folders (may be repeated)"},
		&cli.StringSliceFlag{Name: "exclude", Usage: "leave out files that match the `GLOB` (may be repeated)"},
		&cli.BoolFlag{Name: "any-format", Usage: "take safetensors and GGUF files whose header contradicts them"},
		&cli.StringFlag{Name: "s3-endpoint", Usage: "`URL` of the object store", EnvVars: []string{"AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"}},
		&cli.BoolFlag{Name: "s3-anonymous", Usage: "ask the object store without credentials"},
		&cli.StringFlag{Name: "base", Usage: "base `IMAGE` with the framework"},
		&cli.StringFlag{Name: "image", Usage: "give this `IMAGE` its Nydus variant, without a model"},
		&cli.StringFlag{Name: "target", Usage: "where to write to, `REGISTRY/NAME:TAG` or oci:FOLDER:TAG (required)"},
		&cli.StringFlag{Name: "previous", Usage: "converted `IMAGE` of yours whose framework files are not stored again"},
		&cli.StringFlag{Name: "name", Usage: "`NAME` of the model (default: what its source calls it)"},
		&cli.StringFlag{Name: "model-path", Usage: "`PATH` of the model in the image (default: /models/NAME)"},
		&cli.StringSliceFlag{Name: "platform", Usage: "`OS/ARCH` to take from the base image (may be repeated; default: all it has)"},
		&cli.StringFlag{Name: "entrypoint", Usage: "replace the base image's entrypoint: one `COMMAND`, or a JSON list; drops its arguments too"},
		&cli.StringFlag{Name: "cmd", Usage: "replace the base image's arguments: one `ARGUMENT`, or a JSON list"},
		&cli.StringSliceFlag{Name: "env", Usage: "set `NAME=VALUE` in the image (may be repeated)"},
		&cli.StringFlag{Name: "user", Usage: "`USER[:GROUP]` that the image runs as"},
		&cli.StringSliceFlag{Name: "label", Usage: "set the label `NAME=VALUE` of the image (may be repeated)"},
		&cli.StringSliceFlag{Name: "annotation", Usage: "set the annotation `NAME=VALUE` of index and manifests (may be repeated)"},
		&cli.StringFlag{Name: "compressor", Value: "zstd", Usage: "`HOW` the base's files are packed in the Nydus variant: zstd, lz4_block or none"},
		&cli.BoolFlag{Name: "modelpack", Usage: "add the model alone as a ModelPack artifact, with the same layers"},
		&cli.IntFlag{Name: "uploads", Value: 3, Usage: "upload `N` blobs at once"},
		&cli.BoolFlag{Name: "dry-run", Usage: "compute everything, ask whether the target may be written, write nothing"},
	}
	return command(&cli.Command{
		Name:        "convert",
		Usage:       "make an image of a model and a base image, and push it",
		Description: convertHelp,
		Flags:       append(append(flags, accessFlags()...), outputFlags()...),
		Action:      convertAction,
	}, convertEnvironment()...)
}

func convertAction(ctx *cli.Context) error {
	cfg, err := convertConfig(ctx)
	if err != nil {
		return err
	}
	asJSON, err := checkOutput(ctx)
	if err != nil {
		return err
	}
	collectEarlier()
	start := time.Now()
	shown := startProgress(ctx)
	cfg.Progress, cfg.Logger, cfg.Access.Waiting, cfg.Source.Waiting = shown.Progress, shown.warn, shown.wait, shown.wait
	result, err := converter.Convert(ctx.Context, cfg)
	shown.end()
	if err != nil {
		return convertError(ctx.Context, "convert", err)
	}
	if asJSON {
		return writeJSON(ctx.App.Writer, result)
	}
	return printResult(ctx.App.Writer, result, time.Since(start))
}

// collectEarlier keeps garbage to half of what is in use, unless GOGC says otherwise: with a great many files that is most of the memory, and
// the time goes into hashing.
func collectEarlier() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(50)
	}
}

func writeJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

func convertConfig(ctx *cli.Context) (converter.Config, error) {
	cfg := converter.Config{
		Model: ctx.String("model"), Base: ctx.String("base"), Image: ctx.String("image"), Target: ctx.String("target"),
		Previous: ctx.String("previous"), Name: ctx.String("name"), ModelPath: ctx.String("model-path"),
		Platforms: ctx.StringSlice("platform"), Env: ctx.StringSlice("env"), User: ctx.String("user"),
		Compressor: ctx.String("compressor"), ModelPack: ctx.Bool("modelpack"), AnyFormat: ctx.Bool("any-format"),
		DryRun: ctx.Bool("dry-run"), Uploads: ctx.Int("uploads"),
	}
	if cfg.Uploads < 1 {
		return cfg, usageError(fmt.Errorf("--uploads %d: want 1 or more", cfg.Uploads))
	}
	var err error
	if cfg.Access, err = access(ctx); err != nil {
		return cfg, err
	}
	for flag, list := range map[string]*[]string{"entrypoint": &cfg.Entrypoint, "cmd": &cfg.Cmd} {
		if *list, err = words(ctx, flag); err != nil {
			return cfg, usageError(err)
		}
	}
	for flag, pairs := range map[string]*map[string]string{"label": &cfg.Labels, "annotation": &cfg.Annotations} {
		if *pairs, err = keyValues(ctx, flag); err != nil {
			return cfg, usageError(err)
		}
	}
	cfg.Source = sourceConfig(ctx, cfg.Access)
	return cfg, nil
}

// keyValues reads a flag that is given once for each NAME=VALUE.
func keyValues(ctx *cli.Context, flag string) (map[string]string, error) {
	var out map[string]string
	for _, kv := range ctx.StringSlice(flag) {
		name, value, ok := strings.Cut(kv, "=")
		if !ok {
			return nil, fmt.Errorf("--%s %q: want NAME=VALUE", flag, kv)
		}
		if out == nil {
			out = map[string]string{}
		}
		out[name] = value
	}
	return out, nil
}

// sourceConfig reads how models are spoken for, also from the environment.
func sourceConfig(ctx *cli.Context, a converter.Access) source.Config {
	cfg := source.Config{
		Include: ctx.StringSlice("include"), Exclude: ctx.StringSlice("exclude"), Stdin: os.Stdin,
		Hub:      source.Hub{Endpoint: os.Getenv("HF_ENDPOINT"), Token: hubToken()},
		S3:       source.S3{Endpoint: ctx.String("s3-endpoint"), Anonymous: ctx.Bool("s3-anonymous")},
		Keychain: a.Keychain, Transport: a.Transport,
	}
	if a.PlainHTTP {
		cfg.NameOptions = append(cfg.NameOptions, insecureNames())
	}
	return cfg
}

// hubToken finds the token where the hub's own client keeps it.
func hubToken() string {
	for _, name := range []string{"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"} {
		if token := strings.TrimSpace(os.Getenv(name)); token != "" {
			return token
		}
	}
	path := os.Getenv("HF_TOKEN_PATH")
	if path == "" {
		home := os.Getenv("HF_HOME")
		if home == "" {
			cache, err := os.UserHomeDir()
			if err != nil {
				return ""
			}
			home = filepath.Join(cache, ".cache", "huggingface")
		}
		path = filepath.Join(home, "token")
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return "" // nobody has logged in
	}
	return strings.TrimSpace(string(raw))
}

// counted says how many files there are.
func counted(files int) string {
	if files == 1 {
		return "1 file"
	}
	return fmt.Sprintf("%d files", files)
}

// convertError chooses the exit code for the errors of package converter.
func convertError(ctx context.Context, command string, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%s: interrupted; run it again", command)
	}
	for _, known := range []struct {
		class error
		code  int
	}{
		{converter.ErrConfig, exitUsage}, {converter.ErrVerify, exitVerify},
		{converter.ErrSource, exitSource}, {converter.ErrRegistry, exitRegistry},
	} {
		if errors.Is(err, known.class) {
			if !errors.Is(err, converter.ErrConfig) { // whose faults have a line each
				err = errors.New(printable(err.Error()))
			}
			return &exitError{known.code, fmt.Errorf("%s: %w", command, err)}
		}
	}
	return fmt.Errorf("%s: %w", command, err)
}

// printable replaces what would end a line or speak to the terminal: names of files and of servers are not ours.
func printable(s string) string {
	if !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		if unicode.IsPrint(r) {
			b.WriteRune(r)
			continue
		}
		quoted := strconv.QuoteRune(r)
		b.WriteString(quoted[1 : len(quoted)-1])
	}
	return b.String()
}

// words reads a flag that is one word or a JSON list of them, as in a Dockerfile. An unset flag is nil.
func words(ctx *cli.Context, flag string) ([]string, error) {
	value := ctx.String(flag)
	if !ctx.IsSet(flag) {
		return nil, nil
	}
	if !strings.HasPrefix(strings.TrimSpace(value), "[") {
		return []string{value}, nil
	}
	list := []string{}
	if err := json.Unmarshal([]byte(value), &list); err != nil {
		return nil, fmt.Errorf("--%s %s: want one word or a JSON list of strings: %w", flag, value, err)
	}
	return list, nil
}

func printResult(w io.Writer, r *converter.Result, took time.Duration) error {
	var b strings.Builder
	verb := "pushed"
	if !r.Pushed {
		verb = "would push"
	}
	fmt.Fprintf(&b, "%s %s\n", verb, r.Target)
	fmt.Fprintf(&b, "  index     %s\n", r.Digest)
	for _, v := range r.Variants {
		fmt.Fprintf(&b, "  plain     %s  %s\n  nydus     %s  %s\n", v.Plain, v.Platform, v.Nydus, v.Platform)
	}
	if r.ModelPack != "" {
		fmt.Fprintf(&b, "  modelpack %s\n", r.ModelPack)
	}
	for _, l := range r.Layers {
		fmt.Fprintf(&b, "  %-9s %s  %10s  %-7s  %s\n", l.Kind, l.Digest, bytesText(l.Size), l.Outcome, printable(l.Of))
	}
	if r.ModelPath != "" {
		fmt.Fprintf(&b, "model: %s, %s, in %s\n", counted(r.ModelFiles), bytesText(r.ModelBytes), printable(r.ModelPath))
	}
	fmt.Fprintf(&b, "took %s\n", took.Round(10*time.Millisecond))
	_, err := io.WriteString(w, b.String())
	return err
}
