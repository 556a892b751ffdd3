package objstore

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
)

// The story of testdata/url: each URL with what it means or why it is refused.
func TestParseURL(t *testing.T) {
	datadriven.RunTest(t, "testdata/url", func(t *testing.T, d *datadriven.TestData) string {
		var out strings.Builder
		for _, raw := range strings.Split(d.Input, "\n") {
			raw = strings.TrimSpace(strings.TrimPrefix(raw, "|"))
			loc, err := ParseURL(raw)
			if err != nil {
				if !errors.Is(err, ErrURL) {
					t.Errorf("%s: not ErrURL: %v", raw, err)
				}
				out.WriteString(err.Error() + "\n")
				continue
			}
			out.WriteString(loc.Scheme)
			for _, f := range []struct{ name, value string }{
				{"bucket", loc.Bucket}, {"prefix", loc.Prefix}, {"dir", loc.Dir}, {"region", loc.Region}, {"endpoint", loc.Endpoint},
				{"profile", loc.Profile}, {"credentials", loc.CredentialsFile},
			} {
				if f.value != "" {
					out.WriteString(" " + f.name + "=" + f.value)
				}
			}
			for _, f := range []struct {
				name string
				set  bool
			}{{"path-style", loc.PathStyle}, {"create", loc.Create}, {"unchecked", loc.SkipCheck}, {"signed", loc.SignPayload}, {"unconditional", !loc.Conditional && loc.Scheme != "mem" && loc.Scheme != "file"}} {
				if f.set {
					out.WriteString(" " + f.name)
				}
			}
			out.WriteString("\n")
		}
		return out.String()
	})
}

// Whatever is written into a URL, no secret comes back out of an error.
func TestURLSecretsStayOut(t *testing.T) {
	const canary = "S3CR3T-canary"
	for _, raw := range []string{
		"s3://AKIA:" + canary + "@bucket/p", "minio://u:" + canary + "@host:9000/bucket", "minio://host:9000/bucket?secret_key=" + canary,
		"s3://bucket?aws_secret_access_key=" + canary, "s3://bucket?endpoint=http://u:" + canary + "@h:1", "s3://bucket?token=" + canary + "&region=x",
		"minio://u:" + canary + "@host:99999999/b\x7f", "://u:" + canary + "@x", "s3://u:" + canary + "@b%zz/", "weird://u:" + canary + "@h/?password=" + canary,
		"s3://bucket?endpoint=http%3A%2F%2Fu%3A" + canary + "%40h",
	} {
		_, err := ParseURL(raw)
		if err == nil {
			t.Errorf("%q was accepted", raw)
		} else if strings.Contains(err.Error(), canary) {
			t.Errorf("secret in: %v", err)
		}
	}
}

func FuzzParseURL(f *testing.F) {
	for _, s := range []string{"s3://bucket/p?region=eu", "minio://h:1/bucket?tls=true", "file:///a/b", "mem://x", "s3://%", "file://..", "s3://b?part_size=9GiB"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		loc, err := ParseURL(raw)
		if err != nil {
			return
		}
		switch loc.Scheme {
		case "s3", "minio":
			if checkBucketName(loc.Bucket) != nil || loc.Prefix != "" && CheckKey(loc.Prefix) != nil {
				t.Fatalf("%q: %+v", raw, loc)
			}
		case "file":
			if !filepath.IsAbs(loc.Dir) || loc.Dir != filepath.Clean(loc.Dir) {
				t.Fatalf("%q: %+v", raw, loc)
			}
		case "mem":
		default:
			t.Fatalf("%q: %+v", raw, loc)
		}
	})
}

