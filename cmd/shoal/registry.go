package main

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"os"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/shoal-project/shoal/converter"
	"github.com/urfave/cli/v2"
)

// accessFlags are those of every command that speaks to registries.
func accessFlags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "plain-http", Usage: "speak plain HTTP to the registries"},
		&cli.StringFlag{Name: "ca-file", Usage: "trust the certificates in this `FILE` too"},
	}
}

// access turns the flags into how registries are spoken to. Credentials are those of docker login, podman login, skopeo login and their
// helpers.
func access(ctx *cli.Context) (converter.Access, error) {
	a := converter.Access{PlainHTTP: ctx.Bool("plain-http")}
	a.Keychain = authn.DefaultKeychain
	transport, err := newTransport(ctx.String("ca-file"))
	if err != nil {
		return a, usageError(err)
	}
	a.Transport, a.UserAgent = transport, "shoal/"+buildVersion()
	return a, nil
}

// insecureNames makes names of registries stand for plain HTTP.
func insecureNames() name.Option { return name.Insecure }

// newTransport returns the transport for registries and model hubs.
func newTransport(caFile string) (*http.Transport, error) {
	t := &http.Transport{
		Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true, DisableCompression: true,
		MaxIdleConns: 64, MaxIdleConnsPerHost: 16, IdleConnTimeout: 90 * time.Second,
		TLSHandshakeTimeout: 10 * time.Second, ExpectContinueTimeout: time.Second,
	}
	if caFile == "" {
		return t, nil
	}
	pem, err := os.ReadFile(caFile)
	if err != nil {
		return nil, fmt.Errorf("--ca-file: %w", err)
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("--ca-file %s holds no PEM certificate", caFile)
	}
	t.TLSClientConfig = &tls.Config{RootCAs: pool}
	return t, nil
}
