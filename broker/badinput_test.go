package broker_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"reflect"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/broker/protocol"
	"github.com/varve/varve/cmd/varve/servertest"
	"github.com/varve/varve/wal/batch"
)

// patience is how long a test waits for an answer before it says that the
// broker hangs. It is no measure of speed.
const patience = 60 * time.Second

// client is a connection that sends what no client library would.
type client struct {
	t    testing.TB
	nc   net.Conn
	r    *bufio.Reader
	fmt  *kmsg.RequestFormatter
	next int32
}

func dial(t testing.TB, b *servertest.Broker) *client {
	t.Helper()
	nc, err := net.Dial("tcp", b.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	nc.SetDeadline(time.Now().Add(patience))
	return &client{t: t, nc: nc, r: bufio.NewReader(nc), fmt: kmsg.NewRequestFormatter(kmsg.FormatterClientID("bad"))}
}

// frame encodes a request and returns its correlation id.
func (c *client) frame(req kmsg.Request) ([]byte, int32) {
	c.next++
	return c.fmt.AppendRequest(nil, req, c.next), c.next
}

func (c *client) send(b []byte) {
	c.t.Helper()
	c.nc.SetDeadline(time.Now().Add(patience))
	if _, err := c.nc.Write(b); err != nil {
		c.t.Fatalf("send: %v", err)
	}
}

// answer reads one response without its size.
func (c *client) answer() ([]byte, error) {
	c.nc.SetDeadline(time.Now().Add(patience))
	var size [4]byte
	if _, err := io.ReadFull(c.r, size[:]); err != nil {
		return nil, err
	}
	b := make([]byte, binary.BigEndian.Uint32(size[:]))
	_, err := io.ReadFull(c.r, b)
	return b, err
}

// decode takes an answer to req apart.
func decode(req kmsg.Request, b []byte, id int32) (kmsg.Response, error) {
	if len(b) < 4 || int32(binary.BigEndian.Uint32(b)) != id {
		return nil, fmt.Errorf("%s: answer %x is not that of correlation id %d", kmsg.NameForKey(req.Key()), b[:min(len(b), 16)], id)
	}
	b = b[4:]
	resp := req.ResponseKind()
	resp.SetVersion(req.GetVersion())
	if resp.IsFlexible() && req.Key() != int16(kmsg.ApiVersions) {
		b = b[1:] // no tags
	}
	if err := resp.ReadFrom(b); err != nil {
		return nil, fmt.Errorf("%s v%d: %w", kmsg.NameForKey(req.Key()), req.GetVersion(), err)
	}
	return resp, nil
}

func (c *client) do(req kmsg.Request) kmsg.Response {
	c.t.Helper()
	b, id := c.frame(req)
	c.send(b)
	b, err := c.answer()
	if err != nil {
		c.t.Fatalf("%s v%d: %v", kmsg.NameForKey(req.Key()), req.GetVersion(), err)
	}
	resp, err := decode(req, b, id)
	if err != nil {
		c.t.Fatal(err)
	}
	return resp
}

// ends reads until the broker closes the connection.
func (c *client) ends(what string) {
	c.t.Helper()
	c.nc.SetDeadline(time.Now().Add(patience))
	n, err := io.Copy(io.Discard, c.r)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		c.t.Fatalf("%s: the connection stays open", what)
	}
	if n > 0 {
		c.t.Fatalf("%s: answered with %d bytes", what, n)
	}
}

func at(version int16, req kmsg.Request) kmsg.Request { req.SetVersion(version); return req }

// bystander is a client that has done nothing wrong.
type bystander struct {
	*client
	b *servertest.Broker
}

func newBystander(t testing.TB, b *servertest.Broker) *bystander {
	y := &bystander{dial(t, b), b}
	y.unharmed("before")
	return y
}

// unharmed is the oracle of every bad input: the process lives, another
// connection is served, a new one is accepted, no handler panicked.
func (y *bystander) unharmed(after string) {
	y.t.Helper()
	for _, c := range []*client{y.client, dial(y.t, y.b)} {
		c.t = y.t
		resp := c.do(at(12, kmsg.NewPtrMetadataRequest())).(*kmsg.MetadataResponse)
		if len(resp.Brokers) != 1 {
			y.t.Fatalf("after %s: metadata shows %d brokers", after, len(resp.Brokers))
		}
		if c != y.client {
			c.nc.Close()
		}
	}
	if n := y.metric("varve_request_panics_total"); n != 0 {
		y.t.Fatalf("after %s: %v handlers panicked; VARVE_TEST_LOG=1 shows where", after, n)
	}
}

func (y *bystander) metric(name string) float64 {
	y.t.Helper()
	resp, err := http.Get(y.b.AdminURL() + "/metrics")
	if err != nil {
		y.t.Fatal(err)
	}
	defer resp.Body.Close()
	sc := bufio.NewScanner(resp.Body)
	for sc.Scan() {
		if v, ok := strings.CutPrefix(sc.Text(), name+" "); ok {
			f, err := strconv.ParseFloat(v, 64)
			if err != nil {
				y.t.Fatal(err)
			}
			return f
		}
	}
	y.t.Fatalf("no metric %s", name)
	return 0
}

