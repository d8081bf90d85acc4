package limits

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
)

// Rate is a number of bytes a second. In text it is a number with a unit: 100MiB, 50MB, 1GiB, or bytes without one.
type Rate int64

// units are in the order String tries them in.
var units = []struct {
	name  string
	bytes int64
}{
	{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}, {"TB", 1e12}, {"GB", 1e9}, {"MB", 1e6}, {"kB", 1e3}, {"B", 1},
}

// maxBytes is 1 EiB; a float has all numbers below exactly enough.
const maxBytes = 1 << 60

// ParseRate reads a rate as Rate.String writes it, or one without a unit, in bytes.
func ParseRate(s string) (Rate, error) {
	n, ok := parseBytes(s)
	if !ok {
		return 0, fmt.Errorf("rate %q: write bytes a second with a unit, like 100MiB or 50MB, or 0 for no limit", s)
	}
	return Rate(n), nil
}

// ParseSize reads a number of bytes with a unit, as ParseRate does.
func ParseSize(s string) (int64, error) {
	n, ok := parseBytes(s)
	if !ok {
		return 0, fmt.Errorf("size %q: write bytes with a unit, like 100GiB or 500GB, or 0 for no limit", s)
	}
	return n, nil
}

func parseBytes(s string) (int64, bool) {
	text, factor := strings.TrimSpace(s), int64(1)
	for _, u := range units {
		if n := len(text) - len(u.name); n >= 0 && strings.EqualFold(text[n:], u.name) {
			text, factor = strings.TrimSpace(text[:n]), u.bytes
			break
		}
	}
	if strings.Trim(text, "0123456789.") != "" { // signs, exponents, NaN
		return 0, false
	}
	n, err := strconv.ParseFloat(text, 64)
	if err != nil || n*float64(factor) >= maxBytes {
		return 0, false
	}
	return int64(n * float64(factor)), true
}

// String returns the rate with the largest unit that divides it.
func (r Rate) String() string {
	for _, u := range units {
		if r != 0 && int64(r)%u.bytes == 0 {
			return strconv.FormatInt(int64(r)/u.bytes, 10) + u.name
		}
	}
	return strconv.FormatInt(int64(r), 10)
}

// UnmarshalText is ParseRate.
func (r *Rate) UnmarshalText(text []byte) (err error) {
	*r, err = ParseRate(string(text))
	return err
}

// MarshalJSON returns the number of bytes a second.
func (r Rate) MarshalJSON() ([]byte, error) { return json.Marshal(int64(r)) }

// UnmarshalJSON takes a number of bytes a second, or a string for ParseRate.
func (r *Rate) UnmarshalJSON(data []byte) error {
	text := string(data)
	if len(data) > 0 && data[0] == '"' {
		if err := json.Unmarshal(data, &text); err != nil {
			return err
		}
	}
	return r.UnmarshalText([]byte(text))
}
