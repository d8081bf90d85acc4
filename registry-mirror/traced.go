package mirror

import (
	"net/http"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/shoal-project/shoal/tracing"
)

// Traced records a span for each request that next answers, below one of the caller's if it tells of one. Bytes of blobs still go by sendfile.
func Traced(next http.Handler, tracer trace.Tracer) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx := tracing.WithParent(r.Context(), r.Header.Get("traceparent"))
		ctx, span := tracer.Start(ctx, "mirror "+r.Method, trace.WithSpanKind(trace.SpanKindServer), trace.WithAttributes(
			attribute.String("http.request.method", r.Method), attribute.String("url.path", r.URL.Path),
			attribute.String("shoal.registry", r.URL.Query().Get("ns")), attribute.String("user_agent.original", r.UserAgent())))
		if !span.IsRecording() {
			next.ServeHTTP(w, r)
			return
		}
		seen := &accessWriter{ResponseWriter: w}
		defer func() { // also when the handler panics to break the connection off
			span.SetAttributes(attribute.Int("http.response.status_code", seen.status), attribute.Int64("http.response.body.size", seen.sent))
			if seen.status >= http.StatusInternalServerError {
				span.SetStatus(codes.Error, http.StatusText(seen.status))
			}
			span.End()
		}()
		next.ServeHTTP(seen, r.WithContext(ctx))
	})
}
