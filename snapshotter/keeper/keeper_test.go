package keeper

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The test binary is the keeper too.
func TestMain(m *testing.M) {
	if mode := os.Getenv("KEEPER_TEST"); mode != "" {
		err := runKeeper(mode)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// runKeeper is a keeper that writes its process number beside the test's other files once it leads.
func runKeeper(mode string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	mate := []string{"/usr/bin/env", "KEEPER_TEST=follow", self}
	if mode == "follow" {
		return Follow(context.Background(), mate)
	}
	l, err := Inherited()
	if err != nil {
		return err
	}
	return Serve(context.Background(), l, mate)
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// serve runs a keeper until the test ends, and tells when it has ended by itself.
func serve(t *testing.T) (socket string, ended chan error) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), strings.Repeat("long-", 20), "keeper.sock")
	check(t, os.MkdirAll(filepath.Dir(socket), 0o700))
	l, err := Listen(t.Context(), socket)
	check(t, err)
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended, done := make(chan error, 1), make(chan struct{})
	go func() { ended <- Serve(ctx, l, nil); close(done) }() // ends with cancel
	t.Cleanup(func() { cancel(); <-done })
	return socket, ended
}

func connect(t *testing.T, socket string) *Client {
	t.Helper()
	c, err := Connect(t.Context(), Config{Socket: socket})
	check(t, err)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func file(t *testing.T, content string) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "file"))
	check(t, err)
	_, err = f.WriteString(content)
	check(t, err)
	return f
}

func contents(t *testing.T, files []*os.File) (out []string) {
	t.Helper()
	for _, f := range files {
		data, err := io.ReadAll(io.NewSectionReader(f, 0, 100))
		check(t, err)
		check(t, f.Close())
		out = append(out, string(data))
	}
	return out
}

func TestFilesOutliveWhoBroughtThem(t *testing.T) {
	socket, _ := serve(t)
	first := connect(t, socket)
	a, b := file(t, "a"), file(t, "b")
	check(t, first.Put("x", []*os.File{a, b}))
	check(t, a.Close())
	check(t, os.Remove(a.Name()))
	check(t, first.Close())

	second := connect(t, socket)
	for range 2 {
		files, err := second.Get("x")
		check(t, err)
		if got := fmt.Sprint(contents(t, files)); got != "[a b]" {
			t.Errorf("got %s", got)
		}
	}
	check(t, second.Put("x", []*os.File{b}))
	files, err := second.Get("x")
	check(t, err)
	if got := fmt.Sprint(contents(t, files)); got != "[b]" {
		t.Errorf("got %s", got)
	}
	files, err = second.Get("y")
	check(t, err)
	if len(files) > 0 {
		t.Error("got files nobody brought")
	}
}

func TestKeeperWithoutFilesEndsWithItsLastClient(t *testing.T) {
	socket, ended := serve(t)
	c, other := connect(t, socket), connect(t, socket)
	check(t, c.Put("x", []*os.File{file(t, "a")}))
	check(t, other.Close())
	check(t, c.Drop("x"))
	check(t, c.Close())
	select {
	case err := <-ended:
		check(t, err)
	case <-time.After(30 * time.Second):
		t.Error("it still runs")
	}
}

func TestRequestsThatAreNoneAreRefused(t *testing.T) {
	socket, _ := serve(t)
	c := connect(t, socket)
	if _, _, err := c.ask('Z', "x", nil); err == nil || !strings.Contains(err.Error(), "unknown request") {
		t.Errorf("got %v", err)
	}
	if err := c.Put("", nil); err == nil {
		t.Error("took an empty name")
	}
	check(t, c.Put("x", nil))
}

func TestClientsNoticeTheEnd(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "keeper.sock")
	l, err := Listen(t.Context(), socket)
	check(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- Serve(ctx, l, nil) }() // ends with cancel
	c := connect(t, socket)
	check(t, c.Put("x", nil))
	cancel()
	check(t, <-ended)
	select {
	case <-c.Gone():
	case <-time.After(30 * time.Second):
		t.Error("not noticed")
	}
	if err := c.Put("x", nil); err == nil {
		t.Error("put at nobody's")
	}
}

// The process that was started keeps what it has when a second client comes, and ends when told.
func TestConnectStartsAKeeper(t *testing.T) {
	self, err := os.Executable()
	check(t, err)
	t.Setenv("KEEPER_TEST", "keep")
	cfg := Config{Socket: filepath.Join(t.TempDir(), "keeper.sock"), Command: []string{self}, Stderr: os.Stderr}
	c, err := Connect(t.Context(), cfg)
	check(t, err)
	check(t, c.Put("x", []*os.File{file(t, "a")}))
	check(t, c.Close())
	cfg.Command = []string{"/does/not/exist"}
	c, err = Connect(t.Context(), cfg)
	check(t, err)
	// Whoever leads is killed, again and again: the other one goes on.
	for range 3 {
		files, err := c.Get("x")
		check(t, err)
		if got := fmt.Sprint(contents(t, files)); got != "[a]" {
			t.Errorf("got %s", got)
		}
		leader, mate, err := c.Processes()
		check(t, err)
		if mate == 0 {
			t.Fatal("there is no mate")
		}
		check(t, syscall.Kill(leader, syscall.SIGKILL))
		<-c.Gone()
		check(t, c.Close())
		c, err = Connect(t.Context(), cfg)
		check(t, err)
	}
	check(t, c.Drop("x"))
	check(t, c.Close())
	for deadline := time.Now().Add(30 * time.Second); ; {
		conn, err := dial(t.Context(), cfg.Socket)
		if err != nil {
			break
		}
		check(t, conn.Close())
		if time.Now().After(deadline) {
			t.Fatal("the keeper still runs")
		}
	}
	if _, err := Connect(t.Context(), cfg); err == nil {
		t.Error("a keeper came from nowhere")
	}
}

// A keeper that hangs is told from one that is not there, and goes on when what it has cannot be taken over.
func TestAKeeperThatHangsIsNamed(t *testing.T) {
	self, err := os.Executable()
	check(t, err)
	t.Setenv("KEEPER_TEST", "keep")
	cfg := Config{Socket: filepath.Join(t.TempDir(), "keeper.sock"), Command: []string{self}, Stderr: os.Stderr}
	c, err := Connect(t.Context(), cfg)
	check(t, err)
	check(t, c.Put("x", []*os.File{file(t, "a")}))
	leader, mate, err := c.Processes()
	check(t, err)
	check(t, syscall.Kill(leader, syscall.SIGSTOP))
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", leader))
		check(t, err)
		if strings.Contains(string(data), ") T ") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the keeper does not stop")
		}
	}
	if _, err := Connect(t.Context(), cfg); !errors.Is(err, ErrHung) {
		t.Errorf("got %v, want %v", err, ErrHung)
	}
	want := fmt.Sprintf("kill -CONT %d", leader)
	if _, err := Replace(t.Context(), cfg, "x", []string{"none such"}); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want %s in it", err, want)
	}
	again, stillMate, err := c.Processes()
	check(t, err)
	if again != leader || stillMate != mate {
		t.Errorf("the keepers are %d and %d now, were %d and %d", again, stillMate, leader, mate)
	}
	check(t, c.Drop("x"))
	check(t, c.Close())
}
