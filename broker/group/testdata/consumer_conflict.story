# A group is of one type at a time. With nobody in it it becomes what the next member wants.
topics t=1
----

commit admin g offsets=t/0:3
----
append g t/0: 3
-> admin: commit t/0 ok

join a g v=3
----
note: member a-1 joins

wait 1s
----
-> a: join gen=1 member=a-1 leader=a-1 protocol=range members=["a-1:m"]
  at 0s

sync a g member=a-1 assign=a-1:x
----
append g: gen=1 type="consumer" protocol=range leader=a-1 [a-1 "x"]
-> a: sync "x" protocol=consumer/range

beat b g member=B epoch=1
----
-> b: beat GROUP_ID_NOT_FOUND: Group g is not a consumer group.

describe-consumer g
----
g GROUP_ID_NOT_FOUND: Group g is not a consumer group.

leave a g member=a-1
----
append g: gen=2 type="consumer" protocol=- leader=-
note: 1 members left
-> a: leave ok [a-1 ok]

beat b g member=B topics=t
----
append g: null
append member g B: client=b topics=[t]
append group g: epoch=1
append meant g B: t:[0]
append target g: epoch=1
append current g B: epoch=1/0 STABLE has t:0@1
note: the group's members, their subscriptions or topics have changed
-> b: beat member=B epoch=1 assignment t:[0]

join a g v=3
----
-> a: join INCONSISTENT_GROUP_PROTOCOL member=

join a g
----
-> a: join INCONSISTENT_GROUP_PROTOCOL member=

heartbeat a g member=a-1 gen=1
----
-> a: heartbeat UNKNOWN_MEMBER_ID

sync a g member=a-1
----
-> a: sync UNKNOWN_MEMBER_ID

leave a g member=a-1
----
-> a: leave ok [a-1 UNKNOWN_MEMBER_ID]

# An operator removes a member with the request of the classic protocol, whatever the member's.
leave a g member=B
----
append current g B: null
append meant g B: null
append member g B: null
append group g: epoch=2
note: 1 members are gone
-> a: leave ok [B ok]

beat b g member=B epoch=-1
----
-> b: beat UNKNOWN_MEMBER_ID: Member B is not a member of group g.

reload
----

fail 15
----

join a g v=3
----
append fails
-> a: join COORDINATOR_NOT_AVAILABLE member=

describe-consumer g
----
g Empty epoch=2 assignment-epoch=1 assignor=uniform

join a g v=3
----
append target g: null
append group g: null
note: member a-8 joins

wait 1s
----
-> a: join gen=1 member=a-8 leader=a-8 protocol=range members=["a-8:m"]
  at 1s

sync a g member=a-8 gen=1 assign=a-8:x
----
append g: gen=1 type="consumer" protocol=range leader=a-8 [a-8 "x"]
-> a: sync "x" protocol=consumer/range

describe g
----
g Stable type="consumer" protocol="range"
  a-8 client=a host=/10.0.0.1 metadata="m" assignment="x"

describe-consumer g
----
g GROUP_ID_NOT_FOUND: Group g is not a consumer group.

fetch g
----
t/0: 3 epoch=7 metadata=""

beat b g member=B epoch=2
----
-> b: beat GROUP_ID_NOT_FOUND: Group g is not a consumer group.
