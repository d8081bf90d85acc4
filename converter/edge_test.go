package converter_test

import (
	"archive/tar"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shoal-project/shoal/converter"
)

// dryRun is a conversion of a model with one file that pushes nothing.
func dryRun(t *testing.T, base string) converter.Config {
	t.Helper()
	model := filepath.Join(t.TempDir(), "m")
	check(t, os.Mkdir(model, 0o755))
	check(t, os.WriteFile(filepath.Join(model, "w"), []byte("x"), 0o600))
	return converter.Config{Model: model, Base: base, Target: nowhere(t), DryRun: true}
}

func TestModelDoesNotChangeTheBase(t *testing.T) {
	tmp, owned := dir("tmp"), dir("srv/u")
	tmp.Mode, owned.Uid = 0o1777, 1000
	base := writeLayout(t, baseImage(t, linuxAMD64(), tarOf(t, dir("usr"), dir("usr/lib"), file("usr/lib/w", "old"),
		dir("usr/w"), file("usr/w/inside", "x"), link(tar.TypeSymlink, "lib", "usr/lib"), tmp, dir("srv"), owned, file("etc", "a file"))))
	for _, tc := range []struct{ path, want string }{
		{"/models/m", ""},
		{"/usr/lib", ""}, // a file over a file
		{"/lib/m", "/lib is a symbolic link"},
		{"/lib", "/lib is a symbolic link"},
		{"/tmp/m", "/tmp"},
		{"/srv/u/m", "/srv/u is a folder with mode 0755 and owner 1000:0"},
		{"/etc/m", "/etc is a file"},
		{"/usr", "/usr/w is a folder"},
	} {
		t.Run(tc.path, func(t *testing.T) {
			cfg := dryRun(t, base)
			cfg.ModelPath = tc.path
			_, err := converter.Convert(t.Context(), cfg)
			if tc.want == "" {
				check(t, err)
				return
			}
			wantError(t, err, converter.ErrSource, tc.want)
			wantError(t, err, converter.ErrSource, "--model-path")
		})
	}
}

func TestSettingsThatCannotBe(t *testing.T) {
	base := writeLayout(t, smallBase(t))
	for _, tc := range []struct {
		name   string
		change func(c *converter.Config)
		want   string
	}{
		{"whiteout in the path", func(c *converter.Config) { c.ModelPath = "/models/.wh.x" }, "--model-path"},
		{"path of a folder whose name is no text", func(c *converter.Config) { c.ModelPath = "/models/\xff" }, "--model-path"},
		{"platform", func(c *converter.Config) { c.Platforms = []string{"linux"} }, "os/architecture"},
		{"target without a registry", func(c *converter.Config) { c.Target = "m:v1" }, "REGISTRY/NAME:TAG"},
		{"target that is a path", func(c *converter.Config) { c.Target = "./out:v1" }, "write oci:./out:v1"},
		{"base that is a path", func(c *converter.Config) { c.Base = "../base" }, "write oci:../base"},
		{"base with the scheme of models", func(c *converter.Config) { c.Base = "oci://r.example.com/base:v1" }, "leave out oci:// for a registry"},
		{"target with a scheme", func(c *converter.Config) { c.Target = "http://r.example.com/m:v1" }, "leave out http://"},
		{"target that is a host", func(c *converter.Config) { c.Target = "127.0.0.1:5000" }, "REGISTRY/NAME:TAG"},
		{"target in upper case", func(c *converter.Config) { c.Target = "r.example.com/M:v1" }, "abcdef"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cfg := dryRun(t, base)
			tc.change(&cfg)
			_, err := converter.Convert(t.Context(), cfg)
			wantError(t, err, converter.ErrConfig, tc.want)
		})
	}
	if _, err := converter.Convert(t.Context(), converter.Config{}); strings.Contains(err.Error(), "--model-path") {
		t.Errorf("a fault that is none: %v", err)
	}
}

