package source

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
)

// Config says which files of a model are wanted and how its services are spoken to. The zero value works.
type Config struct {
	// Include and Exclude are globs with **. One without a slash matches the last part of a name at any depth, any other the path
	// from the model's top; one that ends in a slash matches folders only. Who matches a folder matches all below it. Without
	// Include all files are wanted. Exclude wins, and has .git/ and .cache/huggingface/ in any case.
	Include, Exclude []string

	// Stdin is what "-" reads; nil is an empty one.
	Stdin io.Reader

	Hub Hub
	S3  S3

	// Keychain has the credentials for registries; nil is anonymous.
	Keychain authn.Keychain
	// NameOptions are for the names of registries, such as name.Insecure.
	NameOptions []name.Option

	// Transport speaks HTTP to all services; nil is one of the package's own. It must not ask for compression.
	Transport http.RoundTripper

	// MaxFiles bounds the number of names in a model; 0 is 1,000,000.
	MaxFiles int
	// MaxExpanded bounds the bytes an archive may expand to; 0 is 4 TiB.
	MaxExpanded int64
	// MaxRatio bounds how many bytes an archive may make of one, once they are more than 1 GiB; 0 is 200, below 0 unbounded.
	MaxRatio int64

	// Retries is how often in a row a request or the rest of a file is asked for again before the error is told; 0 is 6,
	// below 0 never.
	Retries int
	// RetryDelay is how long the first of them waits; each further one waits double, up to 30 s, with jitter; 0 is 0.5 s.
	RetryDelay time.Duration
	// Stall is how long a service may be silent before it is asked again; 0 is 60 s.
	Stall time.Duration
	// Waiting, if not nil, is told why there is a pause, in a few words, and how long it is, before each one. It may be called
	// concurrently.
	Waiting func(why string, pause time.Duration)
}

// Hub is a model hub that speaks as that of Hugging Face does.
type Hub struct {
	Endpoint string // "" is https://huggingface.co
	Token    string // "" asks as nobody
}

// S3 is an object store. What is empty comes from the chain that all tools of AWS follow: their environment variables, files in
// ~/.aws, the machine's role.
type S3 struct {
	Endpoint  string // URL; "" is that of AWS
	Region    string // "" and none in the chain is us-east-1
	Profile   string // in ~/.aws
	PathStyle bool   // the bucket is in the path, not in the host's name; so it is with any Endpoint that is an address
	Anonymous bool   // ask without credentials
}

// Validate tells all that is wrong with the configuration.
func (c *Config) Validate() error {
	_, err := newFilter(c.Include, c.Exclude)
	if c.MaxFiles < 0 || c.MaxExpanded < 0 {
		err = errors.Join(err, errors.New("a limit of a model is below 0"))
	}
	return err
}

const (
	defaultMaxFiles    = 1_000_000
	defaultMaxExpanded = 4 << 40
	defaultMaxRatio    = 200
	defaultRetries     = 6
	defaultRetryDelay  = 500 * time.Millisecond
	defaultStall       = 60 * time.Second
)

// session is what one call of Open needs: the configuration with its defaults, parsed.
type session struct {
	Config
	filter *filter
	http   http.RoundTripper // Transport, or our own
	own    *http.Transport
}

// hangUp closes the connections that wait for requests, unless they are the caller's.
func (s *session) hangUp() {
	if s.own != nil {
		s.own.CloseIdleConnections()
	}
}

func newSession(cfg Config) (*session, error) {
	if err := cfg.Validate(); err != nil {
		return nil, &classified{ErrModel, err}
	}
	s := &session{Config: cfg}
	s.filter, _ = newFilter(cfg.Include, cfg.Exclude)
	if s.MaxFiles == 0 {
		s.MaxFiles = defaultMaxFiles
	}
	if s.MaxExpanded == 0 {
		s.MaxExpanded = defaultMaxExpanded
	}
	if s.MaxRatio == 0 {
		s.MaxRatio = defaultMaxRatio
	}
	if s.Retries == 0 {
		s.Retries = defaultRetries
	}
	if s.RetryDelay == 0 {
		s.RetryDelay = defaultRetryDelay
	}
	if s.Stall == 0 {
		s.Stall = defaultStall
	}
	if s.http = s.Transport; s.http == nil {
		s.own = newTransport()
		s.http = s.own
	}
	return s, nil
}

// newTransport is the default transport without compression, which would hide sizes, and with time limits.
func newTransport() *http.Transport {
	t := &http.Transport{Proxy: http.ProxyFromEnvironment}
	if base, ok := http.DefaultTransport.(*http.Transport); ok {
		t = base.Clone()
	}
	t.DisableCompression = true
	t.MaxIdleConnsPerHost = 16
	t.ResponseHeaderTimeout = defaultStall
	return t
}

func tooMany(ref string, limit int) error {
	return fmt.Errorf("%w %s holds more than %d names; choose with --include or --exclude", ErrModel, ref, limit)
}
