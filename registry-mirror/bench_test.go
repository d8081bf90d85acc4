package mirror

import (
	"io"
	"net/http"
	"testing"
)

// BenchmarkManifestHead asks for a manifest that is known, as a thousand starting pods do, over loopback connections that are kept. Both ends
// run here.
func BenchmarkManifestHead(b *testing.B) {
	for name, reference := range map[string]string{"tag": "v1", "digest": ""} {
		b.Run(name, func(b *testing.B) {
			f := newFixture(b, Config{}, nil)
			if reference == "" {
				reference = f.manifest.String()
			}
			url := f.mirror.URL + "/v2/a/b/manifests/" + reference + "?ns=" + f.origin.Listener.Addr().String()
			client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}}
			defer client.CloseIdleConnections()
			b.SetParallelism(16)
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					req, err := http.NewRequestWithContext(b.Context(), http.MethodHead, url, nil)
					if err != nil {
						b.Error(err)
						return
					}
					resp, err := client.Do(req)
					if err != nil || resp.StatusCode != http.StatusOK {
						b.Errorf("%v %v", resp, err)
						return
					}
					_, _ = io.Copy(io.Discard, resp.Body)
					_ = resp.Body.Close()
				}
			})
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "requests/s")
			b.ReportMetric(float64(f.origin.asked.Load()), "origin-requests")
		})
	}
}
