package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shoal-project/shoal/converter"
)

func TestConvertExitCodes(t *testing.T) {
	model := t.TempDir()
	for _, tc := range []struct {
		name string
		args []string
		code int
		want string
	}{
		{"no flags", nil, exitUsage, "--model is missing"},
		{"unknown flag", []string{"--modle", "x"}, exitUsage, "modle"},
		{"argument", []string{"extra"}, exitUsage, "unexpected argument"},
		{"target without a tag", []string{"--model", model, "--base", "oci:x", "--target", "r.example.com/m"}, exitUsage, "r.example.com/m:v1"},
		{"odd output", []string{"--output", "xml"}, exitUsage, "text or json"},
		{"odd list", []string{"--cmd", "[1]"}, exitUsage, "--cmd"},
		{"user with a space", []string{"--user", "a b"}, exitUsage, `--user "a b": want USER or USER:GROUP`},
		{"user of two lines", []string{"--user", "a\nb"}, exitUsage, `--user "a\nb"`},
		{"user without a name", []string{"--user", ":1"}, exitUsage, `--user ":1"`},
		{"several odd ones", []string{"--user", "a b", "--label", "=x"}, exitUsage, "want USER or USER:GROUP, without spaces, such as 1000:1000\n--label \"=x\""},
		{"group without a name", []string{"--user", "1:"}, exitUsage, `--user "1:"`},
		{"variable without a name", []string{"--env", "=x"}, exitUsage, `--env "=x": want NAME=VALUE`},
		{"variable with a space", []string{"--env", "A B=x"}, exitUsage, `--env "A B=x"`},
		{"label without a name", []string{"--label", "=x"}, exitUsage, `--label "=x": want NAME=VALUE`},
		{"label with a space", []string{"--label", "a b=x"}, exitUsage, `--label "a b=x": want NAME=VALUE`},
		{"annotation without a name", []string{"--annotation", "=x"}, exitUsage, `--annotation "=x": want NAME=VALUE`},
		{"no model", []string{"--model", model + "/none", "--base", "oci:x", "--target", "r.example.com/m:v1"}, exitSource, "no such file"},
		{"empty model", []string{"--model", model, "--base", "oci:x", "--target", "r.example.com/m:v1"}, exitSource, "holds no file"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			code := run(t.Context(), append([]string{"shoal", "convert"}, tc.args...), &stdout, &stderr)
			if code != tc.code || !strings.Contains(stderr.String(), tc.want) {
				t.Errorf("want exit code %d and %q, got %d:\n%s", tc.code, tc.want, code, stderr.String())
			}
		})
	}
}

func TestVariableMayHoldACommaAndEachFlagIsOneVariable(t *testing.T) {
	var stdout, stderr bytes.Buffer
	args := []string{"shoal", "convert", "--model", t.TempDir(), "--base", "oci:x", "--target", "r.example.com/m:v1", "--env", "DEVICES=0,1"}
	if code := run(t.Context(), args, &stdout, &stderr); code != exitSource { // the empty model: past the flags
		t.Errorf("exit code %d: %s", code, stderr.String())
	}
}

func TestInterruptedCommandSaysSo(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	model := t.TempDir()
	if err := os.WriteFile(filepath.Join(model, "a"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"convert", "--model", model, "--base", "127.0.0.1:1/b:v1", "--target", "127.0.0.1:1/m:v1"},
		{"check", "127.0.0.1:1/m:v1"},
	} {
		var stdout, stderr bytes.Buffer
		code := run(ctx, append([]string{"shoal"}, args...), &stdout, &stderr)
		if code != exitInterrupted || !strings.Contains(stderr.String(), args[0]+": interrupted") {
			t.Errorf("exit code %d: %s", code, stderr.String())
		}
	}
}

func TestNamesCannotWriteToTheTerminal(t *testing.T) {
	model := filepath.Join(t.TempDir(), "m")
	if err := os.Mkdir(model, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("nowhere", filepath.Join(model, "two\nlines \x1b[31m")); err != nil {
		t.Fatal(err)
	}
	var stdout, stderr bytes.Buffer
	run(t.Context(), []string{"shoal", "convert", "--quiet", "--model", model, "--base", "oci:x", "--target", "r.example.com/m:v1"}, &stdout, &stderr)
	if strings.Count(stderr.String(), "\n") != 1 || strings.Contains(stderr.String(), "\x1b") {
		t.Errorf("%q", stderr.String())
	}
	var out bytes.Buffer
	p := newProgress(&out)
	p.Step(converter.Read, "hash a\nb")
	if err := printResult(&out, &converter.Result{ModelPath: "/models/a\nb", Layers: []converter.Layer{{Of: "a\x1bb"}}}, 0); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(out.String(), "a\nb") || strings.Contains(out.String(), "\x1b") {
		t.Errorf("%q", out.String())
	}
}

func TestCheckWantsOneImage(t *testing.T) {
	var stdout, stderr bytes.Buffer
	if code := run(t.Context(), []string{"shoal", "check"}, &stdout, &stderr); code != exitUsage {
		t.Errorf("exit code %d: %s", code, stderr.String())
	}
}

func TestConvertHelpHasExamples(t *testing.T) {
	var stdout, stderr bytes.Buffer
	if code := run(t.Context(), []string{"shoal", "convert", "--help"}, &stdout, &stderr); code != exitOK || !strings.Contains(stdout.String(), "oci:./base --target oci:./out:v7") {
		t.Errorf("exit code %d:\n%s%s", code, stdout.String(), stderr.String())
	}
}

func TestSizesForPeople(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 90868376: "86.7 MiB", 5 << 40: "5.0 TiB"} {
		if got := bytesText(n); got != want {
			t.Errorf("%d: want %s, got %s", n, want, got)
		}
	}
}
