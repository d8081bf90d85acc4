package limits_test

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/shoal-project/shoal/peer/limits"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newLimits(t *testing.T, r limits.Rates) *limits.Limits {
	t.Helper()
	l, err := limits.New(r)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// flow moves n bytes by the chain's steps and returns how long that took.
func flow(ctx context.Context, c limits.Chain, task string, n int) (time.Duration, error) {
	began := time.Now()
	for n > 0 {
		step := min(n, c.Step())
		if err := c.Pace(ctx, task, step); err != nil {
			return time.Since(began), err
		}
		n -= step
	}
	return time.Since(began), nil
}

// took checks a time to five per cent.
func took(t *testing.T, got, want time.Duration) {
	t.Helper()
	if got < want*95/100 || got > want*105/100 {
		t.Errorf("took %v, want %v", got, want)
	}
}

func TestEachDirectionHasItsOwnLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimits(t, limits.Rates{Upload: 1 << 20, Download: 4 << 20, Source: 2 << 20, DiskWrite: 3 << 20})
		for _, c := range []struct {
			chain limits.Chain
			rate  int
		}{{l.Upload(), 1}, {l.FromPeer(), 3}, {l.FromOrigin(), 2}, {l.Copy(), 3}} {
			got, err := flow(t.Context(), c.chain, "a", 30<<20)
			if err != nil {
				t.Fatal(err)
			}
			took(t, got, 30*time.Second/time.Duration(c.rate))
			time.Sleep(time.Second) // the buckets fill up again
		}
	})
}

func TestWithoutLimitsNothingWaits(t *testing.T) {
	l := newLimits(t, limits.Rates{})
	for _, c := range []limits.Chain{nil, l.Upload(), l.FromPeer(), l.FromOrigin(), l.Copy()} {
		if got := testing.AllocsPerRun(100, func() { _ = c.Pace(t.Context(), "a", 1<<30) }); got != 0 {
			t.Errorf("%v allocations", got)
		}
	}
}

func TestLowerLimitHoldsAtOnceAndHigherFreesWhoWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimits(t, limits.Rates{})
		time.AfterFunc(10*time.Second, func() { _ = l.Set(limits.Rates{Upload: 8 << 20}) })
		_ = l.Set(limits.Rates{Upload: 1 << 20})
		got, err := flow(t.Context(), l.Upload(), "a", 18<<20)
		if err != nil {
			t.Fatal(err)
		}
		took(t, got, 11*time.Second)
	})
}

func TestEndedContextLeavesTheLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimits(t, limits.Rates{Upload: 1 << 20})
		ctx, cancel := context.WithCancelCause(t.Context())
		gone := errors.New("gone")
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				if _, err := flow(ctx, l.Upload(), "a", 100<<20); !errors.Is(err, gone) {
					t.Errorf("error %v", err)
				}
			})
		}
		time.Sleep(2 * time.Second)
		cancel(gone)
		wg.Wait()
		got, err := flow(t.Context(), l.Upload(), "b", 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		took(t, got, time.Second)
	})
}

func TestShareOfTheClustersRateHoldsBesideTheOwn(t *testing.T) {
	l := newLimits(t, limits.Rates{Source: 10 << 20})
	for _, c := range []struct {
		scheduler  string
		share, sum limits.Rate
	}{{"one", 2 << 20, 2 << 20}, {"two", 3 << 20, 5 << 20}, {"one", 0, 3 << 20}, {"two", 0, 0}} {
		l.ShareSource(c.scheduler, c.share)
		if got := l.SourceShare(); got != c.sum {
			t.Errorf("shares sum up to %s, want %s", got, c.sum)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		l := newLimits(t, limits.Rates{Source: 10 << 20})
		l.ShareSource("one", 2<<20)
		got, err := flow(t.Context(), l.FromOrigin(), "a", 10<<20)
		if err != nil {
			t.Fatal(err)
		}
		took(t, got, 5*time.Second)
	})
}