func TestMoreLayersThanRuntimesStackAreRefused(t *testing.T) {
	var layers [][]byte
	for i := range 64 {
		layers = append(layers, tarOf(t, file(fmt.Sprint("f", i), "")))
	}
	cfg := dryRun(t, writeLayout(t, baseImage(t, linuxAMD64(), layers...)))
	for i := range 63 {
		check(t, os.WriteFile(filepath.Join(cfg.Model, fmt.Sprint(i)), nil, 0o600))
		check(t, os.Truncate(filepath.Join(cfg.Model, fmt.Sprint(i)), 1<<20))
	}
	_, err := converter.Convert(t.Context(), cfg)
	wantError(t, err, converter.ErrSource, "128 layers")
}

func TestFilesWhoseChunkMapNobodyReadsAreRefused(t *testing.T) {
	cfg := dryRun(t, writeLayout(t, smallBase(t)))
	check(t, os.Truncate(filepath.Join(cfg.Model, "w"), 600<<30)) // sparse; refused before it is read
	_, err := converter.Convert(t.Context(), cfg)
	wantError(t, err, converter.ErrSource, "shards")
}

func TestBrokenCredentialsAreNoFaultOfTheRegistry(t *testing.T) {
	host := registryWith(t, nil)
	for name, text := range map[string]string{"cut": `{"auths": `, "helper": `{"credsStore": "none-such"}`} {
		t.Run(name, func(t *testing.T) {
			folder := t.TempDir()
			check(t, os.WriteFile(filepath.Join(folder, "config.json"), []byte(text), 0o600))
			t.Setenv("DOCKER_CONFIG", folder)
			cfg := dryRun(t, writeLayout(t, smallBase(t)))
			cfg.DryRun, cfg.Target, cfg.Access = false, host+"/ml/m:v1", once()
			_, err := converter.Convert(t.Context(), cfg)
			wantError(t, err, converter.ErrConfig, "credentials for "+host)
			_, err = converter.Check(t.Context(), converter.CheckConfig{Image: cfg.Target, Access: once()})
			wantError(t, err, converter.ErrConfig, "credentials for "+host)
		})
	}
}

func TestCheckOfNothing(t *testing.T) {
	host := registryWith(t, nil)
	_, err := converter.Check(t.Context(), converter.CheckConfig{Image: host + "/ml/none:v1"})
	wantError(t, err, converter.ErrSource, "does not exist")
	_, err = converter.Check(t.Context(), converter.CheckConfig{Image: "UP/x"})
	wantError(t, err, converter.ErrConfig, "REGISTRY/NAME:TAG")
}

func TestAbsoluteNamesOfBaseLayersMeanTheImage(t *testing.T) {
	base := baseImage(t, linuxAMD64(), tarOf(t, dir("/app"), file("/app/x", "x"), link(tar.TypeLink, "/app/y", "/app/x")))
	_, err := converter.Convert(t.Context(), dryRun(t, writeLayout(t, base)))
	check(t, err)
}

func TestAttributesOfOtherSystemsAreLeftOut(t *testing.T) {
	f := file("x", "x")
	f.Format, f.PAXRecords = tar.FormatPAX, map[string]string{"SCHILY.xattr.com.apple.provenance": "1", "SCHILY.xattr.user.kept": "2"}
	_, err := converter.Convert(t.Context(), dryRun(t, writeLayout(t, baseImage(t, linuxAMD64(), tarOf(t, f)))))
	check(t, err)
}

func TestOneErrorHasOneClass(t *testing.T) {
	host := registryWith(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusForbidden) })
	})
	cfg := dryRun(t, writeLayout(t, smallBase(t)))
	cfg.DryRun, cfg.Target, cfg.Access = false, host+"/ml/m:v1", once()
	_, err := converter.Convert(t.Context(), cfg)
	classes := 0
	for _, class := range []error{converter.ErrConfig, converter.ErrSource, converter.ErrRegistry, converter.ErrVerify} {
		if errors.Is(err, class) {
			classes++
		}
	}
	if classes != 1 {
		t.Errorf("%d classes: %v", classes, err)
	}
}
