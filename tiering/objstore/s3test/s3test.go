// Package s3test runs an S3 server inside a test process: versitygw over a temporary directory. It does not fsync, and
// it is for tests only.
package s3test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/versity/versitygw/backend/meta"
	"github.com/versity/versitygw/backend/posix"
	"github.com/versity/versitygw/embedgw"
)

// Credentials of every server started here.
const (
	AccessKey = "varvetest"
	SecretKey = "varvetest-secret-canary"
)

// Server is a running server.
type Server struct {
	Addr string // host:port
	Dir  string // buckets are directories below it, objects files
	stop func()
}

// Start runs a server until the test ends, and sets the environment so that s3:// and minio:// buckets find its
// credentials and nobody else's.
//
// One server runs in a process at a time, and the server's code works relative to the current directory: until the test
// ends that is the server's. So the test cannot be parallel, and opens its own testdata before it calls Start.
func Start(tb testing.TB) *Server {
	tb.Helper()
	dir := tb.TempDir()
	tb.Chdir(dir)
	for name, value := range map[string]string{
		"AWS_ACCESS_KEY_ID": AccessKey, "AWS_SECRET_ACCESS_KEY": SecretKey, "AWS_SESSION_TOKEN": "",
		"MINIO_ROOT_USER": "", "MINIO_ROOT_PASSWORD": "", "MINIO_ACCESS_KEY": "", "MINIO_SECRET_KEY": "",
		"AWS_REGION": "us-east-1", "AWS_PROFILE": "", "AWS_EC2_METADATA_DISABLED": "true",
		"AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
	} {
		tb.Setenv(name, value)
	}
	// The server cannot say which port it got from the system, so it is told one that was free a moment ago.
	for attempt := 1; ; attempt++ {
		s := &Server{Addr: freeAddr(tb), Dir: dir}
		err := s.run()
		if err == nil {
			tb.Cleanup(s.stop)
			return s
		}
		if attempt == 5 {
			tb.Fatalf("s3test: %v", err)
		}
	}
}

func freeAddr(tb testing.TB) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatalf("s3test: %v", err)
	}
	defer l.Close()
	return l.Addr().String()
}

// Serve runs a server at addr until ctx ends, with buckets as directories below dir, which becomes the current directory
// of the process.
func Serve(ctx context.Context, dir, addr string) error {
	be, err := posix.New(dir, meta.XattrMeta{}, posix.PosixOpts{CopyObjectThreshold: 5 << 30})
	if err != nil {
		return err
	}
	return embedgw.RunVersityGW(ctx, be, &embedgw.Config{
		RootUserAccess: AccessKey, RootUserSecret: SecretKey, Region: "us-east-1",
		Ports: []string{addr}, MaxConnections: 4096, MaxRequests: 4096, MultipartMaxParts: 10000,
		HealthPath: HealthPath, Quiet: true, KeepAlive: true,
	})
}

// ServeAmbiguous is Serve with a Gateway before it, and with Ambiguous as long as there is a file, which holds the share of the requests.
func ServeAmbiguous(ctx context.Context, dir, addr, file string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	inside := l.Addr().String()
	l.Close()
	g, a := newGateway(inside), NewAmbiguous(0, uint64(time.Now().UnixNano()))
	g.Around(func(r *http.Request, body []byte, forward func() *Answer) *Answer {
		b, _ := os.ReadFile(file)
		share, _ := strconv.ParseFloat(string(b), 64) // 0 if it is not there
		a.Set(share)
		return a.Around(r, body, forward)
	})
	if l, err = net.Listen("tcp", addr); err != nil {
		return err
	}
	front := &http.Server{Handler: g}
	ended := make(chan error, 2)
	go func() { ended <- front.Serve(l) }()
	go func() { ended <- Serve(ctx, dir, inside) }()
	err = <-ended
	front.Close()
	cancel()
	<-ended
	return err
}

// HealthPath answers 200 once a server serves.
const HealthPath = "/health"

func (s *Server) run() error {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- Serve(ctx, s.Dir, s.Addr) }()
	s.stop = func() {
		cancel()
		<-ended
	}
	for {
		select {
		case err := <-ended:
			cancel()
			return fmt.Errorf("server ended: %v", err)
		case <-time.After(2 * time.Millisecond):
		}
		resp, err := http.Get("http://" + s.Addr + HealthPath)
		if err != nil {
			continue
		}
		resp.Body.Close()
		if resp.StatusCode == http.StatusOK {
			return nil
		}
	}
}

// S3 is the URL of a bucket for the AWS client; it is made when opened.
func (s *Server) S3(bucket string) string {
	return fmt.Sprintf("s3://%s?endpoint=http://%s&region=us-east-1&create=true", bucket, s.Addr)
}

// Minio is the URL of a bucket for the MinIO client; it is made when opened.
func (s *Server) Minio(bucket string) string {
	return fmt.Sprintf("minio://%s/%s?create=true", s.Addr, bucket)
}
