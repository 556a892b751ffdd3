package objstore

import (
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Options are what the URL does not say.
type Options struct {
	// Create makes a missing bucket or directory instead of refusing it (also ?create=true). For first runs and tests: in
	// production a missing bucket is a typing error or a disaster.
	Create bool
	// SkipCheck omits the look at the bucket on Open (also ?check=false), for credentials that may not look.
	SkipCheck bool
	// Away is told why a store does not answer the look on Open, which then succeeds; nil makes that an error. A store that
	// answers and says no is always one.
	Away func(error)
	// KeepFree is what bodies of KeepFreePrefix leave of the disk of a directory, for others whose writes must not fail.
	KeepFree       int64
	KeepFreePrefix string
	// Logger gets what the client libraries have to say; nil discards it.
	Logger *slog.Logger
	// OnRequest is told of every HTTP request sent, retries and parts included: what the store bills. May be nil.
	OnRequest func(Request)
}

// Request is one HTTP request to the store, as the transport saw it.
type Request struct {
	Method   string
	Status   int // 0: no answer
	Duration time.Duration
}

// Open opens the bucket that rawURL names and checks that it is there. Forms:
//
//	s3://bucket/prefix?region=eu-central-1
//	s3://bucket/prefix?endpoint=http://host:9000&region=us-east-1
//	minio://host:9000/bucket/prefix?tls=true
//	file:///absolute/directory
//	mem://   or   mem://name (shared by that name within the process)
//
// The README lists the parameters. An unknown one is refused.
func Open(ctx context.Context, rawURL string, o Options) (Bucket, error) {
	loc, err := ParseURL(rawURL)
	if err != nil {
		return nil, err
	}
	o.Create = o.Create || loc.Create
	o.SkipCheck = o.SkipCheck || loc.SkipCheck
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	switch loc.Scheme {
	case "mem":
		return openMem(loc.Bucket), nil
	case "file":
		f, err := OpenFile(loc.Dir, o.Create)
		if err != nil {
			return nil, err
		}
		f.keepFree, f.keepPrefix = o.KeepFree, o.KeepFreePrefix
		return f, nil
	}
	if loc.Scheme == "minio" {
		return openMinio(ctx, loc, o)
	}
	return openS3(ctx, loc, o)
}

// Location is a parsed bucket URL.
type Location struct {
	Scheme    string // s3, minio, file, mem
	Bucket    string // mem: the name
	Prefix    string // without slashes at its ends; s3 and minio only
	Dir       string // file only
	Region    string
	Endpoint  string // scheme://host[:port], empty for AWS
	PathStyle bool
	Create    bool
	SkipCheck bool

	Profile         string // s3: of the shared configuration files
	CredentialsFile string // two lines, or NAME=value lines
	Attempts        int    // tries of one request inside the client library
	PartSize        int64  // bytes of a part of a multipart upload
	PartThreshold   int64  // largest body sent as one PUT
	PartConcurrency int    // parts of one Put in flight
	SignPayload     bool   // SHA-256 of every body in its signature
	Conditional     bool   // send If-None-Match with every Put
}

func urlError(raw, format string, args ...any) error {
	return fmt.Errorf("%w %q: %s", ErrURL, redact(raw), fmt.Sprintf(format, args...))
}

// redact removes what must not reach a log: user information and the values of parameters that look secret.
func redact(raw string) string {
	if i := strings.Index(raw, "://"); i >= 0 {
		rest := raw[i+3:]
		end := len(rest)
		if j := strings.IndexAny(rest, "/?#"); j >= 0 {
			end = j
		}
		if at := strings.LastIndexByte(rest[:end], '@'); at >= 0 {
			raw = raw[:i+3] + "***" + rest[at:]
		}
	}
	base, query, found := strings.Cut(raw, "?")
	if !found {
		return raw
	}
	parts := strings.Split(query, "&")
	for i, p := range parts {
		name, value, _ := strings.Cut(p, "=")
		lower := strings.ToLower(name)
		if plain, err := url.QueryUnescape(value); err != nil || strings.Contains(plain, "@") {
			parts[i] = name + "=***" // a URL with user information in it
		}
		for _, s := range []string{"secret", "key", "token", "password", "credential", "access"} {
			if strings.Contains(lower, s) && lower != "credentials_file" {
				parts[i] = name + "=***"
			}
		}
	}
	return base + "?" + strings.Join(parts, "&")
}

// FileURL is the URL of a directory, which is absolute, whatever its name is made of.
func FileURL(dir string) string { return (&url.URL{Scheme: "file", Path: dir}).String() }

const urlForms = "want s3://bucket/prefix?region=..., minio://host:port/bucket?..., file:///directory or mem://"

// ParseURL takes a bucket URL apart and refuses, naming the fault, what could not work.
func ParseURL(raw string) (Location, error) {
	fail := func(format string, args ...any) (Location, error) { return Location{}, urlError(raw, format, args...) }
	if raw == "" {
		return fail("empty; %s", urlForms)
	}
	if !strings.Contains(raw, "://") {
		return fail("no scheme; %s", urlForms)
	}
	u, err := url.Parse(raw)
	if err != nil {
		// The parser's message quotes the whole URL; only its cause may pass.
		cause := err
		if ue, ok := err.(*url.Error); ok {
			cause = ue.Err
		}
		return fail("not a URL (%v); %s", cause, urlForms)
	}
	if u.User != nil {
		return fail("credentials do not belong in the URL; give them in the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY) or in a file")
	}
	if u.Fragment != "" {
		return fail("has a fragment; write # as %%23 if it is meant")
	}
	q, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return fail("parameters cannot be read: %v", err)
	}
	loc := Location{Scheme: u.Scheme, Attempts: 3, PartSize: 16 << 20, PartThreshold: 32 << 20, PartConcurrency: 4, Conditional: true}
	allowed := []string{"create", "check"}
	switch u.Scheme {
	case "s3":
		allowed = append(allowed, "region", "endpoint", "path_style", "profile", "credentials_file", "attempts", "part_size", "part_threshold", "part_concurrency", "sign_payload", "conditional")
		if u.Port() != "" || strings.Contains(u.Host, ":") {
			return fail("%q looks like host:port; a bucket name comes first in s3://bucket/prefix, the server goes into ?endpoint=http://host:port (or use minio://host:port/bucket)", u.Host)
		}
		loc.Bucket, loc.Prefix = u.Host, strings.Trim(u.Path, "/")
	case "minio":
		allowed = append(allowed, "tls", "region", "credentials_file", "attempts", "part_size", "part_threshold", "part_concurrency", "sign_payload", "conditional")
		if u.Host == "" {
			return fail("no server; want minio://host:port/bucket")
		}
		if u.Hostname() == "" {
			return fail("no host before the port; want minio://host:port/bucket")
		}
		loc.Bucket, loc.Prefix, _ = strings.Cut(strings.TrimPrefix(u.Path, "/"), "/")
		loc.Prefix = strings.Trim(loc.Prefix, "/")
		loc.Endpoint = "http://" + u.Host
		loc.PathStyle = true
		loc.Region = "us-east-1"
	case "file":
		if u.Host != "" && u.Host != "localhost" {
			return fail("%q stands where a host would; an absolute directory needs three slashes: file:///%s%s", u.Host, u.Host, u.Path)
		}
		if !filepath.IsAbs(u.Path) || filepath.Clean(u.Path) == "/" {
			return fail("no directory; want file:///absolute/directory")
		}
		loc.Dir = filepath.Clean(u.Path)
	case "mem":
		if strings.Trim(u.Path, "/") != "" {
			return fail("a path is not supported; want mem:// or mem://name")
		}
		loc.Bucket = u.Host
	case "":
		return fail("no scheme; %s", urlForms)
	default:
		return fail("unknown scheme %q; %s", u.Scheme, urlForms)
	}
	names := make([]string, 0, len(q))
	for name := range q {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		if len(q[name]) > 1 {
			return fail("parameter %s is given %d times", name, len(q[name]))
		}
		if !slices.Contains(allowed, name) {
			if strings.Contains(strings.ToLower(name), "key") || strings.Contains(strings.ToLower(name), "secret") {
				return fail("parameter %s: credentials do not belong in the URL; give them in the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY) or in a file", name)
			}
			return fail("unknown parameter %s; %s:// knows %s", name, u.Scheme, strings.Join(allowed, ", "))
		}
		if err := loc.set(name, q.Get(name)); err != nil {
			return fail("parameter %s: %v", name, err)
		}
	}
	if u.Scheme == "s3" || u.Scheme == "minio" {
		if err := checkBucketName(loc.Bucket); err != nil {
			return fail("%v", err)
		}
		if loc.Prefix != "" {
			if err := checkPath(loc.Prefix); err != nil {
				return fail("prefix: %v", err)
			}
			if len(loc.Prefix) > MaxKeyBytes/2 {
				return fail("prefix of %d bytes leaves no room for keys; at most %d", len(loc.Prefix), MaxKeyBytes/2)
			}
		}
		if loc.Profile != "" && loc.CredentialsFile != "" {
			return fail("profile and credentials_file are both given; one of them is where the credentials come from")
		}
		if u.Scheme == "s3" && loc.Endpoint != "" && !q.Has("path_style") {
			loc.PathStyle = true
		}
	}
	return loc, nil
}

