package source

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	"github.com/shoal-project/shoal/converter/source/hubtest"
)

func noise(seed uint64, n int) []byte {
	out := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed)})
	_, _ = r.Read(out)
	return out
}

// behind returns what others get who are told the file's URL.
func behind(t *testing.T, f *File) []byte {
	t.Helper()
	link, err := f.URL(t.Context())
	check(t, err)
	resp, err := http.Get(link)
	check(t, err)
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if check(t, err); resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s", f.Path, resp.Status)
	}
	return data
}

const hubLarge = 100_000

// newHub serves a model with a large file, whose bytes come from another host, and small ones.
func newHub(t testing.TB) (*hubtest.Hub, *faults, Config) {
	t.Helper()
	dir := t.TempDir()
	for name, data := range map[string][]byte{
		"config.json": []byte("{}"), "model.safetensors": noise(1, 3*hubLarge), "sub/ä b#c?.txt": []byte("odd"), "empty": nil,
		"index.html": []byte("<html>"),
	} {
		check(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755))
		check(t, os.WriteFile(filepath.Join(dir, name), data, 0o600))
	}
	h := &hubtest.Hub{ID: "org/tiny", Dir: dir, Large: hubLarge, Missing: "gone", Page: 2}
	f := &faults{Handler: h, of: map[string][]fault{}}
	h.Store = serve(t, f)
	return h, f, quick(Config{Hub: Hub{Endpoint: serve(t, f)}})
}

