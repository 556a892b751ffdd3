package group

import (
	"slices"
	"strings"
	"testing"

	"github.com/varve/varve/broker/pattern"
)

func TestRegex(t *testing.T) {
	v := (&view{}).with("orders", 1, 1).with("orders-eu", 2, 1).with("xorders", 3, 1).with("a", 4, 1)
	for _, x := range []struct{ expr, want string }{
		{"orders", "orders"},
		{"orders.*", "orders orders-eu"},
		{".*orders", "orders xorders"},
		{"orders|a", "a orders"},
		{"(?i)ORDERS", "orders"},
		{"(?m)^orders$", "orders"},
		{"^a$", "a"},
		{"", ""},
	} {
		got, err := Match(x.expr, v, nil)
		if err != nil || strings.Join(got, " ") != x.want {
			t.Errorf("%q matches %v, %v", x.expr, got, err)
		}
	}
	for _, bad := range []string{
		"(", "a)(b", "a)|(b", `\z)|(?:a`, "*", "(?<x", `(a)\1`, "(?=a)",
		strings.Repeat("a", pattern.MaxBytes+1),
		"((a{100}){100}){100}", "(((a{0,50}){0,50}){0,50}){0,50}", strings.Repeat("(a|b){900}", 20), strings.Repeat("(", 2000) + strings.Repeat(")", 2000),
	} {
		if _, err := pattern.Compile(bad); err == nil {
			t.Errorf("%.40q is accepted", bad)
		}
	}
	// What is catastrophic for engines that go back is not here.
	if got, err := Match("(a+)+b", (&view{}).with(strings.Repeat("a", 249), 1, 1), nil); err != nil || len(got) > 0 {
		t.Error(got, err)
	}
}

func TestHashTopics(t *testing.T) {
	base := (&view{}).with("t", 1, 2, []string{"x"}, []string{"y", "x"}).with("u", 2, 1)
	h := hashTopics(base, []string{"none", "t"})
	if h == 0 {
		t.Error("0 stands for no hash")
	}
	for name, v := range map[string]*view{
		"other topics":          base.with("u", 2, 9),
		"the order of replicas": base.with("t", 1, 2, []string{"x"}, []string{"x", "y"}),
	} {
		if hashTopics(v, []string{"none", "t"}) != h {
			t.Errorf("%s count", name)
		}
	}
	for name, v := range map[string]*view{
		"partitions":      base.with("t", 1, 3, []string{"x"}, []string{"y", "x"}),
		"racks":           base.with("t", 1, 2, []string{"x"}, []string{"y"}),
		"no racks":        base.with("t", 1, 2),
		"made anew":       base.with("t", 3, 2, []string{"x"}, []string{"y", "x"}),
		"is there now":    base.with("none", 3, 1),
		"is gone":         base.with("t", 1, 0),
		"racks elsewhere": base.with("t", 1, 2, []string{"x", "y"}, []string{"x"}),
	} {
		if hashTopics(v, []string{"none", "t"}) == h {
			t.Errorf("%s: does not count", name)
		}
	}
}

func TestNewTopics(t *testing.T) {
	a, b := Topic{ID: topicID{1}, Name: "b", Partitions: 2}, Topic{ID: topicID{2}, Name: "a", Partitions: 3}
	v := NewTopics(7, []Topic{a, b})
	if v.Version() != 7 || !slices.Equal(v.Names(), []string{"a", "b"}) {
		t.Error(v.Version(), v.Names())
	}
	for _, want := range []Topic{a, b} {
		if got, ok := v.ByName(want.Name); !ok || got.ID != want.ID {
			t.Errorf("%+v", got)
		}
		if got, ok := v.ByID(want.ID); !ok || got.Name != want.Name || got.Partitions != want.Partitions {
			t.Errorf("%+v", got)
		}
	}
	if _, ok := v.ByName("c"); ok {
		t.Error("a topic that is not there")
	}
	if _, ok := v.ByID(topicID{3}); ok {
		t.Error("an id that is not there")
	}
}