// allocated runs f and returns how many bytes were allocated meanwhile by the
// whole process, and how many the heap grew by.
func allocated(f func()) (total, live int64) {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&before)
	f()
	runtime.GC()
	runtime.GC() // what pools keep goes at the second
	runtime.ReadMemStats(&after)
	return int64(after.TotalAlloc - before.TotalAlloc), int64(after.HeapAlloc) - int64(before.HeapAlloc)
}

func startQuiet(t testing.TB, settings ...string) *servertest.Broker {
	m := map[string]string{"offsets.topic.num.partitions": "2", "group.initial.rebalance.delay.ms": "0"}
	for i := 0; i+1 < len(settings); i += 2 {
		m[settings[i]] = settings[i+1]
	}
	return servertest.Start(t, servertest.Options{Settings: m})
}

func be32(v int32) []byte { return binary.BigEndian.AppendUint32(nil, uint32(v)) }
func be16(v int16) []byte { return binary.BigEndian.AppendUint16(nil, uint16(v)) }

// header is a request header with client id "bad".
func header(key, version int16, id int32, tags []byte) []byte {
	b := append(be16(key), be16(version)...)
	b = append(b, be32(id)...)
	b = append(b, 0, 3, 'b', 'a', 'd')
	return append(b, tags...)
}

func framed(parts ...[]byte) []byte {
	body := bytes.Join(parts, nil)
	return append(be32(int32(len(body))), body...)
}

// TestFrames: what arrives is no stream of requests (B1, B38).
func TestFrames(t *testing.T) {
	b := startQuiet(t)
	y := newBystander(t, b)
	for _, tc := range []struct {
		name string
		send []byte
	}{
		{"length -1", be32(-1)},
		{"length -2^31", be32(math.MinInt32)},
		{"length 0", be32(0)},
		{"length 3", append(be32(3), 0, 18, 0)},
		{"length 2^31-1", be32(math.MaxInt32)},
		{"length above socket.request.max.bytes", be32(100<<20 + 1)},
		{"HTTP", []byte("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")},
		{"HTTP POST", []byte("POST /topics HTTP/1.1\r\n\r\n")},
		{"TLS ClientHello", append([]byte{0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3}, make([]byte, 500)...)},
		{"SSH", []byte("SSH-2.0-OpenSSH_9.9\r\n")},
		{"0xff", bytes.Repeat([]byte{0xff}, 1000)},
		{"zeros", make([]byte, 1000)},
		{"a header of 10 bytes of nothing", framed(make([]byte, 10))},
		{"client id longer than the frame", framed(be16(18), be16(0), be32(1), be16(30000), make([]byte, 10))},
		{"client id of length -2", framed(be16(18), be16(0), be32(1), be16(-2), make([]byte, 10))},
		{"client id of 5000 bytes", framed(be16(18), be16(0), be32(1), be16(5000), make([]byte, 5000))},
	} {
		t.Run(tc.name, func(t *testing.T) {
			y.t = t
			total, _ := allocated(func() {
				for range 20 {
					c := dial(t, b)
					c.send(tc.send)
					c.ends(tc.name)
				}
			})
			// Twenty connections cost about a hundred kilobytes each, most of it test and buffers.
			if total > 64<<20 {
				t.Errorf("%d MiB allocated", total>>20)
			}
			y.unharmed(tc.name)
		})
	}
	t.Run("random bytes", func(t *testing.T) {
		y.t = t
		seed := time.Now().UnixNano()
		t.Logf("seed %d", seed)
		rng := rand.New(rand.NewPCG(uint64(seed), 1))
		for range 50 {
			c := dial(t, b)
			junk := make([]byte, 1+rng.IntN(2000))
			for i := range junk {
				junk[i] = byte(rng.Uint32())
			}
			if rng.IntN(2) == 0 { // a frame at least
				copy(junk, be32(int32(len(junk)-4)))
			}
			c.nc.Write(junk)
			c.nc.(*net.TCPConn).CloseWrite()
			c.ends("random bytes")
		}
		y.unharmed("random bytes")
	})
}

// TestStalledFrames: connections that announce as much as they may, send a
// little of it, and then nothing. They must not use up what all connections
// share (B1).
func TestStalledFrames(t *testing.T) {
	b := startQuiet(t)
	y := newBystander(t, b)
	for _, tc := range []struct {
		name       string
		size, send int
		liveAtMost int64
	}{
		{"size only", 100 << 20, 0, 32 << 20},
		{"one page of the largest", 100 << 20, 4 << 10, 32 << 20},
		{"one page of a usual one", 1 << 20, 4 << 10, 32 << 20},
		{"more than a read buffer", 100 << 20, 100 << 10, 256 << 20},
	} {
		t.Run(tc.name, func(t *testing.T) {
			y.t = t
			_, live := allocated(func() {
				for range 40 {
					c := dial(t, b)
					c.send(append(be32(int32(tc.size)), header(0, 9, 1, []byte{0})...))
					c.send(make([]byte, tc.send))
				}
				// By the time these are answered what was sent above has been seen.
				for range 5 {
					y.unharmed(tc.name)
				}
			})
			if live > tc.liveAtMost {
				t.Errorf("the heap grew by %d MiB", live>>20)
			}
		})
	}
}

