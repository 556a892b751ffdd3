package broker

import (
	"context"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/config"
	"github.com/varve/varve/metadata/image"
)

// fixedImage is a metadata store in which nothing happens.
type fixedImage struct {
	Metadata
	im *image.Image
}

func (m fixedImage) Image() *image.Image { return m.im }

// TestControllerOfNoElection: between two elections, as when a busy broker's
// session ran out, clients are still told of a controller: librdkafka waits for
// one and does not ask a second time.
func TestControllerOfNoElection(t *testing.T) {
	member := func(id int32) image.Change {
		return image.SetBroker{Broker: image.Broker{ID: id, Endpoints: []image.Endpoint{{Listener: "PLAINTEXT", Host: "localhost", Port: 9092}}}}
	}
	vacant := image.Empty().Apply(image.Delta{Changes: []image.Change{member(3), member(4)}})
	for _, c := range []struct {
		name string
		im   *image.Image
		want int32
	}{
		{"nobody elected yet", vacant, 3},
		{"the other broker", vacant.Apply(image.Delta{Changes: []image.Change{image.SetController{Broker: 4, Epoch: 9}}}), 4},
		{"its lease ran out", vacant.Apply(image.Delta{Changes: []image.Change{image.SetController{Broker: 4, Epoch: 9}, image.DropController{}}}), 3},
	} {
		b := &Broker{opts: Options{BrokerID: 3}, meta: fixedImage{im: c.im}}
		b.cfg.Store(&config.BrokerConfig{})
		r := &request{c: &conn{b: b, listener: &listener{b: b, name: "PLAINTEXT"}}}

		m := kmsg.NewPtrMetadataRequest()
		m.Version, m.Topics = 12, []kmsg.MetadataRequestTopic{}
		got := b.metadata(context.Background(), r, m).(*kmsg.MetadataResponse)
		if got.ControllerID != c.want || len(got.Brokers) != 2 {
			t.Errorf("%s: Metadata: controller %d of %d brokers, want %d of 2", c.name, got.ControllerID, len(got.Brokers), c.want)
		}
		d := kmsg.NewPtrDescribeClusterRequest()
		d.Version, d.EndpointType = 1, 1
		if got := b.describeCluster(context.Background(), r, d).(*kmsg.DescribeClusterResponse); got.ControllerID != c.want {
			t.Errorf("%s: DescribeCluster: controller %d, want %d", c.name, got.ControllerID, c.want)
		}
	}
}
