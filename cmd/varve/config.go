package main

import (
	"fmt"
	"sort"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

func configCommand() *cobra.Command {
	cmd := group("config", "Describe and alter settings of topics, brokers, groups and client metrics")
	conn := addConnection(cmd)
	cmd.AddCommand(configDescribe(conn), configAlter(conn))
	return cmd
}

const (
	resourceTopic         = kmsg.ConfigResourceTypeTopic
	resourceBroker        = kmsg.ConfigResourceTypeBroker
	resourceClientMetrics = kmsg.ConfigResourceTypeClientMetrics
	resourceGroup         = kmsg.ConfigResourceTypeGroupConfig
)

// resource is what has settings. The name of a broker is its id, or empty for the defaults of the whole cluster.
type resource struct {
	kind kmsg.ConfigResourceType
	name string
}

func (r resource) String() string {
	switch r.kind {
	case resourceTopic:
		return "topic " + r.name
	case resourceBroker:
		if r.name == "" {
			return "the cluster's defaults"
		}
		return "broker " + r.name
	case resourceGroup:
		return "group " + r.name
	}
	return "client-metrics " + r.name
}

const resourceUse = "(topic NAME | broker ID | cluster | group NAME | client-metrics NAME)"

// parseResource reads the positional arguments TYPE [NAME].
func parseResource(cmd *cobra.Command, args []string) (resource, error) {
	kinds := map[string]kmsg.ConfigResourceType{
		"topic": resourceTopic, "broker": resourceBroker, "cluster": resourceBroker,
		"group": resourceGroup, "client-metrics": resourceClientMetrics,
	}
	kind, ok := kinds[args[0]]
	if !ok {
		return resource{}, usagef("%s: settings of what? %q is none of topic, broker, cluster, group, client-metrics", cmd.CommandPath(), args[0])
	}
	if args[0] == "cluster" {
		if len(args) > 1 {
			return resource{}, usagef("%s: cluster takes no name, %q is too much", cmd.CommandPath(), args[1])
		}
		return resource{kind, ""}, nil
	}
	if len(args) < 2 || args[1] == "" {
		return resource{}, usagef("%s: the name of the %s is missing: %s", cmd.CommandPath(), args[0], cmd.UseLine())
	}
	switch kind {
	case resourceTopic:
		if err := checkTopicName(args[1]); err != nil {
			return resource{}, err
		}
	case resourceBroker:
		if n, err := strconv.ParseInt(args[1], 10, 32); err != nil || n < 0 {
			return resource{}, usagef("%s: broker %q: a broker is named by its node.id, like 1; `cluster` means the defaults of all", cmd.CommandPath(), args[1])
		}
	}
	return resource{kind, args[1]}, nil
}

type describedConfig struct {
	Name      string             `json:"name"`
	Value     *string            `json:"value"` // null: unset, or sensitive
	Source    string             `json:"source"`
	Type      string             `json:"type"`
	ReadOnly  bool               `json:"read_only"`
	Sensitive bool               `json:"sensitive"`
	Synonyms  []describedSynonym `json:"synonyms"` // in the order in which they would be used
	Doc       string             `json:"doc,omitempty"`
}

type describedSynonym struct {
	Name   string  `json:"name"`
	Value  *string `json:"value"`
	Source string  `json:"source"`
}

func configDescribe(conn *connection) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "describe " + resourceUse,
		Short:   "Show settings, their values and where each value comes from",
		Example: "  varve config describe topic clicks --all\n  varve config describe broker 1 -o json",
		Args:    arguments("what to describe", 1, 2),
	}
	all := cmd.Flags().Bool("all", false, "settings at their default too")
	names := cmd.Flags().StringArray("name", nil, "only this setting (repeatable)")
	docs := cmd.Flags().Bool("doc", false, "with a line of documentation for each")
	out := addOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		res, err := parseResource(cmd, args)
		if err != nil {
			return err
		}
		s, err := conn.admin(cmd.Context())
		if err != nil {
			return err
		}
		defer s.close()
		list, err := describeConfigs(s, res, *names, *docs)
		if err != nil {
			return err
		}
		shown := []describedConfig{}
		for _, c := range list {
			if *all || len(*names) > 0 || c.Source != "DEFAULT_CONFIG" {
				shown = append(shown, c)
			}
		}
		for _, n := range *names {
			if !containsConfig(shown, n) {
				return fmt.Errorf("%s has no setting %q", res, n)
			}
		}
		if out.json() {
			return writeJSON(cmd.OutOrStdout(), shown)
		}
		head := []string{"NAME", "VALUE", "SOURCE", "READ-ONLY"}
		if *docs {
			head = append(head, "DOC")
		}
		t := newTable(head...)
		for _, c := range shown {
			value := "-"
			switch {
			case c.Sensitive:
				value = "(hidden)"
			case c.Value != nil:
				value = *c.Value
			}
			row := []any{c.Name, value, c.Source, c.ReadOnly}
			if *docs {
				row = append(row, c.Doc)
			}
			t.row(row...)
		}
		return t.writeTo(cmd.OutOrStdout())
	}
	return cmd
}

