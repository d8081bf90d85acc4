package transfer

import (
	"context"

	"github.com/opencontainers/go-digest"
)

// Piece is Fetch of what nobody waits for.
func (c *Client) Piece(ctx context.Context, addr string, d digest.Digest, off int64, buf []byte) error {
	return c.Fetch(ctx, Wanted{Addr: addr, Digest: d, Off: off, Buf: buf})
}
