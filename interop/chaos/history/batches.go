package history

import (
	"encoding/binary"
	"hash/crc32"
)

// BatchSum is a record batch as it came: its last offset, and the checksum of all its bytes.
type BatchSum struct {
	Last int64
	Sum  uint32
}

// BatchSums is that of every whole batch in b.
func BatchSums(b []byte) (sums []BatchSum) {
	const header = 61
	for len(b) >= header {
		size := 12 + int(int32(binary.BigEndian.Uint32(b[8:])))
		if size < header || size > len(b) {
			break
		}
		last := int64(binary.BigEndian.Uint64(b)) + int64(int32(binary.BigEndian.Uint32(b[23:])))
		sums = append(sums, BatchSum{last, crc32.ChecksumIEEE(b[:size])})
		b = b[size:]
	}
	return sums
}