// TestVersions: unknown keys, versions outside of what is served, and the
// quirks of ApiVersions (B8).
func TestVersions(t *testing.T) {
	b := startQuiet(t)
	y := newBystander(t, b)
	listed := y.do(at(3, &kmsg.ApiVersionsRequest{ClientSoftwareName: "t", ClientSoftwareVersion: "1"})).(*kmsg.ApiVersionsResponse)
	served := map[int16]kmsg.ApiVersionsResponseApiKey{}
	for _, k := range listed.ApiKeys {
		served[k.ApiKey] = k
	}
	for key := int16(-1); key < 100; key++ {
		versions := []int16{0, 3, 99, math.MaxInt16, -1}
		if k, ok := served[key]; ok {
			versions = []int16{k.MinVersion - 1, k.MaxVersion + 1, 99, math.MinInt16}
		}
		if key == 0 {
			versions = append(versions, 0, 1, 2) // advertised, but not served
		}
		for _, v := range versions {
			if key == 18 || v == 0 && (key == 17 || key == 36 || key == 58) {
				continue // the last are of brokers among themselves: TestPeers
			}
			c := dial(t, b)
			c.send(framed(header(key, v, 7, []byte{0}), make([]byte, 8)))
			c.ends(fmt.Sprintf("key %d version %d", key, v))
		}
	}
	for _, v := range []int16{-1, 5, 99, math.MaxInt16} {
		c := dial(t, b)
		c.send(framed(header(18, v, 77, []byte{0}), []byte{2, 'x', 2, 'y', 0}))
		got, err := c.answer()
		if err != nil {
			t.Fatalf("ApiVersions v%d: %v", v, err)
		}
		resp, err := decode(at(0, kmsg.NewPtrApiVersionsRequest()), got, 77)
		if err != nil {
			t.Fatalf("ApiVersions v%d is not answered in version 0: %v", v, err)
		}
		if r := resp.(*kmsg.ApiVersionsResponse); r.ErrorCode != protocol.CodeUnsupportedVersion || len(r.ApiKeys) != len(listed.ApiKeys) {
			t.Errorf("ApiVersions v%d: %s and %d keys", v, protocol.Name(r.ErrorCode), len(r.ApiKeys))
		}
		// The connection goes on.
		c.do(at(4, &kmsg.ApiVersionsRequest{ClientSoftwareName: "t", ClientSoftwareVersion: "1"}))
	}
	for _, name := range []string{"", "-x", "x y", "a\r\nb", strings.Repeat("x", 300)} {
		r := y.do(at(3, &kmsg.ApiVersionsRequest{ClientSoftwareName: name, ClientSoftwareVersion: "1"})).(*kmsg.ApiVersionsResponse)
		if r.ErrorCode != protocol.CodeInvalidRequest {
			t.Errorf("software name %q: %s", name, protocol.Name(r.ErrorCode))
		}
	}
	y.unharmed("versions")
}

