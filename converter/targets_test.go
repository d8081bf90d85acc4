package converter_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shoal-project/shoal/converter"
	"github.com/shoal-project/shoal/converter/repository"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// distributionRegistry starts version 3 of the reference registry.
func distributionRegistry(t *testing.T) string {
	t.Helper()
	path := need(t, "distribution")
	address := freeAddress(t)
	config := filepath.Join(t.TempDir(), "config.yml")
	check(t, os.WriteFile(config, fmt.Appendf(nil,
		"version: 0.1\nlog: {level: warn}\nstorage: {filesystem: {rootdirectory: %s}, delete: {enabled: true}}\nhttp: {addr: %s, secret: test}\n",
		t.TempDir(), address), 0o600))
	daemon(t, path, nil, "serve", config)
	eventually(t, "distribution", func() bool {
		resp, err := http.Get("http://" + address + "/v2/")
		if err != nil {
			return false
		}
		return resp.Body.Close() == nil && resp.StatusCode == http.StatusOK
	})
	return address
}

func TestEveryTargetGetsTheSameImage(t *testing.T) {
	model, base := writeModel(t, time.Now(), 0o644), writeLayout(t, smallBase(t))
	want := ""
	for name, target := range map[string]string{
		"layout": "oci:" + t.TempDir() + "/out:v1", "docker-registry": dockerRegistry(t) + "/ml/tiny:v1", "distribution": distributionRegistry(t) + "/ml/tiny:v1",
	} {
		cfg := converter.Config{Model: model, Base: base, Target: target, ModelPack: true}
		r, err := converter.Convert(t.Context(), cfg)
		check(t, err)
		if want == "" {
			want = r.Digest.String()
		}
		checked, err := converter.Check(t.Context(), converter.CheckConfig{Image: target})
		check(t, err)
		if r.Digest.String() != want || checked.Digest != r.Digest {
			t.Errorf("%s: want %s, made %s, is %s", name, want, r.Digest, checked.Digest)
		}
		if name == "layout" {
			continue // which is written in one pass
		}
		again, err := converter.Convert(t.Context(), cfg)
		check(t, err)
		for _, l := range again.Layers {
			if l.Outcome != repository.Present {
				t.Errorf("%s: the second time %s %s was %s", name, l.Kind, l.Of, l.Outcome)
			}
		}
	}
}

func TestConversionsOfOneTagAtOnceLeaveOneWholeImage(t *testing.T) {
	base := writeLayout(t, smallBase(t))
	for name, target := range map[string]string{
		"layout": "oci:" + t.TempDir() + "/out:v1", "docker-registry": dockerRegistry(t) + "/ml/tiny:v1", "distribution": distributionRegistry(t) + "/ml/tiny:v1",
	} {
		t.Run(name, func(t *testing.T) {
			made := make([]*converter.Result, 6)
			var all errgroup.Group
			for i := range made {
				model := filepath.Join(t.TempDir(), "tiny")
				check(t, os.Mkdir(model, 0o755))
				check(t, os.WriteFile(filepath.Join(model, "weights.bin"), noise(uint64(i/2), 3<<20), 0o644)) // two of each
				all.Go(func() (err error) {
					made[i], err = converter.Convert(t.Context(), converter.Config{Model: model, Base: base, Target: target})
					return err
				})
			}
			check(t, all.Wait())
			got, err := converter.Check(t.Context(), converter.CheckConfig{Image: target})
			check(t, err)
			if !slices.ContainsFunc(made, func(r *converter.Result) bool { return r.Digest == got.Digest }) {
				t.Errorf("%s is none of those that were made", got.Digest)
			}
		})
	}
}

// A proxy cuts one connection of a conversion, each time at another place. The conversion goes on, and the image is the one it
// would have been.
func TestConnectionCutAnywhereIsOutlived(t *testing.T) {
	model, base := writeModel(t, time.Now(), 0o644), writeLayout(t, smallBase(t))
	archive := filepath.Join(t.TempDir(), "tiny.tar")
	check(t, os.WriteFile(archive, tarFolder(t, model, "--sort=name"), 0o600))
	dry, err := converter.Convert(t.Context(), converter.Config{Model: model, Base: base, Target: nowhere(t), DryRun: true})
	check(t, err)
	for _, kind := range []struct {
		name  string
		start func(*testing.T) string
	}{{"docker-registry", dockerRegistry}, {"distribution", distributionRegistry}} {
		registry := kind.start(t)
		for seed := range uint64(10) {
			r := rand.New(rand.NewPCG(seed, 1))
			proxy := &cutter{target: registry, after: 4<<10 + r.Int64N(6<<20), back: r.IntN(4) == 0}
			if proxy.back {
				proxy.after = 1<<10 + r.Int64N(16<<10)
			}
			cfg := converter.Config{Model: model, Base: base, Target: fmt.Sprintf("%s/ml/tiny-%d:v1", proxy.start(t), seed)}
			if seed%2 == 1 { // which is sent while it is read
				cfg.Model = archive
			}
			cfg.Access = converter.Access{Config: repository.Config{Retry: repository.Retry{Pause: time.Millisecond}}}
			got, err := converter.Convert(t.Context(), cfg)
			if err != nil {
				t.Errorf("%s, seed %d, cut after %d bytes (answers: %v): %v", kind.name, seed, proxy.after, proxy.back, err)
				continue
			}
			if got.Digest != dry.Digest {
				t.Errorf("%s, seed %d: want %s, got %s", kind.name, seed, dry.Digest, got.Digest)
			}
			_, err = converter.Check(t.Context(), converter.CheckConfig{Image: fmt.Sprintf("%s/ml/tiny-%d:v1", registry, seed)})
			check(t, err)
			t.Logf("%s, seed %d: cut after %d bytes: %v", kind.name, seed, proxy.after, proxy.cut.Load())
		}
	}
}

