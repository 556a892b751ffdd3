package manifest

import (
	"encoding/hex"
	"fmt"
	"hash/fnv"
	"strconv"
	"strings"
)

// Objects lie below two prefixes, each spread over 256 by a hash of the rest of
// the name, since object stores limit the rate of requests by prefix:
//
//	data/hh/<topic id>-<partition>-<base offset>-<epoch>-<suffix>    own
//	data/hh/c-<topic id>-<partition>-<base offset>-<epoch>-<suffix>  rewritten
//	data/hh/mixed-<suffix>
//	page/hh/<topic id>-<partition>-<revision>-<epoch>-<suffix>
//
// A name carries what is needed to tell, beside a head read later, that the
// object can never enter a manifest: then it is garbage.
const (
	DataPrefix = "data/"
	PagePrefix = "page/"
)

// Name is a key taken apart.
type Name struct {
	Page      bool
	Kind      Kind // of data
	TopicID   [16]byte
	Partition int32
	Base      int64 // data: first offset; page: revision of the head it was built on
	Epoch     int32
	Suffix    Suffix
}

// Key is the object's key in the bucket.
func (n Name) Key() string {
	var rest string
	switch {
	case n.Page:
		rest = fmt.Sprintf("%x-%d-%d-%d-%x", n.TopicID, n.Partition, n.Base, n.Epoch, n.Suffix)
	case n.Kind == Mixed:
		rest = fmt.Sprintf("mixed-%x", n.Suffix)
	default:
		rest = fmt.Sprintf("%x-%d-%020d-%d-%x", n.TopicID, n.Partition, n.Base, n.Epoch, n.Suffix)
		if n.Kind == Rewritten {
			rest = "c-" + rest
		}
	}
	prefix := DataPrefix
	if n.Page {
		prefix = PagePrefix
	}
	h := fnv.New32a()
	h.Write([]byte(rest))
	// The low byte of FNV mixes badly in the last characters; fold the word.
	v := h.Sum32()
	v ^= v >> 16
	v ^= v >> 8
	return fmt.Sprintf("%s%02x/%s", prefix, byte(v), rest)
}

// Name is the name of the entry's object.
func (e Entry) Name(topicID [16]byte, partition int32) Name {
	if e.Kind == Mixed {
		return Name{Kind: Mixed, Suffix: e.Suffix}
	}
	return Name{Kind: e.Kind, TopicID: topicID, Partition: partition, Base: e.Base, Epoch: e.Epoch, Suffix: e.Suffix}
}

// Key is the key of the entry's object.
func (e Entry) Key(topicID [16]byte, partition int32) string { return e.Name(topicID, partition).Key() }

// Key is the page's key.
func (r PageRef) Key(topicID [16]byte, partition int32) string {
	return Name{Page: true, TopicID: topicID, Partition: partition, Base: r.Rev, Epoch: r.Epoch, Suffix: r.Suffix}.Key()
}

// ParseKey takes a key apart; ok is false for one that is not made here.
func ParseKey(key string) (n Name, ok bool) {
	rest := ""
	switch {
	case strings.HasPrefix(key, DataPrefix):
		rest = key[len(DataPrefix):]
	case strings.HasPrefix(key, PagePrefix):
		rest, n.Page = key[len(PagePrefix):], true
	default:
		return Name{}, false
	}
	if len(rest) < 3 || rest[2] != '/' {
		return Name{}, false
	}
	rest = rest[3:]
	if s, found := strings.CutPrefix(rest, "mixed-"); found && !n.Page {
		n.Kind = Mixed
		ok = unhex(n.Suffix[:], s)
	} else {
		if s, found := strings.CutPrefix(rest, "c-"); found && !n.Page {
			n.Kind, rest = Rewritten, s
		}
		f := strings.Split(rest, "-")
		if len(f) != 5 {
			return Name{}, false
		}
		partition, err1 := strconv.ParseInt(f[1], 10, 32)
		base, err2 := strconv.ParseInt(f[2], 10, 64)
		epoch, err3 := strconv.ParseInt(f[3], 10, 32)
		n.Partition, n.Base, n.Epoch = int32(partition), base, int32(epoch)
		ok = err1 == nil && err2 == nil && err3 == nil && unhex(n.TopicID[:], f[0]) && unhex(n.Suffix[:], f[4])
	}
	return n, ok && n.Key() == key
}

func unhex(dst []byte, s string) bool {
	if len(s) != 2*len(dst) {
		return false
	}
	_, err := hex.Decode(dst, []byte(s))
	return err == nil
}
