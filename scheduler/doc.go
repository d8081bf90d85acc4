// Package scheduler decides who fetches what from whom in a cluster, as a pure state machine: Step takes the time and one
// event and returns the commands to send. There is no lock, clock, socket or logger inside, and the same events with
// the same seed give the same commands; package scheduler/server is the shell around it.
//
// It governs only what is scarce: the origin, and the borders between zones. Each piece of a task has at most one lease to read it from the origin
// (back-to-source), given to a seed, or to a peer where no seed can, and for each other zone one to fetch it across that zone's border.
// Everything else is between the peers of a zone: the scheduler only tells each one its neighbours, and they exchange pieces, haves and
// busy answers without it.
//
//	piece:  idle ──lease──▶ leased ──progress──▶ held (n holders)
//	          ▲               │ failed, silent,      │ last holder gone
//	          └───────────────┴── host gone ─────────┘
//
// The state is soft: hosts announce themselves and what they hold, and a restarted scheduler knows everything again after
// each host has spoken once.
//
// A task without a chunk map ("sequential") is leased as a whole to one host, which reads it in order, checks the blob's digest
// before it vouches for the last piece, and reports the piece digests; the scheduler passes them on, and they are
// what other peers verify against.
//
// What readers of ranges demand is leased beside all that, to whoever reads the least, also of a sequential task; who only demands gets nothing
// else leased.
package scheduler
