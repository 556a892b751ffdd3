package config

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
)

// SETTINGS.md says what the tables say.
func TestSettingsPage(t *testing.T) {
	var w strings.Builder
	w.WriteString("# Every setting\n\nWritten by `go test ./config -rewrite` from the tables. A default of *none* means that nothing is set.\n")
	handling := map[Handling]string{Enforced: "", Noted: "no effect needed: ", Warned: "**no effect**: ", Refused: "**refused**: "}
	update := map[Update]string{ReadOnly: "restart", PerBroker: "one broker", ClusterWide: "any time"}
	page := func(title string, list []*Def, own func(*Def) bool) {
		fmt.Fprintf(&w, "\n## %s\n\n| Name | Type | Default | Change | What it does |\n|---|---|---|---|---|\n", title)
		for _, d := range list {
			if !own(d) {
				continue
			}
			dflt := "`" + d.Default + "`"
			if d.Null {
				dflt = "*none*"
			} else if d.Default == "" {
				dflt = "*empty*"
			}
			doc := d.Doc
			if d.Handling != Enforced {
				doc += " (" + handling[d.Handling] + d.Note + ")"
			}
			fmt.Fprintf(&w, "| `%s` | %s | %s | %s | %s |\n", d.Name, d.Type, dflt, update[d.Update], strings.ReplaceAll(doc, "|", `\|`))
		}
	}
	all := func(*Def) bool { return true }
	ours := map[string]bool{}
	for _, d := range ownDefs() {
		ours[d.Name] = true
	}
	page("Settings of a broker that Kafka does not have", Brokers(), func(d *Def) bool { return ours[d.Name] })
	page("Settings of topics", Topics(), all)
	page("Settings of a broker", Brokers(), func(d *Def) bool { return !ours[d.Name] })
	page("Settings of groups", Groups(), all)
	page("Settings of client metrics subscriptions", ClientMetricsDefs(), all)
	if f := flag.Lookup("rewrite"); f != nil && f.Value.String() == "true" {
		if err := os.WriteFile("SETTINGS.md", []byte(w.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile("SETTINGS.md")
	if err != nil || string(b) != w.String() {
		t.Errorf("SETTINGS.md is not what the tables say (%v): run go test ./config -rewrite", err)
	}
}
