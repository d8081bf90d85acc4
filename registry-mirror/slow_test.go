package mirror

import (
	"bufio"
	"net"
	"net/http"
	"testing"
	"time"
)

func TestBodyThatDoesNotComeIsNotWaitedFor(t *testing.T) {
	f := newFixture(t, Config{}, nil)
	for _, method := range []string{http.MethodGet, http.MethodPost} {
		conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", f.mirror.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write([]byte(method + " /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: 200000\r\n\r\nabc")); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatalf("%s: %v", method, err)
		}
		_ = resp.Body.Close()
		if !resp.Close {
			t.Errorf("%s: the connection is kept", method)
		}
	}
}
