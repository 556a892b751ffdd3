package objstore_test

import (
	"testing"

	"github.com/varve/varve/tiering/objstore/objstoretest"
	"github.com/varve/varve/tiering/objstore/s3test"
)

func TestAcceptS3(t *testing.T) {
	s := s3test.Start(t)
	objstoretest.Run(t, openURL(s.S3("accept-s3")+parts), objstoretest.Options{PartThreshold: 5 << 20})
}

func TestAcceptS3Prefix(t *testing.T) {
	s := s3test.Start(t)
	objstoretest.Run(t, openURL("s3://accept-s3/a/prefix?create=true&endpoint=http://"+s.Addr+parts+"&sign_payload=true&conditional=false"), objstoretest.Options{PartThreshold: 5 << 20, NoCondition: true})
}

func TestAcceptMinio(t *testing.T) {
	s := s3test.Start(t)
	objstoretest.Run(t, openURL(s.Minio("accept-minio")+parts), objstoretest.Options{PartThreshold: 5 << 20})
}

func TestAcceptMinioPrefix(t *testing.T) {
	s := s3test.Start(t)
	objstoretest.Run(t, openURL("minio://"+s.Addr+"/accept-minio/a/prefix?create=true"+parts+"&sign_payload=true"), objstoretest.Options{PartThreshold: 5 << 20})
}
