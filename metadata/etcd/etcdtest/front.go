package etcdtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"testing"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
)

// Front stands before a member of etcd: clients go to Addr, and a test says when what they ask of its keys is passed on.
type Front struct {
	Addr string // host:port

	member *grpc.ClientConn
	around atomic.Pointer[around]
}

type around func(request any, forward func())

// NewFront starts one before the member that listens at addr, or will, until the test ends.
func NewFront(tb testing.TB, addr string) *Front {
	tb.Helper()
	member, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(asIs{}), grpc.MaxCallRecvMsgSize(maxMessage), grpc.WaitForReady(true)))
	if err != nil {
		tb.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	f := &Front{Addr: l.Addr().String(), member: member}
	s := grpc.NewServer(grpc.ForceServerCodecV2(asIs{}), grpc.UnknownServiceHandler(f.serve), grpc.MaxRecvMsgSize(maxMessage))
	served := make(chan struct{})
	go func() {
		defer close(served)
		s.Serve(l) // ends with Stop
	}()
	tb.Cleanup(func() {
		s.Stop()
		<-served
		member.Close()
	})
	return f
}

const maxMessage = 256 << 20

// Around has each transaction and each read: *etcdserverpb.TxnRequest, *etcdserverpb.RangeRequest. g calls forward once, when it is time: that returns
// when the member has answered, and the client gets the answer when g has returned. If g does not call it, the client gets none, however long it
// waits. nil lets all pass.
func (f *Front) Around(g func(request any, forward func())) {
	if g == nil {
		f.around.Store(nil)
		return
	}
	a := around(g)
	f.around.Store(&a)
}

// serve passes one call on, whatever it is.
func (f *Front) serve(_ any, near grpc.ServerStream) error {
	method, ok := grpc.MethodFromServerStream(near)
	if !ok {
		return errors.New("etcdtest: a call of no method")
	}
	ctx, cancel := context.WithCancel(near.Context())
	defer cancel()
	if md, ok := metadata.FromIncomingContext(ctx); ok {
		ctx = metadata.NewOutgoingContext(ctx, md.Copy())
	}
	far, err := f.member.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, method)
	if err != nil {
		return err
	}
	switch method {
	case "/etcdserverpb.KV/Txn":
		return f.call(new(etcdserverpb.TxnRequest), near, far)
	case "/etcdserverpb.KV/Range":
		return f.call(new(etcdserverpb.RangeRequest), near, far)
	}
	go func() {
		for {
			var m message
			if near.RecvMsg(&m) != nil {
				far.CloseSend()
				return // the client has ended its part, or has gone: then ctx ends
			}
			if far.SendMsg(&m) != nil {
				return // why is what RecvMsg returns
			}
		}
	}()
	for {
		var m message
		if err := far.RecvMsg(&m); errors.Is(err, io.EOF) {
			near.SetTrailer(far.Trailer())
			return nil
		} else if err != nil {
			return err
		}
		if err := near.SendMsg(&m); err != nil {
			return err
		}
	}
}

// call is one request, which is read into a message of its kind, and its answer.
func (f *Front) call(into any, near grpc.ServerStream, far grpc.ClientStream) error {
	var request, answer message
	if err := near.RecvMsg(&request); err != nil {
		return err
	}
	if err := encoding.GetCodecV2("proto").Unmarshal(mem.BufferSlice{mem.SliceBuffer(request)}, into); err != nil {
		return err
	}
	sent := false
	var err error
	forward := func() {
		sent = true
		if far.SendMsg(&request) == nil {
			far.CloseSend()
		}
		err = far.RecvMsg(&answer) // also says why the request could not be sent
	}
	if a := f.around.Load(); a != nil {
		(*a)(into, forward)
	} else {
		forward()
	}
	if !sent {
		<-near.Context().Done()
		return near.Context().Err()
	}
	if err != nil {
		return err
	}
	near.SetTrailer(far.Trailer())
	return near.SendMsg(&answer)
}

// message is one as it is on the wire, and asIs the codec of that.
type message []byte

type asIs struct{}

var _ encoding.CodecV2 = asIs{}

func (asIs) Name() string { return "proto" }

func (asIs) Marshal(v any) (mem.BufferSlice, error) {
	m, ok := v.(*message)
	if !ok {
		return nil, fmt.Errorf("etcdtest: %T is no message", v)
	}
	return mem.BufferSlice{mem.SliceBuffer(*m)}, nil
}

func (asIs) Unmarshal(data mem.BufferSlice, v any) error {
	m, ok := v.(*message)
	if !ok {
		return fmt.Errorf("etcdtest: %T is no message", v)
	}
	*m = data.Materialize()
	return nil
}