// TestPackets: a stream is a stream, however it is cut (B9).
func TestPackets(t *testing.T) {
	b := startQuiet(t)
	y := newBystander(t, b)
	b.CreateTopic("packets", 1)

	c := dial(t, b)
	c.nc.(*net.TCPConn).SetNoDelay(true)
	var all []byte
	var reqs []kmsg.Request
	var ids []int32
	for range 3 {
		for _, req := range []kmsg.Request{at(12, kmsg.NewPtrMetadataRequest()), at(4, &kmsg.ApiVersionsRequest{ClientSoftwareName: "t", ClientSoftwareVersion: "1"}),
			produceReq(9, -1, "packets", 0, plain(1).bytes())} {
			f, id := c.frame(req)
			all, reqs, ids = append(all, f...), append(reqs, req), append(ids, id)
		}
	}
	check := func(how string) {
		for i, req := range reqs {
			got, err := c.answer()
			if err == nil {
				_, err = decode(req, got, ids[i])
			}
			if err != nil {
				t.Fatalf("%s: answer %d: %v", how, i, err)
			}
		}
	}
	c.send(all)
	check("nine requests in one packet")
	for i := range all {
		c.send(all[i : i+1])
	}
	check("one byte in each packet")

	// What came before a request that ends the connection is answered.
	metadata, _ := c.frame(at(12, kmsg.NewPtrMetadataRequest()))
	nobody, _ := c.frame(produceReq(9, 0, "unknown", 0, plain(1).bytes()))
	for what, bad := range map[string][]byte{
		"impossible size":     be32(-1),
		"unknown key":         framed(header(999, 0, 1, nil)),
		"unsupported version": framed(header(3, 99, 1, []byte{0})),
		"malformed header":    framed(make([]byte, 5), be32(-1)),
		"malformed body":      framed(header(3, 12, 1, []byte{0}), []byte{0xff, 0xff}),
		"malformed produce":   framed(header(0, 9, 1, []byte{0}), []byte{0xff}),
		"malformed fetch":     framed(header(1, 12, 1, []byte{0}), []byte{0xff}),
		"acks=0":              nobody,
	} {
		c = dial(t, b)
		all, reqs, ids = nil, nil, nil
		before := y.metric("varve_bad_input_total")
		for _, req := range []kmsg.Request{produceReq(9, -1, "packets", 0, plain(1).bytes()), at(12, kmsg.NewPtrMetadataRequest()), produceReq(9, 1, "packets", 0, plain(1).bytes())} {
			f, id := c.frame(req)
			all, reqs, ids = append(all, f...), append(reqs, req), append(ids, id)
		}
		// A fetch that waits is answered now, and not in its time.
		far := fetchReq(12, "packets", fetchPart(0, 0))
		far.MinBytes, far.MaxWaitMillis = math.MaxInt32, math.MaxInt32
		f, id := c.frame(far)
		reqs, ids = append(reqs, far), append(ids, id)
		c.send(slices.Concat(all, f, bad, metadata))
		check("before " + what)
		c.ends("after " + what)
		counted := 1.0
		if what == "acks=0" {
			counted = 0 // well said, and has no answer to carry the error
		}
		servertest.Eventually(t, func() error {
			if n := y.metric("varve_bad_input_total") - before; n != counted {
				return fmt.Errorf("%s: varve_bad_input_total grew by %v, not by %v", what, n, counted)
			}
			return nil
		})
	}

	// Somebody who asks and does not read is not read from in turn: requests
	// stay in the sockets, and what is pending is bounded.
	c = dial(t, b)
	var burst []byte
	const n = 10_000
	for i := range n {
		f, _ := c.frame(at(12, kmsg.NewPtrMetadataRequest()))
		_ = i
		burst = append(burst, f...)
	}
	_, live := allocated(func() {
		sent := make(chan error, 1)
		go func() {
			_, err := c.nc.Write(burst)
			sent <- err
		}()
		y.unharmed("ten thousand requests in flight")
		c.nc.SetDeadline(time.Now().Add(patience))
		for i := range n {
			got, err := c.answer()
			if err != nil || int32(binary.BigEndian.Uint32(got)) != int32(i+1) {
				t.Fatalf("answer %d of %d: %x, %v", i, n, got[:min(len(got), 8)], err)
			}
		}
		if err := <-sent; err != nil {
			t.Fatal(err)
		}
	})
	if live > 64<<20 {
		t.Errorf("the heap grew by %d MiB", live>>20)
	}
	// The same, and gone without reading.
	for range 5 {
		c = dial(t, b)
		go c.nc.Write(burst)
		io.ReadFull(c.r, make([]byte, 100))
		c.nc.Close()
	}
	y.unharmed("pipelines that were abandoned")
}

// TestUnread: connections that ask for large answers and read none of them.
func TestUnread(t *testing.T) {
	b := startQuiet(t)
	y := newBystander(t, b)
	b.CreateTopic("wide", 2000)
	const conns, requests = 40, 300
	one := len(y.do(at(12, kmsg.NewPtrMetadataRequest())).AppendTo(nil))
	_, live := allocated(func() {
		for range conns {
			c := dial(t, b)
			c.nc.(*net.TCPConn).SetReadBuffer(4 << 10)
			var burst []byte
			for range requests {
				f, _ := c.frame(at(12, kmsg.NewPtrMetadataRequest()))
				burst = append(burst, f...)
			}
			c.send(burst)
		}
		for range 5 {
			y.unharmed("answers that nobody reads")
		}
		time.Sleep(300 * time.Millisecond) // lets it grow as far as it does
	})
	if all := int64(conns*requests) * int64(one); live > all/2 {
		t.Errorf("the heap grew by %d MiB; all answers would be %d", live>>20, all>>20)
	}
	y.unharmed("answers that nobody reads")
}

// A client that does not read its answers keeps a broker that ends until its time to drain is over, and is cut off then; what Close
// says is that the time was over, which is no failure.
func TestDrainIsOver(t *testing.T) {
	b := startQuiet(t)
	b.CreateTopic("wide", 2000)
	c := dial(t, b)
	c.nc.(*net.TCPConn).SetReadBuffer(4 << 10)
	var burst []byte
	for range 300 {
		f, _ := c.frame(at(12, kmsg.NewPtrMetadataRequest()))
		burst = append(burst, f...)
	}
	c.send(burst)
	time.Sleep(300 * time.Millisecond) // until the connection's buffers are full
	ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
	defer cancel()
	if err := b.Server().Close(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("closed with %v", err)
	}
}

