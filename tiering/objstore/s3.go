package objstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/ratelimit"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"
	smithylog "github.com/aws/smithy-go/logging"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

// s3Driver speaks to Amazon S3, and to stores that behave like it, through the AWS SDK. Credentials come from the
// standard chain (environment, shared files, web identity, container and instance roles), where rotation is the chain's,
// or from a file that is read again.
type s3Driver struct {
	c      *s3.Client
	bucket *string
	region string
	guard  *guard
}

// openTimeout bounds the look for credentials, which may ask a metadata service that is not there.
const openTimeout = 30 * time.Second

func openS3(ctx context.Context, loc Location, o Options) (Bucket, error) {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	name := "s3://" + strings.TrimSuffix(loc.Bucket+"/"+loc.Prefix, "/")
	if loc.Endpoint != "" {
		name += "?endpoint=" + loc.Endpoint
	}
	// The buildable client, not a plain one: with AWS_CA_BUNDLE set the configuration wants to add its certificates.
	load := []func(*config.LoadOptions) error{
		config.WithHTTPClient(awshttp.NewBuildableClient()),
		config.WithLogger(slogSmithy{o.Logger}),
		config.WithClientLogMode(0),
	}
	if loc.Region != "" {
		load = append(load, config.WithRegion(loc.Region))
	}
	if loc.Profile != "" {
		load = append(load, config.WithSharedConfigProfile(loc.Profile))
	}
	if loc.CredentialsFile != "" {
		load = append(load, config.WithCredentialsProvider(awsFile{openCredentials(loc.CredentialsFile, o.Logger)}))
	}
	cfg, err := config.LoadDefaultConfig(ctx, load...)
	if err != nil {
		return nil, fmt.Errorf("open %s: AWS configuration: %s", name, short(err.Error(), 300))
	}
	if cfg.Region == "" {
		if loc.Endpoint == "" {
			return nil, fmt.Errorf("%w %q: no region; give ?region=..., AWS_REGION, or one in the AWS configuration", ErrURL, name)
		}
		cfg.Region = "us-east-1" // goes into signatures; most stores take this one
	}
	cfg.Credentials = deniedCredentials{cfg.Credentials}
	if _, err := cfg.Credentials.Retrieve(ctx); err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	transport := http.DefaultTransport.(*http.Transport)
	if b, ok := cfg.HTTPClient.(*awshttp.BuildableClient); ok {
		transport = b.GetTransport() // with the CA bundle, if there is one
	}
	g := newGuard(transport, o.OnRequest)
	client := s3.NewFromConfig(cfg, func(so *s3.Options) {
		so.HTTPClient = g.client()
		so.UsePathStyle = loc.PathStyle
		if loc.Endpoint != "" {
			so.BaseEndpoint = &loc.Endpoint
		}
		so.Retryer = retry.NewStandard(func(ro *retry.StandardOptions) {
			ro.MaxAttempts = loc.Attempts
			ro.MaxBackoff = 5 * time.Second
			ro.RateLimiter = ratelimit.None // the callers back off, over all their requests together
		})
		// Every body carries a CRC32C computed from what was meant to be sent, not from what is sent; ranges are
		// verified by the checksums inside the objects.
		so.RequestChecksumCalculation = aws.RequestChecksumCalculationWhenRequired
		so.ResponseChecksumValidation = aws.ResponseChecksumValidationWhenRequired
		so.DisableLogOutputChecksumValidationSkipped = true
		if !loc.SignPayload {
			// The checksum header is signed and covers the body; hashing it a second time with SHA-256 costs more than
			// all the rest of the upload.
			so.APIOptions = append(so.APIOptions, v4.SwapComputePayloadSHA256ForUnsignedPayloadMiddleware)
		}
	})
	d := &s3Driver{c: client, bucket: &loc.Bucket, region: cfg.Region, guard: g}
	return newRemote(ctx, d, loc, name, o)
}

// deniedCredentials marks failures to find or renew credentials.
type deniedCredentials struct{ aws.CredentialsProvider }

func (d deniedCredentials) Retrieve(ctx context.Context) (aws.Credentials, error) {
	if d.CredentialsProvider == nil {
		return aws.Credentials{}, fmt.Errorf("%w: no AWS credentials", ErrDenied)
	}
	c, err := d.CredentialsProvider.Retrieve(ctx)
	if err != nil && ctx.Err() == nil && !errors.Is(err, ErrDenied) {
		err = fmt.Errorf("%w: no AWS credentials (set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, or run under a role): %s", ErrDenied, short(err.Error(), 200))
	}
	return c, err
}

// slogSmithy brings what the SDK has to say to where the rest of the log is.
type slogSmithy struct{ l *slog.Logger }

