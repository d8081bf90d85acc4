package tracing_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"

	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/shoal-project/shoal/tracing"
)

func TestNothingIsDoneWhereNothingIsTraced(t *testing.T) {
	ctx, span := tracing.Start(t.Context(), "x")
	tracing.End(t.Context(), span, errors.New("x"))
	h := http.Header{}
	if tracing.Inject(ctx, h); ctx != t.Context() || len(h) > 0 || tracing.WithParent(ctx, "") != ctx {
		t.Errorf("context %v, header %v", ctx, h)
	}
	ctx = trace.ContextWithSpan(t.Context(), nil) // of a task that nobody who traces asked for
	if _, span := tracing.Start(ctx, "x"); span.IsRecording() {
		t.Error("a span out of nothing")
	}
}

func TestSpansHangTogetherAcrossPrograms(t *testing.T) {
	recorder := tracetest.NewSpanRecorder()
	tracer := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(recorder)).Tracer(tracing.Scope)
	served := 0
	srv := httptest.NewServer(tracing.Serve(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		served++
		_, span := tracing.Start(r.Context(), "inner")
		tracing.End(r.Context(), span, errors.New("broken"))
	}), tracer, "outer"))
	defer srv.Close()
	ask := func(ctx context.Context) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, srv.URL, nil)
		if err != nil {
			t.Fatal(err)
		}
		tracing.Inject(ctx, req.Header)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
	}
	ask(t.Context())
	if n := len(recorder.Ended()); n != 0 || served != 1 {
		t.Errorf("%d spans of a caller who does not trace, %d requests served", n, served)
	}
	ctx, root := tracer.Start(t.Context(), "root")
	ask(ctx)
	root.End()
	spans := recorder.Ended()
	if len(spans) != 3 {
		t.Fatalf("%d spans, want inner, outer and root", len(spans))
	}
	inner, outer := spans[0], spans[1]
	if inner.Parent().SpanID() != outer.SpanContext().SpanID() || outer.Parent().SpanID() != root.SpanContext().SpanID() ||
		inner.SpanContext().TraceID() != root.SpanContext().TraceID() || inner.Status().Code != codes.Error {
		t.Errorf("inner %v below %v, outer %v below %v", inner.Name(), inner.Parent(), outer.Name(), outer.Parent())
	}
}
