// Package arch holds the arrows of ARCHITECTURE.md: which package may import
// which, and what the pure ones do without.
package arch

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/varve/varve/"

// allowed lists for each package what it may import inside the module. A name
// that ends in /... stands for a package and everything below it.
var allowed = map[string][]string{
	"config": {},

	"wal/slab":     {},
	"wal/crc32c":   {},
	"wal/vfs":      {},
	"wal/lineage":  {"wal/crc32c"},
	"wal/batch":    {"wal/crc32c"},
	"wal/producer": {"wal/batch", "wal/crc32c"},
	"wal":          {"wal/slab", "wal/vfs", "wal/crc32c", "wal/lineage", "wal/batch"},

	"metadata/image":         {},
	"metadata/controller":    {"metadata/image", "config"},
	"metadata/etcd":          {"metadata/image"},
	"metadata/etcd/etcdtest": {"internal/child"},
	"metadata":               {"metadata/image", "metadata/controller", "metadata/etcd", "config"},

	"tiering/objstore":              {},
	"tiering/objstore/s3test":       {"tiering/objstore"},
	"tiering/objstore/objstoretest": {"tiering/objstore"},
	"tiering/cache":                 {"wal/slab"},
	"tiering/manifest":              {"wal/lineage"},
	"tiering":                       {"tiering/objstore", "tiering/cache", "tiering/manifest", "wal/batch", "wal/crc32c", "wal/slab", "wal/producer", "wal/lineage"},

	"compaction/cleaner": {"wal/batch", "wal/producer"},
	"compaction/picker":  {"tiering/manifest"},
	"compaction":         {"compaction/cleaner", "compaction/picker", "tiering", "tiering/manifest", "wal/batch", "wal/producer"},

	"broker/protocol":                    {},
	"broker/protocol/internal/schemagen": {},
	"broker/partition":                   {"wal/batch", "wal/producer", "wal/lineage"},
	"broker/group/assignor":              {},
	"broker/pattern":                     {},
	"broker/group":                       {"broker/group/assignor", "broker/pattern"},
	"broker/txn":                         {"broker/pattern"},
	"broker/coordinator":                 {"broker/group", "broker/txn", "broker/pattern", "broker/protocol", "wal/batch"},
	"broker":                             {"broker/...", "wal", "wal/slab", "wal/batch", "wal/crc32c", "wal/producer", "wal/lineage", "metadata/image", "metadata/controller", "config", "tiering"},

	// The simulation is made of everything, and nothing is made of it.
	"broker/brokertest": {"..."},

	"internal/admin":   {},
	"internal/arch":    {},
	"internal/child":   {},
	"internal/install": {},
	"internal/skew":    {},
	"internal/cluster": {"internal/child", "tiering/objstore/s3test"},
	"cmd/varve/...":    {"..."},
	"demo":             {},
	"deploy":           {},
	"deploy/local":     {"internal/cluster", "internal/install"},
	"bench/...":        {"bench/...", "wal/batch"},
	"bench/agree":      {"bench/load", "internal/child"},
	"bench/compact":    {"bench/load", "internal/child", "internal/cluster", "internal/install"},
	"bench/kafka":      {"bench/load", "internal/child", "internal/cluster", "internal/install"},
	"interop/...":      {"..."},

	"interop/chaos/history": {},
}

// pure packages decide and do nothing else: no clock, disk, network,
// goroutine, lock or randomness.
var pure = []string{
	"config", "wal/crc32c", "wal/batch", "wal/producer", "wal/lineage", "metadata/image", "metadata/controller",
	"tiering/manifest", "compaction/cleaner", "compaction/picker", "broker/partition", "broker/group", "broker/group/assignor", "broker/txn", "broker/pattern",
	"interop/chaos/history",
}

var impure = []string{"os", "net", "net/http", "sync", "sync/atomic", "log", "log/slog", "math/rand", "math/rand/v2", "crypto/rand", "context", "os/exec", "syscall"}

func TestImports(t *testing.T) {
	root := "../.."
	if _, err := os.Stat(filepath.Join(root, "go.mod")); err != nil {
		t.Fatal(err)
	}
	seen := 0
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if n := d.Name(); path != root && (strings.HasPrefix(n, ".") || n == "testdata" || n == "bin" || n == "data") {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(path, ".go") {
			return nil
		}
		rel, err := filepath.Rel(root, filepath.Dir(path))
		if err != nil {
			return err
		}
		seen++
		checkFile(t, path, filepath.ToSlash(rel), strings.HasSuffix(path, "_test.go"))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if seen == 0 {
		t.Fatal("no Go file was looked at")
	}
}

func checkFile(t *testing.T, path, pkg string, test bool) {
	mode := parser.ImportsOnly
	isPure := slices.Contains(pure, pkg)
	if isPure && !test {
		mode = parser.SkipObjectResolution
	}
	f, err := parser.ParseFile(token.NewFileSet(), path, nil, mode)
	if err != nil {
		t.Error(err)
		return
	}
	rules, known := rulesOf(pkg)
	if !known {
		t.Errorf("%s: package %s has no row in the import graph", path, pkg)
		return
	}
	for _, im := range f.Imports {
		name, _ := strconv.Unquote(im.Path.Value)
		if inside, ok := strings.CutPrefix(name, module); ok {
			if !test && inside != pkg && !matches(rules, inside) {
				t.Errorf("%s: %s may not import %s", path, pkg, inside)
			}
			continue
		}
		if isPure && !test && slices.Contains(impure, name) {
			t.Errorf("%s: %s is pure and may not import %s", path, pkg, name)
		}
	}
	if isPure && !test {
		ast.Inspect(f, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.GoStmt:
				t.Errorf("%s: %s is pure and starts a goroutine", path, pkg)
			case *ast.SelectorExpr:
				if x, ok := n.X.(*ast.Ident); ok && x.Name == "time" && (n.Sel.Name == "Now" || n.Sel.Name == "Since" || n.Sel.Name == "Sleep") {
					t.Errorf("%s: %s is pure and calls time.%s", path, pkg, n.Sel.Name)
				}
			}
			return true
		})
	}
}

func rulesOf(pkg string) ([]string, bool) {
	if r, ok := allowed[pkg]; ok {
		return r, true
	}
	for k, r := range allowed {
		if base, ok := strings.CutSuffix(k, "/..."); ok && (pkg == base || strings.HasPrefix(pkg, base+"/")) {
			return r, true
		}
	}
	return nil, false
}

func matches(rules []string, pkg string) bool {
	for _, r := range rules {
		if r == "..." || r == pkg {
			return true
		}
		if base, ok := strings.CutSuffix(r, "/..."); ok && (pkg == base || strings.HasPrefix(pkg, base+"/")) {
			return true
		}
	}
	return false
}
