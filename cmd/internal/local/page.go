package local

import (
	"bytes"
	"context"
	_ "embed" // of the page
	"fmt"
	"html/template"
	"net/http"
	"time"
)

//go:embed page.html
var pageText string

// SizeText writes a number of bytes for people.
func SizeText(n int64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	value, unit := float64(n)/1024, 0
	for value >= 1024 && unit < len(units)-1 {
		value, unit = value/1024, unit+1
	}
	return fmt.Sprintf("%.1f %ciB", value, units[unit])
}

// ServePage serves the node's state as a page that renews itself. It needs nothing but itself: no script, and nothing of other hosts.
func ServePage(status func(context.Context) Status) http.Handler {
	page := template.Must(template.New("page").Funcs(template.FuncMap{
		"size": SizeText,
		"percent": func(part, whole int64) int64 {
			if whole <= 0 {
				return 0
			}
			return int64(100 * (float64(part) / float64(whole)))
		},
	}).Parse(pageText))
	return GuardPage(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var out bytes.Buffer
		err := page.Execute(&out, struct {
			Status
			Now string
		}{status(r.Context()), time.Now().Format(time.TimeOnly)})
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'")
		w.Header().Set("Cache-Control", "no-store")
		_, _ = w.Write(out.Bytes()) // the caller may have left
	}))
}
