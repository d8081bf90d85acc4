// Package api is the wire between a host and a scheduler, both ends side by side.
//
// A host opens a session with POST /v1/sessions and keeps reading its answer: one JSON command a line, the first of which names
// the session, and an empty one ({}) every half second so that either side notices the other's silence. The host sends its events in batches
// with POST /v1/sessions/ID/events, a JSON array, empty when it has nothing to say. The end of the stream is the end of the
// session: the scheduler then forgets what the host held, and the host announces everything anew when it comes back.
//
// Both carry "Authorization: Bearer TOKEN" with the token of the cluster.
package api

import "encoding/json"

// Host describes a machine to the scheduler.
type Host struct {
	ID   string `json:"id"`
	Addr string `json:"addr"` // host:port of its piece server
	Zone string `json:"zone,omitempty"`
	Rack string `json:"rack,omitempty"`
	// Group is the name of those it shares with, and nobody else.
	Group string `json:"group,omitempty"`
	Seed  bool   `json:"seed,omitempty"`
}

// Task describes a blob being distributed.
type Task struct {
	ID         string          `json:"id"` // digest of the blob
	Pieces     int             `json:"pieces"`
	PieceSize  int64           `json:"piece_size"`           // bytes
	Sequential bool            `json:"sequential,omitempty"` // no chunk map: one host reads it in order
	Origin     json.RawMessage `json:"origin,omitempty"`     // where to read it; the scheduler passes it on unread
}

// Run is the half-open range of pieces [Run[0], Run[1]).
type Run [2]int

// PieceDigest is the digest of a piece.
type PieceDigest struct {
	Piece  int    `json:"piece"`
	Digest []byte `json:"digest"`
}

// Event is what a host tells; exactly one field is set.
type Event struct {
	Join     *Join        `json:"join,omitempty"`
	Leave    *Leave       `json:"leave,omitempty"`
	Progress *Progress    `json:"progress,omitempty"`
	Failed   *LeaseFailed `json:"failed,omitempty"`
	Stuck    *Stuck       `json:"stuck,omitempty"`
	Demand   *Demand      `json:"demand,omitempty"`
	Probed   *Probed      `json:"probed,omitempty"`
}

// Join announces a task the host holds pieces of or wants.
type Join struct {
	Task    Task          `json:"task"`
	Have    []Run         `json:"have,omitempty"`
	Wants   bool          `json:"wants,omitempty"`
	Partial bool          `json:"partial,omitempty"` // only what it demands
	Digests []PieceDigest `json:"digests,omitempty"` // counts from seeds only
	// Trace is the span, as traceparent of W3C Trace Context, that the task is for; empty when nothing is traced.
	Trace string `json:"trace,omitempty"`
	// Moved is set when another scheduler, or an earlier life of this one, governed the task before.
	Moved bool `json:"moved,omitempty"`
	// Reading are the runs being read from the origin under leases of that one.
	Reading []Run `json:"reading,omitempty"`
	// Crossing are the runs being fetched across the border of the host's zone under leases of that one.
	Crossing []Run `json:"crossing,omitempty"`
}

// Leave ends the host's part in a task.
type Leave struct {
	Task string `json:"task"`
}

// Progress reports pieces gained and lost since the last report.
type Progress struct {
	Task    string `json:"task"`
	Gained  []Run  `json:"gained,omitempty"`
	Lost    []Run  `json:"lost,omitempty"`
	Reading bool   `json:"reading,omitempty"` // bytes arrived from the origin
	// FirstByteUS is how long the origin takes to the first byte of what is read there, a moving mean in microseconds.
	FirstByteUS int64         `json:"firstByteUS,omitempty"`
	Done        bool          `json:"done,omitempty"`
	Digests     []PieceDigest `json:"digests,omitempty"`
}