func TestHubModelIsListedAndRead(t *testing.T) {
	h, _, cfg := newHub(t)
	m, err := Open(t.Context(), "hf://org/tiny@refs/pr/1", cfg)
	check(t, err)
	commit, err := h.Commit()
	check(t, err)
	if m.Name != "tiny" || m.Revision != commit || m.Local {
		t.Errorf("%+v", m)
	}
	want := []string{"config.json", "empty", "index.html", "model.safetensors", "sub/", "sub/ä b#c?.txt"}
	if diff := cmp.Diff(want, paths(m.Files)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if m.Files[3].Digest != digest.FromBytes(noise(1, 3*hubLarge)) {
		t.Errorf("digest %q", m.Files[3].Digest)
	}
	for i := range m.Files {
		if !m.Files[i].Mode.IsRegular() {
			continue
		}
		name := m.Files[i].Path
		data, err := os.ReadFile(filepath.Join(h.Dir, name))
		check(t, err)
		if got := behind(t, &m.Files[i]); !bytes.Equal(got, data) {
			t.Errorf("%s: %d bytes behind its URL", name, len(got))
		}
		for _, offset := range []int64{0, m.Files[i].Size / 2, m.Files[i].Size} {
			if got, err := read(t.Context(), m, name, offset); err != nil || !bytes.Equal(got, data[offset:]) {
				t.Errorf("%s from %d: %d bytes, %v", name, offset, len(got), err)
			}
		}
	}
}

func TestHubListingIsFilteredBeforeAnythingIsFetched(t *testing.T) {
	_, f, cfg := newHub(t)
	cfg.Include, cfg.Exclude = []string{"*.json", "*.safetensors"}, []string{"model.*"}
	m, err := Open(t.Context(), "hf://org/tiny", cfg)
	check(t, err)
	got, err := readAll(t, m)
	if diff := cmp.Diff([]string{"config.json={}"}, got); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	for _, r := range f.requests() {
		if strings.Contains(r, "safetensors") || strings.Contains(r, "/store/") {
			t.Errorf("asked: %s", r)
		}
	}
}

func TestHubFaultsAreSurvived(t *testing.T) {
	h, f, cfg := newHub(t)
	commit, err := h.Commit()
	check(t, err)
	oid := digest.FromBytes(noise(1, 3*hubLarge)).Encoded()
	f.of["/api/models/org/tiny/revision/main"] = []fault{status(429, "Retry-After", "0"), status(503), cut(5)}
	f.of["/api/models/org/tiny/tree/"+commit] = []fault{status(502), cut(20)}
	f.of["/org/tiny/resolve/"+commit+"/model.safetensors"] = []fault{status(500), status(429)}
	f.of["/store/"+oid] = []fault{cut(1), status(503), cut(hubLarge), cut(1000), status(504)}
	f.of["/org/tiny/resolve/"+commit+"/config.json"] = []fault{cut(1)}
	m, err := Open(t.Context(), "hf://org/tiny", cfg)
	check(t, err)
	if got, err := read(t.Context(), m, "model.safetensors", 0); err != nil || !bytes.Equal(got, noise(1, 3*hubLarge)) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if got, err := read(t.Context(), m, "config.json", 0); err != nil || string(got) != "{}" {
		t.Errorf("%q, %v", got, err)
	}
	if !slices.Contains(f.requests(), "GET /store/"+oid+" bytes=100001-") {
		t.Errorf("no request goes on where the cut was: %q", f.requests())
	}
}

func TestHubThatHangsIsAskedAgain(t *testing.T) {
	_, f, cfg := newHub(t)
	cfg.Stall, cfg.Retries = 20e6, 1
	f.of["/api/models/org/tiny/revision/main"] = []fault{hang, hang}
	if _, err := Open(t.Context(), "hf://org/tiny", cfg); !errors.Is(err, ErrService) || !strings.Contains(err.Error(), "silent") {
		t.Errorf("got %v", err)
	}
}

func TestHubRefusalsNameTheWayOut(t *testing.T) {
	for _, tc := range []struct {
		name, ref string
		change    func(h *hubtest.Hub, f *faults, cfg *Config)
		want      string
	}{
		{"no token", "hf://org/tiny", func(h *hubtest.Hub, _ *faults, _ *Config) { h.Token = "t" }, "HF_TOKEN"},
		{"wrong token", "hf://org/tiny", func(h *hubtest.Hub, _ *faults, c *Config) { h.Token, c.Hub.Token = "t", "u" }, "does not accept the token"},
		{"gated", "hf://org/tiny", func(h *hubtest.Hub, _ *faults, _ *Config) { h.Gated = true }, "accept its licence at"},
		{"no model", "hf://org/other", func(*hubtest.Hub, *faults, *Config) {}, "knows no model org/other"},
		{"no revision", "hf://org/tiny@gone", func(*hubtest.Hub, *faults, *Config) {}, "no revision gone"},
		{"forbidden", "hf://org/tiny", func(_ *hubtest.Hub, f *faults, _ *Config) {
			f.of["/api/models/org/tiny/revision/main"] = []fault{status(403)}
		}, "lacks the right"},
		{"limit", "hf://org/tiny", func(_ *hubtest.Hub, f *faults, c *Config) {
			f.of["/api/models/org/tiny/revision/main"], c.Retries = []fault{status(429)}, -1
		}, "limits requests"},
		{"asked to wait too long", "hf://org/tiny", func(_ *hubtest.Hub, f *faults, _ *Config) {
			f.of["/api/models/org/tiny/revision/main"] = []fault{status(429, "Retry-After", "3600")}
		}, "1h0m0s"},
		{"no hub", "hf://org/tiny", func(_ *hubtest.Hub, f *faults, _ *Config) {
			f.of["/api/models/org/tiny/revision/main"] = []fault{status(200)}
		}, "model hub"},
		{"nobody there", "hf://org/tiny", func(_ *hubtest.Hub, _ *faults, c *Config) { c.Hub.Endpoint = "http://127.0.0.1:1" }, "nobody listens"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h, f, cfg := newHub(t)
			tc.change(h, f, &cfg)
			m, err := Open(t.Context(), tc.ref, cfg)
			if err == nil {
				_, err = readAll(t, m)
			}
			class := ErrService
			if strings.HasPrefix(tc.name, "no model") || strings.HasPrefix(tc.name, "no revision") {
				class = ErrModel
			}
			if !errors.Is(err, class) || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("want class %q with %q, got %v", class, tc.want, err)
			}
		})
	}
}