func (l *Location) set(name, value string) (err error) {
	switch name {
	case "create":
		l.Create, err = parseBool(value)
	case "check":
		var check bool
		check, err = parseBool(value)
		l.SkipCheck = !check
	case "path_style":
		l.PathStyle, err = parseBool(value)
	case "sign_payload":
		l.SignPayload, err = parseBool(value)
	case "conditional":
		l.Conditional, err = parseBool(value)
	case "tls":
		var tls bool
		if tls, err = parseBool(value); tls {
			l.Endpoint = "https://" + strings.TrimPrefix(l.Endpoint, "http://")
		}
	case "region":
		if value == "" || strings.ContainsAny(value, " /:") {
			return fmt.Errorf("%q is no region; want something like us-east-1", value)
		}
		l.Region = value
	case "endpoint":
		e, perr := url.Parse(value)
		if perr != nil || (e.Scheme != "http" && e.Scheme != "https") || e.Host == "" || e.User != nil || e.RawQuery != "" || strings.Trim(e.Path, "/") != "" {
			return fmt.Errorf("%q is no server; want http://host:port or https://host:port", redact(value))
		}
		l.Endpoint = e.Scheme + "://" + e.Host
	case "profile":
		l.Profile = value
	case "credentials_file":
		if !filepath.IsAbs(value) {
			return fmt.Errorf("%q is not an absolute path", value)
		}
		l.CredentialsFile = value
	case "attempts":
		l.Attempts, err = parseInt(value, 1, 20)
	case "part_concurrency":
		l.PartConcurrency, err = parseInt(value, 1, 64)
	case "part_size":
		l.PartSize, err = parseSize(value, 5<<20, 5<<30)
	case "part_threshold":
		l.PartThreshold, err = parseSize(value, 5<<20, 5<<30)
	}
	return err
}

