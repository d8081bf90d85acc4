package converter

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"syscall"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/shoal-project/shoal/converter/repository"
	"github.com/shoal-project/shoal/converter/source"
)

// Every error of Convert that a user can do something about is of one of these classes.
var (
	// ErrConfig: a flag is wrong.
	ErrConfig = errors.New("wrong setting")
	// ErrSource: the model or the base image is missing, unreadable, hostile or of another platform.
	ErrSource = errors.New("unusable source")
	// ErrRegistry: a registry refused or could not be reached, or the layout that is the target could not be written.
	ErrRegistry = errors.New("registry")
	// ErrVerify: bytes did not have the digest they should.
	ErrVerify = errors.New("verification")
)

// classified gives an error a class without a word of its own in the text.
type classified struct {
	class error
	err   error
}

func (e *classified) Error() string        { return e.err.Error() }
func (e *classified) Unwrap() error        { return e.err }
func (e *classified) Is(target error) bool { return target == e.class }

func classify(class error, format string, args ...any) error {
	return &classified{class, fmt.Errorf(format, args...)}
}

// sourceError gives the errors of package source their class.
func sourceError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, source.ErrDigest):
		return &classified{ErrVerify, err}
	case errors.Is(err, source.ErrService):
		return &classified{ErrRegistry, err}
	case errors.Is(err, source.ErrModel), errors.Is(err, source.ErrChanged):
		return &classified{ErrSource, err}
	}
	return err
}

// modelError is sourceError for what happens while the model is read; an error without a class is the source's.
func modelError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if _, ok := errors.AsType[*classified](err); ok || errors.Is(err, errTemp) || errors.Is(err, repository.ErrLost) {
		return err
	}
	err = sourceError(err)
	if _, ok := errors.AsType[*classified](err); ok {
		return err
	}
	return &classified{ErrSource, err}
}

// baseError is what is wrong with a base image, or with reading it.
func (c *conversion) baseError(flag, ref string, err error) error {
	switch {
	case errors.Is(err, repository.ErrDigest), errors.Is(err, source.ErrDigest):
		return classify(ErrVerify, "base image %s: %w", ref, err)
	case errors.Is(err, source.ErrBase):
		return &classified{ErrSource, err}
	case errors.Is(err, repository.ErrNotFound):
		return classify(ErrSource, "base image %s does not exist: check %s (%w)", ref, flag, err)
	}
	return registryError("read base image "+ref, ref, err)
}

// pushError is what went wrong at the target.
func (c *conversion) pushError(doing string, err error) error {
	return targetError(c.target, doing, err)
}

// targetError is what went wrong at a target, unless it was its source.
func targetError(target repository.Reference, doing string, err error) error {
	if _, ok := errors.AsType[*classified](err); !ok && target.IsLayout() && errors.Is(err, repository.ErrLayout) {
		if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
			return classify(ErrRegistry, "%s: %w; make room there and run again", doing, err)
		}
		return classify(ErrRegistry, "%s: %w", doing, err)
	}
	return registryError(doing+" to "+target.String(), target.String(), err)
}

// registryError says in one line what a registry did not do, why, and what helps.
func registryError(doing, ref string, err error) error {
	if err == nil || errors.Is(err, context.Canceled) {
		return err
	}
	if _, ok := errors.AsType[*classified](err); ok {
		return err // it was not the registry
	}
	if errors.Is(err, repository.ErrLayout) {
		return classify(ErrSource, "%s: %w", doing, err)
	}
	if errors.Is(err, repository.ErrDigest) {
		return classify(ErrVerify, "%s: %w", doing, err)
	}
	if errors.Is(err, repository.ErrLost) {
		return classify(ErrRegistry, "%s: a connection broke, and the registry cannot go on where it was (%w); run again", doing, err)
	}
	host := ref
	if r, perr := name.ParseReference(ref); perr == nil {
		host = r.Context().RegistryStr()
	}
	if terr, ok := errors.AsType[*transport.Error](err); ok {
		advice, known := statusAdvice(terr.StatusCode, host)
		switch {
		case hasCode(terr, transport.BlobUnknownErrorCode):
			advice = host + " has the image, but not all that belongs to it; push it anew"
		case !known:
			advice = fmt.Sprintf("%s answered %d %s", host, terr.StatusCode, http.StatusText(terr.StatusCode))
		}
		return classify(ErrRegistry, "%s: %s%s", doing, advice, itsWords(terr))
	}
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return classify(ErrRegistry, "%s: nobody listens on %s; is the registry running, and the name right?", doing, host)
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return classify(ErrRegistry, "%s: %s closed the connection; run again, what is uploaded is kept (%v)", doing, host, err)
	}
	if dns, ok := errors.AsType[*net.DNSError](err); ok {
		return classify(ErrRegistry, "%s: %s cannot be resolved: %w", doing, host, dns)
	}
	if urlErr, ok := errors.AsType[*url.Error](err); ok {
		err = urlErr.Err // its text repeats the URL, which may hold a secret
	}
	return classify(ErrRegistry, "%s: %s: %w; run again, what is uploaded is kept", doing, host, err)
}

func hasCode(err *transport.Error, code transport.ErrorCode) bool {
	return slices.ContainsFunc(err.Errors, func(d transport.Diagnostic) bool { return d.Code == code })
}

// maxWords is how many bytes of what a registry says of a refusal are told.
const maxWords = 200

// itsWords is what the registry itself says of a refusal.
func itsWords(err *transport.Error) string {
	for _, d := range err.Errors {
		if d.Message != "" {
			return fmt.Sprintf(" (it says: %s)", d.Message[:min(len(d.Message), maxWords)])
		}
	}
	return ""
}

func statusAdvice(status int, host string) (string, bool) {
	switch {
	case status == http.StatusUnauthorized:
		return fmt.Sprintf("%s wants credentials (401); log in with docker login, podman login or skopeo login", host), true
	case status == http.StatusForbidden:
		return fmt.Sprintf("%s forbids it (403); these credentials lack the right, ask its owner or choose another repository", host), true
	case status == http.StatusNotFound:
		return fmt.Sprintf("%s does not know the repository (404); create it there, or check its name", host), true
	case status == http.StatusRequestEntityTooLarge:
		return fmt.Sprintf("%s or a proxy before it refuses a blob of this size (413); raise its limit (nginx: client_max_body_size)", host), true
	case status == http.StatusTooManyRequests:
		return fmt.Sprintf("%s limits requests (429); run again later, what is uploaded is kept", host), true
	case status >= http.StatusInternalServerError:
		return fmt.Sprintf("%s is in trouble (%d); look at its log and run again, what is uploaded is kept", host, status), true
	}
	return "", false
}
