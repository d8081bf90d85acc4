package cluster

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"testing"
	"time"
)

// front starts a server of data and a proxy before it, both on loopback.
func front(t *testing.T, data []byte) (*Proxy, string) {
	t.Helper()
	back := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
	}))
	t.Cleanup(back.Close)
	_, to, err := net.SplitHostPort(back.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(free.Addr().String())
	free.Close()
	transport := &http.Transport{DisableCompression: true}
	t.Cleanup(transport.CloseIdleConnections)
	p, err := startProxy(free.Addr().String(), net.JoinHostPort("127.0.0.1", to), transport, func(addr string) (net.Listener, error) {
		return net.Listen("tcp", addr)
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.close(); err != nil {
			t.Error(err)
		}
	})
	return p, "http://127.0.0.1:" + port + "/blob"
}

func TestProxyFailsAsItIsTold(t *testing.T) {
	data := bytes.Repeat([]byte("0123456789"), 1000)
	p, url := front(t, data)
	get := func(t *testing.T) (status int, contentRange string, body []byte, err error) {
		t.Helper()
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
		req.Header.Set("Range", "bytes=1000-2999")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return 0, "", nil, err
		}
		defer resp.Body.Close()
		body, err = io.ReadAll(resp.Body)
		return resp.StatusCode, resp.Header.Get("Content-Range"), body, err
	}
	right := data[1000:3000]
	flipped := bytes.Clone(right)
	flipped[500] ^= 1
	for name, test := range map[string]struct {
		fault  Fault
		status int
		total  string
		body   []byte
		cut    bool
	}{
		"none":         {Fault{}, 206, "10000", right, false},
		"other path":   {Fault{Kind: Cut, Path: "/other"}, 206, "10000", right, false},
		"unavailable":  {Fault{Kind: Unavailable}, 503, "", []byte("out of order\n"), false},
		"cut":          {Fault{Kind: Cut}, 206, "10000", right[:1000], true},
		"short":        {Fault{Kind: Short}, 206, "10000", right[:1000], false},
		"wrong length": {Fault{Kind: WrongLength}, 206, "10001", right, false},
		"flip":         {Fault{Kind: Flip, At: 1500}, 206, "10000", flipped, false},
		"flip outside": {Fault{Kind: Flip, At: 10}, 206, "10000", right, false},
		"slow":         {Fault{Kind: Slow, BytesPerSecond: 10000}, 206, "10000", right, false},
	} {
		t.Run(name, func(t *testing.T) {
			p.Set(test.fault)
			status, told, body, err := get(t)
			if (err != nil) != test.cut {
				t.Fatalf("error %v, cut %v", err, test.cut)
			}
			total := ""
			if m := contentRange.FindStringSubmatch(told); m != nil {
				total = m[3]
			}
			if status != test.status || total != test.total || !bytes.Equal(body, test.body) {
				t.Errorf("status %d, size %q, %d bytes; want %d, %q, %d bytes", status, total, len(body), test.status, test.total, len(test.body))
			}
		})
	}
	p.Set(Fault{Kind: Unavailable, Times: 2})
	var got []string
	for range 3 {
		status, _, _, err := get(t)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, strconv.Itoa(status))
	}
	if got[0] != "503" || got[1] != "503" || got[2] != "206" || p.Struck() != 2 {
		t.Errorf("statuses %v, struck %d; want two times 503", got, p.Struck())
	}
}

func TestProxyHangsUntilItIsHealed(t *testing.T) {
	p, url := front(t, []byte("x"))
	p.Set(Fault{Kind: Hang})
	answered := make(chan error, 1)
	go func() { // ends when the proxy is healed
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, url, nil) // not retried by the client
		resp, err := http.DefaultClient.Do(req)
		if err == nil {
			resp.Body.Close()
		}
		answered <- err
	}()
	for p.Struck() == 0 {
		time.Sleep(time.Millisecond)
	}
	select {
	case err := <-answered:
		t.Fatalf("answered while it should hang: %v", err)
	default:
	}
	p.Set(Fault{})
	if err := <-answered; err == nil {
		t.Error("the request that hung got an answer, want its connection broken")
	}
}
