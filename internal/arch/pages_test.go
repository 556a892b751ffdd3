package arch

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// ARCHITECTURE.md gives a reason for every module that go.mod requires
// directly, and for no other.
func TestDependenciesHaveReasons(t *testing.T) {
	page, err := os.ReadFile("../../ARCHITECTURE.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, found := strings.Cut(string(page), "\n## Dependencies\n")
	if !found {
		t.Fatal("there is no section Dependencies")
	}
	named := map[string]bool{} // and whether it is required
	for line := range strings.Lines(table) {
		cells := strings.Split(line, "|")
		if len(cells) != 4 {
			continue
		}
		for _, m := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(cells[1], -1) {
			named[m[1]] = false
		}
	}
	mod, err := os.ReadFile("../../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	direct := 0
	for line := range strings.Lines(string(mod)) {
		f := strings.Fields(line)
		switch {
		case len(f) == 2 && f[0] == "tool", len(f) == 2 && strings.HasPrefix(f[1], "v"):
		default:
			continue
		}
		path := f[0]
		if path == "tool" {
			path = f[1]
		}
		direct++
		has := false
		for m := range named {
			if path == m || strings.HasPrefix(path, m+"/") {
				named[m], has = true, true
			}
		}
		if !has {
			t.Errorf("ARCHITECTURE.md does not say why %s is required", path)
		}
	}
	if direct == 0 {
		t.Error("no requirement was found in go.mod")
	}
	for m, required := range named {
		if !required {
			t.Errorf("ARCHITECTURE.md names %s, which go.mod does not require directly", m)
		}
	}
}

// What a README names as a file of its folder is there.
func TestFilesNamedInReadmesExist(t *testing.T) {
	root := "../.."
	name := regexp.MustCompile("`([a-zA-Z0-9_/.-]+\\.(?:go|md|sh|java|py|mjs|json|xml|txt))`")
	looked := 0
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (strings.HasPrefix(d.Name(), ".") && d.Name() != ".." || d.Name() == "data"):
			return filepath.SkipDir
		case d.Name() != "README.md":
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, m := range name.FindAllStringSubmatch(string(text), -1) {
			looked++
			if _, err := os.Stat(filepath.Join(root, m[1])); err == nil || exists(filepath.Dir(path), m[1]) {
				continue
			}
			t.Errorf("%s names %s, which is not there", path, m[1])
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if looked == 0 {
		t.Error("no README names a file")
	}
}

// exists looks in the folder and in those below it, for a README also speaks of
// what is in its subfolders.
func exists(dir, name string) bool {
	found := false
	filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(filepath.ToSlash(path), "/"+name) {
			found = true
			return filepath.SkipAll
		}
		return nil
	})
	return found
}
