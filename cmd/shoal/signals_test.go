package main

import (
	"os"
	"os/signal"
	"slices"
	"syscall"
	"testing"
)

func TestTerminalThatGoesAwayStopsInOrderUnlessNohupIsUsed(t *testing.T) {
	nohup := signal.Ignored(syscall.SIGHUP)
	t.Cleanup(func() {
		signal.Reset(syscall.SIGHUP)
		if nohup {
			signal.Ignore(syscall.SIGHUP)
		}
	})
	signal.Reset(syscall.SIGHUP)
	if !nohup && !slices.Contains(stopSignals(), os.Signal(syscall.SIGHUP)) {
		t.Error("SIGHUP would kill the process at once")
	}
	signal.Ignore(syscall.SIGHUP)
	if slices.Contains(stopSignals(), os.Signal(syscall.SIGHUP)) {
		t.Error("SIGHUP ends a process under nohup")
	}
}
