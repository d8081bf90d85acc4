package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"path"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"
	"github.com/aws/smithy-go/logging"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

const s3Region = "us-east-1" // when nobody says another

// linkLife is how long a signed link to an object is good; temporary credentials end it sooner.
const linkLife = 12 * time.Hour

// bucket is a prefix in an object store.
type bucket struct {
	s      *session
	client *s3.Client
	name   string
	prefix string // "" or with a slash behind
	ref    string
}

// openS3 lists the objects below a prefix, or takes the one object of that name.
func (s *session) openS3(ctx context.Context, ref string) (*Model, error) {
	b := &bucket{s: s, ref: ref}
	b.name, b.prefix, _ = strings.Cut(strings.TrimPrefix(ref, "s3://"), "/")
	if b.name == "" || strings.ContainsAny(b.name, "@:? ") {
		return nil, fmt.Errorf("%w %s: want s3://BUCKET or s3://BUCKET/PREFIX", ErrModel, printable(ref))
	}
	cfg, err := s.loadAWS(ctx)
	if err != nil {
		return nil, classify(ErrService, "%s: the settings of AWS: %w", ref, err)
	}
	b.client = s3.NewFromConfig(cfg, s.s3Options)
	key := b.prefix
	if b.prefix = strings.TrimRight(b.prefix, "/"); b.prefix != "" {
		b.prefix += "/"
	}
	files, err := b.list(ctx)
	if errors.Is(err, errNoObject) {
		if strings.HasSuffix(key, "/") || key == "" {
			return nil, fmt.Errorf("%w %s: the bucket has nothing with this prefix; check the name", ErrModel, ref)
		}
		return b.single(ctx, key)
	}
	if err != nil {
		return nil, err
	}
	return &Model{Name: path.Base(path.Join(b.name, b.prefix)), Files: files}, nil
}

// loadAWS follows the chain of AWS: environment, files, role of the machine.
func (s *session) loadAWS(ctx context.Context) (aws.Config, error) {
	opts := []func(*config.LoadOptions) error{config.WithLogger(logging.Nop{})}
	stay := func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	transport, plain := s.Transport.(*http.Transport)
	switch {
	case plain: // the chain adds the certificates of AWS_CA_BUNDLE to a client of this kind alone
		opts = append(opts, config.WithHTTPClient(awshttp.NewBuildableClient().WithTransportOptions(func(t *http.Transport) { configure(t, transport) })))
	case s.Transport != nil:
		opts = append(opts, config.WithHTTPClient(&http.Client{Transport: s.Transport, CheckRedirect: stay}))
	}
	if s.S3.Region != "" {
		opts = append(opts, config.WithRegion(s.S3.Region))
	}
	if s.S3.Profile != "" {
		opts = append(opts, config.WithSharedConfigProfile(s.S3.Profile))
	}
	cfg, err := config.LoadDefaultConfig(ctx, opts...)
	if built, ok := cfg.HTTPClient.(*awshttp.BuildableClient); ok && plain {
		cfg.HTTPClient = &http.Client{Transport: built.GetTransport(), CheckRedirect: stay}
	}
	return cfg, err
}

// configure has one transport do as another one does.
func configure(t, as *http.Transport) {
	t.Proxy, t.DialContext, t.DisableCompression = as.Proxy, as.DialContext, as.DisableCompression
	t.TLSHandshakeTimeout, t.ResponseHeaderTimeout, t.IdleConnTimeout = as.TLSHandshakeTimeout, as.ResponseHeaderTimeout, as.IdleConnTimeout
	t.MaxIdleConns, t.MaxIdleConnsPerHost, t.ForceAttemptHTTP2 = as.MaxIdleConns, as.MaxIdleConnsPerHost, as.ForceAttemptHTTP2
	if as.TLSClientConfig != nil {
		t.TLSClientConfig = as.TLSClientConfig.Clone()
	}
}

func (s *session) s3Options(o *s3.Options) {
	if o.Region == "" {
		o.Region = s3Region
	}
	if s.S3.Endpoint != "" {
		o.BaseEndpoint = aws.String(s.S3.Endpoint)
	}
	if s.S3.Anonymous {
		o.Credentials = aws.AnonymousCredentials{}
	}
	o.UsePathStyle = s.S3.PathStyle
	o.Retryer = aws.NopRetryer{} // the session asks again
}

// errNoObject: there is nothing below the prefix.
var errNoObject = errors.New("no object")

