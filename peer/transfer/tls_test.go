package transfer_test

import (
	"crypto/tls"
	"crypto/x509"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/shoal-project/shoal/peer/store/storetest"
	"github.com/shoal-project/shoal/peer/transfer"
)

// serveTLS serves a store in TLS and returns its address and how clients reach it.
func serveTLS(t testing.TB, s stored) (string, *tls.Config) {
	t.Helper()
	h, err := transfer.NewHandler(transfer.Config{Spacing: -1}, s)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(h)
	srv.StartTLS()
	t.Cleanup(func() { srv.CloseClientConnections(); srv.Close() })
	pool := x509.NewCertPool()
	pool.AddCert(srv.Certificate())
	return strings.TrimPrefix(srv.URL, "https://"), &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS13}
}

func TestPiecesArriveInTLS(t *testing.T) {
	s := newStore(t)
	data, _ := storetest.Content(1, 1<<20)
	d := storetest.Fill(t, s, data)
	addr, cfg := serveTLS(t, stored{s})
	buf := make([]byte, 1000)
	if err := newClient(t, transfer.ClientConfig{TLS: cfg}).Piece(t.Context(), addr, d, 500, buf); err != nil || string(buf) != string(data[500:1500]) {
		t.Errorf("error %v", err)
	}
	if err := newClient(t, transfer.ClientConfig{TLS: &tls.Config{MinVersion: tls.VersionTLS13}}).Piece(t.Context(), addr, d, 500, buf); err == nil {
		t.Error("a server of unknown authority was believed")
	}
	if err := newClient(t, transfer.ClientConfig{}).Piece(t.Context(), addr, d, 500, buf); err == nil {
		t.Error("a piece came in plain HTTP")
	}
}

// BenchmarkLink compares what a GB costs both ends together, in CPU seconds, without TLS and with it. Compare the two within one run.
func BenchmarkLink(b *testing.B) {
	s := newStore(b)
	data, _ := storetest.Content(1, 64<<20)
	d := storetest.Fill(b, s, data)
	plain := serve(b, transfer.Config{Spacing: -1}, stored{s})
	secure, cfg := serveTLS(b, stored{s})
	for _, link := range []struct {
		name, addr string
		cfg        *tls.Config
	}{{"plain", plain, nil}, {"tls", secure, cfg}} {
		b.Run(link.name, func(b *testing.B) {
			c := newClient(b, transfer.ClientConfig{TLS: link.cfg})
			buf := make([]byte, 4<<20)
			b.SetBytes(int64(len(buf)))
			before, moved := cpu(b), int64(0)
			for ; b.Loop(); moved += int64(len(buf)) {
				if err := c.Piece(b.Context(), link.addr, d, moved%int64(len(data)), buf); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric((cpu(b)-before).Seconds()/(float64(moved)/1e9), "cpu-s/GB")
		})
	}
}

// cpu returns the processor time of this process so far.
func cpu(t testing.TB) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
