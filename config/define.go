package config

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// How the tables are written down: one constructor per type and range, then what is special about a setting.

type option func(*Def)

func def(name string, t Type, dflt, expect, doc string, check func(string) error, opts []option) *Def {
	d := &Def{Name: name, Type: t, Default: dflt, Expect: expect, Doc: doc, check: check}
	for _, o := range opts {
		o(d)
	}
	return d
}

const null = "\x00null"

func setDefault(d *Def) *Def {
	if d.Default == null {
		d.Default, d.Null = "", true
	}
	return d
}

// number is an integer with a least and a largest value.
func number(t Type, name, dflt, doc string, lo, hi int64, opts ...option) *Def {
	expect := "a whole number"
	switch {
	case strings.HasSuffix(name, ".ms"):
		expect = "a whole number of milliseconds"
	case strings.Contains(name, "bytes"):
		expect = "a whole number of bytes"
	}
	most := map[Type]int64{Short: math.MaxInt16, Int: math.MaxInt32, Long: math.MaxInt64}[t]
	hi = min(hi, most)
	switch {
	case lo == math.MinInt64 && hi == most:
	case hi == most:
		expect += fmt.Sprintf(" of at least %d", lo)
	default:
		expect += fmt.Sprintf(" from %d to %d", lo, hi)
	}
	check := func(v string) error {
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil || n < lo || n > hi {
			return errors.New("it is out of range")
		}
		return nil
	}
	return setDefault(def(name, t, dflt, expect, doc, check, opts))
}

const (
	anyLow  = math.MinInt64
	anyHigh = math.MaxInt64
)

func integer(name, dflt, doc string, lo, hi int64, opts ...option) *Def {
	return number(Int, name, dflt, doc, lo, hi, opts...)
}

func long(name, dflt, doc string, lo, hi int64, opts ...option) *Def {
	return number(Long, name, dflt, doc, lo, hi, opts...)
}

func short(name, dflt, doc string, lo, hi int64, opts ...option) *Def {
	return number(Short, name, dflt, doc, lo, hi, opts...)
}

func double(name, dflt, doc string, lo, hi float64, opts ...option) *Def {
	expect := "a number"
	if lo > -math.MaxFloat64 || hi < math.MaxFloat64 {
		expect = fmt.Sprintf("a number from %g to %g", lo, hi)
	}
	return setDefault(def(name, Double, dflt, expect, doc, func(v string) error {
		if f, err := strconv.ParseFloat(v, 64); err != nil || f < lo || f > hi {
			return errors.New("it is out of range")
		}
		return nil
	}, opts))
}

func boolean(name, dflt, doc string, opts ...option) *Def {
	return setDefault(def(name, Boolean, dflt, "true or false", doc, nil, opts))
}

func text(name, dflt, doc string, opts ...option) *Def {
	return setDefault(def(name, String, dflt, "text", doc, nil, opts))
}

// texts is a comma-separated list whose items are whatever the options check.
func texts(name, dflt, doc string, opts ...option) *Def {
	return setDefault(def(name, List, dflt, "a comma-separated list", doc, nil, opts))
}

func class(name, dflt, doc string, opts ...option) *Def {
	return setDefault(def(name, Class, dflt, "no class", doc, nil, opts))
}

func password(name, doc string, opts ...option) *Def {
	return setDefault(def(name, Password, null, "text", doc, nil, opts))
}

// choice is one of several words.
func choice(name, dflt, doc string, words []string, opts ...option) *Def {
	return setDefault(def(name, String, dflt, "one of "+strings.Join(words, ", "), doc, func(v string) error {
		if !slices.Contains(words, v) {
			return errors.New("it is none of them")
		}
		return nil
	}, opts))
}

// list is a comma-separated list; of words, if there are any.
func list(name, dflt, doc string, words []string, opts ...option) *Def {
	expect := "a comma-separated list"
	if words != nil {
		expect += " of " + strings.Join(words, ", ")
	}
	return setDefault(def(name, List, dflt, expect, doc, func(v string) error {
		items := ParseList(v)
		for i, it := range items {
			switch {
			case it == "":
				return errors.New("an item is empty")
			case words != nil && !slices.Contains(words, it):
				return fmt.Errorf("%s is none of them", quote(it))
			case slices.Contains(items[:i], it):
				return fmt.Errorf("%s is there twice", quote(it))
			}
		}
		return nil
	}, opts))
}

// checked adds a check to that of the type, and says what it expects.
func checked(expect string, check func(string) error) option {
	return func(d *Def) {
		d.Expect = expect
		before := d.check
		d.check = func(v string) error {
			if before != nil {
				if err := before(v); err != nil {
					return err
				}
			}
			return check(v)
		}
	}
}

// or allows one value outside of the range.
func or(special string) option {
	return func(d *Def) {
		d.Expect += ", or " + special
		before := d.check
		d.check = func(v string) error {
			if v == special {
				return nil
			}
			return before(v)
		}
	}
}

func perBroker(d *Def)   { d.Update = PerBroker }
func clusterWide(d *Def) { d.Update = ClusterWide }

func noted(note string) option   { return func(d *Def) { d.Handling, d.Note = Noted, note } }
func warned(note string) option  { return func(d *Def) { d.Handling, d.Note = Warned, note } }
func refused(note string) option { return func(d *Def) { d.Handling, d.Note = Refused, note } }

// from names the broker's setting that gives a topic's setting its default; others follow with their units.
func from(name string, others ...Unit) option {
	return func(d *Def) { d.Synonyms = append([]Unit{{name, 1}}, others...) }
}

const (
	perHour   = 3_600_000
	perMinute = 60_000
)
