package protocol

import "github.com/twmb/franz-go/pkg/kerr"

// The error codes of the Kafka protocol, as they travel in responses. The list is closed: codeNames has an entry for
// every value from CodeUnknownServerError to CodeControllerIDNotRegistered, which a test compares with kerr.
const (
	CodeUnknownServerError                     int16 = -1
	CodeNone                                   int16 = 0
	CodeOffsetOutOfRange                       int16 = 1
	CodeCorruptMessage                         int16 = 2
	CodeUnknownTopicOrPartition                int16 = 3
	CodeInvalidFetchSize                       int16 = 4
	CodeLeaderNotAvailable                     int16 = 5
	CodeNotLeaderOrFollower                    int16 = 6
	CodeRequestTimedOut                        int16 = 7
	CodeBrokerNotAvailable                     int16 = 8
	CodeReplicaNotAvailable                    int16 = 9
	CodeMessageTooLarge                        int16 = 10
	CodeStaleControllerEpoch                   int16 = 11
	CodeOffsetMetadataTooLarge                 int16 = 12
	CodeNetworkException                       int16 = 13
	CodeCoordinatorLoadInProgress              int16 = 14
	CodeCoordinatorNotAvailable                int16 = 15
	CodeNotCoordinator                         int16 = 16
	CodeInvalidTopicException                  int16 = 17
	CodeRecordListTooLarge                     int16 = 18
	CodeNotEnoughReplicas                      int16 = 19
	CodeNotEnoughReplicasAfterAppend           int16 = 20
	CodeInvalidRequiredAcks                    int16 = 21
	CodeIllegalGeneration                      int16 = 22
	CodeInconsistentGroupProtocol              int16 = 23
	CodeInvalidGroupID                         int16 = 24
	CodeUnknownMemberID                        int16 = 25
	CodeInvalidSessionTimeout                  int16 = 26
	CodeRebalanceInProgress                    int16 = 27
	CodeInvalidCommitOffsetSize                int16 = 28
	CodeTopicAuthorizationFailed               int16 = 29
	CodeGroupAuthorizationFailed               int16 = 30
	CodeClusterAuthorizationFailed             int16 = 31
	CodeInvalidTimestamp                       int16 = 32
	CodeUnsupportedSASLMechanism               int16 = 33
	CodeIllegalSASLState                       int16 = 34
	CodeUnsupportedVersion                     int16 = 35
	CodeTopicAlreadyExists                     int16 = 36
	CodeInvalidPartitions                      int16 = 37
	CodeInvalidReplicationFactor               int16 = 38
	CodeInvalidReplicaAssignment               int16 = 39
	CodeInvalidConfig                          int16 = 40
	CodeNotController                          int16 = 41
	CodeInvalidRequest                         int16 = 42
	CodeUnsupportedForMessageFormat            int16 = 43
	CodePolicyViolation                        int16 = 44
	CodeOutOfOrderSequenceNumber               int16 = 45
	CodeDuplicateSequenceNumber                int16 = 46
	CodeInvalidProducerEpoch                   int16 = 47
	CodeInvalidTxnState                        int16 = 48
	CodeInvalidProducerIDMapping               int16 = 49
	CodeInvalidTransactionTimeout              int16 = 50
	CodeConcurrentTransactions                 int16 = 51
	CodeTransactionCoordinatorFenced           int16 = 52
	CodeTransactionalIDAuthorizationFailed     int16 = 53
	CodeSecurityDisabled                       int16 = 54
	CodeOperationNotAttempted                  int16 = 55
	CodeKafkaStorageError                      int16 = 56
	CodeLogDirNotFound                         int16 = 57
	CodeSASLAuthenticationFailed               int16 = 58
	CodeUnknownProducerID                      int16 = 59
	CodeReassignmentInProgress                 int16 = 60
	CodeDelegationTokenAuthDisabled            int16 = 61
	CodeDelegationTokenNotFound                int16 = 62
	CodeDelegationTokenOwnerMismatch           int16 = 63
	CodeDelegationTokenRequestNotAllowed       int16 = 64
	CodeDelegationTokenAuthorizationFailed     int16 = 65
	CodeDelegationTokenExpired                 int16 = 66
	CodeInvalidPrincipalType                   int16 = 67
	CodeNonEmptyGroup                          int16 = 68
	CodeGroupIDNotFound                        int16 = 69
	CodeFetchSessionIDNotFound                 int16 = 70
	CodeInvalidFetchSessionEpoch               int16 = 71
	CodeListenerNotFound                       int16 = 72
	CodeTopicDeletionDisabled                  int16 = 73
	CodeFencedLeaderEpoch                      int16 = 74
	CodeUnknownLeaderEpoch                     int16 = 75
	CodeUnsupportedCompressionType             int16 = 76
	CodeStaleBrokerEpoch                       int16 = 77
	CodeOffsetNotAvailable                     int16 = 78
	CodeMemberIDRequired                       int16 = 79
	CodePreferredLeaderNotAvailable            int16 = 80
	CodeGroupMaxSizeReached                    int16 = 81
	CodeFencedInstanceID                       int16 = 82
	CodeEligibleLeadersNotAvailable            int16 = 83
	CodeElectionNotNeeded                      int16 = 84
	CodeNoReassignmentInProgress               int16 = 85
	CodeGroupSubscribedToTopic                 int16 = 86
	CodeInvalidRecord                          int16 = 87
	CodeUnstableOffsetCommit                   int16 = 88
	CodeThrottlingQuotaExceeded                int16 = 89
	CodeProducerFenced                         int16 = 90
	CodeResourceNotFound                       int16 = 91
	CodeDuplicateResource                      int16 = 92
	CodeUnacceptableCredential                 int16 = 93
	CodeInconsistentVoterSet                   int16 = 94
	CodeInvalidUpdateVersion                   int16 = 95
	CodeFeatureUpdateFailed                    int16 = 96
	CodePrincipalDeserializationFailure        int16 = 97
	CodeSnapshotNotFound                       int16 = 98
	CodePositionOutOfRange                     int16 = 99
	CodeUnknownTopicID                         int16 = 100
	CodeDuplicateBrokerRegistration            int16 = 101
	CodeBrokerIDNotRegistered                  int16 = 102
	CodeInconsistentTopicID                    int16 = 103
	CodeInconsistentClusterID                  int16 = 104
	CodeTransactionalIDNotFound                int16 = 105
	CodeFetchSessionTopicIDError               int16 = 106
	CodeIneligibleReplica                      int16 = 107
	CodeNewLeaderElected                       int16 = 108
	CodeOffsetMovedToTieredStorage             int16 = 109
	CodeFencedMemberEpoch                      int16 = 110
	CodeUnreleasedInstanceID                   int16 = 111
	CodeUnsupportedAssignor                    int16 = 112
	CodeStaleMemberEpoch                       int16 = 113
	CodeMismatchedEndpointType                 int16 = 114
	CodeUnsupportedEndpointType                int16 = 115
	CodeUnknownControllerID                    int16 = 116
	CodeUnknownSubscriptionID                  int16 = 117
	CodeTelemetryTooLarge                      int16 = 118
	CodeInvalidRegistration                    int16 = 119
	CodeTransactionAbortable                   int16 = 120
	CodeInvalidRecordState                     int16 = 121
	CodeShareSessionNotFound                   int16 = 122
	CodeInvalidShareSessionEpoch               int16 = 123
	CodeFencedStateEpoch                       int16 = 124
	CodeInvalidVoterKey                        int16 = 125
	CodeDuplicateVoter                         int16 = 126
	CodeVoterNotFound                          int16 = 127
	CodeInvalidRegularExpression               int16 = 128
	CodeRebootstrapRequired                    int16 = 129
	CodeStreamsInvalidTopology                 int16 = 130
	CodeStreamsInvalidTopologyEpoch            int16 = 131
	CodeStreamsTopologyFenced                  int16 = 132
	CodeShareSessionLimitReached               int16 = 133
	CodeGroupDeletionFailed                    int16 = 134
	CodeStreamsTopologyDescriptionUpdateFailed int16 = 135
	CodeControllerIDNotRegistered              int16 = 136
)

