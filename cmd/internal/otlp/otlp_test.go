package otlp_test

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/shoal-project/shoal/cmd/internal/otlp"
)

func TestSpansAreToldInTheProtocolsJSON(t *testing.T) {
	var got map[string]any
	var header http.Header
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		header = r.Header
		body, _ := io.ReadAll(r.Body)
		if err := json.Unmarshal(body, &got); err != nil {
			t.Error(err)
		}
	}))
	defer srv.Close()
	exporter := otlp.New(srv.URL, http.Header{"X-Key": {"secret"}})
	provider := sdktrace.NewTracerProvider(sdktrace.WithSyncer(exporter),
		sdktrace.WithResource(resource.NewSchemaless(attribute.String("service.name", "x"))))
	_, span := provider.Tracer("scope").Start(t.Context(), "name", trace.WithSpanKind(trace.SpanKindServer),
		trace.WithAttributes(attribute.Int64("big", 1<<60), attribute.Bool("yes", true), attribute.Float64("half", 0.5)))
	span.SetStatus(codes.Error, "broken")
	span.End()
	if err := provider.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(got)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"traceId":"` + span.SpanContext().TraceID().String() + `"`, `"spanId":"` + span.SpanContext().SpanID().String() + `"`,
		`"kind":2`, `"name":"name"`, `{"key":"big","value":{"intValue":"1152921504606846976"}}`, `{"boolValue":true}`, `{"doubleValue":0.5}`,
		`"status":{"code":2,"message":"broken"}`, `{"key":"service.name","value":{"stringValue":"x"}}`, `"scope":{"name":"scope"}`} {
		if !strings.Contains(string(text), want) {
			t.Errorf("no %s in %s", want, text)
		}
	}
	if strings.Contains(string(text), "parentSpanId") {
		t.Error("a root has a parent")
	}
	if header.Get("X-Key") != "secret" || header.Get("Content-Type") != "application/json" {
		t.Errorf("header %v", header)
	}
}

func TestACollectorThatRefusesIsNamed(t *testing.T) {
	srv := httptest.NewServer(http.NotFoundHandler())
	defer srv.Close()
	provider := sdktrace.NewTracerProvider()
	_, span := provider.Tracer("scope").Start(t.Context(), "name")
	span.End()
	err := otlp.New(srv.URL, nil).ExportSpans(t.Context(), []sdktrace.ReadOnlySpan{span.(sdktrace.ReadOnlySpan)})
	if err == nil || !strings.Contains(err.Error(), srv.URL) {
		t.Errorf("error %v", err)
	}
	if err := otlp.New(srv.URL, nil).ExportSpans(t.Context(), nil); err != nil || errors.Is(err, io.EOF) {
		t.Error(err)
	}
}
