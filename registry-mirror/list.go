package mirror

import (
	"maps"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/shoal-project/shoal/registry-mirror/upstream"
)

// serveList answers with the origin's list of tags or referrers. Nothing of it is kept: lists change, and nobody waits for them to run a
// container. While the origin is down there is none.
func (h *Handler) serveList(w http.ResponseWriter, r *http.Request, req request) {
	query := maps.Clone(req.query) // all of it: where a list goes on may be told by any key
	query.Del("ns")
	ask := h.origin.Tags
	if req.kind == "referrers" {
		ask = h.origin.Referrers
	}
	resp, err := ask(r.Context(), req.Ref, query, req.header)
	if err == nil && resp.Status != http.StatusOK {
		err = fromOrigin(req.kind, resp)
	}
	if err != nil {
		h.refuseError(w, err)
		return
	}
	for _, link := range resp.Header.Values("Link") {
		w.Header().Add("Link", ownLink(link, r.URL.Path, req.query.Get("ns")))
	}
	if applied := resp.Header.Get("OCI-Filters-Applied"); applied != "" {
		w.Header().Set("OCI-Filters-Applied", applied)
	}
	w.Header().Set("Content-Type", resp.MediaType)
	w.Header().Set("Content-Length", strconv.Itoa(len(resp.Body)))
	if req.method == http.MethodGet {
		_, _ = w.Write(resp.Body) // the caller may have left
	}
}

// ownLink has the origin's link to a list's next part lead here: its query is kept, its place is that of the request. What is no link of
// the form <URL>; rel="next" stays as it is.
func ownLink(link, path, ns string) string {
	target, rest, ok := strings.Cut(strings.TrimPrefix(strings.TrimSpace(link), "<"), ">")
	u, err := url.Parse(target)
	if !ok || err != nil {
		return link
	}
	query := u.Query()
	if ns != "" {
		query.Set("ns", ns)
	}
	own := url.URL{Path: path, RawQuery: query.Encode()}
	return "<" + own.String() + ">" + rest
}

var _ Origin = (*upstream.Client)(nil)