func containsConfig(list []describedConfig, name string) bool {
	for _, c := range list {
		if c.Name == name {
			return true
		}
	}
	return false
}

func describeConfigs(s *session, res resource, names []string, docs bool) ([]describedConfig, error) {
	req := kmsg.NewPtrDescribeConfigsRequest()
	req.IncludeSynonyms, req.IncludeDocumentation = true, docs
	rr := kmsg.NewDescribeConfigsRequestResource()
	rr.ResourceType, rr.ResourceName, rr.ConfigNames = res.kind, res.name, names
	req.Resources = append(req.Resources, rr)
	what := "describing the settings of " + res.String()
	resp, err := req.RequestWith(s.ctx, s.kgo)
	if err != nil {
		return nil, s.failed(what, err)
	}
	list := []describedConfig{}
	for _, r := range resp.Resources {
		if err := kerr.ErrorForCode(r.ErrorCode); err != nil {
			return nil, fmt.Errorf("%s: %w", what, brokerError(err, deref(r.ErrorMessage)))
		}
		for _, c := range r.Configs {
			d := describedConfig{
				Name: c.Name, Value: c.Value, Source: c.Source.String(), Type: c.ConfigType.String(),
				ReadOnly: c.ReadOnly, Sensitive: c.IsSensitive, Synonyms: []describedSynonym{}, Doc: deref(c.Documentation),
			}
			for _, syn := range c.ConfigSynonyms {
				d.Synonyms = append(d.Synonyms, describedSynonym{syn.Name, syn.Value, syn.Source.String()})
			}
			list = append(list, d)
		}
	}
	sort.Slice(list, func(i, j int) bool { return list[i].Name < list[j].Name })
	return list, nil
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// configEdit is one change of one setting.
type configEdit struct {
	op    kmsg.IncrementalAlterConfigOp
	name  string
	value *string
}

// configEdits reads the flags of a change: set, delete, append, subtract. A setting may be named once in all.
func configEdits(set, del, add, sub []string, setFlag, delFlag string) ([]configEdit, error) {
	var edits []configEdit
	seen := map[string]bool{}
	put := func(op kmsg.IncrementalAlterConfigOp, name string, value *string) error {
		if seen[name] {
			return usagef("setting %q is named twice", name)
		}
		seen[name] = true
		edits = append(edits, configEdit{op, name, value})
		return nil
	}
	for _, g := range []struct {
		flag string
		op   kmsg.IncrementalAlterConfigOp
		list []string
	}{
		{setFlag, kmsg.IncrementalAlterConfigOpSet, set},
		{"--append", kmsg.IncrementalAlterConfigOpAppend, add},
		{"--subtract", kmsg.IncrementalAlterConfigOpSubtract, sub},
	} {
		for _, s := range g.list {
			name, value, err := keyValue(g.flag, s)
			if err != nil {
				return nil, err
			}
			if err := put(g.op, name, &value); err != nil {
				return nil, err
			}
		}
	}
	for _, name := range del {
		if name == "" || strings.Contains(name, "=") {
			return nil, usagef("%s %q: must be the name of a setting, without a value", delFlag, name)
		}
		if err := put(kmsg.IncrementalAlterConfigOpDelete, name, nil); err != nil {
			return nil, err
		}
	}
	return edits, nil
}

// alterConfigs applies edits to one resource: all of them or none, as IncrementalAlterConfigs promises.
func alterConfigs(s *session, res resource, edits []configEdit, dry bool) error {
	req := kmsg.NewPtrIncrementalAlterConfigsRequest()
	req.ValidateOnly = dry
	rr := kmsg.NewIncrementalAlterConfigsRequestResource()
	rr.ResourceType, rr.ResourceName = res.kind, res.name
	for _, e := range edits {
		c := kmsg.NewIncrementalAlterConfigsRequestResourceConfig()
		c.Name, c.Op, c.Value = e.name, e.op, e.value
		rr.Configs = append(rr.Configs, c)
	}
	req.Resources = append(req.Resources, rr)
	what := "altering the settings of " + res.String()
	resp, err := req.RequestWith(s.ctx, s.kgo)
	if err != nil {
		return s.failed(what, err)
	}
	for _, r := range resp.Resources {
		if err := kerr.ErrorForCode(r.ErrorCode); err != nil {
			return fmt.Errorf("%s: %w", what, brokerError(err, deref(r.ErrorMessage)))
		}
	}
	return nil
}

func configAlter(conn *connection) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "alter " + resourceUse,
		Short: "Set, remove, or edit settings; all of the changes apply or none",
		Example: "  varve config alter topic clicks --set retention.ms=-1 --delete segment.ms\n" +
			"  varve config alter topic clicks --append cleanup.policy=compact",
		Args: arguments("what to alter", 1, 2),
	}
	f := cmd.Flags()
	set := f.StringArray("set", nil, "set a setting, name=value (repeatable)")
	del := f.StringArray("delete", nil, "remove a setting, so that the default holds again (repeatable)")
	add := f.StringArray("append", nil, "add to a setting that is a list, name=value (repeatable)")
	sub := f.StringArray("subtract", nil, "remove from a setting that is a list, name=value (repeatable)")
	dry := f.Bool("dry-run", false, "let the broker check it, change nothing")
	out := addOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		res, err := parseResource(cmd, args)
		if err != nil {
			return err
		}
		edits, err := configEdits(*set, *del, *add, *sub, "--set", "--delete")
		if err != nil {
			return err
		}
		if len(edits) == 0 {
			return usagef("nothing to alter: give --set, --delete, --append or --subtract")
		}
		s, err := conn.admin(cmd.Context())
		if err != nil {
			return err
		}
		defer s.close()
		if err := alterConfigs(s, res, edits, *dry); err != nil {
			return err
		}
		type altered struct {
			Resource string  `json:"resource"`
			Name     string  `json:"name"`
			Op       string  `json:"op"`
			Value    *string `json:"value"`
			Applied  bool    `json:"applied"`
		}
		list := []altered{}
		for _, e := range edits {
			list = append(list, altered{res.String(), e.name, strings.ToLower(e.op.String()), e.value, !*dry})
		}
		if out.json() {
			return writeJSON(cmd.OutOrStdout(), list)
		}
		t := newTable("NAME", "CHANGE", "VALUE", "APPLIED")
		for _, a := range list {
			value := "-"
			if a.Value != nil {
				value = *a.Value
			}
			t.row(a.Name, a.Op, value, a.Applied)
		}
		return t.writeTo(cmd.OutOrStdout())
	}
	return cmd
}
