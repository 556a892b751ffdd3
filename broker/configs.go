package broker

import (
	"context"
	"fmt"
	"slices"
	"strconv"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/broker/protocol"
	"github.com/varve/varve/config"
	"github.com/varve/varve/metadata/controller"
	"github.com/varve/varve/metadata/image"
	"github.com/varve/varve/wal/batch"
)

// DescribeConfigs (32), AlterConfigs (33) and IncrementalAlterConfigs (44).
//
// Behavior: a setting is shown with the source that counts and, on request, all
// the places it could have come from, in order; tools rely on the difference
// between a default and a value that was set. Changes are validated and
// committed by the controller, each resource whole or not at all.

// resolver has the layers of this broker's configuration.
func (b *Broker) resolver(im *image.Image) config.Resolver {
	return config.Resolver{
		BrokerDynamic:  im.Config(image.BrokerResource, strconv.Itoa(int(b.opts.BrokerID))),
		ClusterDynamic: im.Config(image.BrokerResource, ""),
		Static:         b.conf().Static,
	}
}

// resolveTopic is what a topic's settings come to on this broker.
func (b *Broker) resolveTopic(im *image.Image, t *image.Topic) *config.TopicConfig {
	return b.resolver(im).Topic(t.Config)
}

// topicEntries describes a topic with the given overrides.
func (b *Broker) topicEntries(im *image.Image, overrides map[string]string) []config.Entry {
	return b.resolver(im).DescribeTopic(overrides)
}

func (b *Broker) describeConfigs(_ context.Context, _ *request, in kmsg.Request) kmsg.Response {
	req := in.(*kmsg.DescribeConfigsRequest)
	resp := req.ResponseKind().(*kmsg.DescribeConfigsResponse)
	im := b.meta.Image()
	req.Resources = distinct(req.Resources, func(r kmsg.DescribeConfigsRequestResource) any {
		return image.ConfigKey{Type: int8(r.ResourceType), Name: r.ResourceName}
	})
	unset, bare := 0, map[int8][]kmsg.DescribeConfigsResponseResourceConfig{} // the settings of those that have none of their own
	for i := range req.Resources {
		res := &req.Resources[i]
		kind := int8(res.ResourceType)
		out := kmsg.NewDescribeConfigsResponseResource()
		out.ResourceType, out.ResourceName = res.ResourceType, res.ResourceName
		plain := (kind == image.GroupResource || kind == image.ClientMetricsResource) && im.ConfigEntry(kind, res.ResourceName) == nil
		if plain {
			unset++
		}
		if plain && unset > maxUnset {
			out.ErrorCode, out.ErrorMessage = protocol.CodeInvalidRequest, kmsg.StringPtr(fmt.Sprintf("more than %d groups or client metrics without settings of their own in one request", maxUnset))
			resp.Resources = append(resp.Resources, out)
			continue
		}
		if shared := bare[kind]; plain && shared != nil && res.ResourceName != "" && len(res.ConfigNames) == 0 {
			out.Configs = shared
			resp.Resources = append(resp.Resources, out)
			continue
		}
		entries, code, message := b.describeResource(im, kind, res.ResourceName)
		if code != 0 {
			out.ErrorCode, out.ErrorMessage = code, kmsg.StringPtr(message)
		}
		out.Configs = described(req, res, entries)
		if plain && code == 0 && len(res.ConfigNames) == 0 {
			bare[kind] = out.Configs
		}
		resp.Resources = append(resp.Resources, out)
	}
	return resp
}

// maxUnset bounds the resources that one request may name without their having to be there. A few bytes name one, and it is answered with
// all settings there are, documentation too: 4 KiB.
const maxUnset = 2000

// described is what a request asks for of a resource's settings.
func described(req *kmsg.DescribeConfigsRequest, res *kmsg.DescribeConfigsRequestResource, entries []config.Entry) (out []kmsg.DescribeConfigsResponseResourceConfig) {
	for _, e := range entries {
		if len(res.ConfigNames) > 0 && !slices.Contains(res.ConfigNames, e.Name) {
			continue
		}
		c := kmsg.NewDescribeConfigsResponseResourceConfig()
		c.Name, c.Value, c.ReadOnly, c.IsSensitive = e.Name, e.Value, e.ReadOnly, e.Sensitive
		c.Source, c.IsDefault = kmsg.ConfigSource(e.Source), e.IsDefault()
		c.ConfigType = kmsg.ConfigType(e.Type)
		if req.IncludeSynonyms {
			for _, s := range e.Synonyms {
				cs := kmsg.NewDescribeConfigsResponseResourceConfigConfigSynonym()
				cs.Name, cs.Value, cs.Source = s.Name, s.Value, kmsg.ConfigSource(s.Source)
				c.ConfigSynonyms = append(c.ConfigSynonyms, cs)
			}
		}
		if req.IncludeDocumentation {
			c.Documentation = kmsg.StringPtr(e.Doc)
		}
		out = append(out, c)
	}
	return out
}

// brokerLoggerResource is Kafka's resource of logger levels.
const brokerLoggerResource = 8

