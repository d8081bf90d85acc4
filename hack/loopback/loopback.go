// Package loopback starts servers of the field on this machine for tests: docker-registry, with a password or without, and MinIO.
// Each has a free port and a folder of its own, and ends with the test. What is missing skips the test aloud, as all tools do.
package loopback

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/shoal-project/shoal/hack/lab/cluster"
)

// The one user of a registry with a password. Password has what a shell, a URL and JSON take for their own.
const (
	User     = "shoal"
	Password = `pa:ss w%rd"$`
)

// htpasswd is the line of User and Password, hashed by bcrypt: the only hash that docker-registry takes.
const htpasswd = User + ":$2b$04$79mH/zOIkawTMZ9GNIxAzeQHVcLzhNp0e0UVFOKf.eYxmUqJFmpqS\n"

// Registry starts Debian's docker-registry and returns its address.
func Registry(t testing.TB) (address string) {
	t.Helper()
	return registry(t, "", http.StatusOK)
}

// PrivateRegistry is Registry for User and Password only.
func PrivateRegistry(t testing.TB) (address string) {
	t.Helper()
	users := filepath.Join(t.TempDir(), "htpasswd")
	if err := os.WriteFile(users, []byte(htpasswd), 0o600); err != nil {
		t.Fatal(err)
	}
	return registry(t, fmt.Sprintf("auth: {htpasswd: {realm: test, path: %s}}\n", users), http.StatusUnauthorized)
}

func registry(t testing.TB, extra string, ready int) string {
	t.Helper()
	cluster.NeedTools(t, "docker-registry")
	return start(t, "/v2/", ready, func(address string) *exec.Cmd {
		config := filepath.Join(t.TempDir(), "config.yml")
		text := fmt.Sprintf("version: 0.1\nlog: {level: warn, accesslog: {disabled: true}}\nstorage: {filesystem: {rootdirectory: %s}}\nhttp: {addr: %s, secret: test}\n",
			t.TempDir(), address) + extra
		if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return exec.CommandContext(context.WithoutCancel(t.Context()), "docker-registry", "serve", config)
	})
}

// ObjectStore is a MinIO.
type ObjectStore struct {
	URL       string
	AccessKey string
	SecretKey string
	client    *s3.Client
	buckets   map[string]bool
}

// MinIO starts an object store.
func MinIO(t testing.TB) *ObjectStore {
	t.Helper()
	cluster.NeedTools(t, "minio")
	s := &ObjectStore{AccessKey: "shoaltest", SecretKey: "shoaltestsecret", buckets: map[string]bool{}}
	s.URL = "http://" + start(t, "/minio/health/cluster", http.StatusOK, func(address string) *exec.Cmd {
		cmd := exec.CommandContext(context.WithoutCancel(t.Context()), "minio", "server", "--quiet", "--address", address, t.TempDir())
		cmd.Env = append(os.Environ(), "MINIO_ROOT_USER="+s.AccessKey, "MINIO_ROOT_PASSWORD="+s.SecretKey, "MINIO_BROWSER=off",
			"MINIO_UPDATE=off", "MINIO_CALLHOME_ENABLE=off")
		return cmd
	})
	s.client = s3.New(s3.Options{
		BaseEndpoint: aws.String(s.URL), UsePathStyle: true, Region: "us-east-1",
		Credentials: credentials.NewStaticCredentialsProvider(s.AccessKey, s.SecretKey, ""),
	})
	return s
}

// Put stores a file as an object, in a bucket that is created if need be.
func (s *ObjectStore) Put(t testing.TB, bucket, key, path string) {
	t.Helper()
	if !s.buckets[bucket] {
		if _, err := s.client.CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: aws.String(bucket)}); err != nil {
			t.Fatal(err)
		}
		s.buckets[bucket] = true
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := s.client.PutObject(t.Context(), &s3.PutObjectInput{Bucket: aws.String(bucket), Key: aws.String(key), Body: f}); err != nil {
		t.Fatal(err)
	}
}

// start runs a server on a free port until it answers. Another process may take the port first, so a few are tried.
func start(t testing.TB, path string, want int, command func(address string) *exec.Cmd) string {
	t.Helper()
	for range 5 {
		address := freeAddress(t)
		cmd := command(address)
		ended := Daemon(t, cmd)
		if Eventually(t, cmd.Path, ended, func(ctx context.Context) bool { return answers(ctx, "http://"+address+path, want) }) {
			return address
		}
	}
	t.Fatalf("%s: does not start", path)
	return ""
}

func answers(ctx context.Context, url string, want int) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return false
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	return resp.StatusCode == want
}

func freeAddress(t testing.TB) string {
	t.Helper()
	var config net.ListenConfig
	l, err := config.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// Daemon starts a process that ends in order with the test, and closes the channel when it has. A context that ends sooner would kill it.
// Its output is shown if the test failed.
func Daemon(t testing.TB, cmd *exec.Cmd) (ended <-chan struct{}) {
	t.Helper()
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	over := make(chan struct{})
	go func() { _ = cmd.Wait(); close(over) }() // ends with the process
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-over:
		case <-time.After(20 * time.Second):
			_ = cmd.Process.Kill()
			<-over
		}
		if err := log.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			t.Error(err)
		}
		if t.Failed() {
			out, _ := os.ReadFile(log.Name())
			t.Logf("%s:\n%s", filepath.Base(cmd.Path), out[max(0, len(out)-4000):])
		}
	})
	return over
}

// Eventually asks until it is true, at most half a minute. It returns false when the process ended before.
func Eventually(t testing.TB, what string, ended <-chan struct{}, ready func(context.Context) bool) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ready(ctx) {
		select {
		case <-tick.C:
		case <-ended:
			return false
		case <-ctx.Done():
			t.Fatalf("%s: not ready within 30 s", what)
		}
	}
	return true
}
