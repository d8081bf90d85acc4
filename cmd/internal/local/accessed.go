package local

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
)

// Accessed is the order in which an image's files were first read on a node.
type Accessed struct {
	Image string   `json:"image"`
	Files []string `json:"files"` // paths in the image
}

// ServeAccessed serves GET /v1/accessed?image=REFERENCE. The error of accessed is told to the caller.
func ServeAccessed(accessed func(ctx context.Context, image string) ([]string, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		image := r.URL.Query().Get("image")
		files, err := accessed(r.Context(), image)
		if err != nil {
			refuse(w, http.StatusNotFound, &Error{CodeUnavailable, err.Error()})
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(Accessed{Image: image, Files: append([]string{}, files...)}) // the caller may have left
	})
}

// Accessed asks for the order in which an image's files were read on the node. The error is
// ErrNoNode, an Error of code CodeUnavailable where there is no record, or tells of a broken connection.
func (c *Client) Accessed(ctx context.Context, image string) (*Accessed, error) {
	var a Accessed
	if err := c.get(ctx, "/v1/accessed?"+url.Values{"image": {image}}.Encode(), &a); err != nil {
		return nil, err
	}
	return &a, nil
}
