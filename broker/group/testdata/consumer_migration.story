# Two consumers of the classic protocol, cooperative, are replaced one by one by consumers of the consumer protocol.
topics t=4
----

join a g v=9 protocols=coop:sub/t session=10s
----
-> a: join MEMBER_ID_REQUIRED member=a-1

join a g v=9 member=a-1 protocols=coop:sub/t session=10s
----
note: member a-1 joins

join b g v=9 protocols=coop:sub/t session=20s
----
-> b: join MEMBER_ID_REQUIRED member=b-3

join b g v=9 member=b-3 protocols=coop:sub/t session=20s
----

wait 1s
----
-> a: join gen=1 member=a-1 leader=a-1 protocol=coop members=["a-1:\x00\x00\x00\x00\x00\x01\x00\x01t\xff\xff\xff\xff" "b-3:\x00\x00\x00\x00\x00\x01\x00\x01t\xff\xff\xff\xff"]
-> b: join gen=1 member=b-3 leader=a-1 protocol=coop
  at 0s

sync a g member=a-1 assign=a-1:asg+t-0+t-1,b-3:asg+t-2+t-3
----
append g: gen=1 type="consumer" protocol=coop leader=a-1 [a-1 "\x00\x00\x00\x00\x00\x01\x00\x01t\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x01\xff\xff\xff\xff"] [b-3 "\x00\x00\x00\x00\x00\x01\x00\x01t\x00\x00\x00\x02\x00\x00\x00\x02\x00\x00\x00\x03\xff\xff\xff\xff"]
-> a: sync protocol=consumer/coop t:[0 1]

sync b g member=b-3
----
-> b: sync protocol=consumer/coop t:[2 3]

# The first of the new protocol.
beat c g member=C topics=t
----
append g: null
append member g a-1: client=a topics=[t] classic=10s coop:"\x00\x00\x00\x00\x00\x01\x00\x01t\xff\xff\xff\xff"
append member g b-3: client=b topics=[t] classic=20s coop:"\x00\x00\x00\x00\x00\x01\x00\x01t\xff\xff\xff\xff"
append group g: epoch=1
append meant g a-1: t:[0 1]
append current g a-1: epoch=1/1 STABLE has t:0@1,1@1
append meant g b-3: t:[2 3]
append current g b-3: epoch=1/1 STABLE has t:2@1,3@1
append target g: epoch=1
append member g C: client=c topics=[t]
append group g: epoch=2
append meant g C: t:[3]
append meant g b-3: t:[2]
append target g: epoch=2
append current g C: epoch=2/0 UNRELEASED has
note: the group's members, their subscriptions or topics have changed
-> c: beat member=C epoch=2 assignment

describe-consumer g
----
g Reconciling epoch=2 assignment-epoch=2 assignor=uniform
  C epoch=2 type=1 client=c/h topics=[t] regex=- has target t:[3]
  a-1 epoch=1 type=0 client=a/10.0.0.1 topics=[t] regex=- has t:[0 1] target t:[0 1]
  b-3 epoch=1 type=0 client=b/10.0.0.1 topics=[t] regex=- has t:[2 3] target t:[2]

list
----
g consumer Reconciling type="consumer"

# The others hear of it by Heartbeat, and join again.
heartbeat a g member=a-1 gen=2
----
-> a: heartbeat ILLEGAL_GENERATION

heartbeat a g member=a-1 gen=1
----
-> a: heartbeat REBALANCE_IN_PROGRESS

heartbeat b g member=b-3 gen=1
----
-> b: heartbeat REBALANCE_IN_PROGRESS

commit a g member=a-1 gen=1 offsets=t/0:5
----
append g t/0: 5
-> a: commit t/0 ok

commit a g member=a-1 gen=2 offsets=t/0:5
----
-> a: commit t/0 ILLEGAL_GENERATION

join a g v=9 member=a-1 protocols=coop:sub/t+t-0+t-1 session=10s
----
append member g a-1: client=a topics=[t] classic=10s coop:"\x00\x01\x00\x00\x00\x01\x00\x01t\xff\xff\xff\xff\x00\x00\x00\x01\x00\x01t\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x01"
append current g a-1: epoch=2/1 STABLE has t:0@1,1@1
-> a: join gen=2 member=a-1 leader= protocol=coop

sync a g member=a-1 gen=2
----
-> a: sync protocol=consumer/coop t:[0 1]

# It has not heard of its new generation yet. What it has had all along is its own, what it does not have is not (KIP-1251).
commit a g member=a-1 gen=1 offsets=t/1:6,t/3:1
----
append g t/1: 6
-> a: commit t/1 ok t/3 ILLEGAL_GENERATION

