// Package identity tells by certificates who belongs to a cluster: one authority of its own signs a certificate for each host and
// scheduler, and nobody else's is taken, whatever it says.
//
//	certificate of a host       DNS name node.shoal.internal, and the host's name as common name
//	certificate of a scheduler  DNS name scheduler.shoal.internal
//
// The names are roles: a host's certificate cannot pose as a scheduler. Addresses are not checked, since hosts move; that a host is one
// of the cluster is what counts.
//
// The files are read again when they change, so that certificates and the authority are replaced without a restart: what is open stays
// open, new connections go by the new files. While a new file is broken the old one holds.
package identity

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
)

// Role is what a certificate makes of its owner.
type Role string

// The roles, each the DNS name its certificates have.
const (
	Node      Role = "node.shoal.internal"
	Scheduler Role = "scheduler.shoal.internal"
)

// recheck is how often the files are looked at.
const recheck = time.Second

// Files are in PEM form. CA may hold several authorities, as during a change from one to the next.
type Files struct{ CA, Cert, Key string }

// Identity is a host's certificate and the authority it trusts. It is safe for concurrent use.
type Identity struct {
	files Files
	log   *slog.Logger
	now   func() time.Time

	mu      sync.Mutex // guards all below
	current material
	stamp   [3]stamp
	looked  time.Time
}

// material is what the files hold.
type material struct {
	cert tls.Certificate
	pool *x509.CertPool
}

// stamp tells one content of a file from the next.
type stamp struct {
	modified time.Time
	size     int64
}

// Load reads the files. The certificate has to be for the role, signed by the authority, and of now; the error says what is wrong and
// with which file. log hears of files that cannot be read again; nil discards.
func Load(files Files, role Role, log *slog.Logger) (*Identity, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	id := &Identity{files: files, log: log, now: time.Now}
	var err error
	if id.current, err = read(files); err != nil {
		return nil, err
	}
	id.stamp, id.looked = stamps(files), id.now()
	if err := id.check(id.current.cert.Leaf, nil, role); err != nil {
		return nil, fmt.Errorf("certificate %s: %w", files.Cert, err)
	}
	return id, nil
}

func read(files Files) (material, error) {
	var m material
	pem, err := os.ReadFile(files.CA)
	if err != nil {
		return m, fmt.Errorf("CA file: %w", err)
	}
	m.pool = x509.NewCertPool()
	if !m.pool.AppendCertsFromPEM(pem) {
		return m, fmt.Errorf("CA file %s: no certificate in PEM form in it", files.CA)
	}
	if m.cert, err = tls.LoadX509KeyPair(files.Cert, files.Key); err != nil {
		return m, fmt.Errorf("certificate %s with key %s: %w", files.Cert, files.Key, err)
	}
	return m, nil
}

func stamps(files Files) (out [3]stamp) {
	for i, path := range []string{files.CA, files.Cert, files.Key} {
		if info, err := os.Stat(path); err == nil {
			out[i] = stamp{info.ModTime(), info.Size()}
		}
	}
	return out
}

// get returns what the files hold now.
func (id *Identity) get() material {
	id.mu.Lock()
	defer id.mu.Unlock()
	now := id.now()
	if since := now.Sub(id.looked); since >= 0 && since < recheck {
		return id.current
	}
	id.looked = now
	if seen := stamps(id.files); seen != id.stamp {
		m, err := read(id.files)
		if err != nil { // perhaps only half replaced: looked at again
			id.log.Warn("certificates not read again, the old ones hold", "error", err)
			return id.current
		}
		id.current, id.stamp = m, seen
		id.log.Info("certificates read again", "expires", m.cert.Leaf.NotAfter)
	}
	return id.current
}

// Server returns the configuration of a server that takes connections of one role.
func (id *Identity) Server(from Role) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{"http/1.1"}, ClientAuth: tls.RequireAnyClientCert,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			cert := id.get().cert
			return &cert, nil
		},
		VerifyConnection: func(s tls.ConnectionState) error { return id.verify(s, from) },
	}
}

// Client returns the configuration of a client of servers of one role.
func (id *Identity) Client(to Role) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, ServerName: string(to),
		InsecureSkipVerify: true, // VerifyConnection does all of it, against the authority of now
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			cert := id.get().cert
			return &cert, nil
		},
		VerifyConnection: func(s tls.ConnectionState) error { return id.verify(s, to) },
	}
}

// verify checks the other side of a connection, also of one that is resumed.
func (id *Identity) verify(s tls.ConnectionState, role Role) error {
	if len(s.PeerCertificates) == 0 {
		return errors.New("it shows no certificate")
	}
	return id.check(s.PeerCertificates[0], s.PeerCertificates[1:], role)
}

func (id *Identity) check(leaf *x509.Certificate, chain []*x509.Certificate, role Role) error {
	between := x509.NewCertPool()
	for _, c := range chain {
		between.AddCert(c)
	}
	_, err := leaf.Verify(x509.VerifyOptions{Roots: id.get().pool, Intermediates: between, DNSName: string(role), CurrentTime: id.now(),
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	if err != nil {
		return fmt.Errorf("certificate of %q is not one of this cluster for %s: %w", leaf.Subject.CommonName, role, err)
	}
	return nil
}
