package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/shoal-project/shoal/cmd/internal/local"
	"github.com/shoal-project/shoal/peer/limits"
)

const statusHelp = `Shows what the node of this machine does: its schedulers and seeds, its store and limits, the tasks that run with the hosts it gets
pieces from, and what it gave to whom since it began.

EXAMPLES:
   shoal status
   shoal status --output json | jq '.tasks[] | {id, held, size}'`

func statusCommand() *cli.Command {
	return command(&cli.Command{
		Name: "status", Usage: "show what the node of this machine does", Description: statusHelp,
		Flags: []cli.Flag{nodeFlag(), &cli.StringFlag{Name: "output", Value: "text", Usage: "`FORMAT` on standard output: text or json"}},
		Action: func(ctx *cli.Context) error {
			asJSON, err := checkOutput(ctx)
			if err != nil {
				return err
			}
			client := local.NewClient(ctx.String("node"))
			defer client.Close()
			s, err := client.Status(ctx.Context)
			switch {
			case err != nil:
				return fmt.Errorf("status: %w", err)
			case asJSON:
				return writeJSON(ctx.App.Writer, s)
			}
			_, err = io.WriteString(ctx.App.Writer, statusText(s))
			return err
		},
	}, nodeEnvironment()...)
}

// limitsText tells the limits that are set, in a line; nothing when there are none.
func limitsText(s *local.Status) string {
	var words []string
	for _, l := range []struct {
		name string
		rate limits.Rate
	}{
		{"upload", s.Limits.Upload}, {"upload per task", s.Limits.UploadPerTask}, {"download", s.Limits.Download},
		{"download per task", s.Limits.DownloadPerTask}, {"origin", s.Limits.Source}, {"origin per task", s.Limits.SourcePerTask},
		{"share of the cluster's origin rate", s.Share}, {"disk", s.Limits.DiskWrite},
	} {
		if l.rate > 0 {
			words = append(words, fmt.Sprintf("%s %s/s", l.name, l.rate))
		}
	}
	if len(words) == 0 {
		return ""
	}
	return "  limits     " + strings.Join(words, ", ") + "\n"
}

// snapshotterText tells of the snapshotter in a line, or why there is none, and in one for each image that could not be mounted.
func snapshotterText(s local.SnapshotterStatus) string {
	if s.Address == "" && s.Off == "" { // an older node does not say
		return ""
	}
	if s.Address == "" {
		return "  snapshots  none: " + printable(s.Off) + "\n"
	}
	var text strings.Builder
	fmt.Fprintf(&text, "  snapshots  %s, driver %s, %s mounted", s.Address, printable(s.Driver), count(s.Mounted, "image"))
	if s.Off != "" {
		text.WriteString("; " + printable(s.Off))
	}
	for _, why := range s.Failed {
		text.WriteString("\n  failed     " + printable(why))
	}
	return text.String() + "\n"
}

func statusText(s *local.Status) string {
	var b strings.Builder
	kind := "node"
	if s.Seed {
		kind = "seed"
	}
	fmt.Fprintf(&b, "%s %s, version %s\n", kind, printable(s.Name), printable(s.Version))
	if s.Addr != "" {
		fmt.Fprintf(&b, "  serves     %s\n", s.Addr)
	}
	for _, l := range s.Schedulers {
		state := "no session"
		switch {
		case l.Live:
			state = "in session"
		case l.Error != "":
			state += ": " + strings.TrimPrefix(printable(l.Error), "scheduler "+printable(l.URL)+": ")
		}
		fmt.Fprintf(&b, "  scheduler  %s, %s\n", printable(l.URL), state)
	}
	for _, p := range s.Peers {
		fmt.Fprintf(&b, "  peer       %s\n", printable(p))
	}
	fmt.Fprintf(&b, "  store      %s, %s of %s held", count(s.Store.Blobs, "blob"), bytesText(s.Store.Held), bytesText(s.Store.Reserved))
	if s.Store.Beside > 0 {
		fmt.Fprintf(&b, ", %s of expanded images", bytesText(s.Store.Beside))
	}
	if s.Store.MaxBytes > 0 {
		fmt.Fprintf(&b, ", at most %s", bytesText(s.Store.MaxBytes))
	}
	if s.Store.MaxPercent > 0 {
		fmt.Fprintf(&b, ", at most %d%% of what others leave of the disk", s.Store.MaxPercent)
	}
	b.WriteString("\n")
	b.WriteString(snapshotterText(s.Snapshotter))
	b.WriteString(limitsText(s))
	if len(s.Tasks) > 0 {
		rows := [][]string{{"TASK", "HELD", "OF", "READERS", "FROM", "BYTES"}}
		for _, t := range s.Tasks {
			first := []string{string(t.ID)[:min(len(t.ID), 19)], bytesText(t.Held), bytesText(t.Size), fmt.Sprint(t.Readers)}
			rows = append(rows, append(first, "origin", bytesText(t.Origin)))
			for _, p := range t.Parents {
				rows = append(rows, []string{"", "", "", "", p.Addr, bytesText(p.Bytes)})
			}
		}
		b.WriteString("\n")
		table(&b, rows)
	}
	if len(s.Uploads) > 0 {
		rows := [][]string{{"GIVEN TO", "BYTES", "TASK"}}
		for _, u := range s.Uploads {
			rows = append(rows, []string{u.Host, bytesText(u.Bytes), string(u.ID)[:min(len(u.ID), 19)]})
		}
		b.WriteString("\n")
		table(&b, rows)
	}
	return b.String()
}
