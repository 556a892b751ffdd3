// Package pattern compiles the regular expressions that clients send, within bounds.
package pattern

import (
	"errors"
	"regexp"
	"regexp/syntax"
)

// Bounds of expressions. Matching takes time in proportion to the length of a name, whatever the expression (RE2); but
// counted repetitions make a small expression into a large program, and that is paid for each byte.
const (
	MaxBytes = 4096
	maxCost  = 10_000
)

// ErrTooLarge is the error for an expression beyond the bounds.
var ErrTooLarge = errors.New("the expression is too large")

// Compile compiles an expression that has to match a whole name.
func Compile(s string) (*regexp.Regexp, error) {
	if len(s) > MaxBytes {
		return nil, ErrTooLarge
	}
	// Parsed alone: what is put around it must not close a group that it leaves open.
	parsed, err := syntax.Parse(s, syntax.Perl)
	if err != nil {
		return nil, err
	}
	if cost(parsed) > maxCost {
		return nil, ErrTooLarge
	}
	return regexp.Compile(`\A(?:` + s + `)\z`)
}

// Cost is about how many instructions an expression becomes, 0 if it is none.
func Cost(s string) int {
	parsed, err := syntax.Parse(s, syntax.Perl)
	if err != nil {
		return 0
	}
	return cost(parsed)
}

// cost is about how many instructions an expression becomes.
func cost(re *syntax.Regexp) int {
	n := 1 + len(re.Rune)
	for _, sub := range re.Sub {
		if n += cost(sub); n > maxCost {
			return n
		}
	}
	if re.Op == syntax.OpRepeat {
		n *= max(re.Min, re.Max, 1)
	}
	return n
}
