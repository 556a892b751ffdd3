package main

import (
	"testing"

	"github.com/varve/varve/cmd/varve/servertest"
)

func TestDeleteRecords(t *testing.T) {
	s := servertest.Start(t, servertest.Options{})
	b := "--bootstrap-server=" + s.Addr()
	varve(t, "", "topic", "create", "t", b).want(t, 0, "t", "")
	varve(t, "1\n2\n3\n4\n5\n", "produce", "t", b).want(t, 0, "", "")
	varve(t, "", "partition", "delete-records", "t", "0", "--before", "3", b).want(t, 0, "TOPIC  PARTITION  LOG-START\nt      0          3\n", "")
	varve(t, "", "consume", "t", b, "--from-beginning", "--exit-at-end").want(t, 0, "4\n5\n", "")
	varve(t, "", "partition", "delete-records", "t", "0", "--before", "6", b).want(t, 1, "", "deleting the records of t, partition 0: ")
	varve(t, "", "partition", "delete-records", "t", "1", "--before", "1", b).want(t, 1, "", "UNKNOWN_TOPIC_OR_PARTITION")
	varve(t, "", "partition", "delete-records", "u", "0", "--before", "1", b).want(t, 1, "", "UNKNOWN_TOPIC_OR_PARTITION")
	varve(t, "", "partition", "delete-records", "t", "0", "--before", "-1", b, "-o", "json").want(t, 0, `"log_start": 5`, "")
	varve(t, "", "consume", "t", b, "--from-beginning", "--exit-at-end").want(t, 0, "", "")
}
