package protocol

import (
	"math/rand/v2"
	"reflect"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// filler fills the messages of kmsg with random values by reflection.
type filler struct {
	*rand.Rand
	elements    func(r *rand.Rand) int // of each array
	unknownTags bool
	noNull      bool // every nullable thing is there
}

func newFiller(seed uint64) *filler {
	return &filler{
		Rand:        rand.New(rand.NewPCG(seed, 99)),
		elements:    func(r *rand.Rand) int { return r.IntN(3) },
		unknownTags: true,
	}
}

func (f *filler) fill(v reflect.Value) {
	switch v.Kind() {
	case reflect.Struct:
		if tags, ok := v.Addr().Interface().(*kmsg.Tags); ok {
			if f.unknownTags && f.IntN(4) == 0 {
				for range 1 + f.IntN(2) {
					tags.Set(100+uint32(f.IntN(1<<20)), f.bytes(20))
				}
			}
			return
		}
		for i := range v.NumField() {
			if v.Type().Field(i).Name != "Version" || v.Field(i).Kind() != reflect.Int16 {
				f.fill(v.Field(i))
			}
		}
	case reflect.Pointer:
		if f.noNull || f.IntN(3) > 0 {
			v.Set(reflect.New(v.Type().Elem()))
			if d, ok := v.Interface().(interface{ Default() }); ok {
				d.Default()
			}
			f.fill(v.Elem())
		} else {
			v.SetZero()
		}
	case reflect.Slice:
		if !f.noNull && f.IntN(8) == 0 {
			v.SetZero()
			return
		}
		if v.Type().Elem().Kind() == reflect.Uint8 {
			v.SetBytes(f.bytes(40))
			return
		}
		n := f.elements(f.Rand)
		v.Set(reflect.MakeSlice(v.Type(), n, n))
		for i := range n {
			f.fill(v.Index(i))
		}
	case reflect.Array: // uuid
		for i := range v.Len() {
			v.Index(i).SetUint(uint64(f.IntN(256)))
		}
	case reflect.String:
		v.SetString(string(f.bytes(20)))
	case reflect.Bool:
		v.SetBool(f.IntN(2) == 0)
	case reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		v.SetInt(int64(f.Uint64()) >> f.IntN(64))
	case reflect.Uint16, reflect.Uint32:
		v.SetUint(f.Uint64() >> 1)
	case reflect.Float64:
		v.SetFloat(f.Float64())
	default:
		panic("a kind that kmsg did not use before: " + v.Type().String())
	}
}

func (f *filler) bytes(limit int) []byte {
	b := make([]byte, f.IntN(limit))
	for i := range b {
		b[i] = byte(f.IntN(256))
	}
	return b
}

// request is a random request of a key and version.
func (f *filler) request(key, version int16) kmsg.Request {
	r := kmsg.RequestForKey(key)
	f.fill(reflect.ValueOf(r).Elem())
	r.SetVersion(version)
	return r
}

// everyVersion calls f with each key and version of the schema.
func everyVersion(f func(key, version int16)) {
	for key := range schemas {
		for v := range schemas[key].versions {
			f(int16(key), int16(v))
		}
	}
}