// whileOften calls set twice a second while 50 MiB flow from the origin, and checks that they keep to 10 MiB a second.
func whileOften(t *testing.T, l *limits.Limits, set func(i limits.Rate)) {
	t.Helper()
	var setter sync.WaitGroup
	defer setter.Wait()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	set(0)
	setter.Go(func() {
		for i := limits.Rate(1); ctx.Err() == nil; i++ {
			time.Sleep(500 * time.Millisecond)
			set(i % 2)
		}
	})
	got, err := flow(ctx, l.FromOrigin(), "a", 50<<20)
	if err != nil {
		t.Fatal(err)
	}
	took(t, got, 5*time.Second)
}

func TestWhoseRatesChangeOftenGetsNoMore(t *testing.T) {
	for name, rates := range map[string]func(i limits.Rate) limits.Rates{
		"another limit changes": func(i limits.Rate) limits.Rates { return limits.Rates{Source: 1<<30 + i, SourcePerTask: 10 << 20} },
		"the task's limit":      func(i limits.Rate) limits.Rates { return limits.Rates{SourcePerTask: 10<<20 + i} },
		"the limit of all":      func(i limits.Rate) limits.Rates { return limits.Rates{Source: 10<<20 + i} },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLimits(t, limits.Rates{})
				whileOften(t, l, func(i limits.Rate) {
					if err := l.Set(rates(i)); err != nil {
						t.Error(err)
					}
				})
			})
		})
	}
	t.Run("the cluster's share", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			l := newLimits(t, limits.Rates{Source: 1 << 30, SourcePerTask: 10 << 20})
			whileOften(t, l, func(i limits.Rate) { l.ShareSource("s", 100<<20+i) })
		})
	})
}

func TestFaultyRatesAreRefusedAndChangeNothing(t *testing.T) {
	l := newLimits(t, limits.Rates{Upload: 5 << 20})
	err := l.Set(limits.Rates{Upload: 1, DiskWrite: 1000, Source: -1})
	for _, want := range []string{"limits.upload", "limits.disk_write", "limits.source", "at least 1MiB"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v does not tell of %s", err, want)
		}
	}
	if got := l.Rates().Upload; got != 5<<20 {
		t.Errorf("upload is %s", got)
	}
}

func TestRatesAreWrittenWithUnits(t *testing.T) {
	for text, want := range map[string]limits.Rate{
		"0": 0, "1048576": 1 << 20, "100MiB": 100 << 20, "1.5 gib": 3 << 29, "50MB": 50e6, "7kB": 7000, "12B": 12, "2TiB": 2 << 40, "1.5TB": 15e11,
	} {
		got, err := limits.ParseRate(text)
		if err != nil || got != want {
			t.Errorf("%q: %d, %v; want %d", text, got, err, want)
		}
		if again, err := limits.ParseRate(got.String()); err != nil || again != got {
			t.Errorf("%q is written as %q, which is %d, %v", text, got.String(), again, err)
		}
	}
	for _, text := range []string{"", "MiB", "-1", "1e30", "NaN", "1TiBB", "1 2", "0x10", "99999999999GiB"} {
		if got, err := limits.ParseRate(text); err == nil {
			t.Errorf("%q is %d", text, got)
		}
	}
	var r limits.Rates
	if err := json.Unmarshal([]byte(`{"upload": 1048576, "source": "2MiB"}`), &r); err != nil || r.Upload != 1<<20 || r.Source != 2<<20 {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestSizesAreReadAsRatesAre(t *testing.T) {
	if got, err := limits.ParseSize("10GiB"); got != 10<<30 || err != nil {
		t.Errorf("%d, %v", got, err)
	}
	if got, err := limits.ParseSize("much"); err == nil || !strings.Contains(err.Error(), "100GiB") {
		t.Errorf("%d, %v; want an error that shows one", got, err)
	}
}

func FuzzParseRate(f *testing.F) {
	for _, s := range []string{"0", "100MiB", "1.5GB", "-1", "1e9", ".", "1..2"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := limits.ParseRate(s)
		if err != nil {
			return
		}
		if again, err := limits.ParseRate(r.String()); err != nil || again != r || r < 0 {
			t.Fatalf("%q is %d, written as %q, which is %d: %v", s, r, r.String(), again, err)
		}
	})
}

func BenchmarkPace(b *testing.B) {
	l, err := limits.New(limits.Rates{Upload: 1 << 50})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		_ = l.Upload().Pace(b.Context(), "a", 256<<10)
	}
}
