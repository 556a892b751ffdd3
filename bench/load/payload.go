package load

import (
	"fmt"
	"math/rand/v2"
	"strings"
)

// Payload is what record values look like, which matters to codecs.
type Payload string

const (
	Random Payload = "random" // does not compress
	JSON   Payload = "json"   // events: names repeat, values vary; compresses to a quarter with gzip and zstd, to less than half with lz4 and snappy
	Zero   Payload = "zero"
)

// Payloads are the possible ones.
var Payloads = []string{string(Random), string(JSON), string(Zero)}

// distinct is how many different values a producer sends in turn: making each
// anew would cost more than sending it.
const distinct = 1024

// Values are some values of a size, all different, to be sent in turn.
func (p Payload) Values(size int, seed int64) [][]byte {
	rng := rand.New(rand.NewPCG(uint64(seed), 0x76617276))
	values := make([][]byte, max(1, min(distinct, (64<<20)/max(size, 1))))
	for i := range values {
		v := make([]byte, size)
		switch p {
		case Zero:
		case JSON:
			fillJSON(v, rng)
		default:
			for j := 0; j+8 <= size; j += 8 {
				x := rng.Uint64()
				for k := range 8 {
					v[j+k] = byte(x >> (8 * k))
				}
			}
			for j := size &^ 7; j < size; j++ {
				v[j] = byte(rng.Uint32())
			}
		}
		values[i] = v
	}
	return values
}

var (
	words  = strings.Fields("checkout search login purchase view scroll refund signup share like cart payment shipping return invoice")
	places = strings.Fields("eu-west-1 us-east-1 ap-south-1 sa-east-1 eu-central-1")
)

func fillJSON(v []byte, rng *rand.Rand) {
	var b []byte
	for len(b) < len(v) {
		b = fmt.Appendf(b, `{"ts":%d,"event":%q,"user":"u-%07d","region":%q,"session":"%016x","amount":%.2f,"ok":%v,"items":[%d,%d,%d]}`,
			1_790_000_000_000+rng.Int64N(1e9), words[rng.IntN(len(words))], rng.IntN(1e6), places[rng.IntN(len(places))], rng.Uint64(),
			rng.Float64()*1000, rng.IntN(10) > 0, rng.IntN(1e5), rng.IntN(1e5), rng.IntN(1e5))
	}
	copy(v, b)
}