func (b *bucket) list(ctx context.Context) ([]File, error) {
	c := b.s.collector(b.ref)
	var files []File
	objects := 0
	in := &s3.ListObjectsV2Input{Bucket: &b.name, Prefix: &b.prefix, EncodingType: types.EncodingTypeUrl}
	for {
		page, err := b.page(ctx, in)
		if err != nil {
			return nil, err
		}
		for i := range page.Contents {
			key := aws.ToString(page.Contents[i].Key)
			if page.EncodingType == types.EncodingTypeUrl {
				if key, err = url.QueryUnescape(key); err != nil {
					return nil, classify(ErrService, "%s: the listing has the key %q: %w", b.ref, key, err)
				}
			}
			objects++
			f, ok, err := b.object(c, key, &page.Contents[i])
			if err != nil {
				return nil, err
			}
			if ok {
				files = append(files, f)
			}
		}
		if !aws.ToBool(page.IsTruncated) {
			break
		}
		if aws.ToString(page.NextContinuationToken) == "" || len(page.Contents) == 0 {
			return nil, classify(ErrService, "%s: the bucket's listing does not end", b.ref)
		}
		in.ContinuationToken = page.NextContinuationToken
	}
	if objects == 0 {
		return nil, errNoObject
	}
	return c.listed(files)
}

// object makes a file of what a listing says. A key that ends in a slash stands for a folder, as consoles make them.
func (b *bucket) object(c *collector, key string, o *types.Object) (File, bool, error) {
	name, ok := strings.CutPrefix(key, b.prefix)
	switch folder, isFolder := strings.CutSuffix(name, "/"); {
	case !ok:
		return File{}, false, classify(ErrService, "%s: the bucket lists %q, which has another prefix", b.ref, key)
	case name == "":
		return File{}, false, nil
	case isFolder && aws.ToInt64(o.Size) == 0:
		if c.drops(folder) {
			return File{}, false, nil
		}
		return File{}, false, c.addDir(folder)
	case !c.wants(strings.TrimSuffix(name, "/")):
		return File{}, false, nil
	}
	f := b.newFile(name, key, aws.ToInt64(o.Size), aws.ToString(o.ETag))
	return f, true, c.add(&f)
}

func (b *bucket) page(ctx context.Context, in *s3.ListObjectsV2Input) (*s3.ListObjectsV2Output, error) {
	var out *s3.ListObjectsV2Output
	moved := false
	err := b.s.retry(ctx, func(ctx context.Context) error {
		var err error
		if out, err = b.client.ListObjectsV2(ctx, in); err == nil {
			return nil
		}
		if region := regionOf(err); region != "" && !moved && region != b.client.Options().Region {
			moved = true
			b.client = s3.New(b.client.Options(), func(o *s3.Options) { o.Region = region })
			if out, err = b.client.ListObjectsV2(ctx, in); err == nil {
				return nil
			}
		}
		return b.fault(b.ref, err)
	})
	return out, err
}

// regionOf is where a bucket is, if it answered that it is elsewhere.
func regionOf(err error) string {
	if resp, ok := errors.AsType[*awshttp.ResponseError](err); ok && resp.Response != nil {
		switch resp.HTTPStatusCode() {
		case http.StatusMovedPermanently, http.StatusTemporaryRedirect, http.StatusBadRequest:
			return resp.Response.Header.Get("X-Amz-Bucket-Region")
		}
	}
	return ""
}