// TestLengths: lengths, counts and tags inside of a body that promise more
// than there is (B2 to B5).
func TestLengths(t *testing.T) {
	b := startQuiet(t)
	y := newBystander(t, b)
	max32 := []byte{0xff, 0xff, 0xff, 0xff, 0x0f}
	metadata := func(version int16, body ...[]byte) []byte {
		return framed(header(3, version, 1, map[bool][]byte{true: {0}}[version >= 9]), bytes.Join(body, nil))
	}
	tags := func(section ...[]byte) []byte { // an ApiVersions v3 body with the given tag section
		return framed(header(18, 3, 1, []byte{0}), []byte{2, 'x', 2, 'y'}, bytes.Join(section, nil))
	}
	for _, tc := range []struct {
		name    string
		send    []byte
		ignored bool // and not refused
	}{
		{"array of 2^31-1", metadata(1, be32(math.MaxInt32)), false},
		{"array of -2", metadata(1, be32(-2)), false},
		{"array one too long", metadata(1, be32(2), be16(1), []byte("x")), false},
		{"compact array of 2^32-1", metadata(12, max32), false},
		{"compact array with 10 MiB behind it", metadata(12, []byte{0x80, 0x80, 0x80, 5}, make([]byte, 10<<20)), false},
		{"array of a million empty names", metadata(1, be32(1<<20), make([]byte, 2<<20), []byte{0}), false},
		{"varint of 6 bytes", metadata(12, []byte{0x80, 0x80, 0x80, 0x80, 0x80, 1}), false},
		{"varint without end", metadata(12, bytes.Repeat([]byte{0xff}, 200)), false},
		{"string of length -2", metadata(1, be32(1), be16(-2)), false},
		{"string of 32767 in 10", metadata(1, be32(1), be16(32767), make([]byte, 10)), false},
		{"2^32-1 tags in 7 bytes", tags(max32), false},
		{"2^32-1 header tags", framed(header(18, 3, 1, max32)), false},
		{"5 million tags", tags([]byte{0x80, 0x80, 0xc0, 2}, make([]byte, 10<<20)), false},
		{"unknown tag", tags([]byte{1, 0x7f, 1, 9}), true},
		{"unknown tag twice", tags([]byte{2, 0x7f, 1, 9, 0x7f, 1, 9}), false},
		{"tags out of order", tags([]byte{2, 0x7f, 1, 9, 0x7e, 1, 9}), false},
		{"tag larger than what is left", tags([]byte{1, 0x7f, 0x20, 9}), false},
		{"a few bytes too many, as librdkafka sends", tags([]byte{0}, []byte{0, 1, 0, 0, 0}), true},
		{"many bytes too many", tags([]byte{0}, make([]byte, 64)), false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			y.t = t
			total, _ := allocated(func() {
				c := dial(t, b)
				c.send(tc.send)
				if tc.ignored {
					if _, err := c.answer(); err != nil {
						t.Errorf("not ignored: %v", err)
					}
					return
				}
				c.ends(tc.name)
			})
			if bound := int64(16<<20 + 4*len(tc.send)); total > bound {
				t.Errorf("%d bytes allocated for a request of %d", total, len(tc.send))
			}
			y.unharmed(tc.name)
		})
	}
}

// TestConnectionLimits: connections above a limit are closed, those that do
// nothing are, too, and neither harms the others.
func TestConnectionLimits(t *testing.T) {
	b := startQuiet(t, "max.connections.per.ip", "5")
	ends := func(c *client) bool {
		f, _ := c.frame(at(12, kmsg.NewPtrMetadataRequest()))
		c.nc.Write(f)
		_, err := c.answer()
		return err != nil
	}
	var kept []*client
	for len(kept) < 5 {
		c := dial(t, b)
		if ends(c) {
			t.Fatalf("connection %d is refused", len(kept)+1)
		}
		kept = append(kept, c)
	}
	for range 20 {
		if !ends(dial(t, b)) {
			t.Fatal("more connections than max.connections.per.ip")
		}
	}
	kept[0].nc.Close()
	servertest.Eventually(t, func() error {
		if c := dial(t, b); ends(c) {
			return errors.New("the place of a connection that ended stays taken")
		}
		return nil
	})
	b = startQuiet(t, "connections.max.idle.ms", "300")
	c := dial(t, b)
	c.ends("an idle connection")
	c = dial(t, b)
	c.send([]byte{0, 0})
	c.ends("half of a size")
	for _, never := range []string{"-1", "0"} {
		b = startQuiet(t, "connections.max.idle.ms", never)
		c = dial(t, b)
		for range 2 {
			if ends(c) {
				t.Fatalf("connections.max.idle.ms=%s ends a connection", never)
			}
		}
	}
}

