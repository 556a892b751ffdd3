package broker

import (
	"context"
	"fmt"
	"net"
	"strings"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/broker/protocol"
	"github.com/varve/varve/wal/slab"
)

// request is one decoded request header and what its handler needs.
type request struct {
	c    *conn
	p    *pending
	hdr  protocol.RequestHeader
	body []byte
	buf  *slab.Buf // holds body; released by serve
	ctx  context.Context
}

// api is one key that this broker serves.
type api struct {
	key      int16
	name     string
	min, max int16
	advMin   int16
	// serve handles the request and sees to it that its answer is completed,
	// now or later. It owns r.buf. An error closes the connection.
	serve func(r *request) error
}

type apiTable struct {
	byKey  []*api // index is the key
	listed []*api // ascending
}

func (t *apiTable) find(key int16) *api {
	if key < 0 || int(key) >= len(t.byKey) {
		return nil
	}
	return t.byKey[key]
}

// handler answers one decoded request. It runs in the connection's reader, so
// that a client that pipelines sees its requests take effect in order.
type handler func(ctx context.Context, r *request, req kmsg.Request) kmsg.Response

// register adds a key with the versions that Kafka 4.2 serves of it.
func (t *apiTable) register(key int16, serve func(r *request) error) {
	v, ok := protocol.Served(key)
	if !ok {
		panic(fmt.Sprintf("broker: api key %d has no versions", key))
	}
	for int(key) >= len(t.byKey) {
		t.byKey = append(t.byKey, nil)
	}
	if t.byKey[key] != nil {
		panic(fmt.Sprintf("broker: api key %d registered twice", key))
	}
	a := &api{key: key, name: v.Name, min: v.Min, max: v.Max, advMin: v.AdvertisedMin, serve: serve}
	t.byKey[key] = a
	t.listed = t.listed[:0]
	for _, a := range t.byKey {
		if a != nil {
			t.listed = append(t.listed, a)
		}
	}
}

// handle registers a key whose requests are decoded by kmsg.
func (t *apiTable) handle(key int16, h handler) {
	t.register(key, func(r *request) error {
		defer r.buf.Release()
		req := kmsg.RequestForKey(r.hdr.Key)
		req.SetVersion(r.hdr.Version)
		if err := req.ReadFrom(r.body); err != nil {
			return fmt.Errorf("%w: %s v%d: %v", protocol.ErrMalformed, protocolName(r.hdr.Key), r.hdr.Version, err)
		}
		resp := h(r.ctx, r, req)
		if resp == nil {
			return fmt.Errorf("broker: %s was not answered: the broker is shutting down", protocolName(r.hdr.Key))
		}
		resp.SetVersion(r.hdr.Version)
		r.p.respond(resp)
		return nil
	})
}

func protocolName(key int16) string {
	if v, ok := protocol.Served(key); ok {
		return v.Name
	}
	return fmt.Sprintf("api key %d", key)
}

// clientHost is the peer's address as group members show it.
func (r *request) clientHost() string {
	host, _, err := net.SplitHostPort(r.c.nc.RemoteAddr().String())
	if err != nil {
		host = r.c.nc.RemoteAddr().String()
	}
	return "/" + strings.TrimPrefix(host, "/")
}

func (r *request) clientID() string {
	if r.hdr.ClientID == nil {
		return ""
	}
	return *r.hdr.ClientID
}
