package pattern

import (
	"errors"
	"strings"
	"testing"
)

func TestCompile(t *testing.T) {
	for _, x := range []struct {
		expr, name string
		want       bool
	}{
		{"a|b", "a", true}, {"a|b", "ab", false}, {"(?m)^a$", "a\nb", false}, {"", "", true}, {"", "a", false},
		{"(a+)+b", strings.Repeat("a", 10_000), false}, // catastrophic for engines that go back
	} {
		re, err := Compile(x.expr)
		if err != nil || re.MatchString(x.name) != x.want {
			t.Errorf("%q and %.20q: %v, want %v", x.expr, x.name, err, x.want)
		}
	}
	for _, bad := range []string{"(", "a)(b", "a)|(b", `\z)|(?:a`, "*", "(?<x", `(a)\1`, "(?=a)"} {
		if _, err := Compile(bad); err == nil || errors.Is(err, ErrTooLarge) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	for _, large := range []string{
		strings.Repeat("a", MaxBytes+1), strings.Repeat("(a|b){900}", 20), strings.Repeat(`\pL{900}`, 100),
	} {
		if _, err := Compile(large); !errors.Is(err, ErrTooLarge) {
			t.Errorf("%.20q: %v", large, err)
		}
	}
}
