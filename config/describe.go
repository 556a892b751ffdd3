package config

// Entry is one setting as DescribeConfigs shows it.
type Entry struct {
	Name      string
	Value     *string // nil: none, or not to be shown
	Source    Source
	Type      Type
	ReadOnly  bool
	Sensitive bool
	Doc       string
	Synonyms  []EntrySynonym
}

// EntrySynonym is a place where the value could come from.
type EntrySynonym struct {
	Name   string
	Value  *string
	Source Source
}

// IsDefault is what version 0 of DescribeConfigs shows instead of the source.
func (e Entry) IsDefault() bool { return e.Source == Default }

func entry(d *Def, value string, null bool, source Source, syn []Synonym) Entry {
	e := Entry{Name: d.Name, Source: source, Type: d.Type, Sensitive: d.Sensitive(), Doc: d.Doc}
	if d.Handling != Enforced {
		e.Doc += " Not enforced: " + d.Note + "."
	}
	if !null && !e.Sensitive {
		e.Value = &value
	}
	for _, s := range syn {
		es := EntrySynonym{Name: s.Name, Source: s.Source}
		if sd := brokers.byName[s.Name]; !e.Sensitive && (sd == nil || !sd.Sensitive()) {
			v := s.Value
			es.Value = &v
		}
		e.Synonyms = append(e.Synonyms, es)
	}
	return e
}

// DescribeTopic returns all settings of a topic, in order of their names.
func (r Resolver) DescribeTopic(overrides map[string]string) []Entry {
	out := make([]Entry, 0, len(topics.sorted))
	for _, d := range topics.sorted {
		v, source := r.Value(d.Name, overrides)
		out = append(out, entry(d, v, false, source, r.TopicSynonyms(d.Name, overrides)))
	}
	return out
}

// DescribeBroker returns all settings of a broker, in order of their names.
func (r Resolver) DescribeBroker() []Entry {
	out := make([]Entry, 0, len(brokers.sorted))
	for _, d := range brokers.sorted {
		syn := r.Synonyms(d.Name)
		value, null, source := d.Default, d.Null, Default
		for _, s := range syn {
			if s.Name == d.Name {
				value, null, source = s.Value, false, s.Source
				break
			}
		}
		e := entry(d, value, null, source, syn)
		e.ReadOnly = d.Update == ReadOnly
		out = append(out, e)
	}
	return out
}

// DescribeBrokerDefaults returns what is set for all brokers (config resource BROKER ""), and only that.
func DescribeBrokerDefaults(clusterDynamic map[string]string) []Entry {
	var out []Entry
	for _, d := range brokers.sorted {
		if v, ok := clusterDynamic[d.Name]; ok {
			out = append(out, entry(d, v, false, DynamicDefaultBroker, []Synonym{{Name: d.Name, Value: v, Source: DynamicDefaultBroker}}))
		}
	}
	return out
}

// DescribeGroup returns all settings of a group; those that the broker has too are its values where the group sets none.
func (r Resolver) DescribeGroup(values map[string]string) []Entry {
	out := describeFlat(&groups, values, DynamicGroup)
	for i, d := range groups.sorted {
		if len(d.Synonyms) == 0 {
			continue
		}
		syn := r.brokerSynonyms([]string{d.Synonyms[0].Name})
		if v, ok := values[d.Name]; ok {
			syn = append([]Synonym{{Name: d.Name, Value: v, Source: DynamicGroup}}, syn...)
		}
		out[i] = entry(d, syn[0].Value, false, syn[0].Source, syn)
	}
	return out
}

// DescribeClientMetrics returns all settings of a client metrics subscription.
func DescribeClientMetrics(values map[string]string) []Entry {
	return describeFlat(&clientMetrics, values, DynamicClientMetrics)
}

func describeFlat(t *table, values map[string]string, source Source) []Entry {
	out := make([]Entry, 0, len(t.sorted))
	for _, d := range t.sorted {
		var syn []Synonym
		value, null, from := d.Default, d.Null, Default
		if v, ok := values[d.Name]; ok {
			value, null, from = v, false, source
			syn = append(syn, Synonym{Name: d.Name, Value: v, Source: source})
		}
		if !d.Null {
			syn = append(syn, Synonym{Name: d.Name, Value: d.Default, Source: Default})
		}
		out = append(out, entry(d, value, null, from, syn))
	}
	return out
}
