// Package dispatch plans one task's download: which piece is asked from which parent next, and which run of pieces is read
// from the origin. It is a pure state machine: no lock, no clock, no socket, and its random choices come from a
// source it is given. The caller tells it what happened and what time it is, and carries out what Next returns.
//
// The rules, each of which was chosen by simulation:
//   - what is demanded, by readers of short ranges or by a lease that says so, comes beside all else, and with Partial nothing else comes;
//   - a piece has one claimant; it is asked for once at a time;
//   - few requests in flight, one per parent (two when there is only one parent), so that no queue builds up at a sender;
//   - pieces that somebody waits for come first, in order; the others rarest first, random among equals;
//   - the parent is random among those that are idle; a parent that says busy is left alone for some milliseconds,
//     one that failed for seconds, one that lied for good;
//   - hosts beyond the border of the zone are asked only for pieces that a lease names, and by nobody else of the zone;
//   - the origin is read only where a lease permits, or, when the caller says that there is no scheduler, for pieces
//     nobody known holds.
package dispatch
