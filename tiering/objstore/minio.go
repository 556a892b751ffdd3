package objstore

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
)

// minioDriver speaks to MinIO and its kin through minio-go.
//
// minio-go's own checksums need trailing headers, which not every server takes for parts; so checksums go out as plain
// headers here, known before the body is sent. Its multipart procedure buffers parts and has no full-object checksum
// of ours; so only its single requests are used.
type minioDriver struct {
	c      minio.Core
	bucket string
	region string
	sign   bool
	guard  *guard
}

func openMinio(ctx context.Context, loc Location, o Options) (Bucket, error) {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	host, tls := strings.CutPrefix(loc.Endpoint, "https://")
	host = strings.TrimPrefix(host, "http://")
	name := "minio://" + host + "/" + strings.TrimSuffix(loc.Bucket+"/"+loc.Prefix, "/")
	creds, err := minioCredentials(loc, o.Logger)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	transport, err := minio.DefaultTransport(tls)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	g := newGuard(transport, o.OnRequest)
	c, err := minio.NewCore(host, &minio.Options{
		Creds: creds, Secure: tls, Transport: g, Region: loc.Region, BucketLookup: minio.BucketLookupPath, MaxRetries: loc.Attempts,
	})
	if err != nil {
		return nil, fmt.Errorf("%w %q: %v", ErrURL, name, err)
	}
	d := &minioDriver{c: *c, bucket: loc.Bucket, region: loc.Region, sign: loc.SignPayload, guard: g}
	return newRemote(ctx, d, loc, name, o)
}

