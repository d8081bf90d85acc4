package source

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/google/go-cmp/cmp"
)

const (
	s3User   = "shoaltest"
	s3Secret = "shoaltestsecret"
)

// store is a MinIO of the test's own, behind a proxy that can spoil what it says.
type store struct {
	*faults
	url    string
	client *s3.Client
}

// startStore runs MinIO on a free port. Another process may take the port first, so a few are tried.
func startStore(t *testing.T) *store {
	t.Helper()
	tool := need(t, "minio")
	for range 5 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		check(t, err)
		addr := l.Addr().String()
		check(t, l.Close())
		if runStore(t, tool, addr) {
			return newStore(t, addr)
		}
	}
	t.Fatal("MinIO does not start")
	return nil
}

// runStore reports whether the server at the address became ready.
func runStore(t *testing.T, tool, addr string) bool {
	cmd := exec.Command(tool, "server", "--quiet", "--address", addr, t.TempDir())
	cmd.Env = append(os.Environ(), "MINIO_ROOT_USER="+s3User, "MINIO_ROOT_PASSWORD="+s3Secret, "MINIO_BROWSER=off",
		"MINIO_UPDATE=off", "MINIO_CALLHOME_ENABLE=off")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	check(t, cmd.Start())
	ctx, exited := context.WithTimeout(t.Context(), time.Minute)
	over := make(chan struct{})
	go func() { // ends with the process, for which the cleanup waits
		_ = cmd.Wait()
		exited()
		close(over)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-over
	})
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/minio/health/cluster", nil)
		check(t, err)
		if resp, err := http.DefaultClient.Do(req); err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return true
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Logf("MinIO: %s", out.String())
			return false
		}
	}
}

func newStore(t *testing.T, addr string) *store {
	for _, name := range []string{
		"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION",
		"AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_CA_BUNDLE",
	} {
		t.Setenv(name, "")
	}
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	t.Setenv("AWS_CONFIG_FILE", t.TempDir()+"/none")
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", t.TempDir()+"/none")
	target, err := url.Parse("http://" + addr)
	check(t, err)
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			r.Out.Host = r.In.Host // which is signed
		},
		FlushInterval: -1,
		Transport:     &http.Transport{DisableCompression: true},
	}
	st := &store{faults: &faults{Handler: proxy, of: map[string][]fault{}}}
	server := httptest.NewUnstartedServer(st.faults)
	server.Start()
	t.Cleanup(server.Close)
	st.url = server.URL
	st.client = s3.New(s3.Options{
		BaseEndpoint: aws.String("http://" + addr), UsePathStyle: true, Region: s3Region,
		Credentials: credentials.NewStaticCredentialsProvider(s3User, s3Secret, ""),
	})
	_, err = st.client.CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: aws.String("bkt")})
	check(t, err)
	return st
}

// login puts the credentials where the chain looks first.
func (st *store) login(t *testing.T) Config {
	t.Setenv("AWS_ACCESS_KEY_ID", s3User)
	t.Setenv("AWS_SECRET_ACCESS_KEY", s3Secret)
	return quick(Config{S3: S3{Endpoint: st.url, PathStyle: true}})
}

func (st *store) put(t *testing.T, key string, data []byte, algorithm types.ChecksumAlgorithm) {
	t.Helper()
	_, err := st.client.PutObject(t.Context(), &s3.PutObjectInput{
		Bucket: aws.String("bkt"), Key: &key, Body: bytes.NewReader(data), ChecksumAlgorithm: algorithm,
	})
	check(t, err)
}

// putParts puts an object in parts of 5 MiB.
func (st *store) putParts(t *testing.T, key string, data []byte, algorithm types.ChecksumAlgorithm, kind types.ChecksumType) {
	t.Helper()
	bucket := aws.String("bkt")
	up, err := st.client.CreateMultipartUpload(t.Context(), &s3.CreateMultipartUploadInput{
		Bucket: bucket, Key: &key, ChecksumAlgorithm: algorithm, ChecksumType: kind,
	})
	check(t, err)
	var parts []types.CompletedPart
	for n := int32(1); len(data) > 0; n++ {
		piece := data[:min(len(data), 5<<20)]
		data = data[len(piece):]
		out, err := st.client.UploadPart(t.Context(), &s3.UploadPartInput{
			Bucket: bucket, Key: &key, UploadId: up.UploadId, PartNumber: aws.Int32(n), Body: bytes.NewReader(piece), ChecksumAlgorithm: algorithm,
		})
		check(t, err)
		parts = append(parts, types.CompletedPart{
			ETag: out.ETag, PartNumber: aws.Int32(n), ChecksumSHA256: out.ChecksumSHA256, ChecksumCRC32C: out.ChecksumCRC32C,
			ChecksumCRC64NVME: out.ChecksumCRC64NVME,
		})
	}
	_, err = st.client.CompleteMultipartUpload(t.Context(), &s3.CompleteMultipartUploadInput{
		Bucket: bucket, Key: &key, UploadId: up.UploadId, MultipartUpload: &types.CompletedMultipartUpload{Parts: parts}, ChecksumType: kind,
	})
	check(t, err)
}

