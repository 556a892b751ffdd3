// Package config knows every setting: its name, type, default and range, who may change it and when, and what
// becomes of it here. Names are Kafka's wherever a setting means the same.
//
// A setting that is accepted is enforced. What is not enforced says so: each Def has a Handling, and a setting
// that is set though it has no effect is warned about by name, or refused when ignoring it would be unsafe.
//
// The same table serves the configuration file, the environment, --set, DescribeConfigs and AlterConfigs. The
// package is pure: it is given bytes and strings and reads nothing by itself.
package config

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Type is the type of a value, with the numbers that DescribeConfigs uses.
type Type int8

// The types of Kafka's settings.
const (
	Boolean  Type = 1
	String   Type = 2
	Int      Type = 3
	Short    Type = 4
	Long     Type = 5
	Double   Type = 6
	List     Type = 7
	Class    Type = 8
	Password Type = 9
)

var typeNames = [...]string{1: "boolean", 2: "string", 3: "int", 4: "short", 5: "long", 6: "double", 7: "list", 8: "class", 9: "password"}

func (t Type) String() string { return typeNames[t] }

// Source says where a value comes from, with the numbers that DescribeConfigs uses.
type Source int8

// The sources, from the one that counts most to the one that counts least for a topic.
const (
	DynamicTopic         Source = 1
	DynamicBroker        Source = 2
	DynamicDefaultBroker Source = 3
	StaticBroker         Source = 4
	Default              Source = 5
	DynamicBrokerLogger  Source = 6
	DynamicClientMetrics Source = 7
	DynamicGroup         Source = 8
)

// Scope is what a setting belongs to.
type Scope int8

// The scopes. Group and ClientMetrics are config resources of their own.
const (
	ScopeTopic Scope = iota
	ScopeBroker
	ScopeGroup
	ScopeClientMetrics
)

// Update says whether a broker's setting can be changed while it runs.
type Update int8

// ReadOnly settings need a restart. PerBroker ones can be changed for one broker only, ClusterWide ones for
// one or for all.
const (
	ReadOnly Update = iota
	PerBroker
	ClusterWide
)

// Handling says what becomes of a setting.
type Handling int8

const (
	// Enforced settings do what they say.
	Enforced Handling = iota
	// Noted settings are accepted in silence: what they ask for is so in any case, or means nothing in this
	// implementation and harms nobody by being ignored. Note says which.
	Noted
	// Warned settings are accepted, have no effect, and are warned about by name when they are set. Note is
	// the reason.
	Warned
	// Refused settings may have only their default value (or none). Note says why, and what to do instead.
	Refused
)

// Def is one setting.
type Def struct {
	Name     string
	Scope    Scope
	Type     Type
	Default  string
	Null     bool // there is no default; Default is empty
	Expect   string
	Doc      string
	Update   Update
	Handling Handling
	Note     string

	// Synonyms are, for a topic's setting, the broker's settings that give it a default, the first one that is
	// set counting; for a broker's, other names of the same quantity. The setting itself is not among them.
	Synonyms []Unit

	check func(string) error
}

// Unit is a setting under which a quantity is given in another unit.
type Unit struct {
	Name   string
	Factor int64 // how many of the described setting's unit one of this one's is
}

// Sensitive reports whether a value must not be shown.
func (d *Def) Sensitive() bool { return d.Type == Password }

// IsList reports whether a value is a comma-separated list, to which IncrementalAlterConfigs can append.
func (d *Def) IsList() bool { return d.Type == List }

// ValueError is a value that a setting cannot have.
type ValueError struct {
	Name   string
	Value  string // empty for a sensitive setting
	Expect string
	Hint   string // may be empty
}

func (e *ValueError) Error() string {
	s := "Invalid value"
	if e.Value != "" {
		s += " " + quote(e.Value)
	}
	s += " for configuration " + e.Name + ": expected " + e.Expect
	if e.Hint != "" {
		s += "; " + e.Hint
	}
	return s
}

// quote shows a value, shortened and with nothing in it that could forge a line of a log.
func quote(v string) string {
	const most = 100
	if len(v) > most {
		cut := most
		for cut > 0 && !utf8.RuneStart(v[cut]) {
			cut--
		}
		return strconv.Quote(v[:cut]) + "..."
	}
	return strconv.Quote(v)
}

// MaxValue is the longest value of a setting, in bytes.
const MaxValue = 64 << 10

// Validate checks that value has the type and the range of the setting, and that the setting may be set
// to it at all. It returns a *ValueError.
func (d *Def) Validate(value string) error {
	bad := func(hint string) error {
		e := &ValueError{Name: d.Name, Value: value, Expect: d.Expect, Hint: hint}
		if d.Sensitive() {
			e.Value = ""
		}
		return e
	}
	if len(value) > MaxValue {
		e := &ValueError{Name: d.Name, Expect: fmt.Sprintf("at most %d bytes", MaxValue), Hint: fmt.Sprintf("it has %d", len(value))}
		return e
	}
	if !utf8.ValidString(value) || strings.ContainsRune(value, 0) {
		return bad("it is not valid text")
	}
	v := strings.TrimSpace(value)
	if d.Handling == Refused {
		if v == d.Default {
			return nil
		}
		e := bad(d.Note).(*ValueError)
		if e.Expect = d.Default; d.Default == "" {
			e.Expect = "that it is left out"
		}
		return e
	}
	switch d.Type {
	case Boolean:
		if _, err := parseBool(v); err != nil {
			return bad("")
		}
	case Short:
		if _, err := strconv.ParseInt(v, 10, 16); err != nil {
			return bad(unitHint(d.Name, v))
		}
	case Int:
		if _, err := strconv.ParseInt(v, 10, 32); err != nil {
			return bad(unitHint(d.Name, v))
		}
	case Long:
		if _, err := strconv.ParseInt(v, 10, 64); err != nil {
			return bad(unitHint(d.Name, v))
		}
	case Double:
		if f, err := strconv.ParseFloat(v, 64); err != nil || math.IsNaN(f) || math.IsInf(f, 0) {
			return bad("")
		}
	}
	if d.check != nil {
		if err := d.check(v); err != nil {
			return bad(err.Error())
		}
	}
	return nil
}

