package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/shoal-project/shoal/hack/lab/cluster"
)

// caseTimeout bounds each case; they take some ten seconds on two cores.
const caseTimeout = 3 * time.Minute

// buildDir takes the binaries that the tests build.
var buildDir string

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == readFilesName { // the lab runs itself as a program that reads
		os.Exit(main1())
	}
	if err := toolsFirst(testCache()); err != nil {
		panic(err)
	}
	var err error
	if buildDir, err = os.MkdirTemp("", "shoal-build-"); err != nil {
		panic(err)
	}
	// The folder goes before goleak ends the process.
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		_ = os.RemoveAll(buildDir) // in /tmp, and small
		os.Exit(code)
	}))
}

func testCache() string {
	if cache := os.Getenv("SHOAL_CACHE"); cache != "" {
		return cache
	}
	return defaultCache()
}

var buildShoal = sync.OnceValues(func() (string, error) {
	return shoalBinary(context.Background(), os.Getenv("SHOAL_BINARY"), buildDir)
})

// prepare skips what cannot run here and returns the binary under test and a context for one case.
func prepare(t *testing.T, tools ...string) (context.Context, string) {
	t.Helper()
	if testing.Short() {
		t.Skip("-short leaves out the end-to-end cases")
	}
	cluster.NeedRoot(t)
	cluster.NeedTools(t, tools...)
	shoal, err := buildShoal()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), caseTimeout)
	t.Cleanup(cancel)
	return ctx, shoal
}

// TestRootOneCopyLeavesTheRegistryAndEveryNodeAnswers is the main job: a converted model, three containerds that pull at
// once, real inference from the plain variant, a kernel EROFS mount and nydusd, and the registry's log as judge.
func TestRootOneCopyLeavesTheRegistryAndEveryNodeAnswers(t *testing.T) {
	ctx, shoal := prepare(t, append(faultTools(), "runc", "nydusd")...)
	cfg := demoConfig{cache: testCache(), nodes: 3, link: 1e9}
	result, err := runDemo(ctx, cfg, shoal, newTalk(t.Output()))
	if err != nil {
		t.Fatal(err)
	}
	if err := result.check(); err != nil {
		t.Error(err)
	}
	if got, want := len(result.inferences), 3*cfg.nodes; got != want {
		t.Errorf("%d containers answered, want %d", got, want)
	}
	for _, i := range result.inferences {
		if i.Cosine["a~a_again"] < 0.5 || i.Cosine["b~b_again"] < 0.5 || i.Cosine["a~b"] > 0.2 {
			t.Errorf("%s from %s: cosines %v do not tell the sentences apart", i.Node, i.Variant, i.Cosine)
		}
	}
	for _, n := range result.nodes[1:] {
		if n.read["peer"] == 0 || n.ready == 0 {
			t.Errorf("%s: ready after %v, bytes by origin %v; want some from peers", n.name, n.ready, n.read)
		}
	}
}

func TestRootShoalNeverStandsInTheWayOfAPull(t *testing.T) {
	for _, test := range faultCases() {
		for kind, converted := range map[string]bool{"ordinary": false, "converted": true} {
			t.Run(test.name+"/"+kind, func(t *testing.T) {
				ctx, shoal := prepare(t, faultTools()...)
				if err := runFault(ctx, shoal, t.Output(), test, converted); err != nil {
					t.Errorf("%s: %v", test.what, err)
				}
			})
		}
	}
}

// TestRootEverybodyGetsTheRightBytesWhateverFails is about what arrives. What a mishap adds is told and not judged: machines are noisy.
func TestRootEverybodyGetsTheRightBytesWhateverFails(t *testing.T) {
	for _, m := range mishaps() {
		if m.named {
			continue // not ours to do to whoever runs the tests
		}
		t.Run(m.name, func(t *testing.T) {
			ctx, shoal := prepare(t, "ip", "tc", "docker-registry", "losetup", "mkfs.ext4")
			r := faults{shoal: shoal, converted: true, runs: 1, log: t.Output()}.measure(ctx, m)
			if !r.OK {
				t.Errorf("%s: %s", m.what, r.Error)
			}
			t.Logf("added %.2f s, the bound is %.2f s", r.AddedSeconds, r.BoundSeconds)
		})
	}
}

// TestRootChaosHarmsNobody makes a few of the runs of make chaos.
func TestRootChaosHarmsNobody(t *testing.T) {
	ctx, shoal := prepare(t, "ip", "tc", "docker-registry")
	if r := chaos(ctx, shoal, t.Output(), 1, 6); len(r.Failed) > 0 {
		t.Errorf("failed with the seeds %v", r.Failed)
	}
}