// minioCredentials takes the file the URL names, or the first complete pair of the environment.
func minioCredentials(loc Location, log *slog.Logger) (*credentials.Credentials, error) {
	if loc.CredentialsFile != "" {
		p := &minioFile{file: openCredentials(loc.CredentialsFile, log)}
		if _, err := p.Retrieve(); err != nil {
			return nil, err
		}
		return credentials.New(p), nil
	}
	for _, names := range [][2]string{
		{"MINIO_ROOT_USER", "MINIO_ROOT_PASSWORD"}, {"MINIO_ACCESS_KEY", "MINIO_SECRET_KEY"}, {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"},
	} {
		id, secret := os.Getenv(names[0]), os.Getenv(names[1])
		if id == "" || secret == "" {
			continue
		}
		token := ""
		if names[0] == "AWS_ACCESS_KEY_ID" {
			token = os.Getenv("AWS_SESSION_TOKEN")
		}
		return credentials.NewStaticV4(id, secret, token), nil
	}
	return nil, fmt.Errorf("%w: no credentials (set MINIO_ROOT_USER and MINIO_ROOT_PASSWORD, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a file in ?credentials_file=/path)", ErrDenied)
}

func (d *minioDriver) classify(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if cerr := ctx.Err(); cerr != nil {
		return fmt.Errorf("%w (%s)", cerr, short(err.Error(), 200))
	}
	var redirect *redirectError
	if errors.As(err, &redirect) {
		return redirect // the libraries' wrapping says nothing more
	}
	if s := firstOf(err, ErrDenied, ErrChecksum, ErrUnavailable); s != nil {
		return fmt.Errorf("%w: %s", s, short(err.Error(), 300))
	}
	var e minio.ErrorResponse
	if errors.As(err, &e) && (e.StatusCode != 0 || e.Code != "") {
		return classifyStatus(e.StatusCode, e.Code, e.Message)
	}
	return classifyTransport(err)
}

// plainReader keeps minio-go from closing a body that is not its own.
type plainReader struct{ io.ReadSeeker }

// sha256 is the hash that a signed payload needs, or nothing if the payload is not signed. minio-go would send a
// signature per chunk instead, whose framing not every server gets right.
func (d *minioDriver) sha256(body io.ReadSeeker) (string, error) {
	if !d.sign {
		return "", nil
	}
	h := sha256.New()
	if _, err := io.Copy(h, body); err != nil {
		return "", fmt.Errorf("read body: %w", err)
	}
	if _, err := body.Seek(0, io.SeekStart); err != nil {
		return "", fmt.Errorf("rewind body: %w", err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

func (d *minioDriver) put(ctx context.Context, key string, body io.ReadSeeker, size int64, crc uint32, onlyNew bool) error {
	sum, err := d.sha256(body)
	if err != nil {
		return err
	}
	opts := minio.PutObjectOptions{
		ContentType: "application/octet-stream", DisableContentSha256: true,
		UserMetadata: map[string]string{metaCRC: crcHex(crc), "x-amz-checksum-crc32c": crcHeader(crc)},
	}
	if onlyNew {
		opts.SetMatchETagExcept("*")
	}
	_, err = d.c.PutObject(ctx, d.bucket, key, plainReader{body}, size, "", sum, opts)
	return d.classify(ctx, err)
}

func (d *minioDriver) get(ctx context.Context, key string, off, length int64) (io.ReadCloser, rangeHeader, error) {
	var opts minio.GetObjectOptions
	if err := opts.SetRange(off, off+length-1); err != nil {
		return nil, rangeHeader{}, err
	}
	body, info, header, err := d.c.GetObject(ctx, d.bucket, key, opts)
	if err != nil {
		return nil, rangeHeader{}, d.classify(ctx, err)
	}
	return body, rangeHeader{contentRange: header.Get("Content-Range"), length: info.Size}, nil
}

func (d *minioDriver) stat(ctx context.Context, key string) (objectStat, error) {
	info, err := d.c.StatObject(ctx, d.bucket, key, minio.StatObjectOptions{})
	if err != nil {
		return objectStat{}, d.classify(ctx, err)
	}
	st := objectStat{size: info.Size}
	for k, v := range info.UserMetadata {
		if strings.EqualFold(k, metaCRC) {
			st.crc = v
		}
	}
	return st, nil
}

func (d *minioDriver) list(ctx context.Context, prefix, after string, limit int) ([]Info, bool, error) {
	// Core's list takes no context; the iterator does, and reads pages until it is stopped.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	noOwner := false
	opts := minio.ListObjectsOptions{Prefix: prefix, StartAfter: after, Recursive: true, MaxKeys: min(limit+1, MaxList), FetchOwner: &noOwner}
	var infos []Info
	for o := range d.c.ListObjectsIter(ctx, d.bucket, opts) {
		if o.Err != nil {
			return nil, false, d.classify(ctx, o.Err)
		}
		if len(infos) == limit {
			return infos, true, nil
		}
		infos = append(infos, Info{Key: o.Key, Size: o.Size, Modified: o.LastModified})
	}
	return infos, false, d.classify(ctx, ctx.Err())
}

func (d *minioDriver) remove(ctx context.Context, keys []string, failed *deleteErrors) error {
	objects := func(yield func(minio.ObjectInfo) bool) {
		for _, k := range keys {
			if !yield(minio.ObjectInfo{Key: k}) {
				return
			}
		}
	}
	results, err := d.c.RemoveObjectsWithIter(ctx, d.bucket, objects, minio.RemoveObjectsOptions{})
	if err != nil {
		return d.classify(ctx, err)
	}
	for r := range results {
		if r.Err == nil {
			continue
		}
		err := d.classify(ctx, r.Err)
		if r.ObjectName == "" || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
			return err // the request failed, not a key
		}
		if !errors.Is(err, ErrNotExist) {
			failed.add(short(r.ObjectName, 200), err)
		}
	}
	return d.classify(ctx, ctx.Err())
}

func (d *minioDriver) createUpload(ctx context.Context, key string, crc uint32) (string, error) {
	id, err := d.c.NewMultipartUpload(ctx, d.bucket, key, minio.PutObjectOptions{
		ContentType:  "application/octet-stream",
		UserMetadata: map[string]string{metaCRC: crcHex(crc), "x-amz-checksum-algorithm": "CRC32C", "x-amz-checksum-type": "FULL_OBJECT"},
	})
	return id, d.classify(ctx, err)
}

func (d *minioDriver) putPart(ctx context.Context, key, id string, number int, body io.ReadSeeker, size int64, crc uint32) (string, error) {
	sum, err := d.sha256(body)
	if err != nil {
		return "", err
	}
	p, err := d.c.PutObjectPart(ctx, d.bucket, key, id, number, plainReader{body}, size, minio.PutObjectPartOptions{
		DisableContentSha256: true, Sha256Hex: sum,
		CustomHeader: http.Header{"X-Amz-Checksum-Crc32c": {crcHeader(crc)}},
	})
	return p.ETag, d.classify(ctx, err)
}

func (d *minioDriver) completeUpload(ctx context.Context, key, id string, parts []part, crc uint32, onlyNew bool) error {
	done := make([]minio.CompletePart, len(parts))
	for i, p := range parts {
		done[i] = minio.CompletePart{PartNumber: p.number, ETag: p.etag, ChecksumCRC32C: crcHeader(p.crc)}
	}
	opts := minio.PutObjectOptions{UserMetadata: map[string]string{"x-amz-checksum-crc32c": crcHeader(crc), "x-amz-checksum-type": "FULL_OBJECT"}}
	if onlyNew {
		opts.SetMatchETagExcept("*")
	}
	info, err := d.c.CompleteMultipartUpload(ctx, d.bucket, key, id, done, opts)
	if err != nil {
		return d.classify(ctx, err)
	}
	if info.ChecksumMode == "FULL_OBJECT" && info.ChecksumCRC32C != "" && info.ChecksumCRC32C != crcHeader(crc) {
		return fmt.Errorf("%w: store has CRC32C %.20q, %q sent", ErrChecksum, info.ChecksumCRC32C, crcHeader(crc))
	}
	return nil
}

func (d *minioDriver) abortUpload(ctx context.Context, key, id string) error {
	return d.classify(ctx, d.c.AbortMultipartUpload(ctx, d.bucket, key, id))
}

func (d *minioDriver) uploads(ctx context.Context, prefix string, f func(key, id string, started time.Time) error) error {
	ctx, cancel := context.WithCancel(ctx) // ends the listing's goroutine if f fails
	defer cancel()
	for u := range d.c.ListIncompleteUploads(ctx, d.bucket, prefix, true) {
		if u.Err != nil {
			return d.classify(ctx, u.Err)
		}
		if err := f(u.Key, u.UploadID, u.Initiated); err != nil {
			return err
		}
	}
	return d.classify(ctx, ctx.Err())
}

func (d *minioDriver) bucketExists(ctx context.Context) error {
	ok, err := d.c.BucketExists(ctx, d.bucket)
	if err != nil {
		return d.classify(ctx, err)
	}
	if !ok {
		return fmt.Errorf("%w: %s", ErrNoBucket, d.bucket)
	}
	return nil
}

func (d *minioDriver) makeBucket(ctx context.Context) error {
	return d.classify(ctx, d.c.MakeBucket(ctx, d.bucket, minio.MakeBucketOptions{Region: d.region}))
}

func (d *minioDriver) close() { d.guard.next.CloseIdleConnections() }
