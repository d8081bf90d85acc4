package main

import (
	"testing"

	"github.com/shoal-project/shoal/cmd/internal/local"
)

func TestStatusTellsOfTheSnapshotterOrWhyThereIsNone(t *testing.T) {
	for want, s := range map[string]local.SnapshotterStatus{
		"":                                {},
		"  snapshots  none: turned off\n": {Off: "turned off"},
		"  snapshots  /s.sock, driver erofs, 1 image mounted\n":          {Address: "/s.sock", Driver: "erofs", Mounted: 1},
		"  snapshots  /s.sock, driver none, 0 images mounted; for why\n": {Address: "/s.sock", Driver: "none", Off: "for why"},
		"  snapshots  /s.sock, driver erofs, 0 images mounted\n  failed     image a: damaged\n  failed     image b: gone\n": {
			Address: "/s.sock", Driver: "erofs", Failed: []string{"image a: damaged", "image b: gone"}},
	} {
		if got := snapshotterText(s); got != want {
			t.Errorf("%+v: got %q, want %q", s, got, want)
		}
	}
}
