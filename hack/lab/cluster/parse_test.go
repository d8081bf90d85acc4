package cluster

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
)

func TestAccessLogCountsBlobBytesThatWereSent(t *testing.T) {
	a, b := digest.FromString("a"), digest.FromString("b")
	log := strings.NewReplacer("$A", a.String(), "$B", b.String()).Replace(
		`10.77.0.3 - - [22/Nov/2026:01:42:46 +0000] "GET /v2/ HTTP/1.1" 200 2 "" "Go-http-client/1.1"
10.77.0.3 - - [22/Nov/2026:01:42:46 +0000] "HEAD /v2/m/x/blobs/$A HTTP/1.1" 200 1000 "" "containerd/2.3.4"
10.77.0.3 - - [22/Nov/2026:01:42:46 +0000] "GET /v2/m/x/blobs/$A HTTP/1.1" 200 1000 "" "containerd/2.3.4"
10.77.0.4 - - [22/Nov/2026:01:42:47 +0000] "GET /v2/m/x/blobs/$A?ns=r HTTP/1.1" 206 24 "" "an agent \"GET /v2/m/blobs/$B"
10.77.0.4 - - [22/Nov/2026:01:42:47 +0000] "GET /v2/m/x/blobs/$B HTTP/1.1" 404 157 "" ""
10.77.0.4 - - [22/Nov/2026:01:42:47 +0000] "GET /v2/m/x/blobs/$B HTTP/1.1" 206 7 "" ""
10.77.0.4 - - [22/Nov/2026:01:42:47 +0000] "GET /v2/m/x/manifests/$B HTTP/1.1" 200 99 "" ""
10.77.0.4 - - [22/Nov/2026:01:42:47 +0000] "PUT /v2/m/x/blobs/uploads/$B HTTP/1.1" 201 0 "" ""
time="2026-11-22T01:42:46Z" level=info msg="response completed"
10.77.0.4 - - [22/Nov/2026:01:42:47 +0000] "GET /v2/m/x/blobs/$B`)
	want := map[digest.Digest]int64{a: 1024, b: 7}
	if diff := cmp.Diff(want, parseAccessLog(strings.Lines(log))); diff != "" {
		t.Errorf("served (-want +got):\n%s", diff)
	}
}

func TestMetricsAddUpByLabels(t *testing.T) {
	m, err := parseMetrics(strings.NewReader(`# HELP shoal_peer_read_bytes_total Bytes.
# TYPE shoal_peer_read_bytes_total counter
shoal_peer_read_bytes_total{origin="cache",kind="a"} 3
shoal_peer_read_bytes_total{origin="peer",kind="a"} 1.5e+06
shoal_peer_read_bytes_total{origin="peer",kind="b"} 2
go_goroutines 9
`))
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name   string
		labels []string
		want   float64
	}{
		{"shoal_peer_read_bytes_total", []string{`origin="peer"`}, 1500002},
		{"shoal_peer_read_bytes_total", []string{`origin="peer"`, `kind="b"`}, 2},
		{"shoal_peer_read_bytes_total", nil, 1500005},
		{"go_goroutines", nil, 9},
		{"absent", nil, 0},
	} {
		if got := m.Sum(test.name, test.labels...); got != test.want {
			t.Errorf("Sum(%s, %v) = %v, want %v", test.name, test.labels, got, test.want)
		}
	}
	if _, err := parseMetrics(strings.NewReader("broken x\n")); err == nil {
		t.Error("a broken line gave no error")
	}
}

func TestUnits(t *testing.T) {
	for text, want := range map[string]Rate{"": 0, "0": 0, "200mbit": 200e6, "1.5Gbit": 1.5e9, "64kbit": 64e3} {
		if got, err := ParseRate(text); err != nil || got != want {
			t.Errorf("ParseRate(%q) = %d, %v, want %d", text, got, err, want)
		}
	}
	for text, want := range map[string]int64{"256MiB": 256 << 20, "1 KiB": 1 << 10, "2GB": 2e9, "17": 17} {
		if got, err := ParseSize(text); err != nil || got != want {
			t.Errorf("ParseSize(%q) = %d, %v, want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"fast", "1mb", "-1mbit", "1e9bit", "99999999gbit"} {
		if got, err := ParseRate(text); err == nil {
			t.Errorf("ParseRate(%q) = %d, want an error", text, got)
		}
	}
	for _, text := range []string{"", "0", "MiB", "12mbit"} {
		if got, err := ParseSize(text); err == nil {
			t.Errorf("ParseSize(%q) = %d, want an error", text, got)
		}
	}
	// The figure of DESIGN: 256 MiB at 200 Mbit/s.
	if got := Rate(200e6).Seconds(256 << 20); got < 11.2 || got > 11.3 {
		t.Errorf("256 MiB at 200 Mbit/s take at least %.2f s, want 11.2 s", got)
	}
}

func TestCPUTimesAreReadBehindTheNameWhateverItHolds(t *testing.T) {
	stat := "7 (a) b (c) S 1 7 7 0 -1 4194560 1 2 3 4 150 25 8 9 20 0 11 0 5\n"
	want := CPU{User: 1500 * time.Millisecond, System: 250 * time.Millisecond}
	if got := parseCPU([]byte(stat)); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if got := parseCPU([]byte("7 (cut) S 1")); got != (CPU{}) {
		t.Errorf("got %+v of a line that was cut", got)
	}
	if got := want.Add(want).Sub(want); got != want {
		t.Errorf("adding and taking away the same gives %+v", got)
	}
}

func TestTimeWaitIsReadFromTheLineOfTCP(t *testing.T) {
	for sockstat, want := range map[string]int{
		"sockets: used 9\nTCP: inuse 4 orphan 0 tw 31 alloc 5 mem 1\nUDP: inuse 0 mem 0\n": 31,
		"UDP: tw 3\n": 0, "TCP: inuse\n": 0, "": 0,
	} {
		if got := parseTimeWait(sockstat); got != want {
			t.Errorf("%q: %d, want %d", sockstat, got, want)
		}
	}
}

func TestBytesOfALinkAreThoseItSent(t *testing.T) {
	text := `[{"ifname":"beyond2","link":"inside2","stats64":{"rx":{"bytes":7,"packets":1},"tx":{"bytes":1234567890123,"packets":9}}}]`
	if got, err := parseSent([]byte(text)); err != nil || got != 1234567890123 {
		t.Errorf("got %d, %v", got, err)
	}
	for _, text := range []string{"", "[]", "{}"} {
		if got, err := parseSent([]byte(text)); err == nil {
			t.Errorf("%q gave %d", text, got)
		}
	}
}
