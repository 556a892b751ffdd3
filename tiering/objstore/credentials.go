package objstore

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/minio/minio-go/v7/pkg/credentials"
)

// rereadCredentials is how long what a credentials file says is used before the file is looked at again: rotation needs
// no restart.
const rereadCredentials = 5 * time.Second

// credentialsFile is a file with an access key and a secret, on a line each, or in lines NAME=value with the names of the
// environment variables.
type credentialsFile string

func openCredentials(path string, log *slog.Logger) credentialsFile {
	if info, err := os.Stat(path); err == nil && info.Mode().Perm()&0o077 != 0 {
		log.Warn("object store credentials can be read by others", "file", path, "mode", info.Mode().Perm().String())
	}
	return credentialsFile(path)
}

// pair is what the file says.
type pair struct {
	id, secret, token string
	info              os.FileInfo
}

func (f credentialsFile) read() (p pair, err error) {
	file, err := os.Open(string(f))
	if err != nil {
		return p, fmt.Errorf("%w: credentials file: %w", ErrDenied, err)
	}
	defer file.Close()
	if p.info, err = file.Stat(); err != nil {
		return p, fmt.Errorf("%w: credentials file: %w", ErrDenied, err)
	}
	s := bufio.NewScanner(io.LimitReader(file, 64<<10))
	var plain []string
	for s.Scan() {
		line := strings.TrimSpace(s.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, value, found := strings.Cut(line, "=")
		switch name = strings.ToUpper(strings.TrimSpace(name)); {
		case found && (name == "MINIO_ROOT_USER" || name == "MINIO_ACCESS_KEY" || name == "AWS_ACCESS_KEY_ID"):
			p.id = strings.TrimSpace(value)
		case found && (name == "MINIO_ROOT_PASSWORD" || name == "MINIO_SECRET_KEY" || name == "AWS_SECRET_ACCESS_KEY"):
			p.secret = strings.TrimSpace(value)
		case found && name == "AWS_SESSION_TOKEN":
			p.token = strings.TrimSpace(value)
		default:
			plain = append(plain, line)
		}
	}
	if p.id == "" && p.secret == "" && len(plain) == 2 {
		p.id, p.secret = plain[0], plain[1]
	}
	if p.id == "" || p.secret == "" {
		// The lines themselves are not quoted: one of them is the secret.
		return p, fmt.Errorf("%w: credentials file %s: want two lines, access key and secret, or NAME=value with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY", ErrDenied, f)
	}
	return p, nil
}

// minioFile is a credentials file for minio-go.
type minioFile struct {
	file credentialsFile

	mu     sync.Mutex
	read   os.FileInfo // of the file that was read
	looked time.Time
	other  bool // than what was read is there now
}

func (f *minioFile) Retrieve() (credentials.Value, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	p, err := f.file.read()
	if err != nil {
		return credentials.Value{}, err
	}
	f.read, f.looked, f.other = p.info, time.Now(), false
	return credentials.Value{AccessKeyID: p.id, SecretAccessKey: p.secret, SessionToken: p.token, SignerType: credentials.SignatureV4}, nil
}

func (f *minioFile) RetrieveWithCredContext(*credentials.CredContext) (credentials.Value, error) {
	return f.Retrieve()
}

// IsExpired stays true until Retrieve: minio-go asks several times before it retrieves, and takes the last answer.
func (f *minioFile) IsExpired() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.other || time.Since(f.looked) < rereadCredentials {
		return f.other
	}
	f.looked = time.Now()
	info, err := os.Stat(string(f.file))
	// Two files that are written one right after the other may have the same time.
	f.other = err == nil && !(os.SameFile(info, f.read) && info.ModTime().Equal(f.read.ModTime()) && info.Size() == f.read.Size())
	return f.other
}

// awsFile is a credentials file for the AWS client, which asks again when what it was given has expired.
type awsFile struct{ file credentialsFile }

func (f awsFile) Retrieve(context.Context) (aws.Credentials, error) {
	p, err := f.file.read()
	if err != nil {
		return aws.Credentials{}, err
	}
	return aws.Credentials{AccessKeyID: p.id, SecretAccessKey: p.secret, SessionToken: p.token, Source: "credentials_file",
		CanExpire: true, Expires: time.Now().Add(rereadCredentials)}, nil
}
