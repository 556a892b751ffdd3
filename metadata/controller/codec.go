package controller

import (
	"encoding/json"
	"fmt"
)

// Commands go as JSON to a controller that is another broker, and so does its
// reply: they are rare, and a broker of another version is to understand what
// it knows of them.
//
//	{"kind": "CreateTopics", "retry": false, "command": {...}}

type commandValue struct {
	Kind    string          `json:"kind"`
	Retry   bool            `json:"retry,omitempty"`
	Command json.RawMessage `json:"command"`
}

// EncodeCommand returns a command as bytes. retry says that it may have been
// carried out already; see Env.Retry.
func EncodeCommand(c Command, retry bool) ([]byte, error) {
	raw, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("controller: encode %s: %w", kindOf(c), err)
	}
	return json.Marshal(commandValue{Kind: kindOf(c), Retry: retry, Command: raw})
}

// DecodeCommand reads what EncodeCommand wrote. An unknown kind is an error: it
// is of a newer version.
func DecodeCommand(b []byte) (c Command, retry bool, err error) {
	var v commandValue
	if err := json.Unmarshal(b, &v); err != nil {
		return nil, false, fmt.Errorf("controller: command of %d bytes: %w", len(b), err)
	}
	decode, ok := decoders[v.Kind]
	if !ok {
		return nil, false, fmt.Errorf("controller: this broker knows no command %q", v.Kind)
	}
	if c, err = decode(v.Command); err != nil {
		return nil, false, fmt.Errorf("controller: command %s: %w", v.Kind, err)
	}
	return c, v.Retry, nil
}

var decoders = map[string]func([]byte) (Command, error){}

// known makes a kind of command one that can be sent.
func known[C Command]() bool {
	var zero C
	decoders[kindOf(zero)] = func(b []byte) (Command, error) {
		var c C
		err := json.Unmarshal(b, &c)
		return c, err
	}
	return true
}

func kindOf(c Command) string {
	switch c.(type) {
	case CreateTopics:
		return "CreateTopics"
	case DeleteTopics:
		return "DeleteTopics"
	case CreatePartitions:
		return "CreatePartitions"
	case AlterConfigs:
		return "AlterConfigs"
	case AlterPartition:
		return "AlterPartition"
	case AlterReassignments:
		return "AlterReassignments"
	case GiveUp:
		return "GiveUp"
	case ElectLeaders:
		return "ElectLeaders"
	case BeginShutdown:
		return "BeginShutdown"
	case AcceptLoss:
		return "AcceptLoss"
	case Marked:
		return "Marked"
	case UnregisterBroker:
		return "UnregisterBroker"
	case Suspect:
		return "Suspect"
	}
	return fmt.Sprintf("%T", c)
}

var _ = known[CreateTopics]() && known[DeleteTopics]() && known[CreatePartitions]() && known[AlterConfigs]() &&
	known[AlterPartition]() && known[AlterReassignments]() && known[ElectLeaders]() && known[GiveUp]() && known[BeginShutdown]() && known[AcceptLoss]() && known[UnregisterBroker]() && known[Marked]() && known[Suspect]()
