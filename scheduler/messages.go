package scheduler

import "time"

// Event is something that happened, as told to Step.
type Event interface{ event() }

// HostJoined says that a host opened a session. A host that was known before has lost its former state.
type HostJoined struct{ Host Host }

// HostLeft says that a host's session ended or fell silent.
type HostLeft struct{ Host HostID }

// TaskJoined says that a host takes part in a task: it holds some pieces and may want the others.
type TaskJoined struct {
	Host  HostID
	Task  Task
	Have  []Run
	Wants bool // it is still fetching
	// Partial is set when it fetches only what it demands, until a Demand says otherwise.
	Partial bool
	// Digests are the piece digests the host knows; they count only from a seed, and only for sequential tasks.
	Digests []PieceDigest
	// Moved is set when another machine governed the host's part before, and Reading has what it reads under leases of that one.
	Moved   bool
	Reading []Run
	// Crossing has what it fetches across its zone's border under leases of that one.
	Crossing []Run
}

// TaskLeft says that a host no longer holds or wants the blob.
type TaskLeft struct {
	Host HostID
	Task TaskID
}

// Progress says which pieces a host gained or lost, and that bytes arrived from the origin since it spoke last.
type Progress struct {
	Host         HostID
	Task         TaskID
	Gained, Lost []Run
	// Reading is set while bytes arrive under a lease, also when no piece is complete yet.
	Reading bool
	// FirstByte is how long the origin usually takes to the first byte of what this host reads; zero when it has read nothing.
	FirstByte time.Duration
	// Done is set when the host has every piece.
	Done bool
	// Digests of pieces the host read from the origin under a lease of a sequential task.
	Digests []PieceDigest
}

// PieceDigest is the digest of one piece.
type PieceDigest struct {
	Piece  int
	Digest []byte
}

// Failure is the class of a lease that failed.
type Failure string

// The classes of failure. Any other value counts as FailureTransient.
const (
	FailureTransient Failure = "transient"
	FailureDenied    Failure = "denied"  // these credentials; another host may succeed
	FailureAbsent    Failure = "absent"  // the origin does not have the blob there
	FailureCorrupt   Failure = "corrupt" // the origin's bytes have the wrong digest
)

// LeaseFailed says that a host could not read a run of pieces from the origin, or, with Border, from any of the hosts that the lease named.
// Text is for people.
type LeaseFailed struct {
	Host    HostID
	Task    TaskID
	Run     Run
	Failure Failure
	Text    string
	Border  bool
}

// Stuck says that a host still wants pieces and knows nobody it could get them from, although they may be held somewhere.
type Stuck struct {
	Host HostID
	Task TaskID
	Runs []Run
	// Withheld is set when the only holder it knows gives wrong bytes or hardly any; other pieces come.
	Withheld bool
	// Usual is what a piece usually takes from another host to this one; zero when it has seen none.
	Usual time.Duration
}

// Probed has the round trips that a host has measured after Probe, as far as it reached anybody.
type Probed struct {
	Host  HostID
	Trips []Trip
}

// Trip is the round trip to a host.
type Trip struct {
	To  HostID
	RTT time.Duration
}

// Demand says that readers of a host wait for pieces: these are read from the origin next, if nobody holds them.
type Demand struct {
	Host HostID
	Task TaskID
	Runs []Run
	// All is set when the host wants everything from now on.
	All bool
}

// OriginRate sets the rate at which all hosts together may read origins, in bytes a second; zero is no bound.
type OriginRate struct{ Rate int64 }

// Tick lets time pass; send one a few times a second.
type Tick struct{}

func (HostJoined) event()  {}
func (HostLeft) event()    {}
func (TaskJoined) event()  {}
func (TaskLeft) event()    {}
func (Progress) event()    {}
func (LeaseFailed) event() {}
func (Stuck) event()       {}
func (Demand) event()      {}
func (Probed) event()      {}
func (OriginRate) event()  {}
func (Tick) event()        {}

// Command is a message to one host.
type Command struct {
	To   HostID
	Body Body
}

// Body is the content of a command.
type Body interface{ command() }

// Seeds lists all seeds of the host's group.
type Seeds struct{ Hosts []Host }

// Neighbours lists the peers to exchange the task's pieces with; it replaces the former list.
type Neighbours struct {
	Task  TaskID
	Hosts []Host
}

// Lease lets a host read a run of pieces from the origin. The host may not know the task yet.
type Lease struct {
	Task Task
	Run  Run
	// Demanded is set when readers wait for it: it comes before all others, and says nothing of the rest of the task.
	Demanded bool
	// From is set when the pieces are to be fetched across the border of the host's zone instead: from any of these, who hold all of them.
	From []Host
	// Again is set with From when somebody of the zone holds the piece, but does not seem to give it.
	Again bool
}

// Revoked takes back what was leased and not yet read; the pieces were given to somebody else. Border is set for a lease with From.
type Revoked struct {
	Task   TaskID
	Run    Run
	Border bool
}

// Digests tells piece digests of a sequential task.
type Digests struct {
	Task    TaskID
	Digests []PieceDigest
}

// Failed says that nobody in the cluster can read the rest of the task from the origin now. It is advice: pieces that
// somebody holds are still exchanged.
type Failed struct {
	Task    TaskID
	Failure Failure
	Text    string
}

// Coming answers Stuck when nothing needs to be done: others fetch pieces of the task right now, and the host will get them from those.
type Coming struct{ Task TaskID }

// Probe has a host measure the round trips to others, and tell them by Probed.
type Probe struct{ Hosts []Host }

// Share tells a host how fast it may read origins, in bytes a second; zero is no bound.
type Share struct{ Rate int64 }

func (Seeds) command()      {}
func (Neighbours) command() {}
func (Lease) command()      {}
func (Revoked) command()    {}
func (Digests) command()    {}
func (Failed) command()     {}
func (Coming) command()     {}
func (Probe) command()      {}
func (Share) command()      {}

// Snapshot is the state in a form for people and tests.
type Snapshot struct {
	Hosts []Host   // in order
	Zones []string // of the hosts, named by them or found
	Tasks []TaskSnapshot
}

// TaskSnapshot is the state of one task.
type TaskSnapshot struct {
	ID      TaskID
	Group   string
	Pieces  int
	Held    int // pieces with at least one holder
	Leased  int // pieces under a lease
	Members int
}

// NextTick is how often Tick is worth sending.
const NextTick = 200 * time.Millisecond
