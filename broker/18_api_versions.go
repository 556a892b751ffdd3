package broker

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve/varve/broker/protocol"
)

// ApiVersions (key 18), versions 0 to 4.
//
// Behavior: the first call of every client. A version that is not known is
// answered in version 0 with UNSUPPORTED_VERSION and the versions that are, so
// that the client can ask again (KIP-511).

func (b *Broker) apiVersions(_ context.Context, r *request, in kmsg.Request) kmsg.Response {
	req := in.(*kmsg.ApiVersionsRequest)
	resp := req.ResponseKind().(*kmsg.ApiVersionsResponse)
	if req.Version >= 3 {
		if !validSoftware(req.ClientSoftwareName) || !validSoftware(req.ClientSoftwareVersion) {
			resp.ErrorCode = protocol.CodeInvalidRequest
			return resp
		}
		r.c.softwareName, r.c.softwareVersion = req.ClientSoftwareName, req.ClientSoftwareVersion
	}
	b.listVersions(resp)
	listFeatures(resp)
	return resp
}

// features are what the cluster as a whole has come to. They are finalized at
// one level from the beginning: there is no older broker to wait for. Their
// epoch is that of a state that never changes.
var features = []struct {
	name            string
	min, max, level int16
}{
	{"group.version", 0, 1, 1}, // 1: the consumer protocol (KIP-848)
	{"transaction.version", 0, 2, transactionVersion},
}

const featuresEpoch = 1

// listFeatures fills in the features of versions 3 and later (KIP-584). Below
// version 4 those are left out that begin at 0: clients of that time take the
// response for malformed (KAFKA-17011).
func listFeatures(resp *kmsg.ApiVersionsResponse) {
	resp.FinalizedFeaturesEpoch = featuresEpoch
	for _, f := range features {
		if f.min > 0 || resp.Version >= 4 {
			s := kmsg.NewApiVersionsResponseSupportedFeature()
			s.Name, s.MinVersion, s.MaxVersion = f.name, f.min, f.max
			resp.SupportedFeatures = append(resp.SupportedFeatures, s)
		}
		l := kmsg.NewApiVersionsResponseFinalizedFeature()
		l.Name, l.MinVersionLevel, l.MaxVersionLevel = f.name, f.level, f.level
		resp.FinalizedFeatures = append(resp.FinalizedFeatures, l)
	}
}

func (b *Broker) listVersions(resp *kmsg.ApiVersionsResponse) {
	resp.ApiKeys = make([]kmsg.ApiVersionsResponseApiKey, 0, len(b.apis.listed))
	for _, a := range b.apis.listed {
		k := kmsg.NewApiVersionsResponseApiKey()
		k.ApiKey, k.MinVersion, k.MaxVersion = a.key, a.advMin, a.max
		resp.ApiKeys = append(resp.ApiKeys, k)
	}
}

// apiVersionsUnsupported answers a version from the future.
func (b *Broker) apiVersionsUnsupported() kmsg.Response {
	resp := kmsg.NewPtrApiVersionsResponse()
	resp.SetVersion(0)
	resp.ErrorCode = protocol.CodeUnsupportedVersion
	b.listVersions(resp)
	return resp
}

// validSoftware is KIP-511's rule: letters, digits, '-' and '.', beginning and
// ending with a letter or digit.
func validSoftware(s string) bool {
	if s == "" || len(s) > 255 {
		return false
	}
	for i := range len(s) {
		c := s[i]
		alnum := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !alnum && (i == 0 || i == len(s)-1 || c != '-' && c != '.') {
			return false
		}
	}
	return true
}