// TestConnectionRate: max.connection.creation.rate holds back, and may change
// while the broker runs.
func TestConnectionRate(t *testing.T) {
	b := startQuiet(t)
	y := newBystander(t, b)
	// accepted is how many of some connections made at once are served.
	accepted := func(n int, within time.Duration) (served int) {
		var all []*client
		for range n {
			c := dial(t, b)
			f, _ := c.frame(at(12, kmsg.NewPtrMetadataRequest()))
			c.send(f)
			all = append(all, c)
		}
		deadline := time.Now().Add(within)
		for _, c := range all {
			c.nc.SetReadDeadline(deadline)
			var size [4]byte
			if _, err := io.ReadFull(c.nc, size[:]); err == nil {
				served++
			}
			c.nc.Close()
		}
		return served
	}
	if n := accepted(50, patience); n != 50 {
		t.Fatalf("%d of 50 connections are served without a bound", n)
	}
	set := func(op kmsg.IncrementalAlterConfigOp, value *string) {
		req := kmsg.NewPtrIncrementalAlterConfigsRequest()
		req.Resources = []kmsg.IncrementalAlterConfigsRequestResource{{ResourceType: brokerResource,
			Configs: []kmsg.IncrementalAlterConfigsRequestResourceConfig{{Name: "max.connection.creation.rate", Op: op, Value: value}}}}
		if r := y.do(at(1, req)).(*kmsg.IncrementalAlterConfigsResponse).Resources[0]; r.ErrorCode != 0 {
			t.Fatalf("%s: %v", protocol.Name(r.ErrorCode), *r.ErrorMessage)
		}
	}
	set(kmsg.IncrementalAlterConfigOpSet, kmsg.StringPtr("2"))
	// Two at once and two a second: the 50th comes after 24 s.
	if n := accepted(50, 2*time.Second); n >= 50 {
		t.Error("50 connections are served in 2 s at 2 a second")
	}
	set(kmsg.IncrementalAlterConfigOpDelete, nil)
	servertest.Eventually(t, func() error {
		if n := accepted(50, patience); n != 50 {
			return fmt.Errorf("%d of 50 connections are served after the bound was taken away", n)
		}
		return nil
	})
}

// TestMutations sends sound requests with a few bytes changed. Whatever they
// mean then, no handler may panic and no memory may stay taken.
func TestMutations(t *testing.T) {
	b := startQuiet(t, "auto.create.topics.enable", "false")
	y := newBystander(t, b)
	b.CreateTopic("known", 2)
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("VARVE_TEST_SEED"); s != "" {
		seed, _ = strconv.ParseUint(s, 10, 64)
	}
	t.Logf("VARVE_TEST_SEED=%d", seed)
	fill := &filler{Rand: rand.New(rand.NewPCG(seed, 0)), records: plain(3).bytes(), id: y.topicID("known"), mode: 4}
	rounds := 15
	if testing.Short() {
		rounds = 2
	}
	_, live := allocated(func() {
		for _, v := range protocol.Supported() {
			if !serves(y, v.Key) {
				continue
			}
			for version := v.Min; version <= v.Max; version++ {
				for range rounds {
					req := kmsg.RequestForKey(v.Key)
					fill.value(reflect.ValueOf(req).Elem(), 0)
					req.SetVersion(version)
					c := dial(t, b)
					f, _ := c.frame(req)
					for range 1 + fill.IntN(3) {
						if at := 14 + fill.IntN(len(f)); at < len(f) {
							f[at] = byte(fill.Uint32())
						}
					}
					if fill.IntN(3) == 0 {
						f = f[:4+10+fill.IntN(len(f)-13)]
						copy(f, be32(int32(len(f)-4)))
					}
					c.nc.Write(f)
					// A fetch that waits now is answered because its client has no more to say.
					c.nc.(*net.TCPConn).CloseWrite()
					if _, err := io.Copy(io.Discard, c.r); errors.Is(err, os.ErrDeadlineExceeded) {
						t.Fatalf("%s v%d hangs: %x", v.Name, version, f)
					}
					c.nc.Close()
				}
			}
			y.unharmed(v.Name)
		}
	})
	if live > 128<<20 {
		t.Errorf("the heap grew by %d MiB", live>>20)
	}
}

