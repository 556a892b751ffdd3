package broker

import "github.com/twmb/franz-go/pkg/kmsg"

var (
	keyProduce = kmsg.Produce.Int16()
	keyFetch   = kmsg.Fetch.Int16()
)

// registerAPIs is the list of what this broker serves. What is not in it is
// not advertised, and closes the connection of a client that sends it all the
// same, as Kafka does.
func (b *Broker) registerAPIs() {
	t := &b.apis
	t.register(keyProduce, b.produce)
	t.register(keyFetch, b.fetch)
	t.handle(kmsg.ListOffsets.Int16(), b.listOffsets)
	t.handle(kmsg.Metadata.Int16(), b.metadata)
	t.handle(kmsg.ApiVersions.Int16(), b.apiVersions)
	t.handle(kmsg.InitProducerID.Int16(), b.initProducerID)
	t.handle(kmsg.OffsetForLeaderEpoch.Int16(), b.offsetForLeaderEpoch)
	t.handle(kmsg.CreateTopics.Int16(), b.createTopics)
	t.handle(kmsg.DeleteTopics.Int16(), b.deleteTopics)
	t.handle(kmsg.CreatePartitions.Int16(), b.createPartitions)
	t.handle(kmsg.DeleteRecords.Int16(), b.deleteRecords)
	t.handle(kmsg.WriteTxnMarkers.Int16(), b.writeTxnMarkers)
	t.handle(kmsg.DescribeConfigs.Int16(), b.describeConfigs)
	t.handle(kmsg.AlterConfigs.Int16(), b.alterConfigs)
	t.handle(kmsg.IncrementalAlterConfigs.Int16(), b.incrementalAlterConfigs)
	t.handle(kmsg.DescribeLogDirs.Int16(), b.describeLogDirs)
	t.handle(kmsg.ElectLeaders.Int16(), b.electLeaders)
	t.handle(kmsg.AlterPartitionAssignments.Int16(), b.alterPartitionReassignments)
	t.handle(kmsg.ListPartitionReassignments.Int16(), b.listPartitionReassignments)
	t.handle(kmsg.DescribeCluster.Int16(), b.describeCluster)
	t.handle(kmsg.DescribeProducers.Int16(), b.describeProducers)
	t.handle(kmsg.UnregisterBroker.Int16(), b.unregisterBroker)
	t.handle(kmsg.ListConfigResources.Int16(), b.listConfigResources)
	t.handle(kmsg.DescribeTopicPartitions.Int16(), b.describeTopicPartitions)
	b.registerGroupAPIs()
	b.registerTxnAPIs()
}
