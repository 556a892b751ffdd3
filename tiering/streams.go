package tiering

import (
	"io"
	"sync"

	"github.com/varve/varve/tiering/cache"
	"github.com/varve/varve/tiering/objstore"
)

// streams recognises readers that come back for what follows. A Read does not
// say whose it is; one that begins within what an earlier one returned is taken
// for the same reader, and its readahead goes on.
type streams struct {
	mu   sync.Mutex
	list []*stream // least recently used first
}

type stream struct {
	key         partitionKey
	start, next int64
	stream      *cache.Stream
}

const maxStreams = 256

// get takes the stream of a reader that is now at offset, or a new one.
func (s *streams) get(key partitionKey, offset int64, c *cache.Cache) *stream {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := len(s.list) - 1; i >= 0; i-- {
		if x := s.list[i]; x.key == key && offset > x.start && offset <= x.next {
			s.list = append(s.list[:i], s.list[i+1:]...)
			x.start = offset
			return x
		}
	}
	return &stream{key: key, start: offset, stream: c.NewStream()}
}

func (s *streams) put(key partitionKey, x *stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.list) >= maxStreams {
		s.list = append(s.list[:0], s.list[1:]...)
	}
	s.list = append(s.list, x)
}

// readFull fills dst; a body that ends early is truncated, however it ends.
func readFull(r io.Reader, dst []byte) error {
	if _, err := io.ReadFull(r, dst); err != nil {
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return objstore.ErrTruncated
		}
		return err
	}
	return nil
}
