package protocol

// Facing says who sends a request.
type Facing uint8

const (
	FacingClient Facing = 1 << iota // producers and consumers
	FacingAdmin                     // administration tools
	FacingBroker                    // brokers and controllers among themselves: refused on a client listener
)

// Versions is what Kafka 4.2 serves of one API key.
type Versions struct {
	Key      int16
	Name     string
	Min, Max int16 // served; anything else is answered with CodeUnsupportedVersion

	// AdvertisedMin is what ApiVersions says, and is Min but for Produce: librdkafka compresses only when a broker claims
	// Produce v0, so that Kafka advertises 0 (KAFKA-18659) while it refuses 0-2.
	AdvertisedMin int16

	Facing Facing
}

// Served has the versions of a key; ok is false when Kafka 4.2 does not know the key.
func Served(key int16) (Versions, bool) {
	if key < 0 || int(key) >= len(servedAt) || servedAt[key] == 0 {
		return Versions{}, false
	}
	return served[servedAt[key]-1], true
}

// Supported is the whole table, in ascending order of keys; it must not be changed. A broker advertises the keys of it
// that it implements.
func Supported() []Versions { return served }

// served leaves out what Kafka 4.2 has but keeps unstable (InitProducerId v6) and what came after it.
var served = []Versions{
	{Key: 0, Name: "Produce", Min: 3, Max: 13, AdvertisedMin: 0, Facing: FacingClient},
	{Key: 1, Name: "Fetch", Min: 4, Max: 18, AdvertisedMin: 4, Facing: FacingClient | FacingBroker},
	{Key: 2, Name: "ListOffsets", Min: 1, Max: 11, AdvertisedMin: 1, Facing: FacingClient},
	{Key: 3, Name: "Metadata", Min: 0, Max: 13, AdvertisedMin: 0, Facing: FacingClient},
	{Key: 8, Name: "OffsetCommit", Min: 2, Max: 10, AdvertisedMin: 2, Facing: FacingClient},
	{Key: 9, Name: "OffsetFetch", Min: 1, Max: 10, AdvertisedMin: 1, Facing: FacingClient},
	{Key: 10, Name: "FindCoordinator", Min: 0, Max: 6, AdvertisedMin: 0, Facing: FacingClient},
	{Key: 11, Name: "JoinGroup", Min: 0, Max: 9, AdvertisedMin: 0, Facing: FacingClient},
	{Key: 12, Name: "Heartbeat", Min: 0, Max: 4, AdvertisedMin: 0, Facing: FacingClient},
	{Key: 13, Name: "LeaveGroup", Min: 0, Max: 5, AdvertisedMin: 0, Facing: FacingClient},
	{Key: 14, Name: "SyncGroup", Min: 0, Max: 5, AdvertisedMin: 0, Facing: FacingClient},
	{Key: 15, Name: "DescribeGroups", Min: 0, Max: 6, AdvertisedMin: 0, Facing: FacingAdmin},
	{Key: 16, Name: "ListGroups", Min: 0, Max: 5, AdvertisedMin: 0, Facing: FacingAdmin},
	{Key: 17, Name: "SaslHandshake", Min: 0, Max: 1, AdvertisedMin: 0, Facing: FacingClient},
	{Key: 18, Name: "ApiVersions", Min: 0, Max: 4, AdvertisedMin: 0, Facing: FacingClient},
	{Key: 19, Name: "CreateTopics", Min: 2, Max: 7, AdvertisedMin: 2, Facing: FacingAdmin},
	{Key: 20, Name: "DeleteTopics", Min: 1, Max: 6, AdvertisedMin: 1, Facing: FacingAdmin},
	{Key: 21, Name: "DeleteRecords", Min: 0, Max: 2, AdvertisedMin: 0, Facing: FacingAdmin},
	{Key: 22, Name: "InitProducerId", Min: 0, Max: 5, AdvertisedMin: 0, Facing: FacingClient},
	{Key: 23, Name: "OffsetForLeaderEpoch", Min: 2, Max: 4, AdvertisedMin: 2, Facing: FacingClient | FacingBroker},
	{Key: 24, Name: "AddPartitionsToTxn", Min: 0, Max: 5, AdvertisedMin: 0, Facing: FacingClient | FacingBroker},
	{Key: 25, Name: "AddOffsetsToTxn", Min: 0, Max: 4, AdvertisedMin: 0, Facing: FacingClient},
	{Key: 26, Name: "EndTxn", Min: 0, Max: 5, AdvertisedMin: 0, Facing: FacingClient},
	{Key: 27, Name: "WriteTxnMarkers", Min: 1, Max: 2, AdvertisedMin: 1, Facing: FacingBroker | FacingAdmin},
	{Key: 28, Name: "TxnOffsetCommit", Min: 0, Max: 5, AdvertisedMin: 0, Facing: FacingClient},
	{Key: 29, Name: "DescribeAcls", Min: 1, Max: 3, AdvertisedMin: 1, Facing: FacingAdmin},
	{Key: 30, Name: "CreateAcls", Min: 1, Max: 3, AdvertisedMin: 1, Facing: FacingAdmin},
	{Key: 31, Name: "DeleteAcls", Min: 1, Max: 3, AdvertisedMin: 1, Facing: FacingAdmin},
	{Key: 32, Name: "DescribeConfigs", Min: 1, Max: 4, AdvertisedMin: 1, Facing: FacingAdmin},
	{Key: 33, Name: "AlterConfigs", Min: 0, Max: 2, AdvertisedMin: 0, Facing: FacingAdmin},
	{Key: 34, Name: "AlterReplicaLogDirs", Min: 1, Max: 2, AdvertisedMin: 1, Facing: FacingAdmin},
	{Key: 35, Name: "DescribeLogDirs", Min: 1, Max: 4, AdvertisedMin: 1, Facing: FacingAdmin},
	{Key: 36, Name: "SaslAuthenticate", Min: 0, Max: 2, AdvertisedMin: 0, Facing: FacingClient},
	{Key: 37, Name: "CreatePartitions", Min: 0, Max: 3, AdvertisedMin: 0, Facing: FacingAdmin},
	{Key: 38, Name: "CreateDelegationToken", Min: 1, Max: 3, AdvertisedMin: 1, Facing: FacingAdmin},
	{Key: 39, Name: "RenewDelegationToken", Min: 1, Max: 2, AdvertisedMin: 1, Facing: FacingAdmin},
	{Key: 40, Name: "ExpireDelegationToken", Min: 1, Max: 2, AdvertisedMin: 1, Facing: FacingAdmin},
	{Key: 41, Name: "DescribeDelegationToken", Min: 1, Max: 3, AdvertisedMin: 1, Facing: FacingAdmin},
	{Key: 42, Name: "DeleteGroups", Min: 0, Max: 2, AdvertisedMin: 0, Facing: FacingAdmin},
	{Key: 43, Name: "ElectLeaders", Min: 0, Max: 2, AdvertisedMin: 0, Facing: FacingAdmin},
	{Key: 44, Name: "IncrementalAlterConfigs", Min: 0, Max: 1, AdvertisedMin: 0, Facing: FacingAdmin},
	{Key: 45, Name: "AlterPartitionReassignments", Min: 0, Max: 1, AdvertisedMin: 0, Facing: FacingAdmin},
	{Key: 46, Name: "ListPartitionReassignments", Min: 0, Max: 0, AdvertisedMin: 0, Facing: FacingAdmin},
	{Key: 47, Name: "OffsetDelete", Min: 0, Max: 0, AdvertisedMin: 0, Facing: FacingAdmin},
	{Key: 48, Name: "DescribeClientQuotas", Min: 0, Max: 1, AdvertisedMin: 0, Facing: FacingAdmin},
	{Key: 49, Name: "AlterClientQuotas", Min: 0, Max: 1, AdvertisedMin: 0, Facing: FacingAdmin},
	{Key: 50, Name: "DescribeUserScramCredentials", Min: 0, Max: 0, AdvertisedMin: 0, Facing: FacingAdmin},
	{Key: 51, Name: "AlterUserScramCredentials", Min: 0, Max: 0, AdvertisedMin: 0, Facing: FacingAdmin},
	{Key: 52, Name: "Vote", Min: 0, Max: 2, AdvertisedMin: 0, Facing: FacingBroker},
	{Key: 53, Name: "BeginQuorumEpoch", Min: 0, Max: 1, AdvertisedMin: 0, Facing: FacingBroker},
	{Key: 54, Name: "EndQuorumEpoch", Min: 0, Max: 1, AdvertisedMin: 0, Facing: FacingBroker},
	{Key: 55, Name: "DescribeQuorum", Min: 0, Max: 2, AdvertisedMin: 0, Facing: FacingAdmin},
	{Key: 56, Name: "AlterPartition", Min: 2, Max: 3, AdvertisedMin: 2, Facing: FacingBroker},
	{Key: 57, Name: "UpdateFeatures", Min: 0, Max: 2, AdvertisedMin: 0, Facing: FacingAdmin},
	{Key: 58, Name: "Envelope", Min: 0, Max: 0, AdvertisedMin: 0, Facing: FacingBroker},
	{Key: 59, Name: "FetchSnapshot", Min: 0, Max: 1, AdvertisedMin: 0, Facing: FacingBroker},
	{Key: 60, Name: "DescribeCluster", Min: 0, Max: 2, AdvertisedMin: 0, Facing: FacingAdmin},
	{Key: 61, Name: "DescribeProducers", Min: 0, Max: 0, AdvertisedMin: 0, Facing: FacingAdmin},
	{Key: 62, Name: "BrokerRegistration", Min: 0, Max: 4, AdvertisedMin: 0, Facing: FacingBroker},
	{Key: 63, Name: "BrokerHeartbeat", Min: 0, Max: 1, AdvertisedMin: 0, Facing: FacingBroker},
	{Key: 64, Name: "UnregisterBroker", Min: 0, Max: 0, AdvertisedMin: 0, Facing: FacingAdmin},
	{Key: 65, Name: "DescribeTransactions", Min: 0, Max: 0, AdvertisedMin: 0, Facing: FacingAdmin},
	{Key: 66, Name: "ListTransactions", Min: 0, Max: 2, AdvertisedMin: 0, Facing: FacingAdmin},
	{Key: 67, Name: "AllocateProducerIds", Min: 0, Max: 0, AdvertisedMin: 0, Facing: FacingBroker},
	{Key: 68, Name: "ConsumerGroupHeartbeat", Min: 0, Max: 1, AdvertisedMin: 0, Facing: FacingClient},
	{Key: 69, Name: "ConsumerGroupDescribe", Min: 0, Max: 1, AdvertisedMin: 0, Facing: FacingAdmin},
	{Key: 70, Name: "ControllerRegistration", Min: 0, Max: 0, AdvertisedMin: 0, Facing: FacingBroker},
	{Key: 71, Name: "GetTelemetrySubscriptions", Min: 0, Max: 0, AdvertisedMin: 0, Facing: FacingClient},
	{Key: 72, Name: "PushTelemetry", Min: 0, Max: 0, AdvertisedMin: 0, Facing: FacingClient},
	{Key: 73, Name: "AssignReplicasToDirs", Min: 0, Max: 0, AdvertisedMin: 0, Facing: FacingBroker},
	{Key: 74, Name: "ListConfigResources", Min: 0, Max: 1, AdvertisedMin: 0, Facing: FacingAdmin},
	{Key: 75, Name: "DescribeTopicPartitions", Min: 0, Max: 0, AdvertisedMin: 0, Facing: FacingAdmin},
	{Key: 76, Name: "ShareGroupHeartbeat", Min: 1, Max: 1, AdvertisedMin: 1, Facing: FacingClient},
	{Key: 77, Name: "ShareGroupDescribe", Min: 1, Max: 1, AdvertisedMin: 1, Facing: FacingAdmin},
	{Key: 78, Name: "ShareFetch", Min: 1, Max: 2, AdvertisedMin: 1, Facing: FacingClient},
	{Key: 79, Name: "ShareAcknowledge", Min: 1, Max: 2, AdvertisedMin: 1, Facing: FacingClient},
	{Key: 80, Name: "AddRaftVoter", Min: 0, Max: 1, AdvertisedMin: 0, Facing: FacingAdmin},
	{Key: 81, Name: "RemoveRaftVoter", Min: 0, Max: 0, AdvertisedMin: 0, Facing: FacingAdmin},
	{Key: 82, Name: "UpdateRaftVoter", Min: 0, Max: 0, AdvertisedMin: 0, Facing: FacingBroker},
	{Key: 83, Name: "InitializeShareGroupState", Min: 0, Max: 0, AdvertisedMin: 0, Facing: FacingBroker},
	{Key: 84, Name: "ReadShareGroupState", Min: 0, Max: 0, AdvertisedMin: 0, Facing: FacingBroker},
	{Key: 85, Name: "WriteShareGroupState", Min: 0, Max: 1, AdvertisedMin: 0, Facing: FacingBroker},
	{Key: 86, Name: "DeleteShareGroupState", Min: 0, Max: 0, AdvertisedMin: 0, Facing: FacingBroker},
	{Key: 87, Name: "ReadShareGroupStateSummary", Min: 0, Max: 1, AdvertisedMin: 0, Facing: FacingBroker},
	{Key: 88, Name: "StreamsGroupHeartbeat", Min: 0, Max: 0, AdvertisedMin: 0, Facing: FacingClient},
	{Key: 89, Name: "StreamsGroupDescribe", Min: 0, Max: 0, AdvertisedMin: 0, Facing: FacingAdmin},
	{Key: 90, Name: "DescribeShareGroupOffsets", Min: 0, Max: 1, AdvertisedMin: 0, Facing: FacingAdmin},
	{Key: 91, Name: "AlterShareGroupOffsets", Min: 0, Max: 0, AdvertisedMin: 0, Facing: FacingAdmin},
	{Key: 92, Name: "DeleteShareGroupOffsets", Min: 0, Max: 0, AdvertisedMin: 0, Facing: FacingAdmin},
}

// servedAt is the index of a key in served, plus one.
var servedAt = func() (at [128]uint8) {
	for i, v := range served {
		at[v.Key] = uint8(i + 1)
	}
	return at
}()