func parseBool(v string) (bool, error) {
	switch {
	case strings.EqualFold(v, "true"):
		return true, nil
	case strings.EqualFold(v, "false"):
		return false, nil
	}
	return false, fmt.Errorf("neither true nor false")
}

// ParseList splits a list setting. The empty string is the empty list.
func ParseList(v string) []string {
	v = strings.TrimSpace(v)
	if v == "" {
		return nil
	}
	items := strings.Split(v, ",")
	for i := range items {
		items[i] = strings.TrimSpace(items[i])
	}
	return items
}

// unitHint recognises a number with a unit, which is what people write who have not been told that the
// setting's name says the unit, and computes what they meant.
func unitHint(name, v string) string {
	digits := 0
	for digits < len(v) && v[digits] >= '0' && v[digits] <= '9' {
		digits++
	}
	n, err := strconv.ParseInt(v[:digits], 10, 64)
	unit := strings.ToLower(strings.TrimSpace(v[digits:]))
	if err != nil || unit == "" {
		return ""
	}
	factor := int64(0)
	one := int64(1)
	if strings.Contains(name, "bytes") || strings.Contains(name, "size") {
		unit = strings.TrimSuffix(strings.TrimSuffix(strings.TrimSuffix(unit, "s"), "b"), "i")
		factor = map[string]int64{"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}[unit]
	} else {
		ms := map[string]int64{"ms": 1, "s": 1000, "sec": 1000, "m": 60_000, "min": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 7 * 86_400_000}
		factor = ms[unit]
		switch {
		case strings.HasSuffix(name, ".seconds"):
			one = 1000
		case strings.HasSuffix(name, ".minutes"):
			one = 60_000
		case strings.HasSuffix(name, ".hours"):
			one = 3_600_000
		case !strings.HasSuffix(name, ".ms"):
			return ""
		}
	}
	if factor == 0 || n > math.MaxInt64/factor || n*factor%one != 0 {
		return ""
	}
	return fmt.Sprintf("write it without a unit: %d", n*factor/one)
}

// The tables by name, and the names in order.
type table struct {
	byName map[string]*Def
	sorted []*Def
}

func newTable(defs ...[]*Def) table {
	t := table{byName: map[string]*Def{}}
	for _, list := range defs {
		for _, d := range list {
			if t.byName[d.Name] != nil {
				panic("config: " + d.Name + " is defined twice")
			}
			t.byName[d.Name] = d
			t.sorted = append(t.sorted, d)
		}
	}
	slices.SortFunc(t.sorted, func(a, b *Def) int { return strings.Compare(a.Name, b.Name) })
	return t
}

var (
	topics        = newTable(topicDefs())
	brokers       = newTable(brokerDefs(), ownDefs())
	groups        = newTable(groupDefs())
	clientMetrics = newTable(clientMetricsDefs())
)

// Topic returns a topic's setting.
func Topic(name string) (*Def, bool) { d := topics.byName[name]; return d, d != nil }

// Broker returns a broker's setting.
func Broker(name string) (*Def, bool) { d := brokers.byName[name]; return d, d != nil }

// Group returns a group's setting.
func Group(name string) (*Def, bool) { d := groups.byName[name]; return d, d != nil }

// ClientMetrics returns a setting of a client metrics subscription.
func ClientMetrics(name string) (*Def, bool) { d := clientMetrics.byName[name]; return d, d != nil }

// Topics returns the settings of topics in order of their names; so do Brokers, Groups and
// ClientMetricsDefs for theirs. The slices are shared: do not change them.
func Topics() []*Def            { return topics.sorted }
func Brokers() []*Def           { return brokers.sorted }
func Groups() []*Def            { return groups.sorted }
func ClientMetricsDefs() []*Def { return clientMetrics.sorted }

// Nearest returns the known name of a broker's or topic's setting that is most like name, if one is near.
func Nearest(name string) (string, bool) {
	best, dist := "", 1+max(2, len(name)/4)
	consider := func(n string) {
		if d := distance(name, n, dist); d < dist {
			best, dist = n, d
		}
	}
	if len(name) > 200 {
		return "", false
	}
	for _, d := range brokers.sorted {
		consider(d.Name)
	}
	for _, d := range topics.sorted {
		consider(d.Name)
	}
	return best, best != ""
}

// distance is how many letters must be added, removed, replaced or swapped with a neighbour, or limit if that is
// not fewer. Dots, dashes and underscores count as the same letter: mixing them up is the commonest mistake.
func distance(a, b string, limit int) int {
	if len(a)-len(b) >= limit || len(b)-len(a) >= limit {
		return limit
	}
	norm := strings.NewReplacer("_", ".", "-", ".")
	a, b = norm.Replace(strings.ToLower(a)), norm.Replace(strings.ToLower(b))
	before, row, next := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		next[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			next[j] = min(row[j]+1, next[j-1]+1, row[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				next[j] = min(next[j], before[j-2]+1)
			}
		}
		before, row, next = row, next, before
	}
	return min(row[len(b)], limit)
}
