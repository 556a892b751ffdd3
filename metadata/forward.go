package metadata

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/varve/varve/metadata/controller"
	"github.com/varve/varve/metadata/image"
)

// A command given to a broker that is not the controller goes to the one that
// is. What a lost answer leaves open is closed by sending the command again,
// marked as one that may have been carried out (controller.Env.Retry), to
// whoever is the controller then. The answer names the revision that shows the
// effects, for which this broker's own image is awaited: who creates a topic
// here finds it here.

// Forward sends an encoded command to another broker, and returns its encoded
// reply. After an error the command may have been carried out.
type Forward func(ctx context.Context, to *image.Broker, command []byte) ([]byte, error)

// SetForward sets how commands reach a controller that is another broker. Call
// it before Start and Register.
func (n *Node) SetForward(f Forward) { n.forward = f }

// forwardFor is how long a command is tried to be passed on, unless its context
// ends before: as long as an election takes, several times over.
const forwardFor = 30 * time.Second

type replyValue struct {
	controller.Reply
	Revision int64
}

// Execute carries out a command that another broker sent, if this node is the
// controller, and returns the encoded reply.
func (n *Node) Execute(ctx context.Context, command []byte) ([]byte, error) {
	c, retry, err := controller.DecodeCommand(command)
	if err != nil {
		return nil, err
	}
	var v replyValue
	if s, ok := c.(controller.Suspect); ok && n.IsController() {
		n.hinted(hint{s.Broker, s.Incarnation})
	} else if n.IsController() {
		v.Reply, v.Revision = n.command(ctx, c, retry)
	} else {
		v.Reply = controller.Fail(c, codeNotController, notController)
	}
	return json.Marshal(v)
}

// elsewhere has the controller carry out a command, wherever it is.
func (n *Node) elsewhere(ctx context.Context, c controller.Command) controller.Reply {
	ctx, cancel := context.WithTimeout(ctx, forwardFor)
	defer cancel()
	sent := false // the command may have been carried out
	why := notController
	for delay := 20 * time.Millisecond; ; delay = min(2*delay, time.Second) {
		im := n.Image()
		to := im.Broker(im.Controller)
		switch {
		case n.IsController():
			reply, _ := n.command(ctx, c, sent)
			if reply.ErrorCode != codeNotController {
				return reply
			}
		case to != nil && to.ID != n.o.BrokerID:
			raw, err := controller.EncodeCommand(c, sent)
			if err != nil {
				return controller.Fail(c, codeUnknownServerError, err.Error())
			}
			sent = true
			raw, err = n.forward(ctx, to, raw)
			var v replyValue
			if err == nil {
				err = json.Unmarshal(raw, &v)
			}
			switch {
			case err != nil:
				why = fmt.Sprintf("broker %d, the controller, did not answer: %v", to.ID, err)
				n.log.Warn("the controller did not answer", "controller", to.ID, "error", err)
			case v.ErrorCode != codeNotController:
				if v.Revision > 0 {
					n.awaitDelivered(ctx, v.Revision)
				}
				return v.Reply
			}
		}
		if !sleep(ctx, delay) {
			return controller.Fail(c, codeRequestTimedOut, why)
		}
	}
}