// TestNames: names of topics that nobody may have (B6).
func TestNames(t *testing.T) {
	b := startQuiet(t)
	y := newBystander(t, b)
	name := func(n string) string { return strconv.Quote(n[:min(len(n), 20)]) }
	bad := []string{"", ".", "..", "a/b", "../etc", "a b", "a\x00b", "\xff\xfe", "ä", "a\r\nb", "\x1b[2J", strings.Repeat("x", 250), strings.Repeat("x", 30000)}
	for _, n := range bad {
		md := kmsg.NewPtrMetadataRequest()
		md.AllowAutoTopicCreation = true
		md.Topics = []kmsg.MetadataRequestTopic{{Topic: &n}}
		if r := y.do(at(4, md)).(*kmsg.MetadataResponse); len(r.Topics) != 1 || r.Topics[0].ErrorCode != protocol.CodeInvalidTopicException {
			t.Errorf("Metadata %s: %+v", name(n), r.Topics)
		}
		ct := kmsg.NewPtrCreateTopicsRequest()
		ct.Topics = []kmsg.CreateTopicsRequestTopic{{Topic: n, NumPartitions: 1, ReplicationFactor: 1}}
		if r := y.do(at(7, ct)).(*kmsg.CreateTopicsResponse); len(r.Topics) != 1 || r.Topics[0].ErrorCode != protocol.CodeInvalidTopicException {
			t.Errorf("CreateTopics %s: %+v", name(n), r.Topics)
		}
		if code := produceTo(y.client, 9, -1, n, 0, plain(1).bytes()).ErrorCode; code != protocol.CodeUnknownTopicOrPartition && code != protocol.CodeInvalidTopicException {
			t.Errorf("Produce %s: %s", name(n), protocol.Name(code))
		}
	}
	// The longest name there may be is one all the way to the bucket.
	long := strings.Repeat("x", 249)
	b.CreateTopic(long, 1)
	y.must(long, 0, 3)
	b.Remote(long, false)
	if !bytes.Contains(y.stored(long, 0, 0), []byte("value 2")) {
		t.Error("a topic with a name of 249 characters does not return what was written")
	}
	// Kafka refuses names that metrics cannot tell apart.
	b.CreateTopic("one.two", 1)
	ct := kmsg.NewPtrCreateTopicsRequest()
	ct.Topics = []kmsg.CreateTopicsRequestTopic{{Topic: "one_two", NumPartitions: 1, ReplicationFactor: 1}}
	if r := y.do(at(7, ct)).(*kmsg.CreateTopicsResponse); r.Topics[0].ErrorCode != protocol.CodeInvalidTopicException {
		t.Errorf("one_two beside one.two: %s", protocol.Name(r.Topics[0].ErrorCode))
	}
	// Clients do not write to internal topics.
	y.do(at(4, &kmsg.FindCoordinatorRequest{CoordinatorKeys: []string{"g"}}))
	if code := produceTo(y.client, 9, -1, "__consumer_offsets", 0, plain(1).bytes()).ErrorCode; code != protocol.CodeInvalidTopicException {
		t.Errorf("write to __consumer_offsets: %s", protocol.Name(code))
	}
	y.unharmed("names")
}

// TestEveryRequest sends each served request at each version with the default
// values, with all arrays empty, null, and with one zero element, and with
// random values (B7). None may panic, hang, or harm another connection.
// VARVE_TEST_SEED repeats a run.
func TestEveryRequest(t *testing.T) {
	b := startQuiet(t, "auto.create.topics.enable", "false")
	y := newBystander(t, b)
	b.CreateTopic("known", 2)
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("VARVE_TEST_SEED"); s != "" {
		seed, _ = strconv.ParseUint(s, 10, 64)
	}
	t.Logf("VARVE_TEST_SEED=%d", seed)
	fill := &filler{Rand: rand.New(rand.NewPCG(seed, 0)), records: plain(3).bytes()}
	md := kmsg.NewPtrMetadataRequest()
	md.Topics = []kmsg.MetadataRequestTopic{{Topic: kmsg.StringPtr("known")}}
	fill.id = y.do(at(12, md)).(*kmsg.MetadataResponse).Topics[0].TopicID
	rounds := 40
	if testing.Short() {
		rounds = 4
	}
	probe := at(3, &kmsg.ApiVersionsRequest{ClientSoftwareName: "t", ClientSoftwareVersion: "1"})
	c := dial(t, b)
	closed := 0
	for _, v := range protocol.Supported() {
		if !serves(y, v.Key) {
			continue
		}
		for version := v.Min; version <= v.Max; version++ {
			for i := range 4 + rounds {
				req := kmsg.RequestForKey(v.Key)
				req.SetVersion(version)
				if d, ok := req.(interface{ Default() }); ok {
					d.Default()
				}
				fill.mode = i
				if i > 0 {
					fill.value(reflect.ValueOf(req).Elem(), 0)
				}
				tame(req)
				req.SetVersion(version)
				f, id := c.frame(req)
				p, pid := c.frame(probe)
				c.send(append(f, p...))
				got, err := c.answer()
				if err == nil && int32(binary.BigEndian.Uint32(got)) != pid { // unless nothing is answered, as to acks=0
					if _, derr := decode(req, got, id); derr != nil {
						t.Errorf("%s v%d round %d: the answer cannot be decoded: %v\n%+v", v.Name, version, i, derr, req)
					}
					got, err = c.answer()
				}
				switch {
				case errors.Is(err, os.ErrDeadlineExceeded):
					t.Fatalf("%s v%d round %d hangs: %+v", v.Name, version, i, req)
				case err != nil:
					if i == 0 {
						t.Errorf("%s v%d with default values closes the connection: %+v", v.Name, version, req)
					}
					closed++
					c = dial(t, b)
				case int32(binary.BigEndian.Uint32(got)) != pid:
					t.Fatalf("%s v%d round %d: answered twice", v.Name, version, i)
				}
			}
		}
		y.unharmed(v.Name)
	}
	t.Logf("%d connections closed", closed)
}

var servedKeys map[int16]bool

func serves(y *bystander, key int16) bool {
	if servedKeys == nil {
		servedKeys = map[int16]bool{}
		for _, k := range y.do(at(0, kmsg.NewPtrApiVersionsRequest())).(*kmsg.ApiVersionsResponse).ApiKeys {
			servedKeys[k.ApiKey] = true
		}
	}
	return servedKeys[key]
}

