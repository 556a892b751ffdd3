package main

import (
	"fmt"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

func TestParseFlights(t *testing.T) {
	got, err := parseFlights([]byte("date,delay,distance,origin,destination\n01010001,14,405,MCI,MDW\n03312257,-3,303,MSY,HOU\n"))
	if err != nil || len(got) != 2 {
		t.Fatalf("%v %v", got, err)
	}
	f := got[1]
	if string(f.key) != "MSY" || string(f.value) != `{"date":"2001-03-31T22:57","delay":-3,"distance":303,"origin":"MSY","destination":"HOU"}` ||
		!f.time.Equal(time.Date(2001, 3, 31, 22, 57, 0, 0, time.UTC)) || string(f.headers[1].value) != "3" {
		t.Errorf("%s %s %s %s", f.key, f.value, f.time, f.headers[1].value)
	}
	for _, bad := range []string{"", "a,b\n", "date,delay,distance,origin,destination\n13010001,1,1,A,B\n", "date,delay,distance,origin,destination\n01010001,x,1,A,B\n"} {
		if _, err := parseFlights([]byte(bad)); err == nil {
			t.Errorf("accepted %q", bad)
		}
	}
}

// The comparison has teeth: every part of a record that changes is noticed.
func TestCompare(t *testing.T) {
	list, err := parseFlights([]byte("date,delay,distance,origin,destination\n01010001,14,405,MCI,MDW\n"))
	if err != nil {
		t.Fatal(err)
	}
	f := &list[0]
	record := func() *kgo.Record {
		r := &kgo.Record{Key: []byte("MCI"), Value: append([]byte(nil), f.value...), Timestamp: f.time}
		for _, h := range f.headers {
			r.Headers = append(r.Headers, kgo.RecordHeader{Key: h.key, Value: append([]byte(nil), h.value...)})
		}
		return r
	}
	if d := f.compare(record()); d != "" {
		t.Errorf("equal records differ: %s", d)
	}
	for i, change := range []func(*kgo.Record){
		func(r *kgo.Record) { r.Key = nil },
		func(r *kgo.Record) { r.Value[3] ^= 1 },
		func(r *kgo.Record) { r.Timestamp = r.Timestamp.Add(time.Millisecond) },
		func(r *kgo.Record) { r.Headers = r.Headers[:1] },
		func(r *kgo.Record) { r.Headers[0], r.Headers[1] = r.Headers[1], r.Headers[0] },
		func(r *kgo.Record) { r.Headers[1].Value = []byte("9") },
	} {
		r := record()
		change(r)
		if f.compare(r) == "" {
			t.Errorf("change %d is not noticed", i)
		}
	}
}

func TestCountRequests(t *testing.T) {
	got, err := countRequests([]byte(`# TYPE varve_objstore_requests_total counter
varve_objstore_requests_total{operation="get",result="ok"} 12
varve_objstore_requests_total{operation="get",result="error"} 1
varve_objstore_requests_total{operation="put",result="ok"} 1.2e+03
varve_objstore_requests_total_other 9
`))
	if err != nil || fmt.Sprint(got) != "map[get:13 put:1200]" {
		t.Errorf("%v %v", got, err)
	}
	if _, err := countRequests([]byte("go_goroutines 7\n")); err == nil {
		t.Error("a missing metric is not noticed")
	}
	if s := breakdown(map[string]float64{"get": 3}, got); s != "1210 (10 get, 1200 put)" {
		t.Error(s)
	}
}
