package group

// Kafka's error codes, as far as groups use them.
const (
	codeUnknownServerError        int16 = -1
	codeNone                      int16 = 0
	codeOffsetMetadataTooLarge    int16 = 12
	codeCoordinatorNotAvailable   int16 = 15
	codeIllegalGeneration         int16 = 22
	codeInvalidCommitOffsetSize   int16 = 28
	codeInconsistentGroupProtocol int16 = 23
	codeInvalidGroupID            int16 = 24
	codeUnknownMemberID           int16 = 25
	codeInvalidSessionTimeout     int16 = 26
	codeRebalanceInProgress       int16 = 27
	codeUnsupportedVersion        int16 = 35
	codeInvalidRequest            int16 = 42
	codeInvalidProducerEpoch      int16 = 47
	codeInvalidProducerIDMapping  int16 = 49
	codeNonEmptyGroup             int16 = 68
	codeGroupIDNotFound           int16 = 69
	codeMemberIDRequired          int16 = 79
	codeGroupMaxSizeReached       int16 = 81
	codeFencedInstanceID          int16 = 82
	codeGroupSubscribedToTopic    int16 = 86
	codeUnstableOffsetCommit      int16 = 88
	codeFencedMemberEpoch         int16 = 110
	codeUnreleasedInstanceID      int16 = 111
	codeUnsupportedAssignor       int16 = 112
	codeStaleMemberEpoch          int16 = 113
	codeInvalidRegex              int16 = 128
)
