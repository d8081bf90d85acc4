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
	{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}, {"GB", 1e9}, {"MB", 1e6}, {"kB", 1e3}, {"B", 1},
}

// maxRate is 1 EiB a second; a float has all numbers below exactly enough.
const maxRate = 1 << 60

// ParseRate reads a rate as Rate.String writes it, or one without a unit, in bytes.
func ParseRate(s string) (Rate, error) {
	fault := func() (Rate, error) {
		return 0, fmt.Errorf("rate %q: write bytes a second with a unit, like 100MiB or 50MB, or 0 for no limit", s)
	}
	text, factor := strings.TrimSpace(s), int64(1)
	for _, u := range units {
		if n := len(text) - len(u.name); n >= 0 && strings.EqualFold(text[n:], u.name) {
			text, factor = strings.TrimSpace(text[:n]), u.bytes
			break
		}
	}
	if strings.Trim(text, "0123456789.") != "" {
		return fault() // signs, exponents, NaN
	}
	n, err := strconv.ParseFloat(text, 64)
	if err != nil || n*float64(factor) >= maxRate {
		return fault()
	}
	return Rate(n * float64(factor)), nil
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
