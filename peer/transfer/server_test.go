package transfer_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/shoal-project/shoal/peer/piece"
	"github.com/shoal-project/shoal/peer/store"
	"github.com/shoal-project/shoal/peer/store/storetest"
	"github.com/shoal-project/shoal/peer/transfer"
)

func TestMissingOrBadPieceIsAbsent(t *testing.T) {
	dir := t.TempDir()
	s, err := store.Open(dir, store.Config{})
	if err != nil {
		t.Fatal(err)
	}
	data, _ := storetest.Content(1, 4*piece.GroupSize)
	d := storetest.Fill(t, s, data)
	partly, dp := storetest.Content(2, 4*piece.GroupSize)
	b, err := s.Create(dp, int64(len(partly)))
	if err != nil {
		t.Fatal(err)
	}
	storetest.WritePiece(t, b, partly, 1)
	_ = b.Close()
	_ = s.Close()

	path := filepath.Join(dir, strings.Replace(d.String(), ":", "-", 1), "data")
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte{^data[3]}, 3); err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	if s, err = store.Open(dir, store.Config{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	addr := serve(t, transfer.Config{}, stored{s})
	c := newClient(t, transfer.ClientConfig{})

	for name, r := range map[string]struct {
		d    digest.Digest
		off  int64
		want error
	}{
		"bad on disk":     {d, 0, piece.ErrAbsent},
		"good beside it":  {d, piece.GroupSize, nil},
		"missing":         {dp, 0, piece.ErrAbsent},
		"held beside it":  {dp, piece.GroupSize, nil},
		"unknown":         {digest.FromString("x"), 0, piece.ErrAbsent},
		"behind the blob": {d, 4 * piece.GroupSize, piece.ErrTransient},
	} {
		if err := c.Piece(t.Context(), addr, r.d, r.off, make([]byte, piece.GroupSize)); !errors.Is(err, r.want) {
			t.Errorf("%s: error %v, want %v", name, err, r.want)
		}
	}
}

func TestGroupsAndSuspicion(t *testing.T) {
	dir := t.TempDir()
	s, err := store.Open(dir, store.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	data, _ := storetest.Content(1, 3*piece.GroupSize)
	d := storetest.Fill(t, s, data)
	addr := serve(t, transfer.Config{}, stored{s})
	c := newClient(t, transfer.ClientConfig{})

	_, want := storetest.Piece(data, 2)
	got, err := c.Groups(t.Context(), addr, d, 2)
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("groups: %v (-want +got):\n%s", err, diff)
	}
	if _, err := c.Groups(t.Context(), addr, d, 3); !errors.Is(err, piece.ErrAbsent) {
		t.Errorf("groups of a piece behind the last: %v", err)
	}

	path := filepath.Join(dir, strings.Replace(d.String(), ":", "-", 1), "data")
	if err := os.WriteFile(path, append([]byte{^data[0]}, data[1:]...), 0o600); err != nil {
		t.Fatal(err)
	}
	for i := range piece.Index(2) {
		if err := c.Suspect(t.Context(), addr, d, i); err != nil {
			t.Fatal(err)
		}
	}
	b, err := s.Get(d)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if b.Has(0) || !b.Has(1) {
		t.Errorf("after suspicion of both: bad piece held %v, good piece held %v", b.Has(0), b.Has(1))
	}
	if err := c.Suspect(t.Context(), addr, digest.FromString("x"), 0); !errors.Is(err, piece.ErrAbsent) {
		t.Errorf("suspicion of an unknown blob: %v", err)
	}
}

// big serves one large sparse file and tells when it is opened and released.
type big struct {
	transfer.Blobs
	path             string
	opened, released chan struct{}
}

func newBig(t *testing.T, size int64) *big {
	t.Helper()
	path := filepath.Join(t.TempDir(), "big")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	return &big{path: path, opened: make(chan struct{}, 10), released: make(chan struct{}, 10)}
}

func (b *big) Open(digest.Digest, int64, int64) (*os.File, func(), error) {
	f, err := os.Open(b.path)
	b.opened <- struct{}{}
	return f, func() { _ = f.Close(); b.released <- struct{}{} }, err
}

func TestBusyPeerSaysSoAndRecoversFromReceiversThatHang(t *testing.T) {
	const size = 256 << 20 // much more than socket buffers hold
	blobs := newBig(t, size)
	addr := serve(t, transfer.Config{UploadSlots: 1, UploadStall: 200 * time.Millisecond}, blobs)
	hung, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer hung.Close()
	d := digest.FromString("big")
	if _, err := io.WriteString(hung, "GET /v1/blobs/"+d.String()+" HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	<-blobs.opened
	c := newClient(t, transfer.ClientConfig{})
	err = c.Piece(t.Context(), addr, d, 0, make([]byte, 10))
	if !errors.Is(err, transfer.ErrBusy) || !errors.Is(err, piece.ErrTransient) {
		t.Fatalf("error %v, want ErrBusy", err)
	}
	<-blobs.released // the hung receiver lost its slot
	buf := make([]byte, 8<<20)
	last := size - int64(len(buf))
	deadline := time.Now().Add(10 * time.Second)
	err = c.Piece(t.Context(), addr, d, last, buf)
	for errors.Is(err, transfer.ErrBusy) && time.Now().Before(deadline) { // release comes a moment before the slot is free
		time.Sleep(time.Millisecond)
		err = c.Piece(t.Context(), addr, d, last, buf)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestWhatIsDemandedIsSentBesideAllElseWhichMakesWay(t *testing.T) {
	blobs := newBig(t, 256<<20)
	addr := serve(t, transfer.Config{UploadSlots: 2, UploadStall: time.Minute}, blobs)
	d := digest.FromString("big")
	ask := func(header string) {
		hung, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { hung.Close() })
		if _, err := io.WriteString(hung, "GET /v1/blobs/"+d.String()+" HTTP/1.1\r\nHost: x\r\n"+header+"\r\n"); err != nil {
			t.Fatal(err)
		}
		<-blobs.opened
	}
	ask("Shoal-Demanded: 1\r\n")
	ask("") // one of the others may go on
	c := newClient(t, transfer.ClientConfig{})
	if err := c.Piece(t.Context(), addr, d, 0, make([]byte, 10)); !errors.Is(err, transfer.ErrBusy) {
		t.Errorf("error %v although a slot is free, want ErrBusy: a reader waits for something else", err)
	}
	if err := c.Fetch(t.Context(), transfer.Wanted{Addr: addr, Digest: d, Buf: make([]byte, 10), Demanded: true}); err != nil {
		t.Error(err)
	}
}

func TestWhatManyWaitForIsSentOnceAtATimeWhileTheRestGoesOn(t *testing.T) {
	blobs := newBig(t, 256<<20)
	addr := serve(t, transfer.Config{UploadStall: time.Minute, Spacing: time.Minute}, blobs)
	d := digest.FromString("big")
	c := newClient(t, transfer.ClientConfig{})
	awaited := func(off int64) error {
		return c.Fetch(t.Context(), transfer.Wanted{Addr: addr, Digest: d, Off: off, Buf: make([]byte, 10), Demanded: true})
	}
	for range 2 {
		if err := awaited(0); err != nil {
			t.Fatalf("%v although nothing else is sent", err)
		}
		<-blobs.opened
	}
	bulk, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer bulk.Close()
	if _, err := io.WriteString(bulk, "GET /v1/blobs/"+d.String()+" HTTP/1.1\r\nHost: x\r\nRange: bytes=4096-268435455\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := bufio.NewReader(bulk).ReadString('\n'); err != nil { // it is being sent
		t.Fatal(err)
	}
	if err := awaited(100); err != nil {
		t.Errorf("%v of a range that nobody else gets", err)
	}
	if err := awaited(100); !errors.Is(err, transfer.ErrShared) {
		t.Errorf("error %v of a range that has just been sent to another, want ErrShared", err)
	}
}

// Who cannot get a range from whoever else got it gets it from here, and does not keep it from those who can.
func TestWhoIsAloneIsNotToldThatAnotherGetsIt(t *testing.T) {
	s := newStore(t)
	data, _ := storetest.Content(1, 2*piece.GroupSize)
	d := storetest.Fill(t, s, data)
	addr := serve(t, transfer.Config{Spacing: time.Minute}, stored{s})
	c := newClient(t, transfer.ClientConfig{})
	get := func(off int64, alone bool) error {
		return c.Fetch(t.Context(), transfer.Wanted{Addr: addr, Digest: d, Off: off, Buf: make([]byte, piece.GroupSize), Alone: alone})
	}
	for _, r := range []struct {
		what  string
		off   int64
		alone bool
		want  error
	}{
		{"the first peer", 0, false, nil},
		{"another one", 0, false, transfer.ErrShared},
		{"one alone", 0, true, nil},
		{"one alone that is the first", piece.GroupSize, true, nil},
		{"the first of the others", piece.GroupSize, false, nil},
		{"the second of the others", piece.GroupSize, false, transfer.ErrShared},
	} {
		if err := get(r.off, r.alone); !errors.Is(err, r.want) {
			t.Errorf("%s gets %v, want %v", r.what, err, r.want)
		}
	}
}

func TestBadRequestsAreRefusedInWords(t *testing.T) {
	addr := serve(t, transfer.Config{}, stored{newStore(t)})
	d := digest.FromString("x").String()
	for _, c := range []struct {
		method, path, rng, body string
		want                    int
	}{
		{"GET", "/v1/blobs/nonsense", "", "", 400},
		{"GET", "/v1/blobs/" + d, "bytes=5-", "", 416},
		{"GET", "/v1/blobs/" + d, "bytes=-5", "", 416},
		{"GET", "/v1/blobs/" + d, "bytes=5-1", "", 416},
		{"GET", "/v1/blobs/" + d, "bytes=0-1,3-4", "", 416},
		{"GET", "/v1/blobs/" + d, "bytes=0-99999999999999999999", "", 416},
		{"GET", "/v1/blobs/" + d, "lines=0-1", "", 416},
		{"GET", "/v1/blobs/" + d, "bytes=0-1", "", 404},
		{"GET", "/v1/blobs/" + d + "/groups", "", "", 400},
		{"GET", "/v1/blobs/" + d + "/groups?piece=-1", "", "", 400},
		{"GET", "/v1/blobs/" + d + "/groups?piece=99999999999", "", "", 400},
		{"GET", "/v1/blobs/" + d + "/suspect?piece=1", "", "", 405},
		{"POST", "/v1/tasks/" + d + "/haves", "", "{", 400},
		{"POST", "/v1/tasks/" + d + "/haves", "", `"` + strings.Repeat("x", 65<<10) + `"`, 400},
		{"POST", "/v1/tasks/" + d + "/haves", "", "{}", 404},
	} {
		req, err := http.NewRequestWithContext(t.Context(), c.method, "http://"+addr+c.path, strings.NewReader(c.body))
		if err != nil {
			t.Fatal(err)
		}
		if c.rng != "" {
			req.Header.Set("Range", c.rng)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if resp.StatusCode != c.want || len(text) == 0 {
			t.Errorf("%s %s %s: %s %q, want %d with a text", c.method, c.path, c.rng, resp.Status, text, c.want)
		}
	}
	http.DefaultClient.CloseIdleConnections()
}

func TestTokenIsRequiredExactly(t *testing.T) {
	h := transfer.RequireToken("secret", http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	addr := serveHTTP(t, h)
	for header, want := range map[string]int{"Bearer secret": 200, "": 401, "Bearer ": 401, "Bearer secre": 401, "Bearer secret2": 401, "bearer secret": 401, "Basic secret": 401} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+addr, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", header)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%q: %s, want %d", header, resp.Status, want)
		}
	}
	http.DefaultClient.CloseIdleConnections()
}

func TestWatchTellsEverythingThenChanges(t *testing.T) {
	s := newStore(t)
	data, d := storetest.Content(1, 9*piece.GroupSize)
	b, err := s.Create(d, int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	storetest.WritePiece(t, b, data, 4)
	addr := serve(t, transfer.Config{HavesInterval: time.Millisecond}, stored{s})
	c := newClient(t, transfer.ClientConfig{})

	stop := errors.New("seen enough")
	known := piece.NewSet(9)
	frames := 0
	err = c.Watch(t.Context(), addr, d, json.RawMessage(`{"size":2359296}`), func(h transfer.Have) error {
		frames++
		switch {
		case frames == 1 && h.All == nil:
			t.Errorf("first frame %+v does not tell everything", h)
		case h.All != nil:
			known = h.All
		}
		for _, i := range h.Added {
			known.Add(i)
		}
		for _, i := range h.Removed {
			known.Remove(i)
		}
		if diff := cmp.Diff(b.Have().Bytes(), known.Bytes()); diff != "" {
			return nil // behind by a frame; the next one comes within the test's time, or it hangs
		}
		switch known.Count() {
		case 1:
			storetest.WritePiece(t, b, data, 0)
			storetest.WritePiece(t, b, data, 8)
		case 3:
			return b.Drop()
		case 0:
			return stop
		}
		return nil
	})
	if !errors.Is(err, stop) {
		t.Fatalf("error %v, want that of the callback", err)
	}
}

func TestIdleWatchStaysAlive(t *testing.T) {
	s := newStore(t)
	addr := serve(t, transfer.Config{}, stored{s})
	stop := errors.New("seen enough")
	var got []transfer.Have
	err := newClient(t, transfer.ClientConfig{}).Watch(t.Context(), addr, digest.FromString("x"), json.RawMessage(`{"size":1}`),
		func(h transfer.Have) error {
			if got = append(got, h); len(got) == 3 {
				return stop
			}
			return nil
		})
	if !errors.Is(err, stop) {
		t.Fatalf("error %v", err)
	}
	if got[1].All != nil || got[2].All != nil || len(got[1].Added)+len(got[2].Added) > 0 {
		t.Errorf("frames of an idle peer: %+v", got)
	}
}

func TestSilentWatchEnds(t *testing.T) {
	c := newClient(t, transfer.ClientConfig{Silence: 100 * time.Millisecond})
	ignore := func(transfer.Have) error { return nil }
	d := digest.FromString("x")
	header := "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
	alive := "5\r\n\x00\x00\x00\x00\x00\r\n"
	for name, c2 := range map[string]struct {
		addr string
		want error
	}{
		"no answer":         {script(t, "", true), transfer.ErrStalled},
		"no frame":          {script(t, header, true), transfer.ErrStalled},
		"one frame":         {script(t, header+alive, true), transfer.ErrStalled},
		"half a frame":      {script(t, header+"2\r\n\x00\x00\r\n", true), transfer.ErrStalled},
		"cut":               {script(t, header+alive, false), io.ErrUnexpectedEOF},
		"end":               {script(t, header+"0\r\n\r\n", false), io.ErrUnexpectedEOF},
		"frame of nonsense": {script(t, header+"5\r\n\x07\x00\x00\x00\x00\r\n", true), piece.ErrTransient},
	} {
		if err := c.Watch(t.Context(), c2.addr, d, nil, ignore); !errors.Is(err, c2.want) || !errors.Is(err, piece.ErrTransient) {
			t.Errorf("%s: error %v, want %v", name, err, c2.want)
		}
	}
}

func TestWatchEndsWithItsServer(t *testing.T) {
	s := newStore(t)
	h, err := transfer.NewHandler(transfer.Config{}, stored{s})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	base, stop := context.WithCancel(t.Context())
	srv := &http.Server{Handler: h, BaseContext: func(net.Listener) context.Context { return base }}
	served := make(chan error)
	go func() { served <- srv.Serve(l) }() // ends with Shutdown
	err = newClient(t, transfer.ClientConfig{}).Watch(t.Context(), l.Addr().String(), digest.FromString("x"), json.RawMessage(`{"size":1}`),
		func(transfer.Have) error { stop(); return nil })
	if !errors.Is(err, piece.ErrTransient) {
		t.Errorf("watch: %v", err)
	}
	if err := srv.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		t.Error(err)
	}
}

func BenchmarkPiece(b *testing.B) {
	s := newStore(b)
	data, _ := storetest.Content(1, 64<<20)
	d := storetest.Fill(b, s, data)
	addr := serve(b, transfer.Config{}, stored{s})
	c := newClient(b, transfer.ClientConfig{})
	buf := make([]byte, 4<<20)
	b.SetBytes(int64(len(buf)))
	b.ReportAllocs()
	for n := int64(0); b.Loop(); n++ {
		if err := c.Piece(b.Context(), addr, d, n*int64(len(buf))%int64(len(data)), buf); err != nil {
			b.Fatal(err)
		}
	}
}
