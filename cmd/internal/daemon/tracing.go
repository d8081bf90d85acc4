package daemon

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/shoal-project/shoal/cmd/internal/config"
	"github.com/shoal-project/shoal/cmd/internal/otlp"
	"github.com/shoal-project/shoal/tracing"
)

const (
	tracesPath = "/v1/traces"
	// flushTime is how long the last spans may take on their way.
	flushTime = 3 * time.Second
)

// tracer records spans; its zero value none.
type tracer struct {
	provider *sdktrace.TracerProvider // nil when nothing is traced
	log      *slog.Logger
}

// newTracer returns what the configuration, or else the environment by OpenTelemetry's names, asks for. name is that of the host.
func newTracer(cfg config.Tracing, service, name, version string, log *slog.Logger) (tracer, error) {
	target := cfg.Endpoint
	if target == "" {
		target = os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT")
	}
	if target != "" {
		target = strings.TrimSuffix(target, "/") + tracesPath
	}
	if cfg.Endpoint == "" {
		target = cmp.Or(os.Getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"), target)
	}
	if target == "" || os.Getenv("OTEL_SDK_DISABLED") == "true" {
		return tracer{}, nil
	}
	if u, err := url.Parse(target); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return tracer{}, fmt.Errorf("tracing: %q is not of the form http://HOST:PORT; 4318 is the usual port of a collector", target)
	}
	own := resource.NewSchemaless(attribute.String("service.name", service), attribute.String("service.instance.id", name),
		attribute.String("service.version", version))
	about, err := resource.Merge(own, resource.Environment()) // what the environment says wins
	if err != nil {
		return tracer{}, fmt.Errorf("tracing: %w", err)
	}
	options := []sdktrace.TracerProviderOption{sdktrace.WithResource(about), sdktrace.WithBatcher(otlp.New(target, exportHeaders()))}
	if cfg.Sample > 0 { // else OTEL_TRACES_SAMPLER, or all
		options = append(options, sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.TraceIDRatioBased(cfg.Sample))))
	}
	// What cannot be told is known to the library alone, which has one handler for a program.
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { log.Warn("spans were not told", "error", err) }))
	log.Info("spans are told", "collector", target)
	return tracer{sdktrace.NewTracerProvider(options...), log}, nil
}

// exportHeaders reads OTEL_EXPORTER_OTLP_HEADERS: key=value pairs between commas, percent-encoded.
func exportHeaders() http.Header {
	out := http.Header{}
	text := cmp.Or(os.Getenv("OTEL_EXPORTER_OTLP_TRACES_HEADERS"), os.Getenv("OTEL_EXPORTER_OTLP_HEADERS"))
	for pair := range strings.SplitSeq(text, ",") {
		key, value, ok := strings.Cut(pair, "=")
		if decoded, err := url.PathUnescape(strings.TrimSpace(value)); ok && err == nil {
			out.Set(strings.TrimSpace(key), decoded)
		}
	}
	return out
}

// on reports whether anything is traced.
func (t tracer) on() bool { return t.provider != nil }

// tracer returns what begins spans.
func (t tracer) tracer() trace.Tracer {
	if !t.on() {
		return noop.Tracer{}
	}
	return t.provider.Tracer(tracing.Scope)
}

// close sends the last spans.
func (t tracer) close() {
	if !t.on() {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), flushTime)
	defer cancel()
	if err := t.provider.Shutdown(ctx); err != nil {
		t.log.Warn("the last spans were not told", "error", err)
	}
}
