package cluster

import (
	"fmt"
	"strconv"
	"strings"
)

// Rate is a link's speed in bits a second, all headers included; zero means no limit.
type Rate int64

// frameOverhead is what a full TCP segment costs on a link for each byte of payload: 1448 bytes travel in a frame of 1514.
const frameOverhead = 1514.0 / 1448

// Seconds is the least time that n bytes of payload take over the link with TCP.
func (r Rate) Seconds(n int64) float64 {
	if r == 0 {
		return 0
	}
	return float64(n) * 8 * frameOverhead / float64(r)
}

// ParseRate reads a rate as tc writes it: 200mbit, 1gbit, 500kbit; "0" and "" are no limit.
func ParseRate(s string) (Rate, error) {
	n, err := parseUnit(s, map[string]int64{"": 1, "bit": 1, "kbit": 1e3, "mbit": 1e6, "gbit": 1e9})
	if err != nil {
		return 0, fmt.Errorf("rate %q: %w; write it like 200mbit or 1gbit", s, err)
	}
	return Rate(n), nil
}

// ParseSize reads a number of bytes: 256MiB, 4KiB, 1GiB, 100MB, 1234.
func ParseSize(s string) (int64, error) {
	n, err := parseUnit(s, map[string]int64{
		"": 1, "b": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30,
	})
	if err == nil && n == 0 {
		err = fmt.Errorf("zero")
	}
	if err != nil {
		return 0, fmt.Errorf("size %q: %w; write it like 256MiB", s, err)
	}
	return n, nil
}

func parseUnit(s string, units map[string]int64) (int64, error) {
	if s == "" {
		return 0, nil
	}
	digits := len(s) - len(strings.TrimLeft(s, "0123456789."))
	n, err := strconv.ParseFloat(s[:digits], 64)
	if err != nil {
		return 0, fmt.Errorf("no number")
	}
	unit, ok := units[strings.ToLower(strings.TrimSpace(s[digits:]))]
	if !ok {
		return 0, fmt.Errorf("unknown unit %q", s[digits:])
	}
	if n*float64(unit) > 1<<53 {
		return 0, fmt.Errorf("too large")
	}
	return int64(n * float64(unit)), nil
}
