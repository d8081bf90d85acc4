// Package otlp sends spans to a collector of OpenTelemetry, by its protocol over HTTP in the JSON encoding. It is small beside the exporters of
// the project itself, which bring gRPC into a daemon that has no other use for it.
package otlp

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"strconv"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
)

// exportTimeout bounds one batch.
const exportTimeout = 10 * time.Second

// Exporter implements sdktrace.SpanExporter. It is safe for concurrent use.
type Exporter struct {
	url    string
	header http.Header
	client *http.Client
}

// New returns an exporter that posts to a URL, usually http://COLLECTOR:4318/v1/traces, with these headers besides its own.
func New(url string, header http.Header) *Exporter {
	return &Exporter{url: url, header: header, client: &http.Client{Timeout: exportTimeout}}
}

// ExportSpans implements sdktrace.SpanExporter.
func (e *Exporter) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	if len(spans) == 0 {
		return nil
	}
	body, err := json.Marshal(encode(spans))
	if err != nil {
		return fmt.Errorf("spans: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, e.url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	maps.Copy(req.Header, e.header)
	req.Header.Set("Content-Type", "application/json")
	resp, err := e.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, _ = io.CopyN(io.Discard, resp.Body, 64<<10) // so that the connection can be used again
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("collector %s: %s", e.url, resp.Status)
	}
	return nil
}

// Shutdown implements sdktrace.SpanExporter.
func (e *Exporter) Shutdown(context.Context) error {
	e.client.CloseIdleConnections()
	return nil
}

// The messages of opentelemetry/proto/collector/trace/v1, as far as they are needed. Numbers of 64 bits are strings.
type (
	request struct {
		ResourceSpans []resourceSpans `json:"resourceSpans"`
	}
	resourceSpans struct {
		Resource   resource     `json:"resource"`
		ScopeSpans []scopeSpans `json:"scopeSpans"`
	}
	resource struct {
		Attributes []keyValue `json:"attributes"`
	}
	scopeSpans struct {
		Scope scope  `json:"scope"`
		Spans []span `json:"spans"`
	}
	scope struct {
		Name string `json:"name"`
	}
	span struct {
		TraceID    string     `json:"traceId"`
		SpanID     string     `json:"spanId"`
		ParentID   string     `json:"parentSpanId,omitempty"`
		Name       string     `json:"name"`
		Kind       int        `json:"kind"`
		Start      string     `json:"startTimeUnixNano"`
		End        string     `json:"endTimeUnixNano"`
		Attributes []keyValue `json:"attributes,omitempty"`
		Status     status     `json:"status"`
	}
	status struct {
		Code    int    `json:"code,omitempty"`
		Message string `json:"message,omitempty"`
	}
	keyValue struct {
		Key   string         `json:"key"`
		Value map[string]any `json:"value"`
	}
)

// Codes of a status, which are other numbers than OpenTelemetry's in Go.
const (
	statusOK    = 1
	statusError = 2
)

// encode puts all spans, which are of one program, below its resource.
func encode(spans []sdktrace.ReadOnlySpan) request {
	out := make([]span, 0, len(spans))
	for _, s := range spans {
		one := span{TraceID: s.SpanContext().TraceID().String(), SpanID: s.SpanContext().SpanID().String(), Name: s.Name(), Kind: int(s.SpanKind()),
			Start: nanoseconds(s.StartTime()), End: nanoseconds(s.EndTime()), Attributes: keyValues(s.Attributes())}
		if s.Parent().SpanID().IsValid() {
			one.ParentID = s.Parent().SpanID().String()
		}
		switch s.Status().Code {
		case codes.Ok:
			one.Status.Code = statusOK
		case codes.Error:
			one.Status = status{statusError, s.Status().Description}
		}
		out = append(out, one)
	}
	return request{[]resourceSpans{{resource{keyValues(spans[0].Resource().Attributes())},
		[]scopeSpans{{scope{spans[0].InstrumentationScope().Name}, out}}}}}
}

func nanoseconds(t time.Time) string { return strconv.FormatInt(t.UnixNano(), 10) }

func keyValues(attributes []attribute.KeyValue) []keyValue {
	out := make([]keyValue, 0, len(attributes))
	for _, a := range attributes {
		var value map[string]any
		switch a.Value.Type() {
		case attribute.BOOL:
			value = map[string]any{"boolValue": a.Value.AsBool()}
		case attribute.INT64:
			value = map[string]any{"intValue": strconv.FormatInt(a.Value.AsInt64(), 10)}
		case attribute.FLOAT64:
			value = map[string]any{"doubleValue": a.Value.AsFloat64()}
		default:
			value = map[string]any{"stringValue": a.Value.String()}
		}
		out = append(out, keyValue{string(a.Key), value})
	}
	return out
}