func (s slogSmithy) Logf(c smithylog.Classification, format string, v ...any) {
	level := slog.LevelDebug
	if c == smithylog.Warn {
		level = slog.LevelWarn
	}
	if s.l.Enabled(context.Background(), level) {
		s.l.Log(context.Background(), level, "aws sdk: "+short(fmt.Sprintf(format, v...), 500))
	}
}

func (d *s3Driver) classify(ctx context.Context, err error) error {
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
	status := 0
	var resp *smithyhttp.ResponseError
	if errors.As(err, &resp) {
		status = resp.HTTPStatusCode()
	}
	code, message := "", ""
	var api smithy.APIError
	if errors.As(err, &api) {
		code, message = api.ErrorCode(), api.ErrorMessage()
	}
	// A success with an error in its body (multipart completion) has status 200 and a code.
	if status >= 300 || code != "" && status != 0 {
		if code == "NotFound" {
			code = ""
		}
		if message == "" && code == "" {
			message = err.Error()
		}
		return classifyStatus(status, code, message)
	}
	return classifyTransport(err)
}

func firstOf(err error, sentinels ...error) error {
	for _, s := range sentinels {
		if errors.Is(err, s) {
			return s
		}
	}
	return nil
}

func ifNoneMatch(onlyNew bool) *string {
	if onlyNew {
		return aws.String("*")
	}
	return nil
}

func (d *s3Driver) put(ctx context.Context, key string, body io.ReadSeeker, size int64, crc uint32, onlyNew bool) error {
	_, err := d.c.PutObject(ctx, &s3.PutObjectInput{
		Bucket: d.bucket, Key: &key, Body: body, ContentLength: &size, IfNoneMatch: ifNoneMatch(onlyNew),
		ChecksumCRC32C: aws.String(crcHeader(crc)), ContentType: aws.String("application/octet-stream"),
		Metadata: map[string]string{metaCRC: crcHex(crc)},
	})
	return d.classify(ctx, err)
}

func (d *s3Driver) get(ctx context.Context, key string, off, length int64) (io.ReadCloser, rangeHeader, error) {
	out, err := d.c.GetObject(ctx, &s3.GetObjectInput{Bucket: d.bucket, Key: &key, Range: aws.String(fmt.Sprintf("bytes=%d-%d", off, off+length-1))})
	if err != nil {
		return nil, rangeHeader{}, d.classify(ctx, err)
	}
	h := rangeHeader{contentRange: aws.ToString(out.ContentRange), length: -1}
	if out.ContentLength != nil {
		h.length = *out.ContentLength
	}
	return out.Body, h, nil
}

func (d *s3Driver) stat(ctx context.Context, key string) (objectStat, error) {
	out, err := d.c.HeadObject(ctx, &s3.HeadObjectInput{Bucket: d.bucket, Key: &key})
	if err != nil {
		return objectStat{}, d.classify(ctx, err)
	}
	st := objectStat{size: aws.ToInt64(out.ContentLength)}
	for k, v := range out.Metadata {
		if strings.EqualFold(k, metaCRC) {
			st.crc = v
		}
	}
	return st, nil
}

func (d *s3Driver) list(ctx context.Context, prefix, after string, limit int) ([]Info, bool, error) {
	// One more than asked for, if a page can hold it: not every store says IsTruncated only when something follows.
	in := &s3.ListObjectsV2Input{Bucket: d.bucket, Prefix: &prefix, MaxKeys: aws.Int32(int32(min(limit+1, MaxList))), EncodingType: types.EncodingTypeUrl}
	if after != "" {
		in.StartAfter = &after
	}
	out, err := d.c.ListObjectsV2(ctx, in)
	if err != nil {
		return nil, false, d.classify(ctx, err)
	}
	var infos []Info
	for _, o := range out.Contents {
		key := aws.ToString(o.Key)
		if out.EncodingType == types.EncodingTypeUrl {
			if decoded, err := url.QueryUnescape(key); err == nil {
				key = decoded
			}
		}
		infos = append(infos, Info{Key: key, Size: aws.ToInt64(o.Size), Modified: aws.ToTime(o.LastModified)})
	}
	if len(infos) > limit {
		return infos[:limit], true, nil
	}
	return infos, limit == MaxList && aws.ToBool(out.IsTruncated), nil
}

func (d *s3Driver) remove(ctx context.Context, keys []string, failed *deleteErrors) error {
	ids := make([]types.ObjectIdentifier, len(keys))
	for i := range keys {
		ids[i].Key = &keys[i]
	}
	out, err := d.c.DeleteObjects(ctx, &s3.DeleteObjectsInput{Bucket: d.bucket, Delete: &types.Delete{Objects: ids, Quiet: aws.Bool(true)}})
	if err != nil {
		return d.classify(ctx, err)
	}
	for _, e := range out.Errors {
		if code := aws.ToString(e.Code); code != "NoSuchKey" {
			failed.add(short(aws.ToString(e.Key), 200), classifyStatus(http.StatusOK, code, aws.ToString(e.Message)))
		}
	}
	return nil
}

