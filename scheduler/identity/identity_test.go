package identity

import (
	"crypto/tls"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// authority is one with a folder for the files of its hosts.
type authority struct {
	*Authority
	dir string
}

func newAuthority(t *testing.T) authority {
	t.Helper()
	a, cert, _, err := NewAuthority("test")
	if err != nil {
		t.Fatal(err)
	}
	out := authority{a, t.TempDir()}
	write(t, filepath.Join(out.dir, "ca.pem"), cert)
	return out
}

func write(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func (a authority) issue(t *testing.T, name string, role Role) Files {
	t.Helper()
	cert, key, err := a.Issue(name, role, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	files := Files{CA: filepath.Join(a.dir, "ca.pem"), Cert: filepath.Join(a.dir, name+".pem"), Key: filepath.Join(a.dir, name+"-key.pem")}
	write(t, files.Key, key)
	write(t, files.Cert, cert)
	return files
}

func load(t *testing.T, files Files, role Role) *Identity {
	t.Helper()
	id, err := Load(files, role, nil)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// serve answers at https://… to nodes.
func serve(t *testing.T, cfg *tls.Config) string {
	t.Helper()
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("content")) }))
	srv.Config.ErrorLog = nil
	srv.Listener = tls.NewListener(srv.Listener, cfg)
	srv.Start()
	t.Cleanup(func() { srv.CloseClientConnections(); srv.Close() })
	return strings.Replace(srv.URL, "http://", "https://", 1)
}

func ask(t *testing.T, url string, cfg *tls.Config) (string, error) {
	t.Helper()
	transport := &http.Transport{TLSClientConfig: cfg}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return string(body), err
}

func TestOnlyTheClustersOwnAreServed(t *testing.T) {
	ours, theirs := newAuthority(t), newAuthority(t)
	node := load(t, ours.issue(t, "node", Node), Node)
	scheduler := load(t, ours.issue(t, "scheduler", Scheduler), Scheduler)
	foreign := load(t, theirs.issue(t, "node", Node), Node)
	peers, schedulers, strangers := serve(t, node.Server(Node)), serve(t, scheduler.Server(Node)), serve(t, foreign.Server(Node))

	// A client that shows our certificate to anybody, or none.
	lax := func(id *Identity) *tls.Config {
		cfg := &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13} // a stranger does not check
		if id != nil {
			cfg.Certificates = []tls.Certificate{id.get().cert}
		}
		return cfg
	}
	for name, c := range map[string]struct {
		url string
		cfg *tls.Config
		ok  bool
	}{
		"node to node":               {peers, node.Client(Node), true},
		"node to scheduler":          {schedulers, node.Client(Scheduler), true},
		"node posing as scheduler":   {peers, node.Client(Scheduler), false},
		"scheduler posing as node":   {schedulers, node.Client(Node), false},
		"scheduler asks a node":      {peers, lax(scheduler), false},
		"without a certificate":      {peers, lax(nil), false},
		"of another authority":       {peers, lax(foreign), false},
		"server of another":          {strangers, node.Client(Node), false},
		"stranger at the scheduler":  {schedulers, lax(foreign), false},
		"no certificate, scheduler":  {schedulers, lax(nil), false},
		"in plain HTTP":              {strings.Replace(peers, "https", "http", 1), nil, false},
		"with our certificate alone": {peers, lax(node), true},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := ask(t, c.url, c.cfg)
			if ok := err == nil && got == "content"; ok != c.ok {
				t.Errorf("got %q, error %v", got, err)
			}
			if !c.ok && strings.Contains(got, "content") {
				t.Error("a stranger got content")
			}
		})
	}
}

func TestNewFilesHoldForNewConnections(t *testing.T) {
	first, second := newAuthority(t), newAuthority(t)
	files := first.issue(t, "node", Node)
	id := load(t, files, Node)
	now := time.Now()
	id.now = func() time.Time { return now }
	url := serve(t, id.Server(Node))
	newcomer := load(t, second.issue(t, "node", Node), Node)
	if _, err := ask(t, url, newcomer.Client(Node)); err == nil {
		t.Fatal("another authority's host was served")
	}
	// A broken file changes nothing.
	write(t, files.Cert, []byte("half"))
	now = now.Add(recheck)
	if _, err := ask(t, url, id.Client(Node)); err != nil {
		t.Errorf("with a broken file: %v", err)
	}
	for to, from := range map[string]string{files.CA: filepath.Join(second.dir, "ca.pem"), files.Cert: filepath.Join(second.dir, "node.pem"),
		files.Key: filepath.Join(second.dir, "node-key.pem")} {
		data, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		write(t, to, data)
		if err := os.Chtimes(to, now.Add(time.Minute), now.Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
	}
	now = now.Add(recheck)
	if got, err := ask(t, url, newcomer.Client(Node)); err != nil || got != "content" {
		t.Errorf("after the files changed: %q, %v", got, err)
	}
	now = now.Add(2 * time.Hour)
	if _, err := ask(t, url, newcomer.Client(Node)); err == nil {
		t.Error("an expired certificate was taken")
	}
}

func TestFilesThatCannotBeAreNamed(t *testing.T) {
	a, b := newAuthority(t), newAuthority(t)
	good, other := a.issue(t, "node", Node), b.issue(t, "other", Node)
	empty := filepath.Join(t.TempDir(), "empty.pem")
	write(t, empty, nil)
	for name, c := range map[string]struct {
		files Files
		role  Role
		want  string
	}{
		"no CA file":        {Files{"absent", good.Cert, good.Key}, Node, "absent"},
		"empty CA file":     {Files{empty, good.Cert, good.Key}, Node, empty},
		"key of another":    {Files{good.CA, good.Cert, other.Key}, Node, other.Key},
		"another authority": {Files{good.CA, other.Cert, other.Key}, Node, other.Cert},
		"another role":      {good, Scheduler, string(Scheduler)},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := Load(c.files, c.role, nil); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one that names %s", err, c.want)
			}
		})
	}
	if _, _, err := a.Issue("late", Node, 2*authorityLife); err == nil || !strings.Contains(err.Error(), "ends at") {
		t.Errorf("a certificate that outlives its authority: %v", err)
	}
	if _, err := ParseAuthority(nil, nil); err == nil {
		t.Error("no authority was read")
	}
	if _, _, err := a.Issue("", Node, time.Hour); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("a certificate without a name: %v", err)
	}
}
