package etcd

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/varve/varve/metadata/image"
)

// Whatever stands in etcd, reading it gives an error or a change that an image
// can take.
func FuzzChange(f *testing.F) {
	b, err := os.ReadFile(filepath.Join("testdata", "v1_keys.txt"))
	if err != nil {
		f.Fatal(err)
	}
	for _, l := range strings.Split(string(b), "\n") {
		key, value, _ := strings.Cut(l, " ")
		f.Add(key, []byte(value))
	}
	k := keys{"/p/"}
	f.Fuzz(func(t *testing.T, key string, value []byte) {
		for _, v := range [][]byte{value, nil, {}} {
			c, err := k.change(k.prefix+key, v, 3)
			if err != nil || c == nil {
				continue
			}
			im := image.Empty().Apply(image.Delta{Revision: 3, Changes: []image.Change{c}})
			image.Diff(image.Empty(), im)
			im.Loose(10)
			im.Apply(image.Delta{Revision: 4, Changes: []image.Change{c, c}})
		}
	})
}