func TestHubNamesThatCannotBeAreRefused(t *testing.T) {
	for _, ref := range []string{"hf://", "hf://a/b/c", "hf://a/../b", "hf://a b/c", "hf://@x"} {
		if _, err := Open(t.Context(), ref, Config{}); !errors.Is(err, ErrModel) || !strings.Contains(err.Error(), "want hf://") {
			t.Errorf("%s: got %v", ref, err)
		}
	}
}

func TestSpoiledHubContentIsAnError(t *testing.T) {
	h, f, cfg := newHub(t)
	commit, err := h.Commit()
	check(t, err)
	oid := digest.FromBytes(noise(1, 3*hubLarge)).Encoded()
	f.of["/store/"+oid] = []fault{cut(10), spoil(5)}
	f.of["/org/tiny/resolve/"+commit+"/config.json"] = []fault{spoil(1)}
	m, err := Open(t.Context(), "hf://org/tiny", cfg)
	check(t, err)
	for _, name := range []string{"model.safetensors", "config.json"} {
		if _, err := read(t.Context(), m, name, 0); !errors.Is(err, ErrDigest) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	check(t, os.WriteFile(filepath.Join(h.Dir, "config.json"), []byte("{} "), 0o600))
	if _, err := read(t.Context(), m, "config.json", 0); !errors.Is(err, ErrDigest) || !strings.Contains(err.Error(), "3 bytes") {
		t.Errorf("longer: got %v", err)
	}
}

func TestContentThatChangesBetweenRequestsIsAnError(t *testing.T) {
	_, f, cfg := newHub(t)
	oid := digest.FromBytes(noise(1, 3*hubLarge)).Encoded()
	other := func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
		w.Header().Set("ETag", `"other"`)
		http.ServeContent(w, r, "", testTime, bytes.NewReader(noise(2, 3*hubLarge)))
	}
	f.of["/store/"+oid] = []fault{cut(10), other}
	m, err := Open(t.Context(), "hf://org/tiny", cfg)
	check(t, err)
	if _, err := read(t.Context(), m, "model.safetensors", 0); !errors.Is(err, ErrChanged) || !strings.Contains(err.Error(), "model.safetensors") {
		t.Errorf("got %v", err)
	}
}

func TestTokenStaysWithTheHub(t *testing.T) {
	h, f, cfg := newHub(t)
	h.Token, cfg.Hub.Token = "secret", "secret"
	leaked := 0
	h.Store = serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" {
			leaked++
		}
		f.ServeHTTP(w, r)
	}))
	m, err := Open(t.Context(), "hf://org/tiny", cfg)
	check(t, err)
	if _, err := readAll(t, m); err != nil || leaked > 0 {
		t.Errorf("the store saw the token %d times, %v", leaked, err)
	}
	elsewhere := func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		w.Header().Set("Link", "<"+h.Store+`/next>; rel="next"`)
		_, _ = w.Write([]byte(`[{"type":"file","path":"a","oid":"","size":1}]`))
	}
	f.of["/api/models/org/tiny/tree/"+m.Revision] = []fault{elsewhere}
	if _, err := Open(t.Context(), "hf://org/tiny", cfg); !errors.Is(err, ErrService) || !strings.Contains(err.Error(), "elsewhere") {
		t.Errorf("page at another host: %v", err)
	}
}

