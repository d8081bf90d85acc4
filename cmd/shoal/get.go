package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/opencontainers/go-digest"
	"github.com/urfave/cli/v2"

	"github.com/shoal-project/shoal/cmd/internal/fetch"
	"github.com/shoal-project/shoal/cmd/internal/local"
	"github.com/shoal-project/shoal/converter"
	"github.com/shoal-project/shoal/peer/piece"
	"github.com/shoal-project/shoal/peer/source"
)

const getHelp = `Brings what a URL has, or a blob of a registry, to a file or to standard output. The bytes come through the node of this machine and
so out of the cluster: of many machines that get the same URL, one reads the origin. When no node answers, or the content must not
be shared, the origin is read directly, and a warning says so.

A file appears under its name when it is complete and, with --digest, right. What there is before waits in a hidden file beside it,
from which the next call goes on. When the origin has another content meanwhile, the file is begun anew; nothing is ever mixed.
Content is told apart by ETag, Last-Modified and length, and asked for at the origin each time, with your headers: nobody reads from
the cluster what the origin does not give them.

Headers, user and password, and parameters that look like a signature or a token never leave this machine but for the URL's host. A
URL that needs any is read by no other machine; its bytes are shared with those that have the right themselves. Presigned URLs differ in
each signature: name the parameters that do not matter with --ignore-query.

With --recursive all files below a folder are brought, four at a time. Those that are there already and right are left alone, so that the same call
goes on where another one broke off.

More: docs/get.md

EXAMPLES:
   shoal get -o model.gguf https://host.example.com/llama/model.gguf
   shoal get --digest sha256:7f1b… -o llama.tar https://host.example.com/llama.tar
   shoal get --ignore-query 'X-Amz-*' -o model.bin "$PRESIGNED"
   shoal get --range 0-1023 https://host.example.com/model.gguf | xxd
   shoal get -o layer.tar registry.example.com/ml/llama@sha256:7f1b…
   shoal get --recursive -o llama/ https://host.example.com/llama/
   shoal get --recursive --include '*.safetensors' -o llama/ hf://meta-llama/Llama-3.1-8B`

// nodeVariable is the environment variable that says where the node is.
const nodeVariable = "SHOAL_NODE"

// nodeFlag says where the node is.
func nodeFlag() cli.Flag {
	return &cli.StringFlag{Name: "node", Value: local.DefaultAddress, EnvVars: []string{nodeVariable}, Usage: "the node's admin.listen is `HOST:PORT`"}
}

// nodeEnvironment is what commands read that ask the node.
func nodeEnvironment() []string {
	return []string{nodeVariable + "          where the node is, for --node"}
}

// urlFlags say what of a URL is asked for and shared.
func urlFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "digest", Usage: "all of it has the digest sha256:`HEX`; it is shared and checked by that"},
		&cli.StringSliceFlag{Name: "ignore-query", Usage: "query parameters that match `PATTERN` do not name the content, such as X-Amz-*; may be repeated"},
		&cli.BoolFlag{Name: "share", Usage: "have the cluster keep what the origin marks as private to its reader"},
	}
}

