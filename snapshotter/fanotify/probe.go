package fanotify

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// probeBlock is what the kernel may round ranges to.
const probeBlock = 64 << 10

// probePatience is how long Probe waits for an event that comes at once or never.
const probePatience = 30 * time.Second

// Probe reports, with ErrUnsupported, whether readers of files in the folder can be held: it marks a file there and reads it.
func Probe(folder string) error {
	f, err := os.CreateTemp(folder, "probe-")
	if err != nil {
		return err
	}
	defer f.Close()
	defer func() { _ = os.Remove(f.Name()) }() // a few bytes in our own folder
	if err := f.Truncate(2 * probeBlock); err != nil {
		return err
	}
	g, err := New()
	if err != nil {
		return err
	}
	defer g.Close()
	if err := g.Mark(f); err != nil {
		return err
	}
	marked, err := os.Open(f.Name())
	if err != nil {
		return err
	}
	defer marked.Close()
	done := make(chan error, 1)
	go func() { // ends when the event is answered, by next or by Close
		_, err := marked.ReadAt(make([]byte, 1), probeBlock)
		done <- err
	}()
	if err := g.file.SetReadDeadline(time.Now().Add(probePatience)); err != nil {
		return err
	}
	s := slot(make([]byte, slotSize))
	if _, err := g.file.Read(s[:identity]); err != nil {
		return fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	answer := g.reply(s, nil)
	_ = unix.Close(s.fd()) // the event's, if it has one
	if err := <-done; err != nil || answer != nil {
		return fmt.Errorf("%w: read: %w, answer: %w", ErrUnsupported, err, answer)
	}
	if e := s.event(); e.Off != probeBlock || e.Len > probeBlock {
		return fmt.Errorf("%w: an event without its range", ErrUnsupported)
	}
	return nil
}
