package config

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Origin says where a value was written, for messages that name it.
type Origin struct {
	File string // a properties file
	Line int
	Env  string // an environment variable
	Flag bool   // --set
	Mode string // the defaults of a command
}

func (o Origin) String() string {
	switch {
	case o.File != "":
		return o.File + ":" + strconv.Itoa(o.Line)
	case o.Env != "":
		return "environment variable " + o.Env
	case o.Flag:
		return "--set"
	case o.Mode != "":
		return "defaults of " + o.Mode
	default:
		return "default"
	}
}

// Value is what was written, and where.
type Value struct {
	Value  string
	Origin Origin
}

// Settings are values by name.
type Settings map[string]Value

// Problem is something about one setting, or about several, that is wrong or worth a warning.
type Problem struct {
	Origin  Origin
	Name    string // of the setting; may be empty
	Message string
}

func (p Problem) String() string {
	if p.Origin == (Origin{}) {
		return p.Message
	}
	return p.Origin.String() + ": " + p.Message
}

// Error is everything that is wrong with a configuration, so that it can be put right at once.
type Error struct{ Problems []Problem }

func (e *Error) Error() string {
	lines := make([]string, len(e.Problems))
	for i, p := range e.Problems {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

type problems []Problem

func (p *problems) add(o Origin, name, format string, args ...any) {
	*p = append(*p, Problem{o, name, fmt.Sprintf(format, args...)})
}

func (p problems) err() error {
	if len(p) == 0 {
		return nil
	}
	return &Error{p}
}

// MaxFile is the longest properties file, in bytes.
const MaxFile = 1 << 20

// ParseProperties reads a file as java.util.Properties does, with less tolerance: a name that is there twice,
// an escape that does not exist (C:\data), a byte order mark and text that is not UTF-8 are errors, for each of
// them has meant something other than what its writer thought. name is only for messages. Nothing is included
// or expanded. The error is an *Error.
func ParseProperties(name string, data []byte) (Settings, error) {
	var bad problems
	at := func(line int) Origin { return Origin{File: name, Line: line} }
	if len(data) > MaxFile {
		bad.add(at(1), "", "the file has %d bytes; a configuration has at most %d", len(data), MaxFile)
		return nil, bad.err()
	}
	text := string(data)
	if rest, ok := strings.CutPrefix(text, "\ufeff"); ok {
		bad.add(at(1), "", "the file begins with a byte order mark: save it as UTF-8 without one")
		text = rest
	} else if strings.HasPrefix(text, "\xff\xfe") || strings.HasPrefix(text, "\xfe\xff") {
		bad.add(at(1), "", "the file is UTF-16: save it as UTF-8")
		return nil, bad.err()
	}
	out := Settings{}
	lines := strings.Split(strings.NewReplacer("\r\n", "\n", "\r", "\n").Replace(text), "\n")
	for i := 0; i < len(lines); i++ {
		first := i + 1
		line := strings.TrimLeft(lines[i], " \t\f")
		if line == "" || line[0] == '#' || line[0] == '!' {
			continue
		}
		// A line that ends with an odd number of backslashes goes on with the next one.
		for trailing(line)%2 == 1 {
			line = line[:len(line)-1]
			if i++; i == len(lines) {
				bad.add(at(first), "", "the last line ends with a backslash: nothing follows that it could go on with")
				break
			}
			line += strings.TrimLeft(lines[i], " \t\f")
		}
		if !utf8.ValidString(line) || strings.ContainsRune(line, 0) {
			bad.add(at(first), "", "the line is not UTF-8 text")
			continue
		}
		rawKey, rawValue := splitProperty(line)
		key, err := unescape(rawKey)
		if err != nil {
			bad.add(at(first), "", "%v", err)
			continue
		}
		value, err := unescape(rawValue)
		if err != nil {
			bad.add(at(first), key, "%s: %v", quoteName(key), err)
			continue
		}
		if key == "" {
			bad.add(at(first), "", "the line has no name before its value")
			continue
		}
		if before, twice := out[key]; twice {
			bad.add(at(first), key, "%s is set again; line %d sets it already", quoteName(key), before.Origin.Line)
			continue
		}
		out[key] = Value{strings.TrimSpace(value), at(first)}
	}
	if err := bad.err(); err != nil {
		return nil, err
	}
	return out, nil
}

// quoteName shows a name as it is if it looks like one.
func quoteName(n string) string {
	for _, r := range n {
		if (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '.' && r != '_' && r != '-' {
			return quote(n)
		}
	}
	if len(n) > 100 || n == "" {
		return quote(n)
	}
	return n
}

func trailing(s string) int {
	return len(s) - len(strings.TrimRight(s, `\`))
}

// splitProperty splits at the first unescaped =, : or space; a = or : may follow the space.
func splitProperty(line string) (key, value string) {
	i := 0
	for i < len(line) && !strings.ContainsRune("=: \t\f", rune(line[i])) {
		if line[i] == '\\' {
			i++
		}
		i++
	}
	i = min(i, len(line))
	key, rest := line[:i], strings.TrimLeft(line[i:], " \t\f")
	if rest != "" && (rest[0] == '=' || rest[0] == ':') {
		rest = strings.TrimLeft(rest[1:], " \t\f")
	}
	return key, rest
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
		if i++; i == len(s) {
			return "", fmt.Errorf(`it ends with a backslash; write \\ for a backslash`)
		}
		switch c := s[i]; c {
		case 't':
			b.WriteByte('\t')
		case 'n':
			b.WriteByte('\n')
		case 'r':
			b.WriteByte('\r')
		case 'f':
			b.WriteByte('\f')
		case '\\', ':', '=', '#', '!', ' ':
			b.WriteByte(c)
		case 'u':
			if i+4 >= len(s) {
				return "", fmt.Errorf(`\u needs four hexadecimal digits`)
			}
			n, err := strconv.ParseUint(s[i+1:i+5], 16, 16)
			if err != nil || n == 0 || (n >= 0xd800 && n < 0xe000) {
				return "", fmt.Errorf(`\u and %s is no character`, quote(s[i+1:i+5]))
			}
			b.WriteRune(rune(n))
			i += 4
		default:
			return "", fmt.Errorf(`a backslash and %s is no escape; write \\ for a backslash`, quote(string([]rune(s[i:])[:1])))
		}
	}
	return b.String(), nil
}

// EnvPrefix begins the names of the environment variables that are settings: VARVE_NODE_ID is node.id.
const EnvPrefix = "VARVE_"

// EnvName is the environment variable of a setting.
func EnvName(setting string) string {
	return EnvPrefix + strings.ToUpper(strings.NewReplacer(".", "_", "-", "_").Replace(setting))
}

// FromEnvironment takes the settings out of a list of name=value, as os.Environ gives it. A variable that is no
// setting's becomes a name that nobody knows, which Build warns about.
func FromEnvironment(environ []string) Settings {
	out := Settings{}
	for _, kv := range environ {
		env, value, ok := strings.Cut(kv, "=")
		if !ok || !strings.HasPrefix(env, EnvPrefix) || env == EnvPrefix {
			continue
		}
		name := strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(env, EnvPrefix), "_", "."))
		if known := envNames[env]; known != "" {
			name = known
		}
		out[name] = Value{strings.TrimSpace(value), Origin{Env: env}}
	}
	return out
}

// envNames knows the settings whose name is not all small letters and dots.
var envNames = func() map[string]string {
	m := map[string]string{}
	for _, d := range brokers.sorted {
		m[EnvName(d.Name)] = d.Name
	}
	for n := range foreign {
		if m[EnvName(n)] == "" {
			m[EnvName(n)] = n
		}
	}
	return m
}()

// FromFlags reads the name=value of --set. The same name with two values is an error.
func FromFlags(set []string) (Settings, error) {
	var bad problems
	out := Settings{}
	for _, kv := range set {
		name, value, ok := strings.Cut(kv, "=")
		name, value = strings.TrimSpace(name), strings.TrimSpace(value)
		o := Origin{Flag: true}
		if !ok || name == "" {
			bad.add(o, name, "%s is not name=value", quote(kv))
			continue
		}
		if before, twice := out[name]; twice && before.Value != value {
			bad.add(o, name, "%s is given twice, with two values", quoteName(name))
			continue
		}
		out[name] = Value{value, o}
	}
	if err := bad.err(); err != nil {
		return nil, err
	}
	return out, nil
}

// FromMode turns the defaults of a command into settings, for messages that name it.
func FromMode(mode string, defaults map[string]string) Settings {
	out := Settings{}
	for n, v := range defaults {
		out[n] = Value{v, Origin{Mode: mode}}
	}
	return out
}

// Merge lays settings over each other: what comes later counts. The usual order is the defaults of a command,
// the file, the environment, --set.
func Merge(layers ...Settings) Settings {
	out := Settings{}
	for _, l := range layers {
		maps.Copy(out, l)
	}
	return out
}

// names returns the names in order, so that messages are.
func (s Settings) names() []string { return slices.Sorted(maps.Keys(s)) }

// Plain returns the values alone.
func (s Settings) Plain() map[string]string {
	out := make(map[string]string, len(s))
	for n, v := range s {
		out[n] = v.Value
	}
	return out
}