func TestBucketIsListedAndRead(t *testing.T) {
	st := startStore(t)
	cfg := st.login(t)
	for key, data := range map[string]string{
		"models/llama/config.json": "{}", "models/llama/sub/a b+c%&<ü.txt": "odd", "models/llama-2/other": "x", "models/llama/empty": "",
		"models/llama/marker/": "", "models/llama/none/": "", "models/llama/marker/x": "1",
	} {
		st.put(t, key, []byte(data), "")
	}
	for _, ref := range []string{"s3://bkt/models/llama", "s3://bkt/models/llama/"} {
		m, err := Open(t.Context(), ref, cfg)
		check(t, err)
		if m.Name != "llama" || m.Local {
			t.Errorf("%+v", m)
		}
		got, err := readAll(t, m)
		want := []string{"config.json={}", "empty=", "marker/", "marker/x=1", "none/", "sub/", "sub/a b+c%&<ü.txt=odd"}
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("%s: %v (-want +got):\n%s", ref, err, diff)
		}
		if got := behind(t, &m.Files[len(m.Files)-1]); string(got) != "odd" {
			t.Errorf("%s: %q behind a signed URL", ref, got)
		}
	}
	m, err := Open(t.Context(), "s3://bkt/models/llama/config.json", cfg)
	check(t, err)
	got, err := readAll(t, m)
	if diff := cmp.Diff([]string{"config.json={}"}, got); diff != "" || err != nil || m.Name != "config" {
		t.Errorf("one object: %v (-want +got):\n%s", err, diff)
	}
	m, err = Open(t.Context(), "s3://bkt", Config{S3: cfg.S3, Include: []string{"config.json"}})
	if err != nil || m.Name != "bkt" || len(m.Files) != 3 {
		t.Errorf("whole bucket: %+v, %v", m, err)
	}
}

func TestObjectsAreComparedWithTheirChecksums(t *testing.T) {
	st := startStore(t)
	cfg := st.login(t)
	small, big := noise(3, 100_000), noise(4, 11<<20)
	st.put(t, "m/etag", small, types.ChecksumAlgorithmCrc32)
	st.put(t, "m/sha256", small, types.ChecksumAlgorithmSha256)
	st.put(t, "m/sha1", small, types.ChecksumAlgorithmSha1)
	st.put(t, "m/crc32c", small, types.ChecksumAlgorithmCrc32c)
	st.put(t, "m/crc64nvme", small, types.ChecksumAlgorithmCrc64nvme)
	st.putParts(t, "m/parts-crc64nvme", big, types.ChecksumAlgorithmCrc64nvme, types.ChecksumTypeFullObject)
	st.putParts(t, "m/parts-crc32c", big, types.ChecksumAlgorithmCrc32c, types.ChecksumTypeFullObject)
	st.putParts(t, "m/parts-sha256", big, types.ChecksumAlgorithmSha256, types.ChecksumTypeComposite)
	m, err := Open(t.Context(), "s3://bkt/m", cfg)
	check(t, err)
	for i := range m.Files {
		name := m.Files[i].Path
		want := small
		if strings.HasPrefix(name, "parts") {
			want = big
		}
		st.of["/bkt/m/"+name] = []fault{cut(70_000), status(503), cut(1)}
		for _, offset := range []int64{0, 50_000} {
			got, err := read(t.Context(), m, name, offset)
			if err != nil || !bytes.Equal(got, want[offset:]) {
				t.Errorf("%s from %d: %d bytes, %v", name, offset, len(got), err)
			}
		}
		st.of["/bkt/m/"+name] = []fault{spoil(60_000)}
		_, err := read(t.Context(), m, name, 0)
		if name == "parts-sha256" { // a checksum of checksums says nothing about the whole
			continue
		}
		kind := strings.TrimPrefix(name, "parts-")
		if kind == "etag" {
			kind = "crc32"
		}
		if !errors.Is(err, ErrDigest) || !strings.Contains(err.Error(), kind+" ") || !strings.Contains(err.Error(), name) {
			t.Errorf("spoiled %s: got %v", name, err)
		}
	}
}

func TestETagOfOnePieceIsTheMD5(t *testing.T) {
	out := &s3.GetObjectOutput{ETag: aws.String(`"5d41402abc4b2a76b9719d911017c592"`)}
	v := &verifier{ReadCloser: io.NopCloser(strings.NewReader("hello")), name: "x", size: 5, sums: objectSums(out)}
	if _, err := io.ReadAll(v); err != nil || len(v.sums) != 1 {
		t.Errorf("got %v with %d checksums", err, len(v.sums))
	}
	v = &verifier{ReadCloser: io.NopCloser(strings.NewReader("hellO")), name: "x", size: 5, sums: objectSums(out)}
	if _, err := io.ReadAll(v); !errors.Is(err, ErrDigest) || !strings.Contains(err.Error(), "md5") {
		t.Errorf("got %v", err)
	}
	out.ServerSideEncryption = types.ServerSideEncryptionAwsKms
	if sums := objectSums(out); len(sums) != 0 {
		t.Error("the ETag of an encrypted object was taken for its md5")
	}
}

