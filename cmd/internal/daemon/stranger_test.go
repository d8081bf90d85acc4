package daemon

import (
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-project/shoal/cmd/internal/config"
	"github.com/shoal-project/shoal/peer/piece"
	"github.com/shoal-project/shoal/scheduler/server"
)

const clusterToken = "0123456789abcdef0123456789abcdef"

// openNode opens a node of a cluster with a token that holds a blob; it does not run.
func openNode(t *testing.T) (*node, digest.Digest) {
	t.Helper()
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte(clusterToken), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := config.DefaultNode()
	cfg.DataDir, cfg.Schedulers, cfg.Cluster.TokenFile = t.TempDir(), []string{"http://127.0.0.1:1"}, token
	cfg.Mirror.Listen, cfg.Peer.Listen, cfg.Admin.Listen = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
	n := &node{cfg: cfg, log: cfg.Log.Logger(io.Discard), admin: newAdmin("test")}
	t.Cleanup(n.close)
	if err := n.open(t.Context()); err != nil {
		t.Fatal(err)
	}
	data := []byte("what no stranger may read")
	d := digest.FromBytes(data)
	b, err := n.store.Create(d, int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if err := b.Write(0, data, piece.HashGroups(data)); err != nil {
		t.Fatal(err)
	}
	return n, d
}

func TestStrangerGetsNothing(t *testing.T) {
	n, d := openNode(t)
	adm := newAdmin("test")
	scheduler := schedulerHandler(server.New(server.Config{Token: clusterToken}), adm, http.NotFoundHandler(), clusterToken, true)
	type question struct {
		h            http.Handler
		method, path string
	}
	var questions []question
	blob := "/v1/blobs/" + d.String()
	for _, path := range []string{blob, blob + "/groups?piece=0", blob + "/suspect?piece=0", "/v1/tasks/" + d.String() + "/haves",
		"/v1/manifests?registry=r&repository=a&reference=b", "/v1/content", "/v1/status", "/v2/", "/metrics", "/healthz", "/debug/pprof/", "/"} {
		for _, method := range []string{http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodDelete} {
			questions = append(questions, question{n.piece, method, path})
		}
	}
	for _, path := range []string{"/v1/sessions", "/v1/hosts", "/v1/sessions/s/events", limitsPath, "/metrics", "/debug/pprof/", "/", "/v1/"} {
		for _, method := range []string{http.MethodGet, http.MethodPost} {
			questions = append(questions, question{scheduler, method, path})
		}
	}
	for _, authorization := range []string{"", "Bearer ", "Bearer wrong", "Bearer " + clusterToken[:31], "Bearer " + clusterToken + "0",
		"bearer " + clusterToken, "Basic " + clusterToken, clusterToken} {
		for _, q := range questions {
			r := httptest.NewRequestWithContext(t.Context(), q.method, q.path, strings.NewReader("{}"))
			if authorization != "" {
				r.Header.Set("Authorization", authorization)
			}
			w := httptest.NewRecorder()
			q.h.ServeHTTP(w, r)
			if w.Code != http.StatusUnauthorized || strings.Contains(w.Body.String(), "stranger") {
				t.Errorf("%s %s with %q: %d %s", q.method, q.path, authorization, w.Code, w.Body)
			}
		}
	}
	r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, blob, nil)
	r.Header.Set("Authorization", "Bearer "+clusterToken)
	w := httptest.NewRecorder()
	n.piece.ServeHTTP(w, r)
	if w.Code != http.StatusOK || !strings.Contains(w.Body.String(), "stranger") {
		t.Errorf("with the token: %d %s", w.Code, w.Body)
	}
}

func TestAdministrationIsForTheMachineAlone(t *testing.T) {
	n, _ := openNode(t)
	mux := http.NewServeMux()
	n.registerLocal(mux)
	for _, q := range [][2]string{{"GET", "/v1/status"}, {"POST", "/v1/content"}, {"GET", "/v2/"},
		{"GET", "/pins"}, {"PUT", "/pins/sha256:00/me"}, {"PUT", limitsPath}} {
		r := httptest.NewRequestWithContext(t.Context(), q[0], q[1], nil)
		r.RemoteAddr, r.Host = "10.0.0.7:1000", "127.0.0.1:7703"
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, r)
		if w.Code != http.StatusForbidden {
			t.Errorf("%s: %d %s", q[1], w.Code, w.Body)
		}
	}
}