func (d *s3Driver) createUpload(ctx context.Context, key string, crc uint32) (string, error) {
	out, err := d.c.CreateMultipartUpload(ctx, &s3.CreateMultipartUploadInput{
		Bucket: d.bucket, Key: &key, ChecksumAlgorithm: types.ChecksumAlgorithmCrc32c, ChecksumType: types.ChecksumTypeFullObject,
		ContentType: aws.String("application/octet-stream"), Metadata: map[string]string{metaCRC: crcHex(crc)},
	})
	if err != nil {
		return "", d.classify(ctx, err)
	}
	return aws.ToString(out.UploadId), nil
}

func (d *s3Driver) putPart(ctx context.Context, key, id string, number int, body io.ReadSeeker, size int64, crc uint32) (string, error) {
	out, err := d.c.UploadPart(ctx, &s3.UploadPartInput{
		Bucket: d.bucket, Key: &key, UploadId: &id, PartNumber: aws.Int32(int32(number)), Body: body, ContentLength: &size,
		ChecksumCRC32C: aws.String(crcHeader(crc)), ChecksumAlgorithm: types.ChecksumAlgorithmCrc32c,
	})
	if err != nil {
		return "", d.classify(ctx, err)
	}
	return aws.ToString(out.ETag), nil
}

func (d *s3Driver) completeUpload(ctx context.Context, key, id string, parts []part, crc uint32, onlyNew bool) error {
	done := make([]types.CompletedPart, len(parts))
	for i, p := range parts {
		done[i] = types.CompletedPart{ETag: &parts[i].etag, PartNumber: aws.Int32(int32(p.number)), ChecksumCRC32C: aws.String(crcHeader(p.crc))}
	}
	out, err := d.c.CompleteMultipartUpload(ctx, &s3.CompleteMultipartUploadInput{
		Bucket: d.bucket, Key: &key, UploadId: &id, MultipartUpload: &types.CompletedMultipartUpload{Parts: done}, IfNoneMatch: ifNoneMatch(onlyNew),
		ChecksumCRC32C: aws.String(crcHeader(crc)), ChecksumType: types.ChecksumTypeFullObject,
	})
	if err != nil {
		return d.classify(ctx, err)
	}
	if got := aws.ToString(out.ChecksumCRC32C); out.ChecksumType == types.ChecksumTypeFullObject && got != "" && got != crcHeader(crc) {
		return fmt.Errorf("%w: store has CRC32C %.20q, %q sent", ErrChecksum, got, crcHeader(crc))
	}
	return nil
}

func (d *s3Driver) abortUpload(ctx context.Context, key, id string) error {
	_, err := d.c.AbortMultipartUpload(ctx, &s3.AbortMultipartUploadInput{Bucket: d.bucket, Key: &key, UploadId: &id})
	return d.classify(ctx, err)
}

func (d *s3Driver) uploads(ctx context.Context, prefix string, f func(key, id string, started time.Time) error) error {
	in := &s3.ListMultipartUploadsInput{Bucket: d.bucket}
	if prefix != "" {
		in.Prefix = &prefix
	}
	for {
		out, err := d.c.ListMultipartUploads(ctx, in)
		if err != nil {
			return d.classify(ctx, err)
		}
		for _, u := range out.Uploads {
			if err := f(aws.ToString(u.Key), aws.ToString(u.UploadId), aws.ToTime(u.Initiated)); err != nil {
				return err
			}
		}
		key, id := aws.ToString(out.NextKeyMarker), aws.ToString(out.NextUploadIdMarker)
		if !aws.ToBool(out.IsTruncated) || key == aws.ToString(in.KeyMarker) && id == aws.ToString(in.UploadIdMarker) {
			return nil // the second: a store that turns in circles
		}
		in.KeyMarker, in.UploadIdMarker = &key, &id
	}
}

func (d *s3Driver) bucketExists(ctx context.Context) error {
	_, err := d.c.HeadBucket(ctx, &s3.HeadBucketInput{Bucket: d.bucket})
	err = d.classify(ctx, err)
	if errors.Is(err, ErrNotExist) {
		err = fmt.Errorf("%w: %s in region %s", ErrNoBucket, *d.bucket, d.region)
	}
	return err
}

func (d *s3Driver) makeBucket(ctx context.Context) error {
	in := &s3.CreateBucketInput{Bucket: d.bucket}
	if d.region != "us-east-1" { // which is the default and must not be named
		in.CreateBucketConfiguration = &types.CreateBucketConfiguration{LocationConstraint: types.BucketLocationConstraint(d.region)}
	}
	_, err := d.c.CreateBucket(ctx, in)
	return d.classify(ctx, err)
}

func (d *s3Driver) close() { d.guard.next.CloseIdleConnections() }
