package broker

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/broker/protocol"
	"github.com/varve/varve/metadata/controller"
)

// DeleteTopics (key 20), versions 1 to 6.
//
// Behavior: a topic is gone from the metadata when the answer leaves; its
// objects are deleted by the collector afterwards. The name is free at once.
//
// Versions: 3 the code of deletion being disabled, 5 error messages, 6 by id.

func (b *Broker) deleteTopics(ctx context.Context, _ *request, in kmsg.Request) kmsg.Response {
	req := in.(*kmsg.DeleteTopicsRequest)
	resp := req.ResponseKind().(*kmsg.DeleteTopicsResponse)
	ctx, cancel := context.WithTimeout(ctx, adminTimeout(req.TimeoutMillis))
	defer cancel()
	var refs []controller.TopicRef
	if req.Version >= 6 {
		for _, t := range req.Topics {
			ref := controller.TopicRef{ID: t.TopicID}
			if t.Topic != nil {
				ref.Name = *t.Topic
			}
			refs = append(refs, ref)
		}
	} else {
		for _, name := range req.TopicNames {
			refs = append(refs, controller.TopicRef{Name: name})
		}
	}
	first := once[controller.TopicRef]()
	for i, res := range b.meta.DeleteTopics(ctx, refs) {
		// What is neither a name nor an id, or both, is an error of its own each time.
		named := (refs[i].Name != "") != (refs[i].ID != [16]byte{}) || req.Version < 6
		if named && !first(refs[i]) {
			continue
		}
		t := kmsg.NewDeleteTopicsResponseTopic()
		t.TopicID, t.ErrorCode = res.ID, res.ErrorCode
		if name := res.Name; name != "" || refs[i].Name != "" {
			if name == "" {
				name = refs[i].Name
			}
			t.Topic = kmsg.StringPtr(name)
		}
		if res.ErrorCode == protocol.CodeTopicDeletionDisabled && req.Version < 3 {
			t.ErrorCode = protocol.CodeInvalidRequest // they do not know the other one
		}
		if res.ErrorCode != 0 {
			t.ErrorMessage = kmsg.StringPtr(res.Message)
		}
		resp.Topics = append(resp.Topics, t)
	}
	return resp
}
