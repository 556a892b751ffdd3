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
	return resp
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