func TestLargeBucketsAreListedInPages(t *testing.T) {
	st := startStore(t)
	cfg := st.login(t)
	for i := range 1100 {
		st.put(t, fmt.Sprintf("many/%04d", i), []byte("x"), "")
	}
	m, err := Open(t.Context(), "s3://bkt/many", cfg)
	if err != nil || len(m.Files) != 1100 {
		t.Fatalf("%v", err)
	}
	cfg.MaxFiles = 1050
	if _, err := Open(t.Context(), "s3://bkt/many", cfg); !errors.Is(err, ErrModel) || !strings.Contains(err.Error(), "1050") {
		t.Errorf("got %v", err)
	}
}

func TestCredentialsComeFromTheChain(t *testing.T) {
	st := startStore(t)
	st.put(t, "m/a", []byte("1"), "")
	cfg := quick(Config{S3: S3{Endpoint: st.url, PathStyle: true}})
	open := func(cfg Config) error {
		m, err := Open(t.Context(), "s3://bkt/m", cfg)
		if err == nil {
			_, err = readAll(t, m)
		}
		return err
	}
	if err := open(cfg); !errors.Is(err, ErrService) || !strings.Contains(err.Error(), "AWS_ACCESS_KEY_ID") {
		t.Errorf("without credentials: %v", err)
	}
	anonymous := cfg
	anonymous.S3.Anonymous = true
	if err := open(anonymous); !errors.Is(err, ErrService) || !strings.Contains(err.Error(), "anonymous") {
		t.Errorf("anonymous, private: %v", err)
	}
	dir := t.TempDir()
	write(t, dir+"/credentials", "[default]\naws_access_key_id=wrong\naws_secret_access_key=wrong\n[ml]\naws_access_key_id="+s3User+
		"\naws_secret_access_key="+s3Secret+"\n", 0o600)
	write(t, dir+"/config", "[profile ml]\nregion=us-east-1\nendpoint_url="+st.url+"\n", 0o600)
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", dir+"/credentials")
	t.Setenv("AWS_CONFIG_FILE", dir+"/config")
	if err := open(cfg); !errors.Is(err, ErrService) || !strings.Contains(err.Error(), "does not accept the credentials") {
		t.Errorf("wrong credentials: %v", err)
	}
	if err := open(Config{S3: S3{Profile: "ml"}}); err != nil {
		t.Errorf("shared files: %v", err)
	}
	t.Setenv("AWS_PROFILE", "ml")
	if err := open(Config{}); err != nil {
		t.Errorf("shared files by AWS_PROFILE: %v", err)
	}
	if err := open(st.login(t)); err != nil {
		t.Errorf("environment: %v", err)
	}
	_, err := st.client.PutBucketPolicy(t.Context(), &s3.PutBucketPolicyInput{Bucket: aws.String("bkt"), Policy: aws.String(`{"Version":"2012-10-17",
		"Statement":[{"Effect":"Allow","Principal":{"AWS":["*"]},"Action":["s3:GetObject","s3:ListBucket"],"Resource":["arn:aws:s3:::bkt","arn:aws:s3:::bkt/*"]}]}`)})
	check(t, err)
	if err := open(anonymous); err != nil {
		t.Errorf("anonymous, public: %v", err)
	}
}

func TestMissingObjectsAreNamed(t *testing.T) {
	st := startStore(t)
	cfg := st.login(t)
	st.put(t, "m/a", []byte("1"), "")
	st.put(t, "odd/.wh.a", []byte("1"), "")
	st.put(t, "odd/ok", []byte("1"), "")
	for ref, want := range map[string]string{
		"s3://none/m": "no bucket none", "s3://bkt/none": "nothing of this name", "s3://bkt/none/": "nothing with this prefix",
		"s3://bkt/odd": "hides files", "s3://": "want s3://", "s3://user:pass@bkt/x": "want s3://BUCKET",
	} {
		_, err := Open(t.Context(), ref, cfg)
		if err == nil || !hasClass(err) || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") || strings.Contains(err.Error(), "pass") {
			t.Errorf("%s: want %q, got %v", ref, want, err)
		}
	}
	cfg.Exclude = []string{".wh.*"}
	m, err := Open(t.Context(), "s3://bkt/odd", cfg)
	if err != nil || len(m.Files) != 1 {
		t.Errorf("excluded: %v", err)
	}
	m, err = Open(t.Context(), "s3://bkt/m", st.login(t))
	check(t, err)
	st.put(t, "m/a", []byte("2"), "")
	if _, err := read(t.Context(), m, "a", 0); !errors.Is(err, ErrChanged) {
		t.Errorf("changed since it was listed: %v", err)
	}
}
