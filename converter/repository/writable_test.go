package repository

import (
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestRegistryIsAskedWhetherItCanBeWrittenAndKeepsNothing(t *testing.T) {
	for _, program := range []string{"docker-registry", "distribution"} {
		t.Run(program, func(t *testing.T) {
			folder := t.TempDir()
			address := realRegistryIn(t, program, folder)
			check(t, registryAt(t, address, Config{}).Writable(t.Context()))
			check(t, filepath.WalkDir(folder, func(path string, d fs.DirEntry, err error) error {
				if err == nil && !d.IsDir() {
					t.Errorf("left behind: %s", path)
				}
				return err
			}))
			resp, err := http.Get("http://" + address + "/v2/ml/x/tags/list")
			check(t, err)
			check(t, resp.Body.Close())
			if resp.StatusCode != http.StatusNotFound {
				t.Errorf("the repository is there: %s", resp.Status)
			}
		})
	}
}

func TestRegistryThatRefusesToBeWrittenSaysSo(t *testing.T) {
	for _, tc := range []struct {
		status int
		code   string
		want   bool
	}{
		{http.StatusAccepted, "", true},
		{http.StatusNotFound, "", true},
		{http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN", true},
		{http.StatusBadRequest, "BLOB_UPLOAD_INVALID", true},
		{http.StatusNotFound, "NAME_UNKNOWN", false},
		{http.StatusNotFound, "NOT_FOUND", false},
		{http.StatusUnauthorized, "UNAUTHORIZED", false},
		{http.StatusForbidden, "DENIED", false},
		{http.StatusMethodNotAllowed, "UNSUPPORTED", false},
		{http.StatusInternalServerError, "", false},
	} {
		f, address := newFake(t)
		f.before = func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != http.MethodPatch {
				return false
			}
			w.WriteHeader(tc.status)
			_, _ = fmt.Fprintf(w, `{"errors": [{"code": %q}]}`, tc.code)
			return true
		}
		err := registryAt(t, address, Config{Retry: hasty(2)}).Writable(t.Context())
		if (err == nil) != tc.want || err != nil && status(err) != tc.status {
			t.Errorf("%d %s: got %v", tc.status, tc.code, err)
		}
	}
}

func TestLayoutIsAskedWhetherItCanBeWritten(t *testing.T) {
	top := t.TempDir()
	file := filepath.Join(top, "file")
	check(t, os.WriteFile(file, nil, 0o600))
	broken := filepath.Join(top, "broken")
	check(t, os.Mkdir(broken, 0o700))
	check(t, os.WriteFile(filepath.Join(broken, "index.json"), []byte("{"), 0o600))
	closed := filepath.Join(top, "closed")
	check(t, os.Mkdir(closed, 0o500))
	for folder, want := range map[string]string{
		filepath.Join(top, "deep", "out"): "", top: "", file: "is no folder", filepath.Join(file, "out"): "is no folder", broken: "index.json",
		closed: "write to " + closed,
	} {
		if folder == closed && os.Geteuid() == 0 {
			continue // who may write everywhere
		}
		err := NewLayout(folder).Writable(t.Context())
		if want == "" && err != nil || want != "" && (!errors.Is(err, ErrLayout) || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: want %q, got %v", folder, want, err)
		}
	}
	if _, err := os.Stat(filepath.Join(top, "deep")); err == nil {
		t.Error("a folder was made")
	}
}
