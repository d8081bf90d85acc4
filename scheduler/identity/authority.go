package identity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"time"
)

// Authority signs the certificates of a cluster.
type Authority struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// authorityLife is how long an authority lasts.
const authorityLife = 10 * 365 * 24 * time.Hour

// backdate lets clocks of other hosts be a little behind.
const backdate = time.Hour

// NewAuthority makes an authority under a name and returns it with its files' contents, in PEM form.
func NewAuthority(name string) (a *Authority, certPEM, keyPEM []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, nil, err
	}
	template := &x509.Certificate{Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-backdate), NotAfter: time.Now().Add(authorityLife),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign}
	if template.SerialNumber, err = serial(); err != nil {
		return nil, nil, nil, err
	}
	a = &Authority{cert: template, key: key}
	if certPEM, keyPEM, err = a.sign(template, key); err != nil {
		return nil, nil, nil, err
	}
	a, err = ParseAuthority(certPEM, keyPEM)
	return a, certPEM, keyPEM, err
}

// ParseAuthority reads what NewAuthority returned.
func ParseAuthority(certPEM, keyPEM []byte) (*Authority, error) {
	certBlock, _ := pem.Decode(certPEM)
	keyBlock, _ := pem.Decode(keyPEM)
	if certBlock == nil || keyBlock == nil {
		return nil, errors.New("no certificate or no key in PEM form")
	}
	cert, err := x509.ParseCertificate(certBlock.Bytes)
	if err != nil {
		return nil, err
	}
	parsed, err := x509.ParsePKCS8PrivateKey(keyBlock.Bytes)
	if err != nil {
		return nil, err
	}
	key, ok := parsed.(crypto.Signer)
	if !ok || !cert.IsCA {
		return nil, errors.New("this is no authority: the certificate must not sign others")
	}
	public, ok := cert.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !public.Equal(key.Public()) {
		return nil, errors.New("certificate and key do not belong together")
	}
	return &Authority{cert: cert, key: key}, nil
}

// Issue makes a certificate for the host of a name and returns it with its key, in PEM form.
func (a *Authority) Issue(name string, role Role, life time.Duration) (certPEM, keyPEM []byte, err error) {
	if name == "" || life <= 0 {
		return nil, nil, errors.New("a certificate needs a name and a life")
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	end := time.Now().Add(life)
	if end.After(a.cert.NotAfter) {
		return nil, nil, fmt.Errorf("the authority itself ends at %s", a.cert.NotAfter.Format(time.DateOnly))
	}
	template := &x509.Certificate{Subject: pkix.Name{CommonName: name}, DNSNames: []string{string(role)}, NotBefore: time.Now().Add(-backdate),
		NotAfter: end, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	if template.SerialNumber, err = serial(); err != nil {
		return nil, nil, err
	}
	return a.sign(template, key)
}

func (a *Authority) sign(template *x509.Certificate, key *ecdsa.PrivateKey) (certPEM, keyPEM []byte, err error) {
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		return nil, nil, err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), nil
}

func serial() (*big.Int, error) { return rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127)) }
