package cluster

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// ErrTools is returned when programs are missing.
var ErrTools = errors.New("tools are missing")

// CheckTools looks for programs in PATH and names those that are not there.
func CheckTools(names ...string) error {
	var missing []string
	for _, name := range names {
		if _, err := exec.LookPath(name); err != nil {
			missing = append(missing, name)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("%w: %s; run hack/setup", ErrTools, strings.Join(missing, " "))
	}
	return nil
}

// NeedTools skips the test aloud when a program is missing. With REQUIRE_TOOLS=1 it fails it.
func NeedTools(t testing.TB, names ...string) {
	t.Helper()
	if err := CheckTools(names...); err != nil {
		skip(t, err.Error())
	}
}

// NeedRoot skips the test aloud when it is not run by root. With REQUIRE_TOOLS=1 it fails it.
func NeedRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		skip(t, ErrRoot.Error())
	}
}

func skip(t testing.TB, why string) {
	t.Helper()
	if os.Getenv("REQUIRE_TOOLS") == "1" {
		t.Fatal(why)
	}
	t.Skip(why)
}
