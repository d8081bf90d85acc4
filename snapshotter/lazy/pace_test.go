package lazy

import (
	"context"
	"testing"
	"time"
)

func TestNextStepBeginsWhenTheOthersAreAlmostDone(t *testing.T) {
	now := time.Now()
	p := newPace(func() time.Time { return now })
	if !p.ready(1) {
		t.Fatal("nothing is under way, and the first may not begin")
	}
	const mib = 1 << 20
	first := p.begin(100 * mib)
	done := int64(0)
	for done = 0; !p.ready(1); done += mib { // 10 MiB a second
		first(done)
		now = now.Add(100 * time.Millisecond)
	}
	if done < 70*mib || done > 80*mib {
		t.Errorf("the next one begins at %d of 100 MiB, want it 2.5 s before the end", done/mib)
	}
	p.begin(100 * mib)
	if p.ready(1) {
		t.Error("the third begins with the second")
	}
}

func TestAsManyAsAskedForAreAlwaysUnderWay(t *testing.T) {
	p := newPace(time.Now)
	first := p.begin(1 << 30)
	if p.ready(1) || !p.ready(2) {
		t.Error("want one beside the first")
	}
	p.begin(1 << 30)
	if p.ready(2) {
		t.Error("a third begins")
	}
	if first(1 << 30); !p.ready(2) {
		t.Error("none takes the place of the one that is done")
	}
}

func TestSmallStepsBeginTogether(t *testing.T) {
	now := time.Now()
	p := newPace(func() time.Time { return now })
	var all []func(int64)
	for p.ready(1) {
		all = append(all, p.begin(1000))
	}
	if len(all) != maxSteps {
		t.Errorf("%d steps begin, want %d", len(all), maxSteps)
	}
	for _, progress := range all {
		progress(1000)
		progress(1000)
	}
	if !p.ready(1) || p.steps != 0 || p.lacks != 0 {
		t.Errorf("%d steps lack %d bytes after all are done", p.steps, p.lacks)
	}
}

// A blob that nobody can deliver does not hold up the others for good.
func TestStepThatStandsStillHoldsUpOthersForAMomentOnly(t *testing.T) {
	now := time.Now()
	p := newPace(func() time.Time { return now })
	for range maxStalled {
		now = now.Add(2 * stalled)
		if !p.ready(1) {
			t.Fatal("the next one waits for one that stands still")
		}
		p.begin(1 << 30)
	}
	now = now.Add(2 * stalled)
	if p.ready(1) {
		t.Errorf("more than %d begin although nothing comes", maxStalled)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if p.wait(ctx, 1) {
		t.Error("goes on after its end")
	}
}

func TestStepThatIsTriedAgainIsNotCountedTwice(t *testing.T) {
	p := newPace(time.Now)
	progress := p.begin(100)
	for _, done := range []int64{60, 10, 60, 70} {
		progress(done)
	}
	if p.lacks != 30 {
		t.Errorf("%d bytes are lacking, want 30", p.lacks)
	}
}
