package api

import "sync"

// queueLength is how many commands may wait for a host before it counts as stuck.
const queueLength = 4096

// Queue holds the commands of one session until its host reads them. Make one with NewQueue. It is safe for concurrent use.
type Queue struct {
	wake chan struct{}

	mu      sync.Mutex // guards all below
	waiting []Command
	ended   bool
}

// NewQueue returns an empty queue.
func NewQueue() *Queue { return &Queue{wake: make(chan struct{}, 1)} }

// Push appends a command and never blocks. It is false when the queue has ended, or when its host does not read.
func (q *Queue) Push(c Command) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.ended || len(q.waiting) == queueLength {
		return false
	}
	q.waiting = append(q.waiting, c)
	q.signal()
	return true
}

// End ends the queue: what waits may still be taken, nothing more comes.
func (q *Queue) End() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.ended = true
	q.signal()
}

func (q *Queue) signal() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// Wake returns the channel that has a value when there is something to Take, or the queue has ended. It has one reader.
func (q *Queue) Wake() <-chan struct{} { return q.wake }

// Take returns what waits, in order, and whether that was the last.
func (q *Queue) Take() (commands []Command, ended bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	commands, q.waiting = q.waiting, nil
	return commands, q.ended
}