func getCommand() *cli.Command {
	flags := append([]cli.Flag{
		&cli.StringSliceFlag{Name: "header", Aliases: []string{"H"}, Usage: "send the header `NAME: VALUE` to the URL's host, or those in @FILE; may be repeated"},
		&cli.StringFlag{Name: "out", Aliases: []string{"o"}, Usage: "write to `FILE`; - is standard output, which is the default unless that is a terminal"},
		&cli.BoolFlag{Name: "recursive", Aliases: []string{"r"}, Usage: "get all files below a folder's URL, hf://ORGANISATION/NAME[@REVISION] or s3://BUCKET/PREFIX, to the folder of --out"},
		&cli.BoolFlag{Name: "dry-run", Usage: "with --recursive: only list the files"},
		&cli.StringSliceFlag{Name: "include", Usage: "of hf:// and s3:// only files that match the `GLOB` (may be repeated)"},
		&cli.StringSliceFlag{Name: "exclude", Usage: "leave out files of hf:// and s3:// that match the `GLOB` (may be repeated)"},
		&cli.StringFlag{Name: "s3-endpoint", Usage: "`URL` of the object store", EnvVars: []string{"AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"}},
		&cli.BoolFlag{Name: "s3-anonymous", Usage: "ask the object store without credentials"},
		&cli.StringFlag{Name: "range", Usage: "only the bytes `FIRST-LAST`, counted from 0; FIRST- is to the end, -N the last N"},
	}, urlFlags()...)
	flags = append(flags, nodeFlag(),
		&cli.BoolFlag{Name: "direct", Usage: "ask no node"},
		&cli.BoolFlag{Name: "no-fallback", Usage: "fail rather than read the origin directly"})
	return command(&cli.Command{
		Name: "get", Usage: "get a URL or a registry's blob through the cluster", ArgsUsage: "URL|REGISTRY/NAME@DIGEST", Description: getHelp,
		Flags:  append(append(flags, accessFlags()...), outputFlags()...),
		Action: getAction,
	}, append(nodeEnvironment(), accessEnvironment()...)...)
}

func getAction(ctx *cli.Context) error {
	asJSON, err := checkOutput(ctx)
	if err != nil {
		return err
	}
	names, err := arguments(ctx, "a URL, or a blob REGISTRY/NAME@sha256:DIGEST")
	if err != nil {
		return err
	}
	if ctx.Bool("recursive") {
		return getTree(ctx, names[0], asJSON)
	}
	for _, name := range []string{"dry-run", "include", "exclude"} {
		if ctx.IsSet(name) {
			return usageError(fmt.Errorf("get: --%s goes with --recursive", name))
		}
	}
	cfg, closing, err := getConfig(ctx, names[0])
	if err != nil {
		return usageError(fmt.Errorf("get: %w", err))
	}
	defer closing()
	if cfg.Output == "" && asJSON {
		return usageError(errors.New("get: --output json goes to standard output, and so does the content; write that to a file with -o FILE"))
	}
	if cfg.Output == "" && ctx.String("out") != "-" && isTerminal(ctx.App.Writer) {
		return usageError(errors.New("get: standard output is a terminal; name a file with -o FILE, or say -o - if you mean it"))
	}
	shown := startProgress(ctx)
	if shown.Progress != nil {
		cfg.Progress = stage{shown.Progress}
	}
	cfg.Log = shown.warn
	result, err := fetch.Run(ctx.Context, cfg)
	shown.end()
	switch {
	case err != nil:
		return getError(ctx.Context, cfg.Target, err)
	case asJSON:
		return writeJSON(ctx.App.Writer, result)
	case cfg.Output != "":
		_, err = ctx.App.Writer.Write([]byte(getText(result)))
	}
	return err
}

// stage shows a fetch as the reading part of a conversion.
type stage struct{ converter.Progress }

func (s stage) Step(text string) { s.Progress.Step(converter.Read, text) }
func (s stage) Plan(n int64)     { s.Progress.Plan(converter.Read, n) }
func (s stage) Done(n int64)     { s.Progress.Done(converter.Read, n) }

