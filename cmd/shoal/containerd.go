package main

import (
	"context"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/shoal-project/shoal/registry-mirror/hosts"
)

// askContainerd is how long the installed containerd may take to tell its version.
const askContainerd = 5 * time.Second

// configVersion is the version of containerd's configuration file that is written or printed for.
type configVersion struct {
	version int
	// missing says that there is no such file yet, so that its first line has to be told too.
	missing bool
	reason  string // why it is this one
}

// findConfigVersion returns the version of the file, of the one that is wanted if there is no file, and else of what is installed here. wanted is 0 if
// nobody asked.
func findConfigVersion(ctx context.Context, file string, wanted int) (configVersion, error) {
	found, err := hosts.ConfigVersion(file)
	switch {
	case err != nil:
		return configVersion{}, needRoot(err)
	case wanted != 0 && wanted != 2 && wanted != 3:
		return configVersion{}, usageError(fmt.Errorf("--config-version %d: containerd's configuration is of version 2 or 3", wanted))
	case wanted != 0 && found != 0 && found != wanted:
		return configVersion{}, usageError(fmt.Errorf("--config-version %d: %s is of version %d", wanted, file, found))
	case found != 0:
		return configVersion{version: found, reason: "the version it has"}, nil
	case wanted != 0:
		return configVersion{version: wanted, missing: true, reason: "as --config-version says"}, nil
	}
	text, major := installedContainerd(ctx)
	switch {
	case major >= 2:
		return configVersion{3, true, "for the installed containerd " + text}, nil
	case major == 1:
		return configVersion{2, true, "for the installed containerd " + text}, nil
	}
	return configVersion{2, true, "which containerd 1 and 2 read, since none is found here to ask; --config-version 3 is for containerd 2 alone"}, nil
}

// installedContainerd returns the version of the containerd that is found first, as it tells it, and its first number; 0 if there is none.
func installedContainerd(ctx context.Context) (text string, major int) {
	ctx, cancel := context.WithTimeout(ctx, askContainerd)
	defer cancel()
	out, err := exec.CommandContext(ctx, "containerd", "--version").Output()
	fields := strings.Fields(string(out)) // containerd, its module, its version
	if err != nil || len(fields) < 3 {
		return "", 0
	}
	first, _, _ := strings.Cut(strings.TrimPrefix(fields[2], "v"), ".")
	if major, err = strconv.Atoi(first); err != nil {
		return "", 0
	}
	return fields[2], major
}