// What comes by standard input cannot be read again. A registry that loses an upload ends the conversion, cleanly.
func TestConnectionCutDuringAStreamEndsItCleanly(t *testing.T) {
	registry := dockerRegistry(t)
	proxy := &cutter{target: registry, after: 3 << 20}
	cfg := converts(t, "-")
	cfg.Target = proxy.start(t) + "/ml/tiny:v1"
	cfg.Source.Stdin = bytes.NewReader(tarFolder(t, flatModel(t)))
	_, err := converter.Convert(t.Context(), cfg)
	wantError(t, err, converter.ErrRegistry, "run again")
	_, err = converter.Check(t.Context(), converter.CheckConfig{Image: registry + "/ml/tiny:v1"})
	wantError(t, err, converter.ErrSource, "does not exist")
	if left, err := os.ReadDir(cfg.TempDir); err != nil || len(left) != 0 {
		t.Errorf("in the temporary folder: %v, %v", left, err)
	}
}

// cutter is a proxy for TCP that resets the connection on which so many bytes have passed in one direction, once.
type cutter struct {
	target string
	after  int64
	back   bool // count what the server says
	passed atomic.Int64
	cut    atomic.Bool
}

func (c *cutter) start(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	var conns sync.WaitGroup
	conns.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			conns.Go(func() { c.serve(client.(*net.TCPConn)) })
		}
	})
	t.Cleanup(func() { _ = l.Close() })
	return l.Addr().String()
}

func (c *cutter) serve(client *net.TCPConn) {
	defer client.Close()
	raw, err := net.Dial("tcp", c.target)
	if err != nil {
		return
	}
	server := raw.(*net.TCPConn)
	defer server.Close()
	end := func() { _ = client.Close(); _ = server.Close() }
	var both sync.WaitGroup
	both.Go(func() { defer end(); c.pass(server, client, !c.back) })
	both.Go(func() { defer end(); c.pass(client, server, c.back) })
	both.Wait()
}

func (c *cutter) pass(to, from *net.TCPConn, counted bool) {
	buf := make([]byte, 4096)
	for {
		n, err := from.Read(buf)
		if counted && c.passed.Add(int64(n)) >= c.after && !c.cut.Swap(true) {
			_ = to.SetLinger(0) // a reset
			_ = from.SetLinger(0)
			return
		}
		if _, werr := to.Write(buf[:n]); err != nil || werr != nil {
			return
		}
	}
}

// smallDisk mounts a disk of so many bytes.
func smallDisk(t *testing.T, size int64) string {
	t.Helper()
	needRoot(t)
	dir := t.TempDir()
	check(t, unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", size)))
	t.Cleanup(func() { check(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	return dir
}

func TestRootFullDisk(t *testing.T) {
	t.Run("of the layout", func(t *testing.T) {
		disk := smallDisk(t, 4<<20)
		cfg := converts(t, writeModel(t, time.Now(), 0o644))
		cfg.Target = "oci:" + disk + "/out:v1"
		_, err := converter.Convert(t.Context(), cfg)
		wantError(t, err, converter.ErrRegistry, "make room")
		wantNothingLeft(t, cfg)
	})
	many := []entry{}
	for i := range 60 { // more than is held in memory, and than there is room for
		many = append(many, file(fmt.Sprintf("small-%02d", i), string(noise(uint64(i), 900<<10))))
	}
	for name, change := range map[string]func(c *converter.Config){
		"for temporary files, by the base's layers": func(c *converter.Config) {
			c.Base = writeLayout(t, baseImage(t, linuxAMD64(), tarOf(t, file("noise", string(noise(1, 8<<20))))))
		},
		"for temporary files, by small files of a stream": func(c *converter.Config) {
			c.Model, c.Source.Stdin = "-", bytes.NewReader(tarOf(t, many...))
		},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := converts(t, writeModel(t, time.Now(), 0o644))
			cfg.TempDir = smallDisk(t, 4<<20)
			change(&cfg)
			_, err := converter.Convert(t.Context(), cfg)
			if err == nil || !strings.Contains(err.Error(), "TMPDIR") || !errors.Is(err, unix.ENOSPC) {
				t.Errorf("got %v", err)
			}
			wantNothingLeft(t, cfg)
		})
	}
}
