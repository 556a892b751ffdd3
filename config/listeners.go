package config

import (
	"errors"
	"strings"
)

// Listener is one address on which the broker accepts clients, and the one that clients are told.
type Listener struct {
	Name           string // in capitals
	Host           string // empty: every interface
	Port           int    // 0: any free port
	Protocol       string // PLAINTEXT
	Advertised     bool   // false: it is listened on and clients are not told of it
	AdvertisedHost string // empty: this machine's name, which Build was not told
	AdvertisedPort int    // 0: the port that was found
	InterBroker    bool
}

type endpoint struct {
	name, host string
	port       int
}

func parseEndpoint(v string) (endpoint, error) {
	name, rest, ok := strings.Cut(v, "://")
	if !ok || name == "" || strings.Trim(strings.ToUpper(name), "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.") != "" {
		return endpoint{}, errors.New(quote(v) + " is not name://host:port")
	}
	host, port, err := splitHostPort(rest)
	if err != nil {
		return endpoint{}, errors.New(quote(v) + ": " + err.Error())
	}
	return endpoint{strings.ToUpper(name), host, port}, nil
}

// anyAddress reports whether host stands for all interfaces, which nobody can connect to from elsewhere.
func anyAddress(host string) bool {
	return host == "0.0.0.0" || (host != "" && strings.Trim(host, "0:") == "" && strings.Contains(host, ":"))
}

// listenersOf puts together listeners, advertised.listeners, listener.security.protocol.map and the listener
// among brokers. hostname stands in for an empty host that must be advertised.
func (b *builder) listenersOf(hostname string) []Listener {
	parse := func(name string) []endpoint {
		var out []endpoint
		seen := map[string]bool{}
		for _, it := range ParseList(b.text(name)) {
			e, err := parseEndpoint(it)
			if err != nil {
				return nil // reported by the setting's own check
			}
			if seen[e.name] {
				b.bad.add(b.origin(name), name, "%s has two listeners with the name %s", name, e.name)
				continue
			}
			seen[e.name] = true
			out = append(out, e)
		}
		return out
	}
	controller := map[string]bool{}
	for _, n := range ParseList(b.text("controller.listener.names")) {
		controller[strings.ToUpper(n)] = true
	}
	// Everybody calls it CONTROLLER, and not every file of a KRaft broker says so.
	if !b.isSet("controller.listener.names") && (b.isSet("process.roles") || b.isSet("controller.quorum.voters") || b.isSet("controller.quorum.bootstrap.servers")) {
		controller["CONTROLLER"] = true
	}
	bind, adv := parse("listeners"), parse("advertised.listeners")
	protocols, _ := parseProtocolMap(b.text("listener.security.protocol.map"))

	var out []Listener
	for _, e := range bind {
		o := b.origin("listeners")
		if controller[e.name] {
			b.warn.add(o, "listeners", "listener %s is for KRaft controllers and is left out: %s", e.name, noteEtcd)
			continue
		}
		protocol := protocols[e.name]
		switch protocol {
		case "PLAINTEXT":
		case "":
			b.bad.add(o, "listeners", "listener %s has no security protocol: add %s:PLAINTEXT to listener.security.protocol.map", e.name, e.name)
			continue
		default:
			what := "TLS does"
			if strings.HasPrefix(protocol, "SASL") {
				what = "SASL does"
			}
			b.bad.add(o, "listeners", "listener %s asks for %s: %s not exist yet; use PLAINTEXT on loopback or a private network", e.name, protocol, what)
			continue
		}
		for _, other := range out {
			v6 := strings.Contains(other.Host, ":") != strings.Contains(e.host, ":")
			if e.port != 0 && other.Port == e.port && (!v6 || other.Host == "" || e.host == "") {
				b.bad.add(o, "listeners", "listeners %s and %s have the same port %d", other.Name, e.name, e.port)
			}
		}
		out = append(out, Listener{Name: e.name, Host: e.host, Port: e.port, Protocol: protocol})
	}
	if len(out) == 0 && len(b.bad) == 0 {
		b.bad.add(b.origin("listeners"), "listeners", "there is no listener for clients: set listeners, for example to PLAINTEXT://127.0.0.1:9092")
	}

	byName := map[string]*Listener{}
	for i := range out {
		byName[out[i].Name] = &out[i]
	}
	if len(adv) == 0 {
		for i := range out {
			l := &out[i]
			l.Advertised, l.AdvertisedHost, l.AdvertisedPort = true, l.Host, l.Port
			if anyAddress(l.Host) {
				b.bad.add(b.origin("listeners"), "listeners", "listener %s listens on %s, and clients cannot connect to that: set advertised.listeners to an address of this machine that they can reach, such as %s://%s:%d",
					l.Name, l.Host, l.Name, orElse(hostname, "broker-1.example.com"), l.Port)
			}
		}
	}
	for _, e := range adv {
		o := b.origin("advertised.listeners")
		l := byName[e.name]
		switch {
		case controller[e.name]:
			continue
		case l == nil:
			b.bad.add(o, "advertised.listeners", "%s is advertised and not among listeners", e.name)
			continue
		case anyAddress(e.host):
			b.bad.add(o, "advertised.listeners", "%s://%s:%d is advertised, and clients cannot connect to that: use an address of this machine that they can reach",
				e.name, e.host, e.port)
		}
		l.Advertised, l.AdvertisedHost, l.AdvertisedPort = true, e.host, e.port
	}
	advertised := 0
	for i := range out {
		if out[i].Advertised {
			advertised++
			if out[i].AdvertisedHost == "" {
				out[i].AdvertisedHost = hostname
			}
		}
	}
	if len(adv) > 0 && advertised == 0 && len(b.bad) == 0 {
		b.bad.add(b.origin("advertised.listeners"), "advertised.listeners", "no listener for clients is advertised")
	}

	// The listener among brokers: the named one; else one with the named protocol; else the first.
	name := strings.ToUpper(b.text("inter.broker.listener.name"))
	if name != "" && b.isSet("security.inter.broker.protocol") {
		b.bad.add(b.origin("security.inter.broker.protocol"), "security.inter.broker.protocol",
			"inter.broker.listener.name and security.inter.broker.protocol are both set: one of them decides, take the other out")
	}
	if name != "" {
		l := byName[name]
		switch among := "listeners"; {
		case l != nil && l.Advertised:
			l.InterBroker = true
		case len(b.bad) > 0: // the listener may be missing for a reason given already
		default:
			var have []string
			for _, l := range out {
				if l.Advertised {
					have = append(have, l.Name)
				}
			}
			if l != nil {
				among = "advertised.listeners"
			}
			b.bad.add(b.origin("inter.broker.listener.name"), "inter.broker.listener.name", "inter.broker.listener.name is %s, which is not among %s: brokers could not reach this one; there is %s",
				name, among, strings.Join(have, ", "))
		}
		return out
	}
	if p := b.text("security.inter.broker.protocol"); p != "PLAINTEXT" {
		b.bad.add(b.origin("security.inter.broker.protocol"), "security.inter.broker.protocol", "%s does not exist yet: leave it at PLAINTEXT and keep brokers on a private network", p)
	}
	pick := byName["PLAINTEXT"]
	for i := range out {
		if pick == nil || !pick.Advertised {
			pick = &out[i]
		}
	}
	if pick != nil {
		pick.InterBroker = true
	}
	return out
}

func orElse(v, other string) string {
	if v == "" {
		return other
	}
	return v
}