join b g v=9 member=b-3 protocols=coop:sub/t+t-2+t-3 session=20s
----
append member g b-3: client=b topics=[t] classic=20s coop:"\x00\x01\x00\x00\x00\x01\x00\x01t\xff\xff\xff\xff\x00\x00\x00\x01\x00\x01t\x00\x00\x00\x02\x00\x00\x00\x02\x00\x00\x00\x03"
append current g b-3: epoch=1/1 UNREVOKED has t:2@1 gives t:3@1
-> b: join gen=1 member=b-3 leader= protocol=coop

# Nothing from before it had them. What it has yet to give up is still its own.
commit b g member=b-3 gen=0 offsets=t/2:1
----
-> b: commit t/2 ILLEGAL_GENERATION

commit b g member=b-3 gen=1 offsets=t/2:8,t/3:9
----
append g t/2: 8
append g t/3: 9
-> b: commit t/2 ok t/3 ok

# It has to give one up first, and joins again when it has.
sync b g member=b-3 gen=1
----
-> b: sync protocol=consumer/coop t:[2]

heartbeat b g member=b-3 gen=1
----
-> b: heartbeat REBALANCE_IN_PROGRESS

join b g v=9 member=b-3 protocols=coop:sub/t+t-2 session=20s
----
append member g b-3: client=b topics=[t] classic=20s coop:"\x00\x01\x00\x00\x00\x01\x00\x01t\xff\xff\xff\xff\x00\x00\x00\x01\x00\x01t\x00\x00\x00\x01\x00\x00\x00\x02"
append current g b-3: epoch=2/1 STABLE has t:2@1
-> b: join gen=2 member=b-3 leader= protocol=coop

sync b g member=b-3 gen=2
----
-> b: sync protocol=consumer/coop t:[2]

beat c g member=C epoch=2
----
append current g C: epoch=2/2 STABLE has t:3@2
-> c: beat member=C epoch=2 assignment t:[3]

heartbeat b g member=b-3 gen=2
----
-> b: heartbeat ok

describe-consumer g
----
g Stable epoch=2 assignment-epoch=2 assignor=uniform
  C epoch=2 type=1 client=c/h topics=[t] regex=- has t:[3] target t:[3]
  a-1 epoch=2 type=0 client=a/10.0.0.1 topics=[t] regex=- has t:[0 1] target t:[0 1]
  b-3 epoch=2 type=0 client=b/10.0.0.1 topics=[t] regex=- has t:[2] target t:[2]

# Another of the classic protocol may still come, if it could go back with the others.
join d g v=3 protocols=range:sub/t
----
-> d: join INCONSISTENT_GROUP_PROTOCOL member=

join d g v=3 protocols=coop:sub/t
----
append member g d-11: client=d topics=[t] classic=10s coop:"\x00\x00\x00\x00\x00\x01\x00\x01t\xff\xff\xff\xff"
append group g: epoch=3
append meant g a-1: t:[0]
append meant g d-11: t:[1]
append target g: epoch=3
append current g d-11: epoch=3/0 UNRELEASED has
note: the group's members, their subscriptions or topics have changed
-> d: join gen=3 member=d-11 leader= protocol=coop

# It does not sync.
wait 9s
----

heartbeat a g member=a-1 gen=2
----
-> a: heartbeat REBALANCE_IN_PROGRESS

reload
----

describe-consumer g
----
g Reconciling epoch=3 assignment-epoch=3 assignor=uniform
  C epoch=2 type=1 client=c/h topics=[t] regex=- has t:[3] target t:[3]
  a-1 epoch=2 type=0 client=a/10.0.0.1 topics=[t] regex=- has t:[0 1] target t:[0]
  b-3 epoch=2 type=0 client=b/10.0.0.1 topics=[t] regex=- has t:[2] target t:[2]
  d-11 epoch=3 type=0 client=d/10.0.0.1 topics=[t] regex=- has target t:[1]

heartbeat b g member=b-3 gen=2
----
-> b: heartbeat REBALANCE_IN_PROGRESS

leave b g member=b-3
----
append current g b-3: null
append meant g b-3: null
append member g b-3: null
append group g: epoch=4
note: 1 members are gone
-> b: leave ok [b-3 ok]

leave x g member=nobody
----
-> x: leave ok [nobody UNKNOWN_MEMBER_ID]

# The last of the consumer protocol goes: the group is what it was.
beat c g member=C epoch=-1
----
append g: gen=4 type="consumer" protocol=- leader=-
append current g C: null
append meant g C: null
append member g C: null
append current g a-1: null
append meant g a-1: null
append member g a-1: null
append current g d-11: null
append meant g d-11: null
append member g d-11: null
append target g: null
append group g: null
note: the last member of the consumer protocol is gone
-> c: beat member=C epoch=-1 interval=0s

