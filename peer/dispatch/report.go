package dispatch

import "time"

const (
	// reportSoon is how long a host that reads the origin gathers pieces for a report: other zones wait for it. The end of a lease, for which
	// the next one waits, it tells at once.
	reportSoon = 50 * time.Millisecond
	// reportLate is how long others do: the scheduler only counts who holds what, in case a holder dies.
	reportLate = 3500 * time.Millisecond
)

// ReportAfter returns how long after the last report to the scheduler the next one is due when there is something to tell. urgent
// is set when bytes came from the origin, a piece came that was leased to be fetched across a border, or pieces were lost since.
func (p *Planner) ReportAfter(urgent bool) time.Duration {
	switch {
	case p.Missing() == 0:
		return 0
	case urgent || len(p.reading)+len(p.leases)+len(p.rushing)+len(p.first)+p.kept.Count() > 0:
		return reportSoon
	default:
		return reportLate
	}
}
