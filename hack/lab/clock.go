package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// clockMishaps move the clock of the machine, which all hosts of the lab have, and back.
func clockMishaps() []mishap {
	const away = 2 * time.Second
	jump := func(by time.Duration) func(context.Context, *trial) error {
		return func(ctx context.Context, _ *trial) error { return moveClock(ctx, by, away) }
	}
	return []mishap{
		{name: "clock-ahead", what: "the clocks jump two hours ahead, and back two seconds later", bound: 200 * time.Millisecond, named: true,
			during: jump(2 * time.Hour)},
		{name: "clock-behind", what: "the clocks jump two hours back, and ahead two seconds later", bound: 200 * time.Millisecond, named: true,
			during: jump(-2 * time.Hour)},
	}
}

// moveClock sets the machine's clock off by a time, for a while, or until ctx ends.
func moveClock(ctx context.Context, by, away time.Duration) (err error) {
	var was unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_REALTIME, &was); err != nil {
		return fmt.Errorf("read the clock: %w", err)
	}
	began := time.Now() // its monotonic reading goes on as ever
	set := func(by time.Duration) error {
		now := unix.NsecToTimespec(was.Nano() + time.Since(began).Nanoseconds() + by.Nanoseconds())
		if err := unix.ClockSettime(unix.CLOCK_REALTIME, &now); err != nil {
			return fmt.Errorf("set the clock, for which CAP_SYS_TIME is needed: %w", err)
		}
		return nil
	}
	if err := set(by); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, set(0)) }()
	select {
	case <-time.After(away):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