func TestHubClientTakesTheTestHub(t *testing.T) {
	tool := need(t, "hf")
	made, _, _ := newHub(t)
	h := &hubtest.Hub{ID: made.ID, Dir: made.Dir, Large: hubLarge, Token: "hf_secret"} // the client is another process: nothing changes from here on
	commit, err := h.Commit()
	check(t, err)
	f := &faults{Handler: h, of: map[string][]fault{
		"/org/tiny/resolve/" + commit + "/config.json":               {status(429, "Retry-After", "0")},
		"/store/" + digest.FromBytes(noise(1, 3*hubLarge)).Encoded(): {cut(1000)},
	}}
	h.Store = serve(t, f)
	endpoint := serve(t, f)
	gated := &hubtest.Hub{ID: h.ID, Dir: h.Dir, Token: h.Token, Gated: true}
	download := func(endpoint, token string) (string, error) {
		dir := t.TempDir()
		cmd := exec.CommandContext(t.Context(), tool, "download", "org/tiny", "--local-dir", dir+"/out")
		cmd.Env = append(os.Environ(), "HF_ENDPOINT="+endpoint, "HF_TOKEN="+token, "HF_HOME="+dir+"/home", "HF_HUB_DISABLE_TELEMETRY=1")
		out, err := cmd.CombinedOutput()
		t.Logf("%s", out)
		return dir + "/out", err
	}
	dir, err := download(endpoint, "hf_secret")
	check(t, err)
	want, err := Walk(h.Dir)
	check(t, err)
	got, err := Walk(dir) // without .cache/huggingface
	check(t, err)
	if diff := cmp.Diff(paths(want), paths(got)); diff != "" {
		t.Fatalf("(-want +got):\n%s", diff)
	}
	for i := range want {
		if want[i].Mode.IsRegular() {
			a, err := os.ReadFile(want[i].real)
			check(t, err)
			b, err := os.ReadFile(got[i].real)
			if err != nil || !bytes.Equal(a, b) {
				t.Errorf("%s differs, %v", want[i].Path, err)
			}
		}
	}
	if _, err := download(endpoint, "hf_wrong"); err == nil {
		t.Error("a wrong token was accepted")
	}
	if _, err := download(serve(t, gated), "hf_secret"); err == nil {
		t.Error("a gated model was served")
	}
}

func FuzzHubListing(f *testing.F) {
	f.Add([]byte(`[{"type":"file","oid":"` + strings.Repeat("a", 40) + `","size":2,"path":"a/b"},{"type":"directory","path":"a"}]`))
	f.Add([]byte(`[{"type":"file","path":"w","lfs":{"oid":"` + strings.Repeat("b", 64) + `","size":9}}]`))
	f.Add([]byte(`[{"type":"file","path":"../w","size":-1}]`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		entries, err := parseTree(raw)
		if err != nil {
			return
		}
		s, err := newSession(Config{})
		check(t, err)
		c := s.collector("fuzz")
		h := &hub{s: s}
		for i := range entries {
			if entries[i].Type == "file" {
				f := h.newFile("c", &entries[i])
				if f.Size < 0 || f.Digest != "" && f.Digest.Validate() != nil {
					t.Errorf("%+v", f)
				}
				_ = c.add(&f)
			}
		}
		_, _ = c.finish()
	})
}

// BenchmarkHubRead reads a large file over loopback, with its sha256.
func BenchmarkHubRead(b *testing.B) {
	dir := b.TempDir()
	check(b, os.WriteFile(dir+"/w", noise(1, 64<<20), 0o600))
	cfg := Config{Hub: Hub{Endpoint: serve(b, &hubtest.Hub{ID: "org/tiny", Dir: dir})}}
	m, err := Open(b.Context(), "hf://org/tiny", cfg)
	check(b, err)
	b.SetBytes(64 << 20)
	for b.Loop() {
		if _, err := readAllOf(b, m); err != nil {
			b.Fatal(err)
		}
	}
}

func readAllOf(t testing.TB, m *Model) (n int64, err error) {
	err = m.Each(t.Context(), func(_ *File, content io.Reader) error {
		n, err = io.Copy(io.Discard, content)
		return err
	})
	return n, err
}
