package config

import (
	"errors"
	"strconv"
	"strings"
)

// ownDefs are the settings that Kafka does not have.
func ownDefs() []*Def {
	defs := []*Def{
		text("remote.storage.url", null, "The bucket: s3://bucket/prefix?region=..., minio://host:port/bucket?..., file:///directory, or mem://.", checked(
			"a URL that begins with s3://, minio://, file:/// or mem://", func(v string) error {
				for _, p := range []string{"s3://", "minio://", "file:///", "mem://"} {
					if strings.HasPrefix(v, p) {
						return nil
					}
				}
				return errors.New("it does not")
			})),
		integer("remote.flush.interval.ms", "60000", "After how long what is acknowledged is sealed and uploaded, at most, whatever segment.ms says.", 100, anyHigh),
		long("remote.object.bytes", "67108864", "How large an object becomes before it is uploaded without waiting for the flush interval.", 1<<20, anyHigh),
		long("remote.delete.grace.ms", "3600000", "How long an object that nothing names any more is kept, so that every reader is done with it.", 1000, anyHigh),
		long("remote.sweep.interval.ms", "3600000", "How often the bucket is listed for objects that nothing names and nobody has let go of, as a process that was killed leaves them.", 1000, anyHigh),
		long("remote.cache.memory.bytes", "0", "Memory for chunks and footers read from object storage; 0: a share of memory.max.bytes.", 0, anyHigh),
		long("remote.cache.disk.bytes", "0", "Disk for chunks read from object storage; 0: none.", 0, anyHigh),
		text("remote.cache.dir", null, "The directory of that cache; without it, one beside the log."),
		integer("remote.request.timeout.ms", "30000", "How long one request to the bucket may take.", 100, anyHigh),

		long("wal.max.bytes", "0", "How much disk the log may use, at most 90 % of it; 0: 80 % of what is free for it at the start, which prints it.", 0, anyHigh, or0(16<<20)),
		long("wal.segment.bytes", "268435456", "The size of one file of the log; where wal.max.bytes is small and this is not set, an eighth of it.", 1<<20, 4<<30),
		boolean("wal.direct.io", "true", "Whether the log is written around the page cache (O_DIRECT), where the file system can do that; false costs up to twice the processor time, and lets what wal.cache.bytes has not the room for be read from memory as long as the machine has some."),
		long("wal.queue.bytes", "0", "How much may wait to be written to the log; 0: a share of memory.max.bytes.", 0, anyHigh),
		long("wal.cache.bytes", "0", "Memory for the newest batches; 0: a share of memory.max.bytes, at most 128 MiB (what is older is read from the disk, see wal.direct.io).", 0, anyHigh),

		long("memory.max.bytes", "0", "The memory for requests in flight, caches, indexes and coordinators together; 0: 60 % of the container's or the machine's.", 0, anyHigh, or0(64<<20)),
		choice("record.validation", "header", "How much of a batch is checked: header (its header and checksum) or full (every record). Compacted topics and bounded timestamps always get full.",
			[]string{"header", "full"}),
		integer("producer.state.max.producers", "10000", "How many producers are remembered for each partition; those that wrote last longest ago are forgotten first.", 1, anyHigh),

		boolean("leadership.enable", "true", "Whether this broker leads what others could lead as well; what nobody else in sync can lead it always does. What `varve broker drain` sets.", perBroker),

		list("etcd.endpoints", "", "The etcd servers, as http:// or https:// URLs, separated by commas.", nil, checked("a comma-separated list of http://host:port or https://host:port", func(v string) error {
			for _, it := range ParseList(v) {
				rest, ok := strings.CutPrefix(it, "http://")
				if !ok {
					rest, ok = strings.CutPrefix(it, "https://")
				}
				if !ok || rest == "" || strings.ContainsAny(rest, "/ ?#@") {
					return errors.New(quote(it) + " is neither")
				}
			}
			return nil
		})),
		text("etcd.prefix", "/varve", "The keys under which this cluster's metadata lies in etcd.", checked("a path that begins with / and does not end with one", func(v string) error {
			if !strings.HasPrefix(v, "/") || strings.HasSuffix(v, "/") || strings.ContainsAny(v, " \t\n") {
				return errors.New("it is not")
			}
			return nil
		})),
		text("etcd.user", null, "The user at etcd."),
		password("etcd.password", "The password at etcd."),
		text("etcd.password.file", null, "A file that holds the password at etcd."),
		text("etcd.tls.ca.file", null, "The certificates (PEM) that etcd's must be signed by; without it, the system's."),
		text("etcd.tls.cert.file", null, "The certificate (PEM) that the broker shows to etcd."),
		text("etcd.tls.key.file", null, "The key (PEM) of that certificate."),
		text("etcd.tls.server.name", null, "The name that etcd's certificate must have, if it is not the host's."),
		integer("etcd.dial.timeout.ms", "5000", "How long connecting to etcd may take.", 100, anyHigh),
		integer("etcd.request.timeout.ms", "5000", "How long one request to etcd may take.", 100, anyHigh),
		integer("etcd.compaction.interval.ms", "300000", "How often the controller lets etcd forget what was overwritten before the last time, which would fill its space; 0: left to etcd's own auto-compaction.", 0, anyHigh),

		text("log.cleaner.spool.dir", null, "Where the compaction worker keeps what it writes until it is uploaded, one object for each thread; without it, the system's directory for temporary files."),
		long("log.cleaner.object.bytes", "268435456", "The largest object that the compaction worker makes, if segment.bytes does not say less.", 1<<20, 4<<30),
		long("log.cleaner.job.max.bytes", "17179869184", "How much the compaction worker reads and writes for one partition before it looks again what is most worth doing.", 64<<20, anyHigh),
		long("log.cleaner.job.max.requests", "4096", "How many requests to object storage the compaction worker makes for one partition before it looks again what is most worth doing.", 64, anyHigh),
		integer("log.cleaner.session.timeout.ms", "15000", "After how long without a sign of life a compaction worker's partitions are given to others.", 2000, anyHigh),
		long("log.cleaner.scrub.interval.ms", "86400000", "How often every object that is named is looked for, and what is wrong is told; 0: never.", 0, anyHigh),
		boolean("log.cleaner.scrub.data", "false", "Whether every byte is read and compared with its checksum then, not only what says which bytes there are."),

		text("admin.listener", "127.0.0.1:9644", "Where metrics and health are served, as host:port; empty: nowhere.", checked("host:port", func(v string) error {
			if v == "" {
				return nil
			}
			_, _, err := splitHostPort(v)
			return err
		})),
		integer("metrics.group.lag.max.partitions", "1000", "Of how many partitions the lag of groups is among the metrics, in order of group, topic and partition; the others are counted. 0: of none.", 0, 100_000),
		choice("log.level", "info", "How much the broker logs.", []string{"debug", "info", "warn", "error"}),
		choice("log.format", "text", "How the broker logs.", []string{"text", "json"}),
	}
	for _, d := range defs {
		d.Scope = ScopeBroker
	}
	return defs
}