func parseBool(v string) (bool, error) {
	switch v {
	case "true":
		return true, nil
	case "false":
		return false, nil
	}
	return false, fmt.Errorf("%q is neither true nor false", v)
}

func parseInt(v string, lo, hi int) (int, error) {
	n, err := strconv.Atoi(v)
	if err != nil || n < lo || n > hi {
		return 0, fmt.Errorf("%q is no number from %d to %d", v, lo, hi)
	}
	return n, nil
}

// parseSize reads bytes, with an optional KiB, MiB or GiB.
func parseSize(v string, lo, hi int64) (int64, error) {
	num, unit := v, int64(1)
	for s, u := range map[string]int64{"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30} {
		if n, ok := strings.CutSuffix(v, s); ok {
			num, unit = n, u
		}
	}
	n, err := strconv.ParseInt(num, 10, 64)
	if err != nil || n < 0 || n > hi/unit || n*unit < lo {
		return 0, fmt.Errorf("%q is no size from %d MiB to %d MiB; want bytes, or a number with KiB, MiB or GiB", v, lo>>20, hi>>20)
	}
	return n * unit, nil
}

// checkBucketName applies S3's rules, which minio has too.
func checkBucketName(name string) error {
	if name == "" {
		return fmt.Errorf("no bucket name; want s3://bucket/prefix or minio://host:port/bucket")
	}
	if len(name) < 3 || len(name) > 63 {
		return fmt.Errorf("bucket name %q: 3 to 63 characters are allowed", name)
	}
	for i := 0; i < len(name); i++ {
		c := name[i]
		alnum := 'a' <= c && c <= 'z' || '0' <= c && c <= '9'
		if !alnum && c != '-' && c != '.' {
			return fmt.Errorf("bucket name %q: only a-z, 0-9, - and . are allowed, not %q", name, c)
		}
		if (i == 0 || i == len(name)-1) && !alnum {
			return fmt.Errorf("bucket name %q: must start and end with a letter or a digit", name)
		}
	}
	if strings.Contains(name, "..") {
		return fmt.Errorf("bucket name %q: two dots in a row", name)
	}
	return nil
}
