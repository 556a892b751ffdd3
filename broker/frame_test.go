package broker

import "testing"

func TestSpoken(t *testing.T) {
	for _, c := range []struct {
		size uint32
		want string
	}{
		{0x47455420, ": it begins as HTTP does; metrics and health are at admin.listener"}, // GET
		{0x50524920, ": it begins as HTTP does; metrics and health are at admin.listener"}, // HTTP/2's preface
		{0x16030100, ": it begins as TLS does, and this listener has none"},
		{0x16030305, ": it begins as TLS does, and this listener has none"},
		{0x16020100, ""},
		{0x5353482d, ": it begins as SSH does"},
		{0xffffffff, ""},
		{0, ""},
	} {
		if got := spoken(c.size); got != c.want {
			t.Errorf("%#x: %q, want %q", c.size, got, c.want)
		}
	}
}
