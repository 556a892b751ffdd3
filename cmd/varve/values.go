package main

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Flag values that refuse at parsing what makes no sense later, saying what is expected.

// durationValue is a duration that is positive, or zero where allowed.
type durationValue struct {
	d    *time.Duration
	zero bool
}

func (v durationValue) String() string {
	if v.d == nil {
		return "0s"
	}
	return v.d.String()
}
func (v durationValue) Type() string { return "duration" }
func (v durationValue) Set(s string) error {
	d, err := time.ParseDuration(s)
	switch {
	case err != nil:
		return errors.New("must be a duration with its unit, like 500ms, 10s or 2m")
	case d < 0:
		return errors.New("must not be negative")
	case d == 0 && !v.zero:
		return errors.New("must be above zero")
	}
	*v.d = d
	return nil
}

// bytesValue is a number of bytes within bounds: plain, or with KiB, MiB, GiB.
type bytesValue struct {
	n        *int64
	min, max int64
}

func (v bytesValue) String() string {
	if v.n == nil {
		return "0"
	}
	return strconv.FormatInt(*v.n, 10)
}
func (v bytesValue) Type() string { return "bytes" }
func (v bytesValue) Set(s string) error {
	n, err := parseBytes(s)
	if err != nil {
		return err
	}
	if n < v.min || n > v.max {
		return fmt.Errorf("must be from %d to %d bytes", v.min, v.max)
	}
	*v.n = n
	return nil
}

func parseBytes(s string) (int64, error) {
	digits, shift := s, 0
	for i, unit := range []string{"KiB", "MiB", "GiB"} {
		if d, ok := strings.CutSuffix(s, unit); ok {
			digits, shift = strings.TrimSpace(d), 10*(i+1)
		}
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n < 0 || n > math.MaxInt64>>shift {
		return 0, errors.New("must be a number of bytes, like 65536, 64KiB or 1MiB")
	}
	return n << shift, nil
}

// intValue is an integer within bounds.
type intValue struct {
	n        *int64
	min, max int64
	what     string // the expected form, for the message
}

func (v intValue) String() string {
	if v.n == nil {
		return "0"
	}
	return strconv.FormatInt(*v.n, 10)
}
func (v intValue) Type() string { return "int" }
func (v intValue) Set(s string) error {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < v.min || n > v.max {
		return fmt.Errorf("must be %s", v.what)
	}
	*v.n = n
	return nil
}

// oneOf is a word out of a list.
type oneOf struct {
	s       *string
	allowed []string
}

func (v oneOf) String() string {
	if v.s == nil {
		return ""
	}
	return *v.s
}
func (v oneOf) Type() string { return strings.Join(v.allowed, "|") }
func (v oneOf) Set(s string) error {
	for _, a := range v.allowed {
		if s == a {
			*v.s = s
			return nil
		}
	}
	return fmt.Errorf("must be one of %s", strings.Join(v.allowed, ", "))
}

// escapedValue is text in which \t, \n, \r, \0, \\ and \xHH stand for bytes, as a shell makes those hard to type.
type escapedValue struct{ s *string }

func (v escapedValue) String() string {
	if v.s == nil {
		return ""
	}
	return strings.Trim(strconv.QuoteToASCII(*v.s), `"`)
}
func (v escapedValue) Type() string { return "string" }
func (v escapedValue) Set(s string) error {
	u, err := unescape(s)
	if err != nil {
		return err
	}
	*v.s = u
	return nil
}

func unescape(s string) (string, error) {
	if !strings.Contains(s, `\`) {
		return s, nil
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' {
			b.WriteByte(s[i])
			continue
		}
		i++
		if i == len(s) {
			return "", errors.New(`ends in a single \; write \\ for a backslash`)
		}
		switch s[i] {
		case 't':
			b.WriteByte('\t')
		case 'n':
			b.WriteByte('\n')
		case 'r':
			b.WriteByte('\r')
		case '0':
			b.WriteByte(0)
		case '\\':
			b.WriteByte('\\')
		case 'x':
			if i+2 >= len(s) {
				return "", errors.New(`\x needs two hexadecimal digits, like \x1f`)
			}
			n, err := strconv.ParseUint(s[i+1:i+3], 16, 8)
			if err != nil {
				return "", errors.New(`\x needs two hexadecimal digits, like \x1f`)
			}
			b.WriteByte(byte(n))
			i += 2
		default:
			return "", fmt.Errorf(`unknown escape \%c; there are \t \n \r \0 \\ \xHH`, s[i])
		}
	}
	return b.String(), nil
}

// parseTime reads a moment: milliseconds since 1970, RFC 3339, a date (UTC), or, with a leading minus, a duration
// before now.
func parseTime(s string, now time.Time) (time.Time, error) {
	if ms, err := strconv.ParseInt(s, 10, 64); err == nil {
		if ms < 0 {
			return time.Time{}, fmt.Errorf("%q: milliseconds since 1970 are not negative; for a time before now say it with a unit, like -15m", s)
		}
		return time.UnixMilli(ms), nil
	}
	if t, err := time.Parse(time.RFC3339, s); err == nil {
		return t, nil
	}
	for _, layout := range []string{"2006-01-02T15:04:05", time.DateOnly} { // without a zone: UTC, as Kafka's tools have it
		if t, err := time.Parse(layout, s); err == nil {
			return t, nil
		}
	}
	if d, err := time.ParseDuration(s); err == nil && d < 0 {
		return now.Add(d), nil
	}
	return time.Time{}, fmt.Errorf("%q is not a time; expected milliseconds since 1970, 2006-01-02T15:04:05Z, 2006-01-02, or a time before now like -15m", s)
}

// sinceMs is a time as a broker is asked for it. No record is older than 1970, and what is below zero says something else
// to a broker: the end, the beginning, the largest time.
func sinceMs(t time.Time) int64 { return max(t.UnixMilli(), 0) }

// keyValue splits name=value.
func keyValue(flag, s string) (name, value string, err error) {
	name, value, ok := strings.Cut(s, "=")
	if !ok || name == "" {
		return "", "", usagef("%s %q: must be name=value", flag, s)
	}
	return name, value, nil
}

// checkTopicName refuses what no Kafka broker accepts, before a broker is asked.
func checkTopicName(name string) error {
	switch {
	case name == "":
		return usagef("the topic name is empty")
	case name == "." || name == "..":
		return usagef("%q cannot be a topic name", name)
	case len(name) > 249:
		return usagef("a topic name has at most 249 characters, this one has %d", len(name))
	}
	for _, r := range name {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '.', r == '_', r == '-':
		default:
			return usagef("topic name %q: only letters, digits, '.', '_' and '-' are allowed", name)
		}
	}
	return nil
}

func checkTopicNames(names []string) error {
	seen := make(map[string]bool, len(names))
	for _, n := range names {
		if err := checkTopicName(n); err != nil {
			return err
		}
		if seen[n] {
			return usagef("topic %q is given twice", n)
		}
		seen[n] = true
	}
	return nil
}
