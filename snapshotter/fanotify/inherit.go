package fanotify

import (
	"context"
	"errors"
	"sync"

	"golang.org/x/sys/unix"
)

// errNumber is the answer to a reader whose number this process itself came to wait under.
var errNumber = errors.New("its number was lost")

// A debt is the answers that are owed under one number of a predecessor: mostly one. Which answer is whose cannot be told, so that they are
// given when all are right.
type debt struct {
	number int

	// Guarded by debts.mu:
	slots []int
	fds   []int // what has the number in this process; empty: something else has it
	left  int   // how many are being handled
	cause error
	paid  bool
}

// debts guard what is owed to readers of a predecessor.
type debts struct {
	mu    sync.Mutex    // guards loose, and all debts; no event that may have a number of loose is read without it
	loose map[int]*debt // those whose number something else had at first
}

// inherit begins to have the events of a predecessor handled. Before that it holds all their numbers that it can, so that no handler opens one.
func (r *run) inherit(ctx context.Context) error {
	r.debts.mu.Lock()
	defer r.debts.mu.Unlock()
	owed := map[int]*debt{}
	for _, i := range r.log.taken() {
		number := r.log.slot(i).fd()
		if owed[number] == nil {
			owed[number] = &debt{number: number}
		}
		owed[number].slots = append(owed[number].slots, i)
	}
	err := r.control(func(group int) error {
		for number, d := range owed {
			if !d.hold(group) {
				r.debts.loose[number] = d
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, d := range owed {
		for _, i := range d.slots {
			r.repayLocked(ctx, d, i)
		}
	}
	return nil
}

// hold takes the debt's number with a copy of the group's descriptor, unless something has it.
func (d *debt) hold(group int) bool {
	got, err := unix.FcntlInt(uintptr(group), unix.F_DUPFD_CLOEXEC, d.number)
	if err != nil {
		return false
	}
	if got != d.number {
		_ = unix.Close(got) // just made
		return false
	}
	d.fds = append(d.fds, got)
	return true
}

// readSafely reads an event into slot i. Just before that it takes the numbers that have become free, so that only what is closed between the two
// can give one to the event.
func (r *run) readSafely(ctx context.Context, group, i int) (n int, joined bool, err error) {
	r.debts.mu.Lock()
	defer r.debts.mu.Unlock()
	for _, d := range r.debts.loose {
		if len(d.fds) == 0 {
			d.hold(group)
		}
	}
	n, err = readEvent(group, r.log.slot(i))
	return n, err == nil && n >= metadataSize && r.joinLocked(ctx, i), err
}

// joinLocked joins a new event to the debt whose number it was given, if there is one. An event of this process ends such a debt instead: what is
// owed may wait for what it wants to write.
func (r *run) joinLocked(ctx context.Context, i int) bool {
	s := r.log.slot(i)
	d := r.debts.loose[s.fd()]
	switch {
	case d == nil || s.fd() < 0:
		return false
	case s.pid() == r.pid:
		r.payLocked(d, errNumber)
		return false
	}
	s.identify()
	d.slots, d.fds = append(d.slots, i), append(d.fds, s.fd())
	r.repayLocked(ctx, d, i)
	return true
}

// repayLocked has the event in a slot of a debt handled. Unless one fails and ctx has ended, the last one pays.
func (r *run) repayLocked(ctx context.Context, d *debt, i int) {
	d.left++
	e := r.log.slot(i).event() // another one may be in the slot later
	r.handlers.Go(func() {
		err := r.handle(ctx, e)
		if err != nil && ctx.Err() != nil {
			return // fds stay open, or a new event would get the number
		}
		r.debts.mu.Lock()
		defer r.debts.mu.Unlock()
		d.cause = errors.Join(d.cause, err)
		if d.left--; d.left == 0 {
			r.payLocked(d, d.cause)
		}
	})
}

// payLocked answers what is owed, once.
func (r *run) payLocked(d *debt, cause error) {
	if d.paid {
		return
	}
	d.paid = true
	for _, i := range d.slots {
		_ = r.reply(r.log.slot(i), cause) // ENOENT: answered before, by a predecessor that died here
		r.log.clear(i)
	}
	if r.debts.loose[d.number] == d {
		delete(r.debts.loose, d.number)
	}
	for _, fd := range d.fds {
		_ = unix.Close(fd) // an event's, or a copy of the group's
	}
}
