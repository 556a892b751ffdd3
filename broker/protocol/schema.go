package protocol

import "unsafe"

// The schema of every request, as schemagen has read it out of kmsg's decoders, and the programs that it is compiled to.
//
// schema_gen.go holds three flat tables. A request names its struct; a struct names a run of fields and a run of tagged
// fields; an array names the one field that is its element. At start each (key, version) is compiled to a program for
// the walk: the fields that this version lacks are gone, neighbours of fixed width have become one skip, and the smallest
// encoding of every array element is known. Version conditions therefore cost nothing per request, let alone per
// partition. The programs of all versions take some 200 KB.

type schemaKind uint8

const (
	kindFixed schemaKind = iota
	kindString
	kindBytes
	kindArray
	kindStruct
)

type schemaRequest struct {
	key, maxVersion, flexibleFrom int16
	body                          uint16 // in schemaStructs
}

type schemaStruct struct {
	fields, nfields uint16 // in schemaFields
	tags, ntags     uint16 // in schemaFields
	size            uintptr
}

type schemaField struct {
	kind     schemaKind
	width    uint8  // of kindFixed: bytes
	from, to int8   // versions in which the field is there
	nullFrom int8   // first version in which it may be null; noVersion: never
	tag      uint8  // of a tagged field
	ref      uint16 // of kindStruct: in schemaStructs; of kindArray: in schemaFields
	size     uintptr
}

const noVersion = 127

func (f *schemaField) nullable(version int16) bool {
	return f.nullFrom != noVersion && version >= int16(f.nullFrom)
}

type opcode uint8

const (
	opSkip       opcode = iota // n bytes
	opString                   // length, at most 32,767, and bytes
	opBytes                    // length and bytes: kmsg's slice points into the body, nothing is allocated
	opArrayFixed               // length and elements of n bytes
	opArray                    // length and elements of at least n bytes, each walked by elem
	opNullStruct               // presence byte, and if it is 1, elem
	opTags                     // tagged fields; the known ones are walked by their program
)

// op is one step of the walk.
type op struct {
	code     opcode
	compact  bool  // lengths are unsigned varints, plus one
	nullable bool  // null is allowed
	n        int32 // bytes; of an array: the least bytes of an element
	size     int32 // bytes of Go memory: of one element, of a nullable struct, of the header of a string behind a pointer
	elem     *program
	tags     []taggedProgram // of opTags: ascending
}

type taggedProgram struct {
	tag uint32
	program
}

type program struct {
	ops  []op
	min  int32 // bytes of the smallest encoding
	size int32 // of a whole request: Go memory of its struct
}

// messageSchema is what is known of one API key.
type messageSchema struct {
	known                    bool
	flexibleFrom, maxVersion int16
	versions                 []program // by version
}

// schemas is indexed by API key.
var schemas = compileSchemas()

// versionsOf has the first flexible version and the newest version of a key that the schema knows, which may be newer
// than what is served.
func versionsOf(key int16) (flexibleFrom, maxVersion int16, ok bool) {
	if key < 0 || int(key) >= len(schemas) || !schemas[key].known {
		return 0, 0, false
	}
	return schemas[key].flexibleFrom, schemas[key].maxVersion, true
}

func compileSchemas() []messageSchema {
	out := make([]messageSchema, schemaRequests[len(schemaRequests)-1].key+1)
	for _, r := range schemaRequests {
		m := messageSchema{known: true, flexibleFrom: r.flexibleFrom, maxVersion: r.maxVersion}
		for v := int16(0); v <= r.maxVersion; v++ {
			s := &schemaStructs[r.body]
			var p program
			p.addStruct(s, v, v >= r.flexibleFrom)
			p.size = int32(s.size)
			m.versions = append(m.versions, p)
		}
		out[r.key] = m
	}
	return out
}

func (p *program) addStruct(s *schemaStruct, version int16, flexible bool) {
	for i := range s.nfields {
		f := &schemaFields[s.fields+i]
		if int16(f.from) <= version && version <= int16(f.to) {
			p.addField(f, version, flexible)
		}
	}
	if !flexible {
		return
	}
	o := op{code: opTags}
	for i := range s.ntags {
		f := &schemaFields[s.tags+i]
		t := taggedProgram{tag: uint32(f.tag)}
		t.addField(f, version, flexible)
		o.tags = append(o.tags, t)
	}
	p.add(o, 1)
}

func (p *program) addField(f *schemaField, version int16, flexible bool) {
	o := op{compact: flexible, nullable: f.nullable(version)}
	var least int32 = 1
	switch f.kind {
	case kindFixed:
		least = int32(f.width)
		if last := len(p.ops) - 1; last >= 0 && p.ops[last].code == opSkip {
			p.ops[last].n += least
			p.min += least
			return
		}
		o.code, o.n = opSkip, least
	case kindString:
		o.code = opString
		if f.nullFrom != noVersion {
			o.size = int32(unsafe.Sizeof("")) // kmsg has a pointer to it, in the versions without null too
		}
		if !flexible {
			least = 2
		}
	case kindBytes:
		o.code = opBytes
		if !flexible {
			least = 4
		}
	case kindArray:
		e := &schemaFields[f.ref]
		o.size = int32(f.size)
		if e.kind == kindFixed {
			o.code, o.n = opArrayFixed, int32(e.width)
		} else {
			o.code, o.elem = opArray, new(program)
			o.elem.addField(e, version, flexible)
			o.n = o.elem.min
		}
		if !flexible {
			least = 4
		}
	case kindStruct:
		s := &schemaStructs[f.ref]
		if !o.nullable {
			p.addStruct(s, version, flexible)
			return
		}
		o.code, o.size, o.elem = opNullStruct, int32(s.size), new(program)
		o.elem.addStruct(s, version, flexible)
	}
	p.add(o, least)
}

func (p *program) add(o op, least int32) {
	p.ops = append(p.ops, o)
	p.min += least
}