// LeaseFailed reports pieces the host could not read from the origin, or, with Border, from the hosts the lease named.
type LeaseFailed struct {
	Task    string `json:"task"`
	Run     Run    `json:"run"`
	Failure string `json:"failure"` // transient, denied, absent, corrupt
	Text    string `json:"text"`
	Border  bool   `json:"border,omitempty"`
}

// Stuck reports pieces the host can get from nobody it knows, or, with Withheld, for now not from the only holder it knows.
type Stuck struct {
	Task     string `json:"task"`
	Runs     []Run  `json:"runs"`
	Withheld bool   `json:"withheld,omitempty"`
	UsualUS  int64  `json:"usualUS,omitempty"` // what a piece takes from another host, as far as seen, in microseconds
}

// Probed has the round trips that were measured, as far as anybody was reached.
type Probed struct {
	Trips []Trip `json:"trips"`
}

// Trip is the round trip to a host.
type Trip struct {
	To string `json:"to"` // id of the host
	US int64  `json:"us"` // microseconds
}

// Demand tells pieces that readers of the host wait for and nobody it knows holds.
type Demand struct {
	Task string `json:"task"`
	Runs []Run  `json:"runs,omitempty"`
	All  bool   `json:"all,omitempty"` // from now on the host wants everything
}

// Command is what the scheduler tells; at most one field is set, none is a sign of life.
type Command struct {
	Welcome    *Welcome    `json:"welcome,omitempty"`
	Seeds      *Seeds      `json:"seeds,omitempty"`
	Neighbours *Neighbours `json:"neighbours,omitempty"`
	Lease      *Lease      `json:"lease,omitempty"`
	Revoked    *Revoked    `json:"revoked,omitempty"`
	Digests    *Digests    `json:"digests,omitempty"`
	Failed     *Failed     `json:"failed,omitempty"`
	Coming     *Coming     `json:"coming,omitempty"`
	Share      *Share      `json:"share,omitempty"`
	Probe      *Probe      `json:"probe,omitempty"`
	Ended      *Ended      `json:"ended,omitempty"`
}

// Ended is the last command of a session that the scheduler ends, if it has something to say.
type Ended struct {
	Why string `json:"why"` // for people
}

// Welcome is the first command of a session.
type Welcome struct {
	Session string `json:"session"`
}

// Seeds lists the seeds of the host's group.
type Seeds struct {
	Hosts []Host `json:"hosts"`
}

// Neighbours replaces the list of peers to exchange a task's pieces with.
type Neighbours struct {
	Task  string `json:"task"`
	Hosts []Host `json:"hosts"`
}

// Lease permits reading a run of pieces from the origin, or, with From, fetching them from one of these hosts beyond the border of the zone.
type Lease struct {
	Task     Task   `json:"task"`
	Run      Run    `json:"run"`
	Demanded bool   `json:"demanded,omitempty"` // readers wait for it: before all others
	From     []Host `json:"from,omitempty"`
	// Again is set when somebody of the zone holds the pieces, but does not seem to give them.
	Again bool `json:"again,omitempty"`
}

// Revoked takes a lease back; Border is set for one with From.
type Revoked struct {
	Task   string `json:"task"`
	Run    Run    `json:"run"`
	Border bool   `json:"border,omitempty"`
}

// Digests tells piece digests of a sequential task.
type Digests struct {
	Task    string        `json:"task"`
	Digests []PieceDigest `json:"digests"`
}

// Failed says that nobody can read the rest of a task from the origin now.
type Failed struct {
	Task    string `json:"task"`
	Failure string `json:"failure"`
	Text    string `json:"text"`
}

// Coming says that the host misses nothing of a task that others do not fetch right now.
type Coming struct {
	Task string `json:"task"`
}

// Probe asks for the round trips to other hosts.
type Probe struct {
	Hosts []Host `json:"hosts"`
}

// Share is how fast the host may read origins, so that all hosts together keep to the cluster's rate.
type Share struct {
	Rate int64 `json:"rate"` // bytes a second; 0 is no bound
}
