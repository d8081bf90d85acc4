// Package tracing carries spans of OpenTelemetry through the parts of Shoal: within a program in contexts, between programs in the header
// traceparent or a field of a message, as W3C Trace Context has it.
//
// A span is begun only below one that is recorded. So parts need no configuration, and where nothing is traced nothing is done. Roots begin where
// callers come in, with a tracer that the program was given.
package tracing

import (
	"context"
	"net/http"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
)

// Scope is the name under which all spans are recorded.
const Scope = "github.com/shoal-project/shoal"

const (
	header   = "traceparent"
	noParent = ""
)

// Start begins a span below that of ctx. Without one it returns ctx and a span that does nothing. The caller has to end it.
func Start(ctx context.Context, name string, attributes ...attribute.KeyValue) (context.Context, trace.Span) {
	parent := trace.SpanFromContext(ctx)
	if !parent.IsRecording() {
		return ctx, parent
	}
	return parent.TracerProvider().Tracer(Scope).Start(ctx, name, trace.WithAttributes(attributes...))
}

// End ends a span that Start began below the one of outer, with what went wrong, if something did.
func End(outer context.Context, span trace.Span, err error) {
	if span == trace.SpanFromContext(outer) {
		return // Start began none
	}
	if err != nil {
		span.SetStatus(codes.Error, err.Error())
	}
	span.End()
}

// Parent returns what tells another program of the span of ctx; empty when nothing is recorded.
func Parent(ctx context.Context) string {
	if !trace.SpanContextFromContext(ctx).IsSampled() {
		return noParent
	}
	carrier := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(ctx, carrier)
	return carrier[header]
}

// WithParent returns a context whose spans, begun by a tracer, are below one of another program.
func WithParent(ctx context.Context, parent string) context.Context {
	if parent == noParent {
		return ctx
	}
	return propagation.TraceContext{}.Extract(ctx, propagation.MapCarrier{header: parent})
}

// Inject adds the span of ctx to a request's header.
func Inject(ctx context.Context, h http.Header) {
	if parent := Parent(ctx); parent != noParent {
		h.Set(header, parent)
	}
}

// Serve has next answer below a span for each request that belongs to a trace of its caller's. Others are passed on as they are.
func Serve(next http.Handler, tracer trace.Tracer, name string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx := WithParent(r.Context(), r.Header.Get(header))
		if !trace.SpanContextFromContext(ctx).IsSampled() {
			next.ServeHTTP(w, r)
			return
		}
		ctx, span := tracer.Start(ctx, name, trace.WithSpanKind(trace.SpanKindServer), trace.WithAttributes(
			attribute.String("url.path", r.URL.Path), attribute.String("http.request.header.range", r.Header.Get("Range"))))
		defer span.End()
		next.ServeHTTP(w, r.WithContext(ctx))
	})
}
