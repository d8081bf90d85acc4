package source

import (
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
)

// The certificates that AWS_CA_BUNDLE names are taken whatever transport the caller has, and nothing follows a redirect by itself.
func TestStoresWithCertificatesOfTheirOwnAreTrusted(t *testing.T) {
	store := httptest.NewTLSServer(http.RedirectHandler("/elsewhere", http.StatusTemporaryRedirect))
	defer store.Close()
	bundle := filepath.Join(t.TempDir(), "ca.pem")
	raw := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: store.Certificate().Raw})
	if err := os.WriteFile(bundle, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("AWS_CA_BUNDLE", bundle)
	s, err := newSession(Config{Transport: newTransport()})
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := s.loadAWS(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, store.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := cfg.HTTPClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusTemporaryRedirect {
		t.Errorf("answered %d", resp.StatusCode)
	}
}