// getConfig turns flags into what is to be fetched.
func getConfig(ctx *cli.Context, target string) (fetch.Config, func(), error) {
	cfg := fetch.Config{Stdout: ctx.App.Writer, Output: ctx.String("out"), Digest: digest.Digest(ctx.String("digest")),
		Ignore: ctx.StringSlice("ignore-query"), Share: ctx.Bool("share"), NoFallback: ctx.Bool("no-fallback")}
	switch {
	case cfg.Output == "-":
		cfg.Output = ""
	case cfg.Output == "" && ctx.IsSet("out"):
		return cfg, nil, errors.New("--out is empty: want a file, or - for standard output")
	}
	err := checkPatterns(cfg.Ignore)
	if err != nil {
		return cfg, nil, err
	}
	if cfg.Target, err = fetch.ParseTarget(target); err != nil {
		if strings.HasPrefix(target, "hf://") || strings.HasPrefix(target, "s3://") {
			err = fmt.Errorf("%s is got as a whole: with --recursive and a folder for --out", target)
		}
		return cfg, nil, err
	}
	if cfg.Digest != "" && (cfg.Digest.Validate() != nil || cfg.Digest.Algorithm() != digest.SHA256) {
		return cfg, nil, fmt.Errorf("--digest %q: want sha256: and 64 hexadecimal digits", cfg.Digest)
	}
	if cfg.Target.URL == "" && (cfg.Digest != "" || ctx.IsSet("header") || ctx.IsSet("ignore-query") || cfg.Share) {
		return cfg, nil, errors.New("--digest, --header, --ignore-query and --share are for URLs; a blob's name has its digest, and credentials are those of docker login")
	}
	if cfg.Header, err = parseHeaders(ctx.StringSlice("header")); err != nil {
		return cfg, nil, err
	}
	if ctx.IsSet("range") {
		if cfg.Part, err = parsePart(ctx.String("range")); err != nil {
			return cfg, nil, err
		}
		if cfg.Digest != "" {
			return cfg, nil, errors.New("--range and --digest exclude each other: a part cannot be checked against the digest of the whole")
		}
	}
	if ctx.Bool("direct") && cfg.NoFallback {
		return cfg, nil, errors.New("--direct and --no-fallback exclude each other")
	}
	endpoints, err := source.NewEndpoints(map[string]source.RegistryConfig{hostOf(cfg.Target): {PlainHTTP: ctx.Bool("plain-http"), CAFile: ctx.String("ca-file")}})
	if err != nil {
		return cfg, nil, fmt.Errorf("--ca-file: %w", err)
	}
	closing := endpoints.Close
	cfg.Origin, err = source.New(source.Config{Resolve: endpoints.Resolve, Web: endpoints.Web, Keychain: authn.DefaultKeychain, Patience: 30 * time.Second,
		Stall: 30 * time.Second})
	if err != nil || ctx.Bool("direct") {
		return cfg, closing, err
	}
	cfg.Node = local.NewClient(ctx.String("node"))
	cfg.Mirror, err = mirrorSource(ctx.String("node"))
	return cfg, func() { cfg.Node.Close(); closing() }, err
}

// checkPatterns makes sure that the patterns of --ignore-query are some.
func checkPatterns(patterns []string) error {
	for _, p := range patterns {
		if !source.IsPattern(p) {
			return fmt.Errorf("--ignore-query %q is no pattern, such as X-Amz-*", p)
		}
	}
	return nil
}

// mirrorSource reads registries through the mirror of the node. The node shows the caller's credentials to the registry.
func mirrorSource(node string) (*source.Source, error) {
	client := &http.Client{Transport: &http.Transport{DisableCompression: true}}
	return source.New(source.Config{Keychain: authn.DefaultKeychain, Patience: 30 * time.Second, Stall: 20 * time.Second, Mirror: true,
		Resolve: func(registry string) (*url.URL, *http.Client) {
			return &url.URL{Scheme: "http", Host: node, RawQuery: url.Values{"ns": {registry}}.Encode()}, client
		}})
}

func hostOf(t fetch.Target) string {
	if t.URL == "" {
		return t.Blob.Registry
	}
	u, err := url.Parse(t.URL)
	if err != nil {
		return ""
	}
	return u.Host
}

// headerName is a token of RFC 9110, section 5.6.2.
var headerName = regexp.MustCompile("^[0-9A-Za-z!#$%&'*+.^_`|~-]+$")