describe g
----
g PreparingRebalance type="consumer" protocol=""
  a-1 client=a host=/10.0.0.1 metadata="" assignment=""
  d-11 client=d host=/10.0.0.1 metadata="" assignment=""

heartbeat a g member=a-1 gen=2
----
-> a: heartbeat ILLEGAL_GENERATION

join a g v=9 member=a-1 protocols=coop:sub/t+t-0+t-1 session=10s
----

wait 60s
----
note: d-11 not heard of within its session timeout
-> a: join gen=5 member=a-1 leader=a-1 protocol=coop members=["a-1:\x00\x01\x00\x00\x00\x01\x00\x01t\xff\xff\xff\xff\x00\x00\x00\x01\x00\x01t\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x01"]
  at 20s
append g: gen=6 type="consumer" protocol=- leader=-
note: a-1 not heard of within its session timeout
note: member a-1 was not heard of within its session timeout
  at 30s

describe g
----
g Empty type="consumer" protocol=""

# A static member that goes back takes the group with it, if it was the last.
beat s h member=S instance=one topics=t
----
append member h S: instance=one client=s topics=[t]
append group h: epoch=1
append meant h S: t:[0 1 2 3]
append target h: epoch=1
append current h S: epoch=1/0 STABLE has t:0@1,1@1,2@1,3@1
note: the group's members, their subscriptions or topics have changed
-> s: beat member=S epoch=1 assignment t:[0 1 2 3]

beat s h member=S instance=one epoch=-2
----
append current h S: epoch=-2/0 STABLE has t:0@1,1@1,2@1,3@1
-> s: beat member=S epoch=-2 interval=0s

fail 15
----

join s h v=9 protocols=coop:sub/t instance=one
----
append fails
-> s: join COORDINATOR_NOT_AVAILABLE member=

join s h v=9 protocols=coop:sub/t instance=one
----
append current h S: null
append meant h S: null
append member h S: null
append h: gen=1 type="consumer" protocol=- leader=-
append current h S: null
append meant h S: null
append member h S: null
append target h: null
append group h: null
note: the last member of the consumer protocol is gone
-> s: join gen=2 member=one-17 leader=one-17 protocol=coop members=["one-17/one:\x00\x00\x00\x00\x00\x01\x00\x01t\xff\xff\xff\xff"]

sync s h member=one-17 gen=2 assign=one-17:asg+t-0
----
append h: gen=2 type="consumer" protocol=coop leader=one-17 [one-17 instance=one "\x00\x00\x00\x00\x00\x01\x00\x01t\x00\x00\x00\x01\x00\x00\x00\x00\xff\xff\xff\xff"]
-> s: sync protocol=consumer/coop t:[0]

describe h
----
h Stable type="consumer" protocol="coop"
  one-17 instance=one client=s host=/10.0.0.1 metadata="\x00\x00\x00\x00\x00\x01\x00\x01t\xff\xff\xff\xff" assignment="\x00\x00\x00\x00\x00\x01\x00\x01t\x00\x00\x00\x01\x00\x00\x00\x00\xff\xff\xff\xff"

describe-consumer h
----
h GROUP_ID_NOT_FOUND: Group h is not a consumer group.

# And forth again, with what it has.
beat s h member=S instance=one topics=t
----
append h: null
append member h one-17: instance=one client=s topics=[t] classic=10s coop:"\x00\x00\x00\x00\x00\x01\x00\x01t\xff\xff\xff\xff"
append group h: epoch=2
append meant h one-17: t:[0]
append current h one-17: epoch=2/2 STABLE has t:0@2
append target h: epoch=2
append current h one-17: null
append meant h one-17: null
append member h one-17: null
append member h S: instance=one client=s topics=[t]
append group h: epoch=3
append meant h S: t:[0 1 2 3]
append target h: epoch=3
append current h S: epoch=3/0 STABLE has t:0@2,1@3,2@3,3@3
note: the group's members, their subscriptions or topics have changed
-> s: beat member=S epoch=3 assignment t:[0 1 2 3]

# Who was removed and still has something must give it up first.
join x h v=9 member=x-1 protocols=coop:sub/t+t-0
----
-> x: join UNKNOWN_MEMBER_ID member=x-1

join x h v=9 member=x-1 protocols=coop:sub/t
----
append member h x-1: client=x topics=[t] classic=10s coop:"\x00\x00\x00\x00\x00\x01\x00\x01t\xff\xff\xff\xff"
append group h: epoch=4
append meant h S: t:[0 1]
append meant h x-1: t:[2 3]
append target h: epoch=4
append current h x-1: epoch=4/0 UNRELEASED has
note: the group's members, their subscriptions or topics have changed
-> x: join gen=4 member=x-1 leader= protocol=coop
