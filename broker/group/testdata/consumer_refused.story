config consumer-size=1
----

topics t=2 u=1
----

beat a - member=A topics=t
----
-> a: beat INVALID_REQUEST: GroupId can't be empty.

beat a g topics=t
----
-> a: beat INVALID_REQUEST: MemberId can't be empty.

beat a g v=0 epoch=3
----
-> a: beat INVALID_REQUEST: MemberId can't be empty.

beat a g v=0 epoch=-1
----
-> a: beat INVALID_REQUEST: MemberId can't be empty.

beat a g member=A epoch=-3
----
-> a: beat INVALID_REQUEST: MemberEpoch is invalid.

beat a g member=A epoch=-2
----
-> a: beat INVALID_REQUEST: InstanceId can't be null.

beat a g member=A
----
-> a: beat INVALID_REQUEST: Either SubscribedTopicNames or SubscribedTopicRegex must be non-null when (re-)joining.

beat a g member=A topics=t owned=t:0
----
-> a: beat INVALID_REQUEST: TopicPartitions must be empty when (re-)joining.

beat a g member=A topics=t assignor=sticky
----
-> a: beat UNSUPPORTED_ASSIGNOR: ServerAssignor sticky is not supported. Supported assignors: uniform, range.

beat a g member=A regex=*t
----
-> a: beat INVALID_REGULAR_EXPRESSION: SubscribedTopicRegex `*t` is not a valid regular expression: error parsing regexp: missing argument to repetition operator: `*`.

# Nobody knows the group, or it is another's.
beat a g member=A epoch=1
----
-> a: beat GROUP_ID_NOT_FOUND: Consumer group g not found.

beat a g member=A epoch=-1
----
-> a: beat GROUP_ID_NOT_FOUND: Consumer group g not found.

describe-consumer g
----
g GROUP_ID_NOT_FOUND: Group g not found.

# Version 0 is given a member id.
beat a g v=0 topics=t
----
append member g made-13: client=a topics=[t]
append group g: epoch=1
append meant g made-13: t:[0 1]
append target g: epoch=1
append current g made-13: epoch=1/0 STABLE has t:0@1,1@1
note: the group's members, their subscriptions or topics have changed
-> a: beat member=made-13 epoch=1 assignment t:[0 1]

beat b g member=B topics=t
----
note: B the group is full
-> b: beat GROUP_MAX_SIZE_REACHED: The consumer group has reached its maximum capacity of 1 members.

beat b g member=B epoch=2
----
-> b: beat UNKNOWN_MEMBER_ID: Member B is not a member of group g.

beat b g member=B epoch=-1
----
-> b: beat UNKNOWN_MEMBER_ID: Member B is not a member of group g.

# A failed append leaves everything as it was.
fail 15
----

beat a g member=made-13 epoch=1 topics=u
----
append fails
-> a: beat COORDINATOR_NOT_AVAILABLE: -

beat a g member=made-13 epoch=1 topics=u
----
append member g made-13: client=a topics=[u]
append group g: epoch=2
append meant g made-13: u:[0]
append target g: epoch=2
append current g made-13: epoch=1/1 UNREVOKED has gives t:0@1,1@1
note: the group's members, their subscriptions or topics have changed
-> a: beat member=made-13 epoch=1 assignment

beat a g member=made-13 epoch=1 topics=u owned=none
----
append current g made-13: epoch=2/1 STABLE has u:0@2
-> a: beat member=made-13 epoch=2 assignment u:[0]

# Who subscribes to nothing is a member all the same.
beat a g member=made-13 epoch=2 topics=none owned=none
----
append member g made-13: client=a topics=[]
append group g: epoch=3
append meant g made-13:
append target g: epoch=3
append current g made-13: epoch=3/2 STABLE has
note: the group's members, their subscriptions or topics have changed
-> a: beat member=made-13 epoch=3 assignment

beat a g member=made-13 epoch=2 owned=none
----
-> a: beat member=made-13 epoch=3

describe-consumer g
----
g Stable epoch=3 assignment-epoch=3 assignor=uniform
  made-13 epoch=3 type=1 client=a/h topics=[] regex=- has target