func (b *Broker) describeResource(im *image.Image, kind int8, name string) ([]config.Entry, int16, string) {
	switch kind {
	case image.TopicResource:
		if !validTopicName(name) {
			return nil, protocol.CodeInvalidTopicException, fmt.Sprintf("%q is no topic name", name)
		}
		t := im.Topic(name)
		if t == nil {
			return nil, protocol.CodeUnknownTopicOrPartition, ""
		}
		return b.topicEntries(im, t.Config), 0, ""
	case image.BrokerResource:
		if name == "" {
			return config.DescribeBrokerDefaults(im.Config(image.BrokerResource, "")), 0, ""
		}
		if id, err := strconv.ParseInt(name, 10, 32); err != nil || int32(id) != b.opts.BrokerID {
			return nil, protocol.CodeInvalidRequest, fmt.Sprintf("unexpected broker id %q: this is broker %d, and a broker describes itself", name, b.opts.BrokerID)
		}
		return b.resolver(im).DescribeBroker(), 0, ""
	case image.GroupResource:
		if name == "" {
			return nil, protocol.CodeInvalidRequest, "a group resource needs the group's name"
		}
		return b.resolver(im).DescribeGroup(im.Config(image.GroupResource, name)), 0, ""
	case image.ClientMetricsResource:
		if name == "" {
			return nil, protocol.CodeInvalidRequest, "a client metrics resource needs the subscription's name"
		}
		return config.DescribeClientMetrics(im.Config(image.ClientMetricsResource, name)), 0, ""
	case brokerLoggerResource:
		if id, err := strconv.ParseInt(name, 10, 32); err != nil || int32(id) != b.opts.BrokerID {
			return nil, protocol.CodeInvalidRequest, fmt.Sprintf("unexpected broker id %q: this is broker %d", name, b.opts.BrokerID)
		}
		// There is one level for all loggers: the setting log.level.
		return nil, 0, ""
	}
	return nil, protocol.CodeInvalidRequest, fmt.Sprintf("config resource type %d is not known", kind)
}

func (b *Broker) incrementalAlterConfigs(ctx context.Context, _ *request, in kmsg.Request) kmsg.Response {
	req := in.(*kmsg.IncrementalAlterConfigsRequest)
	resp := req.ResponseKind().(*kmsg.IncrementalAlterConfigsResponse)
	var changes []controller.AlterResource
	for i := range req.Resources {
		res := &req.Resources[i]
		ch := controller.AlterResource{Type: int8(res.ResourceType), Name: res.ResourceName}
		for _, c := range res.Configs {
			ch.Ops = append(ch.Ops, controller.ConfigOp{Name: c.Name, Op: controller.Op(c.Op), Value: c.Value})
		}
		changes = append(changes, ch)
	}
	results := b.meta.AlterConfigs(ctx, changes, true, req.ValidateOnly)
	if !req.ValidateOnly {
		b.warnOfSettings(changes, results)
	}
	for _, r := range results {
		out := kmsg.NewIncrementalAlterConfigsResponseResource()
		out.ResourceType, out.ResourceName, out.ErrorCode = kmsg.ConfigResourceType(r.Type), r.Name, r.ErrorCode
		if r.ErrorCode != 0 {
			out.ErrorMessage = kmsg.StringPtr(r.Message)
		}
		resp.Resources = append(resp.Resources, out)
	}
	return resp
}

// warnOfSettings names in the log those that were taken and have no effect, each once however many resources it was set of.
func (b *Broker) warnOfSettings(changes []controller.AlterResource, results []controller.Result) {
	type resource struct {
		kind int8
		name string
	}
	type setting struct {
		kind int8
		name string
	}
	refused, said := map[resource]bool{}, map[setting]bool{}
	for _, r := range results {
		if r.ErrorCode != 0 {
			refused[resource{r.Type, r.Name}] = true
		}
	}
	of := map[int8]func(string) (*config.Def, bool){
		image.BrokerResource: config.Broker, image.TopicResource: config.Topic, image.GroupResource: config.Group, image.ClientMetricsResource: config.ClientMetrics,
	}
	for _, ch := range changes {
		find := of[ch.Type]
		if find == nil || refused[resource{ch.Type, ch.Name}] {
			continue
		}
		for _, op := range ch.Ops {
			if d, ok := find(op.Name); ok && d.Handling == config.Warned && op.Op != controller.Delete && !said[setting{ch.Type, d.Name}] {
				said[setting{ch.Type, d.Name}] = true
				b.log.Warn("a setting has no effect", "resource_type", ch.Type, "resource", ch.Name, "setting", op.Name, "why", d.Note)
			}
		}
	}
}

func (b *Broker) alterConfigs(ctx context.Context, _ *request, in kmsg.Request) kmsg.Response {
	req := in.(*kmsg.AlterConfigsRequest)
	resp := req.ResponseKind().(*kmsg.AlterConfigsResponse)
	var changes []controller.AlterResource
	for i := range req.Resources {
		res := &req.Resources[i]
		ch := controller.AlterResource{Type: int8(res.ResourceType), Name: res.ResourceName}
		for _, c := range res.Configs {
			ch.Ops = append(ch.Ops, controller.ConfigOp{Name: c.Name, Value: c.Value})
		}
		changes = append(changes, ch)
	}
	results := b.meta.AlterConfigs(ctx, changes, false, req.ValidateOnly)
	if !req.ValidateOnly {
		b.warnOfSettings(changes, results)
	}
	for _, r := range results {
		out := kmsg.NewAlterConfigsResponseResource()
		out.ResourceType, out.ResourceName, out.ErrorCode = kmsg.ConfigResourceType(r.Type), r.Name, r.ErrorCode
		if r.ErrorCode != 0 {
			out.ErrorMessage = kmsg.StringPtr(r.Message)
		}
		resp.Resources = append(resp.Resources, out)
	}
	return resp
}

// recompressTo says whether a topic stores batches in another codec than h's.
func recompressTo(cfg *config.TopicConfig, h batch.Header) (to batch.Codec, level int, ok bool) {
	if cfg.CompressionType == "producer" {
		return 0, 0, false
	}
	if cfg.CompressionType == "uncompressed" {
		return batch.None, 0, h.Codec() != batch.None
	}
	to, known := batch.ParseCodec(cfg.CompressionType)
	return to, cfg.CompressionLevel(), known && to != h.Codec()
}
