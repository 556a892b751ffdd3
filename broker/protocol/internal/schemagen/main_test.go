package main

import (
	"bytes"
	"go/parser"
	"go/token"
	"os"
	"strings"
	"testing"
)

// The committed table is what the generator makes of the kmsg in go.mod: a new kmsg without a new table fails here.
func TestTableIsCurrent(t *testing.T) {
	want, err := generate()
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile("../../schema_gen.go")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("schema_gen.go is out of date: run go generate in broker/protocol")
	}
}

// A decoder of an unknown shape stops the generator instead of yielding a schema that is slightly wrong.
func TestUnknownShapesAreRefused(t *testing.T) {
	for _, c := range []struct{ name, body, want string }{
		{"number", `{ v := b.Varlong(); s.F = v }`, "field that reads [Varlong]"},
		{"mixed kinds", `{ v := b.String(); w := b.Bytes(); s.F = v }`, "field that reads"},
		{"condition", `if version == 3 { v := b.Int8(); s.F = v }`, "condition"},
		{"other condition", `if flag >= 3 { v := b.Int8(); s.F = v }`, "condition"},
		{"loop", `for { }`, "statement"},
		{"tags in the middle", `if isFlexible { s.UnknownTags = internalReadTags(&b) }; { v := b.Int8(); s.F = v }`, "tagged fields"},
		{"other tags", `if isFlexible { s.UnknownTags = otherTags(&b) }`, "tagged fields"},
		{"null condition", `{ var v *string; if version > 3 { v = b.NullableString() }; s.F = v }`, "condition"},
		{"array length", `{ v := s.F; a := v; var l int32; l = b.VarintArrayLen(); s.F = v }`, "array"},
	} {
		dir := t.TempDir()
		src := `package kmsg
func RequestForKey(key int16) Request { switch key { case 0: return NewPtrXRequest() } }
func (*XRequest) MaxVersion() int16 { return 4 }
func (v *XRequest) IsFlexible() bool { return v.Version >= 2 }
func (v *XRequest) readFrom(src []byte, unsafe bool) error { s := v; ` + c.body + `; return b.Complete() }
`
		if _, err := parser.ParseFile(token.NewFileSet(), "x.go", src, 0); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		if err := os.WriteFile(dir+"/generated.go", []byte(src), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := parseModule(dir); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", c.name, err, c.want)
		}
	}
}
