package objstore_test

import (
	"context"
	"os"
	"testing"

	"github.com/varve/varve/tiering/objstore"
	"github.com/varve/varve/tiering/objstore/objstoretest"
)

func openURL(url string) func(t *testing.T) objstore.Bucket {
	return func(t *testing.T) objstore.Bucket {
		t.Helper()
		b, err := objstore.Open(context.Background(), url, objstore.Options{})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
}

func TestAcceptMem(t *testing.T) {
	objstoretest.Run(t, openURL("mem://"), objstoretest.Options{})
}

func TestAcceptFile(t *testing.T) {
	objstoretest.Run(t, openURL("file://"+t.TempDir()), objstoretest.Options{})
}

func TestAcceptWrappers(t *testing.T) {
	objstoretest.Run(t, func(*testing.T) objstore.Bucket {
		return objstore.Observe(objstore.NewFaulty(objstore.NewMem(), 1), objstore.Events{})
	}, objstoretest.Options{})
}

const parts = "&part_threshold=5MiB&part_size=5MiB"

// The same against a real server: VARVE_TEST_MINIO is its host:port, credentials come from the environment.
func TestAcceptRealMinio(t *testing.T) {
	addr := os.Getenv("VARVE_TEST_MINIO")
	if addr == "" {
		t.Skip("VARVE_TEST_MINIO names no server")
	}
	for name, url := range map[string]string{
		"minio": "minio://" + addr + "/varve-accept-minio?create=true" + parts,
		"s3":    "s3://varve-accept-s3/p?create=true&endpoint=http://" + addr + parts,
	} {
		t.Run(name, func(t *testing.T) {
			if os.Getenv("AWS_ACCESS_KEY_ID") == "" {
				t.Setenv("AWS_ACCESS_KEY_ID", os.Getenv("MINIO_ROOT_USER"))
				t.Setenv("AWS_SECRET_ACCESS_KEY", os.Getenv("MINIO_ROOT_PASSWORD"))
			}
			objstoretest.Run(t, openURL(url), objstoretest.Options{PartThreshold: 5 << 20})
		})
	}
}
