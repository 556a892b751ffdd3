package metadata

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Seen is what a process remembers of the store across restarts, to notice
// that etcd is another cluster's or was restored from an old backup.
type Seen struct {
	Cluster  string
	Revision int64 // every one up to this has been seen
}

// ErrForeignCluster: etcd holds another cluster than the one this process
// belonged to.
var ErrForeignCluster = errors.New("metadata: etcd holds another cluster")

type seenFile struct {
	V        int    `json:"v"`
	Cluster  string `json:"cluster"`
	Revision int64  `json:"revision"`
}

// ReadSeen reads what an earlier process remembered; zero if there is no file.
func ReadSeen(path string) (Seen, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Seen{}, nil
	}
	if err != nil {
		return Seen{}, fmt.Errorf("metadata: %w", err)
	}
	var f seenFile
	if err := json.Unmarshal(b, &f); err != nil || f.V != 1 {
		return Seen{}, fmt.Errorf("metadata: %s cannot be read (version %d): %v", path, f.V, err)
	}
	return Seen{f.Cluster, f.Revision}, nil
}

// write replaces the file. The content is fsynced before it gets its name: an older
// revision is as true, but a file that a power failure left empty would keep the
// broker from starting. The name is not.
func (s Seen) write(path string) error {
	b, err := json.Marshal(seenFile{1, s.Cluster, s.Revision})
	if err != nil {
		return err
	}
	tmp := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".new")
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(append(b, '\n'))
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	return os.Rename(tmp, path)
}
