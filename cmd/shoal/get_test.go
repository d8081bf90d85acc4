package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/shoal-project/shoal/cmd/internal/fetch"
)

func TestRangesOfTheCommandLine(t *testing.T) {
	for in, want := range map[string]*fetch.Part{
		"0-0": {Off: 0, Length: 1}, "5-9": {Off: 5, Length: 5}, "5-": {Off: 5, Length: -1}, "-5": {Off: -5, Length: -1},
	} {
		got, err := parsePart(in)
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("%q: error %v (-want +got):\n%s", in, err, diff)
		}
	}
	for _, in := range []string{"", "-", "5", "9-5", "-0", "a-b", "1-b", "--5", "0x1-2", "9223372036854775807-"} {
		if got, err := parsePart(in); err == nil {
			t.Errorf("%q: %+v", in, got)
		}
	}
}

func FuzzParsePart(f *testing.F) {
	f.Add("0-5")
	f.Add("-7")
	f.Fuzz(func(t *testing.T, s string) {
		p, err := parsePart(s)
		if err == nil && p != nil && (p.Length == 0 || p.Length < -1 || p.Off < 0 && p.Length != -1 || p.Off+p.Length < p.Off-1) {
			t.Fatalf("%q is %+v", s, p)
		}
	})
}

func TestHeadersOfTheCommandLine(t *testing.T) {
	file := filepath.Join(t.TempDir(), "headers")
	if err := os.WriteFile(file, []byte("Authorization: Bearer x\r\nX-Two:2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := parseHeaders([]string{"x-one: 1", "@" + file})
	if err != nil || got.Get("X-One") != "1" || got.Get("X-Two") != "2" || got.Get("Authorization") != "Bearer x" {
		t.Errorf("%v, %v", got, err)
	}
	for _, in := range []string{"", "a", ": b", "a b: c", "@absent", "a: b\r\nc: d", "Host: x", "If-Match: x", "accept-encoding: gzip"} {
		if got, err := parseHeaders([]string{in}); err == nil {
			t.Errorf("%q: %v", in, got)
		}
	}
}

func TestFlagsMayStandBehindTheURL(t *testing.T) {
	app := newApp(&bytes.Buffer{}, &bytes.Buffer{})
	for _, c := range [][2][]string{
		{{"shoal", "get", "u", "-o", "f", "--share"}, {"shoal", "get", "-o", "f", "--share", "u"}},
		{{"shoal", "get", "--range=1-2", "u", "-H", "a: b"}, {"shoal", "get", "--range=1-2", "-H", "a: b", "u"}},
		{{"shoal", "get", "u", "--", "-o"}, {"shoal", "get", "u", "--", "-o"}},
		{{"shoal", "get", "u", "-o"}, {"shoal", "get", "-o", "u"}},
		{{"shoal", "copy", "a", "b", "--dry-run"}, {"shoal", "copy", "a", "b", "--dry-run"}},
		{{"shoal", "get", "-"}, {"shoal", "get", "-"}},
	} {
		if diff := cmp.Diff(c[1], interspersed(app, c[0])); diff != "" {
			t.Errorf("%q (-want +got):\n%s", c[0], diff)
		}
	}
}