// tame takes out the values that rightly make a request wait.
func tame(req kmsg.Request) {
	switch r := req.(type) {
	case *kmsg.FetchRequest:
		r.MaxWaitMillis = min(r.MaxWaitMillis, 5)
	case *kmsg.ProduceRequest:
		if r.TimeoutMillis < 0 || r.TimeoutMillis > 1000 {
			r.TimeoutMillis = 1000
		}
	case *kmsg.JoinGroupRequest:
		r.RebalanceTimeoutMillis = min(r.RebalanceTimeoutMillis, 5)
	}
}

// filler gives every field of a request a value by reflection.
type filler struct {
	*rand.Rand
	mode    int // 1: null, 2: empty, 3: one zero element, above: random
	id      [16]byte
	records []byte
}

var numbers = []int64{0, 0, 1, 1, 2, 3, -1, -2, -3, -4, -5, 5, 7, 100, math.MaxInt8, math.MaxInt16, math.MaxInt32, math.MinInt32, math.MaxInt64, math.MinInt64}
var names = []string{"known", "known", "known", "", "unknown", "1", "consumer", "range", "__consumer_offsets", "a/b", "\x00", "ä\xff", strings.Repeat("n", 300),
	"retention.ms", "cleanup.policy", "Stable", "member-1"}

func (f *filler) value(v reflect.Value, depth int) {
	if !v.CanSet() {
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			if n := v.Type().Field(i).Name; n == "Version" || n == "UnknownTags" {
				continue
			}
			f.value(v.Field(i), depth+1)
		}
	case reflect.Pointer:
		if f.mode < 3 || f.mode > 3 && f.IntN(4) == 0 {
			v.SetZero()
			return
		}
		v.Set(reflect.New(v.Type().Elem()))
		f.value(v.Elem(), depth+1)
	case reflect.Slice:
		switch {
		case f.mode == 1 || f.mode > 3 && f.IntN(8) == 0:
			v.SetZero()
			return
		case f.mode == 2:
			v.Set(reflect.MakeSlice(v.Type(), 0, 0))
			return
		}
		if v.Type().Elem().Kind() == reflect.Uint8 {
			if f.mode > 3 && f.IntN(2) == 0 {
				v.SetBytes(bytes.Clone(f.records))
				return
			}
			junk := make([]byte, f.IntN(100))
			for i := range junk {
				junk[i] = byte(f.Uint32())
			}
			v.SetBytes(junk)
			return
		}
		n := 1
		if f.mode > 3 {
			n = f.IntN(4)
		}
		v.Set(reflect.MakeSlice(v.Type(), n, n))
		for i := range n {
			f.value(v.Index(i), depth+1)
		}
	case reflect.Array:
		if v.Type().Elem().Kind() == reflect.Uint8 && v.Len() == 16 && f.mode > 3 && f.IntN(2) == 0 {
			reflect.Copy(v, reflect.ValueOf(f.id))
		}
	case reflect.String:
		if f.mode > 3 {
			v.SetString(names[f.IntN(len(names))])
		}
	case reflect.Bool:
		v.SetBool(f.mode > 3 && f.IntN(2) == 0)
	case reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		n := int64(0)
		if f.mode > 3 {
			n = numbers[f.IntN(len(numbers))]
			if v.OverflowInt(n) {
				n = int64(f.IntN(4))
			}
		}
		v.SetInt(n)
	case reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		if f.mode > 3 {
			v.SetUint(uint64(f.IntN(256)))
		}
	case reflect.Float64:
		if f.mode > 3 {
			v.SetFloat([]float64{0, 1, -1, math.NaN(), math.Inf(1)}[f.IntN(5)])
		}
	}
}

// sent is a batch to be bent.
type sent struct{ *batch.Builder }

// plain is a sound batch of n records.
func plain(n int) sent {
	b := batch.NewBuilder()
	for i := range n {
		b.Add(time.Now().UnixMilli(), []byte("k"), fmt.Appendf(nil, "value %d", i))
	}
	return sent{b}
}

func (s sent) bytes() []byte {
	b, err := s.Build()
	if err != nil {
		panic(err)
	}
	return b
}

func produceReq(version, acks int16, topic string, partition int32, records []byte) *kmsg.ProduceRequest {
	req := kmsg.NewPtrProduceRequest()
	req.SetVersion(version)
	req.Acks, req.TimeoutMillis = acks, 30_000
	rt := kmsg.NewProduceRequestTopic()
	rt.Topic = topic
	rp := kmsg.NewProduceRequestTopicPartition()
	rp.Partition, rp.Records = partition, records
	rt.Partitions = append(rt.Partitions, rp)
	req.Topics = append(req.Topics, rt)
	return req
}

func produceTo(c *client, version, acks int16, topic string, partition int32, records []byte) kmsg.ProduceResponseTopicPartition {
	c.t.Helper()
	resp := c.do(produceReq(version, acks, topic, partition, records)).(*kmsg.ProduceResponse)
	if len(resp.Topics) != 1 || len(resp.Topics[0].Partitions) != 1 {
		c.t.Fatalf("answer for %d topics", len(resp.Topics))
	}
	return resp.Topics[0].Partitions[0]
}
