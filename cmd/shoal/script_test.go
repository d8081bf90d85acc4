package main

import (
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	fakeregistry "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"shoal": main})
}

// TestScripts runs each file of testdata/script as a user's session with the real program.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"freeport": freePort, "waithttp": waitHTTP, "occupy": occupy, "exits": exits,
			"website": website, "registry": startRegistry, "baseimage": baseImage, "sign": sign, "damage": damage,
		},
	})
}

// freePort NAME…: sets each variable to an address of 127.0.0.1 that nobody listens on.
func freePort(ts *testscript.TestScript, _ bool, names []string) {
	for _, name := range names {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		ts.Check(err)
		ts.Setenv(name, l.Addr().String())
		ts.Check(l.Close())
	}
}

// occupy NAME: sets the variable to an address that is listened on until the script ends.
func occupy(ts *testscript.TestScript, _ bool, names []string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	ts.Setenv(names[0], l.Addr().String())
	ts.Defer(func() { _ = l.Close() })
}

// waitHTTP URL TEXT: waits until URL answers 200 with TEXT in the body, 10 s at most.
func waitHTTP(ts *testscript.TestScript, _ bool, args []string) {
	var last string
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		resp, err := http.Get(args[0])
		if err != nil {
			last = err.Error()
			continue
		}
		body, err := io.ReadAll(resp.Body)
		ts.Check(err)
		ts.Check(resp.Body.Close())
		if resp.StatusCode == http.StatusOK && strings.Contains(string(body), args[1]) {
			return
		}
		last = fmt.Sprint(resp.Status, " ", string(body))
	}
	ts.Fatalf("%s: no %q within 10 s, last answer: %s", args[0], args[1], last)
}

// exits CODE COMMAND [ARG…]: runs the command and fails unless it ends with that exit code and says why in one line on stderr.
func exits(ts *testscript.TestScript, _ bool, args []string) {
	err := ts.Exec(args[1], args[2:]...)
	got := 0
	if err != nil {
		if _, scanErr := fmt.Sscanf(err.Error(), "exit status %d", &got); scanErr != nil {
			ts.Fatalf("%v", err)
		}
	}
	if fmt.Sprint(got) != args[0] {
		ts.Fatalf("exit code %d, want %s", got, args[0])
	}
	if text := ts.ReadFile("stderr"); got != 0 && strings.Count(strings.TrimSpace(text), "\n") > 0 {
		ts.Fatalf("more than one line on stderr:\n%s", text)
	}
}

// registry NAME…: sets each variable to the address of a registry in this process.
func startRegistry(ts *testscript.TestScript, _ bool, names []string) {
	for _, name := range names {
		s := httptest.NewServer(fakeregistry.New(fakeregistry.Logger(log.New(io.Discard, "", 0)), fakeregistry.WithReferrersSupport(true)))
		ts.Defer(s.Close)
		ts.Setenv(name, strings.TrimPrefix(s.URL, "http://"))
	}
}

// website NAME FOLDER: sets the variable to the URL of a web server that has the folder's files.
func website(ts *testscript.TestScript, _ bool, args []string) {
	s := httptest.NewServer(http.FileServer(http.Dir(ts.MkAbs(args[1]))))
	ts.Defer(s.Close)
	ts.Setenv(args[0], s.URL)
}

// baseimage TAR FOLDER: writes an image with one layer, the archive, into an OCI layout under the tag v1.
func baseImage(ts *testscript.TestScript, _ bool, args []string) {
	l, err := tarball.LayerFromFile(ts.MkAbs(args[0]))
	ts.Check(err)
	img, err := mutate.AppendLayers(empty.Image, l)
	ts.Check(err)
	cfg, err := img.ConfigFile()
	ts.Check(err)
	cfg = cfg.DeepCopy()
	cfg.OS, cfg.Architecture = "linux", "amd64"
	img, err = mutate.ConfigFile(img, cfg)
	ts.Check(err)
	path, err := layout.Write(ts.MkAbs(args[1]), empty.Index)
	ts.Check(err)
	ts.Check(path.AppendImage(img, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "v1"})))
}

// sign IMAGE: pushes a manifest that refers to the image.
func sign(ts *testscript.TestScript, _ bool, args []string) {
	ref, err := name.ParseReference(args[0])
	ts.Check(err)
	subject, err := remote.Get(ref)
	ts.Check(err)
	signature, ok := mutate.Subject(empty.Image, subject.Descriptor).(v1.Image)
	if !ok {
		ts.Fatalf("no image")
	}
	d, err := signature.Digest()
	ts.Check(err)
	ts.Check(remote.Write(ref.Context().Digest(d.String()), signature))
}

// damage FOLDER: flips a byte in the largest blob of an OCI layout.
func damage(ts *testscript.TestScript, _ bool, args []string) {
	blobs, err := filepath.Glob(filepath.Join(ts.MkAbs(args[0]), "blobs", "sha256", "*"))
	ts.Check(err)
	var largest []byte
	var path string
	for _, b := range blobs {
		raw, err := os.ReadFile(b)
		ts.Check(err)
		if len(raw) > len(largest) {
			largest, path = raw, b
		}
	}
	largest[len(largest)/2] ^= 1
	ts.Check(os.WriteFile(path, largest, 0o600))
}
