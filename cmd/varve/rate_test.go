package main

import "testing"

func TestParseRate(t *testing.T) {
	for _, c := range []struct {
		in   string
		want float64
	}{
		{"", 0}, {"50000", 50000}, {"0.5", 0.5}, {"50MB", 50000}, {"1.5 GB", 1.5e6}, {"2KB", 2}, {"1MiB", 1048.576},
	} {
		if got, err := parseRate(c.in, 1000); err != nil || got != c.want {
			t.Errorf("%q: %v, %v; not %v", c.in, got, err, c.want)
		}
	}
	for _, in := range []string{"0", "-1", "NaN", "inf", "MB", "10 MBs", "x", "-5MB", "0KB", "1e400MB"} {
		if got, err := parseRate(in, 1000); err == nil {
			t.Errorf("%q is taken for %v", in, got)
		}
	}
}