func TestOpenSaysWhatIsWrong(t *testing.T) {
	for _, n := range []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION", "MINIO_ROOT_USER", "MINIO_ROOT_PASSWORD", "MINIO_ACCESS_KEY",
		"AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI"} {
		t.Setenv(n, "")
	}
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	t.Setenv("AWS_CONFIG_FILE", os.DevNull)
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", os.DevNull)
	t.Setenv("HOME", t.TempDir())
	missing := filepath.Join(t.TempDir(), "missing")
	file := filepath.Join(t.TempDir(), "file")
	creds := filepath.Join(t.TempDir(), "creds")
	os.WriteFile(file, nil, 0o644)
	os.WriteFile(creds, []byte("only-one-line-S3CR3T\n"), 0o600)
	for _, tt := range []struct {
		url  string
		is   error
		says string
	}{
		{"file://" + missing, ErrNoBucket, "no directory " + missing},
		{"file://" + file, nil, "not a directory"},
		{"s3://bucket?endpoint=http://127.0.0.1:1", ErrDenied, "set AWS_ACCESS_KEY_ID"},
		{"minio://127.0.0.1:1/bucket", ErrDenied, "set MINIO_ROOT_USER"},
		{"minio://127.0.0.1:1/bucket?credentials_file=" + missing, ErrDenied, "no such file"},
		{"minio://127.0.0.1:1/bucket?credentials_file=" + creds, ErrDenied, "want two lines"},
		{"s3://bucket?endpoint=http://127.0.0.1:1&credentials_file=" + missing, ErrDenied, "no such file"},
		{"s3://bucket?endpoint=http://127.0.0.1:1&credentials_file=" + creds, ErrDenied, "want two lines"},
		{"nonsense", ErrURL, "no scheme"},
	} {
		_, err := Open(context.Background(), tt.url, Options{})
		if err == nil || tt.is != nil && !errors.Is(err, tt.is) || !strings.Contains(err.Error(), tt.says) || strings.Contains(err.Error(), "S3CR3T") {
			t.Errorf("%s: %v", tt.url, err)
		}
	}
	t.Setenv("AWS_ACCESS_KEY_ID", "a")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "S3CR3T")
	if _, err := Open(context.Background(), "s3://bucket", Options{}); !errors.Is(err, ErrURL) || !strings.Contains(err.Error(), "no region") {
		t.Error(err)
	}
	for _, url := range []string{"s3://bucket?attempts=1&endpoint=http://127.0.0.1:1", "minio://127.0.0.1:1/bucket?attempts=1"} {
		_, err := Open(context.Background(), url, Options{})
		if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "check the endpoint") || strings.Contains(err.Error(), "S3CR3T") {
			t.Errorf("%s: %v", url, err)
		}
	}
}

func TestFileCredentialsRotate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "creds")
	os.WriteFile(path, []byte("# comment\nid1\nsecret1\n"), 0o600)
	f := &minioFile{file: credentialsFile(path)}
	v, err := f.Retrieve()
	if err != nil || v.AccessKeyID != "id1" || v.SecretAccessKey != "secret1" {
		t.Fatal(v.AccessKeyID, err)
	}
	if f.IsExpired() {
		t.Error("expired at once")
	}
	os.WriteFile(path, []byte("AWS_ACCESS_KEY_ID = id2\nAWS_SECRET_ACCESS_KEY= se=cret2\n"), 0o600)
	f.looked = f.looked.Add(-time6)
	for range 3 { // until it is read
		if !f.IsExpired() {
			t.Error("a changed file is not read again")
		}
	}
	v, err = f.Retrieve()
	if err != nil || v.AccessKeyID != "id2" || v.SecretAccessKey != "se=cret2" || f.IsExpired() {
		t.Fatal(v.AccessKeyID, err)
	}
}

// A directory's URL means that directory, whatever its name is made of.
func TestFileURL(t *testing.T) {
	for _, dir := range []string{"/data/objects", "/my data#1?x=%41 ü/objects", "/100%/a:b;c&d+e"} {
		if loc, err := ParseURL(FileURL(dir)); err != nil || loc.Scheme != "file" || loc.Dir != dir {
			t.Errorf("%s: %s is %+v, %v", dir, FileURL(dir), loc, err)
		}
	}
}