// parseHeaders reads "NAME: VALUE", and @FILE with one of these a line: what stands on a command line, everybody on the machine sees.
func parseHeaders(values []string) (http.Header, error) {
	out := http.Header{}
	for _, v := range values {
		lines := []string{v}
		if file, ok := strings.CutPrefix(v, "@"); ok {
			data, err := os.ReadFile(file)
			if err != nil {
				return nil, fmt.Errorf("--header: %w", err)
			}
			lines = strings.Split(strings.TrimSpace(string(data)), "\n")
		}
		for _, line := range lines {
			name, value, ok := strings.Cut(strings.TrimSuffix(line, "\r"), ":")
			if !ok || !headerName.MatchString(name) || strings.ContainsAny(value, "\r\n\x00") {
				return nil, errors.New("--header: want NAME: VALUE, or @FILE with one of these a line") // not what it is: it may be secret
			}
			out.Add(name, strings.TrimSpace(value))
		}
	}
	for _, name := range []string{"Range", "If-Range", "If-Match", "If-None-Match", "If-Modified-Since", "If-Unmodified-Since", "Accept-Encoding", "Host", "Content-Length", "Transfer-Encoding"} {
		if out.Get(name) != "" {
			return nil, fmt.Errorf("--header: %s is set by shoal itself", name)
		}
	}
	return out, nil
}

// parsePart reads FIRST-LAST, FIRST- and -N.
func parsePart(s string) (*fetch.Part, error) {
	fault := fmt.Errorf("--range %q: want FIRST-LAST, FIRST- or -N, bytes counted from 0", s)
	first, last, ok := strings.Cut(s, "-")
	if !ok || first == "" && last == "" {
		return nil, fault
	}
	number := func(s string, otherwise int64) (int64, bool) {
		if s == "" {
			return otherwise, true
		}
		n, err := strconv.ParseUint(s, 10, 62)
		return int64(n), err == nil
	}
	a, okA := number(first, 0)
	b, okB := number(last, -1)
	switch {
	case !okA || !okB:
		return nil, fault
	case first == "" && b == 0:
		return nil, fault
	case first == "":
		return &fetch.Part{Off: -b, Length: -1}, nil
	case last == "":
		return &fetch.Part{Off: a, Length: -1}, nil
	case b < a:
		return nil, fault
	}
	return &fetch.Part{Off: a, Length: b - a + 1}, nil
}

// getError chooses the exit code.
func getError(ctx context.Context, t fetch.Target, err error) error {
	code := exitFailure
	refused, isRefusal := errors.AsType[*local.Error](err)
	switch {
	case ctx.Err() != nil:
		return err
	case errors.As(err, new(*fetch.RequestError)), isRefusal && (refused.Code == local.CodeBad || refused.Code == local.CodeRange):
		code = exitUsage
	case errors.Is(err, fetch.ErrFallback):
	case errors.Is(err, source.ErrChanged):
		code = exitSource
	case errors.Is(err, piece.ErrMismatch):
		code = exitVerify
	case errors.Is(err, piece.ErrDenied), errors.Is(err, piece.ErrAbsent), errors.Is(err, piece.ErrTransient):
		code = exitSource
		if t.URL == "" {
			code = exitRegistry
		}
	}
	return &exitError{code, fmt.Errorf("get: %w", err)}
}

func getText(r *fetch.Result) string {
	var b strings.Builder
	fmt.Fprintf(&b, "got %s\n  file      %s\n  size      %s", printable(r.Target), printable(r.Output), bytesText(r.Size))
	if r.Size != r.Total {
		fmt.Fprintf(&b, " of %s", bytesText(r.Total))
	}
	fmt.Fprintf(&b, "\n  digest    %s", r.Digest)
	if r.Verified {
		b.WriteString(", as it should be")
	}
	b.WriteString("\n")
	writeOrigins(&b, r.Bytes, r.Seconds)
	return b.String()
}

// writeOrigins tells where bytes came from, and how fast.
func writeOrigins(b *strings.Builder, n fetch.Bytes, seconds float64) {
	for _, from := range []struct {
		name string
		n    int64
	}{{"kept", n.Kept}, {"node", n.Node}, {"origin", n.Origin}} {
		if from.n > 0 {
			fmt.Fprintf(b, "  %-9s %s\n", from.name, bytesText(from.n))
		}
	}
	if moved := n.Node + n.Origin; seconds > 0 && moved > 0 {
		fmt.Fprintf(b, "  rate      %s/s\n", bytesText(int64(float64(moved)/seconds)))
	}
}