// Name is the protocol's name of a code, such as UNKNOWN_TOPIC_OR_PARTITION; a code that is not in the list is named
// UNKNOWN_SERVER_ERROR, which is how clients treat it.
func Name(code int16) string {
	if i := int(code) + 1; i >= 0 && i < len(codeNames) {
		return codeNames[i]
	}
	return codeNames[0]
}

// Message is a sentence for the error-message field of a response; empty for CodeNone.
func Message(code int16) string {
	if code == CodeNone {
		return ""
	}
	if e := kerr.TypedErrorForCode(code); e != nil {
		return e.Description
	}
	return kerr.UnknownServerError.Description
}

// Retriable says whether a client is expected to send the same request again after this code.
func Retriable(code int16) bool {
	e := kerr.TypedErrorForCode(code)
	return e != nil && e.Retriable
}

// codeNames is indexed by code + 1.
var codeNames = [...]string{
	CodeUnknownServerError + 1:                     "UNKNOWN_SERVER_ERROR",
	CodeNone + 1:                                   "NONE",
	CodeOffsetOutOfRange + 1:                       "OFFSET_OUT_OF_RANGE",
	CodeCorruptMessage + 1:                         "CORRUPT_MESSAGE",
	CodeUnknownTopicOrPartition + 1:                "UNKNOWN_TOPIC_OR_PARTITION",
	CodeInvalidFetchSize + 1:                       "INVALID_FETCH_SIZE",
	CodeLeaderNotAvailable + 1:                     "LEADER_NOT_AVAILABLE",
	CodeNotLeaderOrFollower + 1:                    "NOT_LEADER_OR_FOLLOWER",
	CodeRequestTimedOut + 1:                        "REQUEST_TIMED_OUT",
	CodeBrokerNotAvailable + 1:                     "BROKER_NOT_AVAILABLE",
	CodeReplicaNotAvailable + 1:                    "REPLICA_NOT_AVAILABLE",
	CodeMessageTooLarge + 1:                        "MESSAGE_TOO_LARGE",
	CodeStaleControllerEpoch + 1:                   "STALE_CONTROLLER_EPOCH",
	CodeOffsetMetadataTooLarge + 1:                 "OFFSET_METADATA_TOO_LARGE",
	CodeNetworkException + 1:                       "NETWORK_EXCEPTION",
	CodeCoordinatorLoadInProgress + 1:              "COORDINATOR_LOAD_IN_PROGRESS",
	CodeCoordinatorNotAvailable + 1:                "COORDINATOR_NOT_AVAILABLE",
	CodeNotCoordinator + 1:                         "NOT_COORDINATOR",
	CodeInvalidTopicException + 1:                  "INVALID_TOPIC_EXCEPTION",
	CodeRecordListTooLarge + 1:                     "RECORD_LIST_TOO_LARGE",
	CodeNotEnoughReplicas + 1:                      "NOT_ENOUGH_REPLICAS",
	CodeNotEnoughReplicasAfterAppend + 1:           "NOT_ENOUGH_REPLICAS_AFTER_APPEND",
	CodeInvalidRequiredAcks + 1:                    "INVALID_REQUIRED_ACKS",
	CodeIllegalGeneration + 1:                      "ILLEGAL_GENERATION",
	CodeInconsistentGroupProtocol + 1:              "INCONSISTENT_GROUP_PROTOCOL",
	CodeInvalidGroupID + 1:                         "INVALID_GROUP_ID",
	CodeUnknownMemberID + 1:                        "UNKNOWN_MEMBER_ID",
	CodeInvalidSessionTimeout + 1:                  "INVALID_SESSION_TIMEOUT",
	CodeRebalanceInProgress + 1:                    "REBALANCE_IN_PROGRESS",
	CodeInvalidCommitOffsetSize + 1:                "INVALID_COMMIT_OFFSET_SIZE",
	CodeTopicAuthorizationFailed + 1:               "TOPIC_AUTHORIZATION_FAILED",
	CodeGroupAuthorizationFailed + 1:               "GROUP_AUTHORIZATION_FAILED",
	CodeClusterAuthorizationFailed + 1:             "CLUSTER_AUTHORIZATION_FAILED",
	CodeInvalidTimestamp + 1:                       "INVALID_TIMESTAMP",
	CodeUnsupportedSASLMechanism + 1:               "UNSUPPORTED_SASL_MECHANISM",
	CodeIllegalSASLState + 1:                       "ILLEGAL_SASL_STATE",
	CodeUnsupportedVersion + 1:                     "UNSUPPORTED_VERSION",
	CodeTopicAlreadyExists + 1:                     "TOPIC_ALREADY_EXISTS",
	CodeInvalidPartitions + 1:                      "INVALID_PARTITIONS",
	CodeInvalidReplicationFactor + 1:               "INVALID_REPLICATION_FACTOR",
	CodeInvalidReplicaAssignment + 1:               "INVALID_REPLICA_ASSIGNMENT",
	CodeInvalidConfig + 1:                          "INVALID_CONFIG",
	CodeNotController + 1:                          "NOT_CONTROLLER",
	CodeInvalidRequest + 1:                         "INVALID_REQUEST",
	CodeUnsupportedForMessageFormat + 1:            "UNSUPPORTED_FOR_MESSAGE_FORMAT",
	CodePolicyViolation + 1:                        "POLICY_VIOLATION",
	CodeOutOfOrderSequenceNumber + 1:               "OUT_OF_ORDER_SEQUENCE_NUMBER",
	CodeDuplicateSequenceNumber + 1:                "DUPLICATE_SEQUENCE_NUMBER",
	CodeInvalidProducerEpoch + 1:                   "INVALID_PRODUCER_EPOCH",
	CodeInvalidTxnState + 1:                        "INVALID_TXN_STATE",
	CodeInvalidProducerIDMapping + 1:               "INVALID_PRODUCER_ID_MAPPING",
	CodeInvalidTransactionTimeout + 1:              "INVALID_TRANSACTION_TIMEOUT",
	CodeConcurrentTransactions + 1:                 "CONCURRENT_TRANSACTIONS",
	CodeTransactionCoordinatorFenced + 1:           "TRANSACTION_COORDINATOR_FENCED",
	CodeTransactionalIDAuthorizationFailed + 1:     "TRANSACTIONAL_ID_AUTHORIZATION_FAILED",
	CodeSecurityDisabled + 1:                       "SECURITY_DISABLED",
	CodeOperationNotAttempted + 1:                  "OPERATION_NOT_ATTEMPTED",
	CodeKafkaStorageError + 1:                      "KAFKA_STORAGE_ERROR",
	CodeLogDirNotFound + 1:                         "LOG_DIR_NOT_FOUND",
	CodeSASLAuthenticationFailed + 1:               "SASL_AUTHENTICATION_FAILED",
	CodeUnknownProducerID + 1:                      "UNKNOWN_PRODUCER_ID",
	CodeReassignmentInProgress + 1:                 "REASSIGNMENT_IN_PROGRESS",
	CodeDelegationTokenAuthDisabled + 1:            "DELEGATION_TOKEN_AUTH_DISABLED",
	CodeDelegationTokenNotFound + 1:                "DELEGATION_TOKEN_NOT_FOUND",
	CodeDelegationTokenOwnerMismatch + 1:           "DELEGATION_TOKEN_OWNER_MISMATCH",
	CodeDelegationTokenRequestNotAllowed + 1:       "DELEGATION_TOKEN_REQUEST_NOT_ALLOWED",
	CodeDelegationTokenAuthorizationFailed + 1:     "DELEGATION_TOKEN_AUTHORIZATION_FAILED",
	CodeDelegationTokenExpired + 1:                 "DELEGATION_TOKEN_EXPIRED",
	CodeInvalidPrincipalType + 1:                   "INVALID_PRINCIPAL_TYPE",
	CodeNonEmptyGroup + 1:                          "NON_EMPTY_GROUP",
	CodeGroupIDNotFound + 1:                        "GROUP_ID_NOT_FOUND",
	CodeFetchSessionIDNotFound + 1:                 "FETCH_SESSION_ID_NOT_FOUND",
	CodeInvalidFetchSessionEpoch + 1:               "INVALID_FETCH_SESSION_EPOCH",
	CodeListenerNotFound + 1:                       "LISTENER_NOT_FOUND",
	CodeTopicDeletionDisabled + 1:                  "TOPIC_DELETION_DISABLED",
	CodeFencedLeaderEpoch + 1:                      "FENCED_LEADER_EPOCH",
	CodeUnknownLeaderEpoch + 1:                     "UNKNOWN_LEADER_EPOCH",
	CodeUnsupportedCompressionType + 1:             "UNSUPPORTED_COMPRESSION_TYPE",
	CodeStaleBrokerEpoch + 1:                       "STALE_BROKER_EPOCH",
	CodeOffsetNotAvailable + 1:                     "OFFSET_NOT_AVAILABLE",
	CodeMemberIDRequired + 1:                       "MEMBER_ID_REQUIRED",
	CodePreferredLeaderNotAvailable + 1:            "PREFERRED_LEADER_NOT_AVAILABLE",
	CodeGroupMaxSizeReached + 1:                    "GROUP_MAX_SIZE_REACHED",
	CodeFencedInstanceID + 1:                       "FENCED_INSTANCE_ID",
	CodeEligibleLeadersNotAvailable + 1:            "ELIGIBLE_LEADERS_NOT_AVAILABLE",
	CodeElectionNotNeeded + 1:                      "ELECTION_NOT_NEEDED",
	CodeNoReassignmentInProgress + 1:               "NO_REASSIGNMENT_IN_PROGRESS",
	CodeGroupSubscribedToTopic + 1:                 "GROUP_SUBSCRIBED_TO_TOPIC",
	CodeInvalidRecord + 1:                          "INVALID_RECORD",
	CodeUnstableOffsetCommit + 1:                   "UNSTABLE_OFFSET_COMMIT",
	CodeThrottlingQuotaExceeded + 1:                "THROTTLING_QUOTA_EXCEEDED",
	CodeProducerFenced + 1:                         "PRODUCER_FENCED",
	CodeResourceNotFound + 1:                       "RESOURCE_NOT_FOUND",
	CodeDuplicateResource + 1:                      "DUPLICATE_RESOURCE",
	CodeUnacceptableCredential + 1:                 "UNACCEPTABLE_CREDENTIAL",
	CodeInconsistentVoterSet + 1:                   "INCONSISTENT_VOTER_SET",
	CodeInvalidUpdateVersion + 1:                   "INVALID_UPDATE_VERSION",
	CodeFeatureUpdateFailed + 1:                    "FEATURE_UPDATE_FAILED",
	CodePrincipalDeserializationFailure + 1:        "PRINCIPAL_DESERIALIZATION_FAILURE",
	CodeSnapshotNotFound + 1:                       "SNAPSHOT_NOT_FOUND",
	CodePositionOutOfRange + 1:                     "POSITION_OUT_OF_RANGE",
	CodeUnknownTopicID + 1:                         "UNKNOWN_TOPIC_ID",
	CodeDuplicateBrokerRegistration + 1:            "DUPLICATE_BROKER_REGISTRATION",
	CodeBrokerIDNotRegistered + 1:                  "BROKER_ID_NOT_REGISTERED",
	CodeInconsistentTopicID + 1:                    "INCONSISTENT_TOPIC_ID",
	CodeInconsistentClusterID + 1:                  "INCONSISTENT_CLUSTER_ID",
	CodeTransactionalIDNotFound + 1:                "TRANSACTIONAL_ID_NOT_FOUND",
	CodeFetchSessionTopicIDError + 1:               "FETCH_SESSION_TOPIC_ID_ERROR",
	CodeIneligibleReplica + 1:                      "INELIGIBLE_REPLICA",
	CodeNewLeaderElected + 1:                       "NEW_LEADER_ELECTED",
	CodeOffsetMovedToTieredStorage + 1:             "OFFSET_MOVED_TO_TIERED_STORAGE",
	CodeFencedMemberEpoch + 1:                      "FENCED_MEMBER_EPOCH",
	CodeUnreleasedInstanceID + 1:                   "UNRELEASED_INSTANCE_ID",
	CodeUnsupportedAssignor + 1:                    "UNSUPPORTED_ASSIGNOR",
	CodeStaleMemberEpoch + 1:                       "STALE_MEMBER_EPOCH",
	CodeMismatchedEndpointType + 1:                 "MISMATCHED_ENDPOINT_TYPE",
	CodeUnsupportedEndpointType + 1:                "UNSUPPORTED_ENDPOINT_TYPE",
	CodeUnknownControllerID + 1:                    "UNKNOWN_CONTROLLER_ID",
	CodeUnknownSubscriptionID + 1:                  "UNKNOWN_SUBSCRIPTION_ID",
	CodeTelemetryTooLarge + 1:                      "TELEMETRY_TOO_LARGE",
	CodeInvalidRegistration + 1:                    "INVALID_REGISTRATION",
	CodeTransactionAbortable + 1:                   "TRANSACTION_ABORTABLE",
	CodeInvalidRecordState + 1:                     "INVALID_RECORD_STATE",
	CodeShareSessionNotFound + 1:                   "SHARE_SESSION_NOT_FOUND",
	CodeInvalidShareSessionEpoch + 1:               "INVALID_SHARE_SESSION_EPOCH",
	CodeFencedStateEpoch + 1:                       "FENCED_STATE_EPOCH",
	CodeInvalidVoterKey + 1:                        "INVALID_VOTER_KEY",
	CodeDuplicateVoter + 1:                         "DUPLICATE_VOTER",
	CodeVoterNotFound + 1:                          "VOTER_NOT_FOUND",
	CodeInvalidRegularExpression + 1:               "INVALID_REGULAR_EXPRESSION",
	CodeRebootstrapRequired + 1:                    "REBOOTSTRAP_REQUIRED",
	CodeStreamsInvalidTopology + 1:                 "STREAMS_INVALID_TOPOLOGY",
	CodeStreamsInvalidTopologyEpoch + 1:            "STREAMS_INVALID_TOPOLOGY_EPOCH",
	CodeStreamsTopologyFenced + 1:                  "STREAMS_TOPOLOGY_FENCED",
	CodeShareSessionLimitReached + 1:               "SHARE_SESSION_LIMIT_REACHED",
	CodeGroupDeletionFailed + 1:                    "GROUP_DELETION_FAILED",
	CodeStreamsTopologyDescriptionUpdateFailed + 1: "STREAMS_TOPOLOGY_DESCRIPTION_UPDATE_FAILED",
	CodeControllerIDNotRegistered + 1:              "CONTROLLER_ID_NOT_REGISTERED",
}