func TestRootBroadcastTakesOneCopyFromTheOrigin(t *testing.T) {
	ctx, shoal := prepare(t, "ip", "tc", "docker-registry")
	result, err := broadcast(ctx, broadcastConfig{shoal: shoal, peers: 3, size: 24 << 20, link: 200e6, log: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	if result.OriginCopies != 1 {
		t.Errorf("%.3f copies left the origin, want 1", result.OriginCopies)
	}
	// How close to the limit it comes is a benchmark's to say; here it is that peers give to each other at all: three
	// plain pulls share the registry's link and take three times the limit.
	if result.Ratio < 0.9 || result.Ratio > 2.5 {
		t.Errorf("took %.2f s, the limit is %.2f s", result.MakespanSeconds, result.LimitSeconds)
	}
	if result.CPUSecondsPerGiB <= 0 || result.PeakRSSBytes <= 0 {
		t.Errorf("CPU %.3f s/GiB and peak RSS %d: want both measured", result.CPUSecondsPerGiB, result.PeakRSSBytes)
	}
}

// TestRootAnInterruptedDemoLeavesNothing interrupts the demo as Ctrl-C does, once it has a cluster.
func TestRootAnInterruptedDemoLeavesNothing(t *testing.T) {
	ctx, shoal := prepare(t, append(faultTools(), "runc", "nydusd")...)
	lab := filepath.Join(t.TempDir(), "lab")
	if out, err := exec.CommandContext(ctx, "go", "build", "-o", lab, ".").CombinedOutput(); err != nil {
		t.Fatalf("build the lab: %v\n%s", err, out)
	}
	cmd := exec.CommandContext(ctx, lab, "--shoal", shoal, "demo")
	output := &lines{want: "convert the model", seen: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = output, output
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }() // ends with the lab, which ctx kills at last
	select {
	case <-output.seen:
		_ = cmd.Process.Signal(syscall.SIGINT)
		<-ended
	case err := <-ended:
		t.Fatalf("the demo ended before it could be interrupted: %v\n%s", err, output)
	}
	if code := cmd.ProcessState.ExitCode(); code != 130 {
		t.Errorf("exit code %d, want 130\n%s", code, output)
	}
	_, after, _ := strings.Cut(output.String(), "/tmp/shoal-lab-")
	run, _, _ := strings.Cut(after, "\n")
	if run == "" {
		t.Fatalf("the demo does not say where its files are:\n%s", output)
	}
	if left, err := cluster.Traces(run); err != nil || len(left) > 0 {
		t.Errorf("left behind (%v): %v", err, left)
	}
}

// lines keeps what is written and closes seen once want was among it.
type lines struct {
	want string
	seen chan struct{}

	mu   sync.Mutex // guards buf and once
	buf  bytes.Buffer
	once bool
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.buf.Write(p)
	if !l.once && strings.Contains(l.buf.String(), l.want) {
		l.once = true
		close(l.seen)
	}
	return len(p), nil
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func TestDeviceTableIsReadInItsOrder(t *testing.T) {
	image := make([]byte, 4096)
	image[extraDevicesAt], image[deviceSlotAt] = 2, 11
	ids := []string{strings.Repeat("a", 64), strings.Repeat("0b", 32)}
	for i, id := range ids {
		copy(image[(11+i)*deviceSlotSize:], id)
	}
	file := filepath.Join(t.TempDir(), "image.boot")
	if err := os.WriteFile(file, image, 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := deviceTable(file)
	if err != nil || fmt.Sprint(got) != fmt.Sprint(ids) {
		t.Errorf("deviceTable() = %v, %v, want %v", got, err, ids)
	}
	if err := os.Truncate(file, 1500); err != nil {
		t.Fatal(err)
	}
	if got, err := deviceTable(file); err == nil {
		t.Errorf("deviceTable() of a cut image = %v, want an error", got)
	}
}

func TestSameFilesTellsAnyDifference(t *testing.T) {
	source, mounted := t.TempDir(), t.TempDir()
	write := func(path, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := sameFiles(source, mounted); err == nil {
		t.Error("two empty folders are taken for a proof")
	}
	for _, dir := range []string{source, mounted} {
		write(filepath.Join(dir, "a"), "1")
		write(filepath.Join(dir, "b", "c"), "2")
	}
	if n, err := sameFiles(source, mounted); n != 2 || err != nil {
		t.Errorf("equal folders: %d files, %v", n, err)
	}
	write(filepath.Join(mounted, "b", "c"), "3")
	if _, err := sameFiles(source, mounted); err == nil {
		t.Error("a changed file is not seen")
	}
	if err := os.Remove(filepath.Join(mounted, "b", "c")); err != nil {
		t.Fatal(err)
	}
	if _, err := sameFiles(source, mounted); err == nil {
		t.Error("a missing file is not seen")
	}
}
