// Package protocol is the border between the bytes of a Kafka connection and the typed messages of kmsg: request headers,
// response framing, error codes, the table of versions, and the structural check that every request body passes before
// kmsg sees it. The two hot paths, Produce requests and Fetch responses, have a decoder and an encoder of their own that
// never copy record bytes.
//
// Everything that comes in is hostile until Check has returned nil: kmsg is written for clients, which trust the broker,
// and believes every length it reads.
package protocol

//go:generate go run ./internal/schemagen -o schema_gen.go