// or0 lets 0 stand for "derived", and gives a least value for everything else.
func or0(least int64) option {
	return func(d *Def) {
		checked("0, or a whole number of bytes of at least "+strconv.FormatInt(least, 10), func(v string) error {
			if n, _ := strconv.ParseInt(v, 10, 64); n != 0 && n < least {
				return errors.New("it is too small to work with")
			}
			return nil
		})(d)
	}
}

// splitHostPort splits host:port and [v6]:port. The host may be empty.
func splitHostPort(v string) (string, int, error) {
	i := strings.LastIndexByte(v, ':')
	if i < 0 {
		return "", 0, errors.New("the port is missing")
	}
	host := v[:i]
	switch {
	case strings.HasPrefix(host, "[") && strings.HasSuffix(host, "]"):
		host = host[1 : len(host)-1]
		addr, _, _ := strings.Cut(host, "%")
		if strings.Count(addr, ":") < 2 || strings.Trim(addr, "0123456789abcdefABCDEF:.") != "" {
			return "", 0, errors.New("what is between the brackets is no IPv6 address")
		}
	case strings.Contains(host, ":"):
		return "", 0, errors.New("an IPv6 address goes between brackets")
	case strings.ContainsAny(host, "/ @?#[]"):
		return "", 0, errors.New(quote(host) + " is no host")
	}
	port, err := strconv.ParseUint(v[i+1:], 10, 16)
	if err != nil {
		return "", 0, errors.New(quote(v[i+1:]) + " is no port")
	}
	return host, int(port), nil
}
