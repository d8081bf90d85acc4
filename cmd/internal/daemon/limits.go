package daemon

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net/http"
	"sync/atomic"

	"github.com/KimMachineGun/automemlimit/memlimit"

	"github.com/shoal-project/shoal/cmd/internal/config"
	"github.com/shoal-project/shoal/peer/limits"
)

// memoryShare is how much of the cgroup's memory the Go heap may grow to; the rest is for stacks and what the kernel counts.
const memoryShare = 0.8

// limitMemory makes the garbage collector keep to the memory of the cgroup, if it has a bound and the environment sets no GOMEMLIMIT.
// The number of processors is the runtime's own matter.
func limitMemory(log *slog.Logger) {
	limit, err := memlimit.Set(memlimit.WithRatio(memoryShare), memlimit.WithProvider(memlimit.FromCgroup))
	switch {
	case errors.Is(err, memlimit.ErrNoCgroup), errors.Is(err, memlimit.ErrCgroupsNotSupported):
	case err != nil:
		log.Warn("memory limit of the cgroup is not known, set GOMEMLIMIT", "error", err)
	case limit < math.MaxInt64:
		log.Info("memory limit", "bytes", limit)
	}
}

const limitsPath = "/limits"

// maxLimitsBody bounds the body of PUT /limits, in bytes.
const maxLimitsBody = 64 << 10

// serveSettings serves a JSON document: GET returns it, PUT replaces it as a whole. An unknown key is an error, and so is what set
// refuses; both change nothing.
func serveSettings[T any](get func() T, set func(T) error) http.Handler {
	answer := func(w http.ResponseWriter) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(get()) // the caller may have left
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /", func(w http.ResponseWriter, _ *http.Request) { answer(w) })
	mux.HandleFunc("PUT /", func(w http.ResponseWriter, r *http.Request) {
		dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxLimitsBody))
		dec.DisallowUnknownFields()
		var v T
		err := dec.Decode(&v)
		if err == nil && !errors.Is(dec.Decode(new(json.RawMessage)), io.EOF) {
			err = errors.New("something follows the document")
		}
		if err == nil {
			err = set(v)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		answer(w)
	})
	return mux
}

// setLimits is limits.Set with a line in the log.
func setLimits(l *limits.Limits, log *slog.Logger) func(limits.Rates) error {
	return func(r limits.Rates) error {
		if err := l.Set(r); err != nil {
			return err
		}
		log.Info("limits changed", "limits", fmt.Sprintf("%+v", r))
		return nil
	}
}

// originRate keeps the scheduler's present limits and tells it of new ones.
type originRate struct {
	current atomic.Pointer[config.ClusterLimits]
	apply   func(bytesPerSecond int64)
	log     *slog.Logger
}

func (o *originRate) get() config.ClusterLimits { return *o.current.Load() }

func (o *originRate) set(l config.ClusterLimits) error {
	if err := l.Validate(); err != nil {
		return err
	}
	o.current.Store(&l)
	o.apply(int64(l.Source))
	o.log.Info("limits changed", "source", l.Source.String())
	return nil
}