// single is a model of one object.
func (b *bucket) single(ctx context.Context, key string) (*Model, error) {
	var head *s3.HeadObjectOutput
	err := b.s.retry(ctx, func(ctx context.Context) error {
		var err error
		if head, err = b.client.HeadObject(ctx, &s3.HeadObjectInput{Bucket: &b.name, Key: &key}); err != nil {
			return b.fault(b.ref, err)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	base := path.Base(key)
	files, err := b.s.single(b.ref, b.newFile(base, key, aws.ToInt64(head.ContentLength), aws.ToString(head.ETag)))
	if err != nil {
		return nil, err
	}
	return &Model{Name: stem(base), Files: files}, nil
}

func (b *bucket) newFile(name, key string, size int64, tag string) File {
	r := &remoteFile{name: b.ref + ": " + name, size: size, tag: tag}
	r.get = func(ctx context.Context, want span, tag string) (*part, error) { return b.get(ctx, r, key, want, tag) }
	f := File{Path: name, Size: size}
	f.open = func(ctx context.Context, offset int64) (io.ReadCloser, error) {
		return b.s.openRemote(ctx, r, span{from: offset})
	}
	f.url = func(ctx context.Context) (string, error) {
		signed, err := s3.NewPresignClient(b.client).PresignGetObject(ctx, &s3.GetObjectInput{Bucket: &b.name, Key: &key}, s3.WithPresignExpires(linkLife))
		if err != nil {
			return "", b.fault(r.name, err)
		}
		return signed.URL, nil
	}
	return f
}

// get asks for an object. Its checksums are asked for behind the client's back, which would compare them itself, and take the
// end of a connection that is resumed for the end of the object.
func (b *bucket) get(ctx context.Context, r *remoteFile, key string, want span, tag string) (*part, error) {
	in := &s3.GetObjectInput{Bucket: &b.name, Key: &key}
	if tag != "" {
		in.IfMatch = &tag
	}
	var opts []func(*s3.Options)
	if !want.whole() {
		in.Range = aws.String(want.header())
	} else {
		opts = append(opts, s3.WithAPIOptions(smithyhttp.SetHeaderValue("X-Amz-Checksum-Mode", "ENABLED")))
	}
	out, err := b.client.GetObject(ctx, in, opts...)
	if err != nil {
		return nil, b.fault(r.name, err)
	}
	p := &part{body: out.Body, size: aws.ToInt64(out.ContentLength), tag: aws.ToString(out.ETag)}
	if want.whole() {
		p.sums = objectSums(out)
		return p, nil
	}
	start, size, ok := contentRange(aws.ToString(out.ContentRange))
	if !ok || start != want.from {
		out.Body.Close()
		return nil, classify(ErrService, "%s: the bucket answers with the range %q, not from byte %d on", r.name, aws.ToString(out.ContentRange), want.from)
	}
	p.size = size
	return p, nil
}

// fault says what an error of the store means.
func (b *bucket) fault(what string, err error) error {
	code := ""
	if api, ok := errors.AsType[smithy.APIError](err); ok {
		code = api.ErrorCode()
	}
	resp, answered := errors.AsType[*awshttp.ResponseError](err)
	if answered && resp.HTTPStatusCode() != 0 {
		status := resp.HTTPStatusCode()
		if status == http.StatusPreconditionFailed || status == http.StatusRequestedRangeNotSatisfiable {
			return changed(what)
		}
		fault := classify(answerClass(status), "%s: %s", what, b.advise(code, status))
		if code == "SlowDown" || code == "RequestTimeout" || code == "InternalError" {
			status = http.StatusServiceUnavailable
		}
		return refused("the store", &http.Response{StatusCode: status, Header: resp.Response.Header}, fault)
	}
	dns, isDNS := errors.AsType[*net.DNSError](err)
	if isDNS && dns.IsNotFound && !b.s.S3.PathStyle {
		return classify(ErrService, "%s: %s cannot be resolved; if the store wants the bucket in the path, ask for path style", what, dns.Name)
	}
	if strings.Contains(err.Error(), "failed to refresh cached credentials") || strings.Contains(err.Error(), "get identity") {
		return classify(ErrService, "%s: no usable credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or a profile in ~/.aws, "+
			"or ask anonymously if the bucket is public (%w)", what, innermost(err))
	}
	return serviceError(what, "the store", innermost(err))
}

// innermost leaves out the layers of the client, which say what operation of which service it was.
func innermost(err error) error {
	if op, ok := errors.AsType[*smithy.OperationError](err); ok {
		err = op.Err
	}
	if send, ok := errors.AsType[*smithyhttp.RequestSendError](err); ok {
		err = send.Err
	}
	return err
}

func (b *bucket) advise(code string, status int) string {
	switch code {
	case "NoSuchBucket":
		return fmt.Sprintf("there is no bucket %s (404); check its name and the endpoint", b.name)
	case "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken":
		return fmt.Sprintf("the store does not accept the credentials (%s); check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the profile", code)
	case "RequestTimeTooSkewed":
		return "the clock of this machine is wrong, says the store; set it"
	case "InvalidObjectState":
		return "the object is archived; restore it first"
	case "AuthorizationHeaderMalformed", "PermanentRedirect":
		return fmt.Sprintf("the bucket is in another region (%s); name it", code)
	}
	switch {
	case status == http.StatusForbidden && b.s.S3.Anonymous:
		return "the store forbids it to the anonymous (403); give credentials"
	case status == http.StatusForbidden:
		return fmt.Sprintf("the store forbids it (403 %s); the credentials need the rights to list the bucket and to get its objects", code)
	case status == http.StatusNotFound:
		return fmt.Sprintf("bucket %s has nothing of this name (404); check it", b.name)
	}
	return statusAdvice(status, "the store")
}
