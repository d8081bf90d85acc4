package main

import "testing"

func TestRootManyPullsAtOnceLeaveNothingBehind(t *testing.T) {
	ctx, shoal := prepare(t, "ip", "tc", "docker-registry")
	result, err := pulls(ctx, pullsConfig{shoal: shoal, pulls: 200, images: 20, size: 1 << 20, memory: 256 << 20, log: t.Output()})
	if err != nil {
		t.Error(err)
	}
	t.Logf("%+v", result)
}
