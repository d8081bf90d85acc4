package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"
)

// A Proxy stands before a server on its host and passes everything on, until a Fault is set.
type Proxy struct {
	server *http.Server
	done   chan struct{} // closed when the server has ended

	mu     sync.Mutex // guards what follows
	fault  Fault
	struck int           // requests since the fault was set
	healed chan struct{} // closed when the fault is replaced
	own    http.Handler  // of paths that are not passed on; nil without
}

// Fault is what a Proxy does to requests. The zero Fault does nothing.
type Fault struct {
	Kind FaultKind
	// Path restricts it to requests whose path holds this text.
	Path string
	// Times bounds how many requests it strikes, zero does not.
	Times int
	// At is the offset in the resource that Flip changes a byte at.
	At int64
	// BytesPerSecond is the pace of Slow.
	BytesPerSecond int
}

// FaultKind is a way for a server to fail.
type FaultKind int

// The kinds of faults.
const (
	None        FaultKind = iota
	Hang                  // takes the request and says nothing, until the fault is replaced
	Unavailable           // 503
	Cut                   // breaks the connection in the middle of the body
	Short                 // ends in order after half of the range, whose header says so
	WrongLength           // claims that the resource is one byte longer than it is
	Flip                  // changes the byte at At
	Slow                  // sends at BytesPerSecond
)

// StartProxy listens at a port of the host and passes requests on to another port there.
func (h *Host) StartProxy(ctx context.Context, port, to string) (*Proxy, error) {
	listen := func(addr string) (net.Listener, error) { return h.Listen(ctx, addr) }
	p, err := startProxy(net.JoinHostPort(h.Addr, port), net.JoinHostPort(h.Addr, to), h.client.Transport, listen)
	if err != nil {
		return nil, fmt.Errorf("proxy on %s: %w", h.Name, err)
	}
	h.c.mu.Lock()
	h.c.proxies = append(h.c.proxies, p)
	h.c.mu.Unlock()
	return p, nil
}

func startProxy(addr, to string, transport http.RoundTripper, listen func(addr string) (net.Listener, error)) (*Proxy, error) {
	l, err := listen(addr)
	if err != nil {
		return nil, err
	}
	p := &Proxy{done: make(chan struct{}), healed: make(chan struct{})}
	quiet := slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	forward := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "http", Host: to})
			r.Out.Host = r.In.Host
		},
		Transport:      transport,
		FlushInterval:  -1,
		ModifyResponse: spoil,
		ErrorLog:       quiet,
	}
	p.server = &http.Server{Handler: p.strike(forward), ReadHeaderTimeout: time.Minute, ErrorLog: quiet}
	go func() { // ends with close
		defer close(p.done)
		_ = p.server.Serve(l) // says that it was closed
	}()
	return p, nil
}

// Set replaces the fault; requests that hang under the former one are broken off.
func (p *Proxy) Set(f Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	close(p.healed)
	p.fault, p.struck, p.healed = f, 0, make(chan struct{})
}

// ownPath begins the paths that a Proxy answers by itself.
const ownPath = "/token"

// answerOwn has a handler answer requests below ownPath.
func (p *Proxy) answerOwn(h http.Handler) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.own = h
}

// Struck returns how many requests the fault has struck since it was set.
func (p *Proxy) Struck() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.struck
}

// close ends the proxy and waits for it.
func (p *Proxy) close() error {
	p.Set(Fault{})
	err := p.server.Close()
	<-p.done
	return err
}

type faultKey struct{}

// strike decides whether a request is struck, and does what needs no answer of the server.
func (p *Proxy) strike(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		f, healed := p.fault, p.healed
		if f.Kind == None || !strings.Contains(r.URL.Path, f.Path) || f.Times > 0 && p.struck >= f.Times {
			f = Fault{}
		} else {
			p.struck++
		}
		own := p.own
		p.mu.Unlock()
		if own != nil && strings.HasPrefix(r.URL.Path, ownPath) {
			own.ServeHTTP(w, r)
			return
		}
		switch f.Kind {
		case Hang:
			select {
			case <-healed:
			case <-r.Context().Done():
			}
			panic(http.ErrAbortHandler)
		case Unavailable:
			http.Error(w, "out of order", http.StatusServiceUnavailable)
		default:
			next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), faultKey{}, f)))
		}
	})
}

var contentRange = regexp.MustCompile(`^bytes (\d+)-(\d+)/(\d+)$`)

// spoil changes an answer with a body as the request's fault wants it.
func spoil(r *http.Response) error {
	f, _ := r.Request.Context().Value(faultKey{}).(Fault)
	if f.Kind == None || r.StatusCode != http.StatusOK && r.StatusCode != http.StatusPartialContent {
		return nil
	}
	first, length, size := int64(0), r.ContentLength, r.ContentLength
	if m := contentRange.FindStringSubmatch(r.Header.Get("Content-Range")); m != nil {
		first, _ = strconv.ParseInt(m[1], 10, 64)
		last, _ := strconv.ParseInt(m[2], 10, 64)
		size, _ = strconv.ParseInt(m[3], 10, 64)
		length = last - first + 1
	}
	declare := func(length, size int64) {
		r.ContentLength = length
		r.Header.Set("Content-Length", strconv.FormatInt(length, 10))
		if r.StatusCode == http.StatusPartialContent {
			r.Header.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", first, first+length-1, size))
		}
	}
	body := r.Body
	spoilt := func(reader io.Reader) {
		r.Body = struct {
			io.Reader
			io.Closer
		}{reader, body}
	}
	switch f.Kind {
	case Cut:
		spoilt(io.MultiReader(io.LimitReader(body, length/2), broken{}))
	case Short:
		declare(max(length/2, 1), size)
		spoilt(io.LimitReader(body, max(length/2, 1)))
	case WrongLength:
		declare(length, size+1)
	case Flip:
		spoilt(&flipping{r: body, at: f.At - first})
	case Slow:
		spoilt(&slow{ctx: r.Request.Context(), r: body, perSecond: f.BytesPerSecond})
	}
	return nil
}

// broken fails every read, upon which the proxy breaks the connection.
type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, errors.New("cut") }

// flipping changes the byte at an offset, which may be outside of what it reads.
type flipping struct {
	r  io.Reader
	at int64 // from here
}

func (f *flipping) Read(p []byte) (int, error) {
	n, err := f.r.Read(p)
	if f.at >= 0 && f.at < int64(n) {
		p[f.at] ^= 1
	}
	f.at -= int64(n)
	return n, err
}

// slow waits after each read for as long as its pace asks for.
type slow struct {
	ctx       context.Context
	r         io.Reader
	perSecond int
}

func (s *slow) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	timer := time.NewTimer(time.Duration(n) * time.Second / time.Duration(max(s.perSecond, 1)))
	defer timer.Stop()
	select {
	case <-timer.C:
		return n, err
	case <-s.ctx.Done():
		return n, s.ctx.Err()
	}
}
