package server

import (
	"time"

	"github.com/shoal-project/shoal/scheduler"
	"github.com/shoal-project/shoal/scheduler/api"
)

// toEvent turns what a host said into the machine's words; ok is false when it said nothing known.
func toEvent(host scheduler.HostID, ev api.Event) (e scheduler.Event, ok bool) {
	switch {
	case ev.Join != nil:
		j := ev.Join
		return scheduler.TaskJoined{Host: host, Wants: j.Wants, Have: toRuns(j.Have), Digests: toDigests(j.Digests),
			Partial: j.Partial, Moved: j.Moved, Reading: toRuns(j.Reading), Crossing: toRuns(j.Crossing),
			Task: scheduler.Task{ID: scheduler.TaskID(j.Task.ID), Pieces: j.Task.Pieces, PieceSize: j.Task.PieceSize,
				Sequential: j.Task.Sequential, Origin: j.Task.Origin}}, true
	case ev.Leave != nil:
		return scheduler.TaskLeft{Host: host, Task: scheduler.TaskID(ev.Leave.Task)}, true
	case ev.Progress != nil:
		p := ev.Progress
		return scheduler.Progress{Host: host, Task: scheduler.TaskID(p.Task), Gained: toRuns(p.Gained), Lost: toRuns(p.Lost),
			Reading: p.Reading, FirstByte: time.Duration(max(p.FirstByteUS, 0)) * time.Microsecond, Done: p.Done, Digests: toDigests(p.Digests)}, true
	case ev.Failed != nil:
		f := ev.Failed
		return scheduler.LeaseFailed{Host: host, Task: scheduler.TaskID(f.Task), Run: scheduler.Run{First: f.Run[0], End: f.Run[1]},
			Failure: scheduler.Failure(f.Failure), Text: f.Text, Border: f.Border}, true
	case ev.Stuck != nil:
		return scheduler.Stuck{Host: host, Task: scheduler.TaskID(ev.Stuck.Task), Runs: toRuns(ev.Stuck.Runs),
			Withheld: ev.Stuck.Withheld, Usual: time.Duration(ev.Stuck.UsualUS) * time.Microsecond}, true
	case ev.Demand != nil:
		return scheduler.Demand{Host: host, Task: scheduler.TaskID(ev.Demand.Task), Runs: toRuns(ev.Demand.Runs), All: ev.Demand.All}, true
	case ev.Probed != nil:
		p := scheduler.Probed{Host: host}
		for _, t := range ev.Probed.Trips {
			p.Trips = append(p.Trips, scheduler.Trip{To: scheduler.HostID(t.To), RTT: time.Duration(t.US) * time.Microsecond})
		}
		return p, true
	default:
		return nil, false
	}
}

func toRuns(runs []api.Run) []scheduler.Run {
	out := make([]scheduler.Run, 0, len(runs))
	for _, r := range runs {
		out = append(out, scheduler.Run{First: r[0], End: r[1]})
	}
	return out
}

func toDigests(digests []api.PieceDigest) []scheduler.PieceDigest {
	out := make([]scheduler.PieceDigest, 0, len(digests))
	for _, d := range digests {
		out = append(out, scheduler.PieceDigest(d))
	}
	return out
}

func toCommand(b scheduler.Body) api.Command {
	switch b := b.(type) {
	case scheduler.Seeds:
		return api.Command{Seeds: &api.Seeds{Hosts: fromHosts(b.Hosts)}}
	case scheduler.Neighbours:
		return api.Command{Neighbours: &api.Neighbours{Task: string(b.Task), Hosts: fromHosts(b.Hosts)}}
	case scheduler.Lease:
		return api.Command{Lease: &api.Lease{Run: fromRun(b.Run), Demanded: b.Demanded, From: fromHosts(b.From), Again: b.Again, Task: api.Task{ID: string(b.Task.ID), Pieces: b.Task.Pieces,
			PieceSize: b.Task.PieceSize, Sequential: b.Task.Sequential, Origin: b.Task.Origin}}}
	case scheduler.Revoked:
		return api.Command{Revoked: &api.Revoked{Task: string(b.Task), Run: fromRun(b.Run), Border: b.Border}}
	case scheduler.Digests:
		out := make([]api.PieceDigest, 0, len(b.Digests))
		for _, d := range b.Digests {
			out = append(out, api.PieceDigest(d))
		}
		return api.Command{Digests: &api.Digests{Task: string(b.Task), Digests: out}}
	case scheduler.Failed:
		return api.Command{Failed: &api.Failed{Task: string(b.Task), Failure: string(b.Failure), Text: b.Text}}
	case scheduler.Coming:
		return api.Command{Coming: &api.Coming{Task: string(b.Task)}}
	case scheduler.Probe:
		return api.Command{Probe: &api.Probe{Hosts: fromHosts(b.Hosts)}}
	case scheduler.Share:
		return api.Command{Share: &api.Share{Rate: b.Rate}}
	default:
		return api.Command{}
	}
}

func fromRun(r scheduler.Run) api.Run { return api.Run{r.First, r.End} }

func fromHosts(hosts []scheduler.Host) []api.Host {
	out := make([]api.Host, 0, len(hosts))
	for _, h := range hosts {
		out = append(out, api.Host{ID: string(h.ID), Addr: h.Addr, Zone: h.Locality.Zone, Rack: h.Locality.Rack, Group: h.Group, Seed: h.Seed})
	}
	return out
}
