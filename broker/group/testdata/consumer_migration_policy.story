config policy=downgrade
----

topics t=2
----

join a g v=3 protocols=coop:sub/t
----
note: member a-1 joins

wait 1s
----
-> a: join gen=1 member=a-1 leader=a-1 protocol=coop members=["a-1:\x00\x00\x00\x00\x00\x01\x00\x01t\xff\xff\xff\xff"]
  at 0s

beat c g member=C topics=t
----
-> c: beat GROUP_ID_NOT_FOUND: Group g is not a consumer group.

config policy=upgrade
----

topics t=2
----

# Of which nobody could be moved, as the coordinator cannot read what they subscribe to.
join a g v=3 type=connect
----
note: member a-1 joins

wait 1s
----
-> a: join gen=1 member=a-1 leader=a-1 protocol=range members=["a-1:m"]
  at 0s

beat c g member=C topics=t
----
-> c: beat GROUP_ID_NOT_FOUND: Group g is not a consumer group.

join a h v=3 protocols=coop:x
----
note: member a-3 joins

wait 1s
----
-> a: join gen=1 member=a-3 leader=a-3 protocol=coop members=["a-3:x"]
  at 1s

beat c h member=C topics=t
----
-> c: beat GROUP_ID_NOT_FOUND: Group h is not a consumer group.

# In the middle of a rebalance: who waits has to begin again.
join a i v=3 protocols=coop:sub/t instance=one
----
note: member one-5 joins

fail 15
----

beat c i member=C topics=t
----
append fails
-> c: beat COORDINATOR_NOT_AVAILABLE: -

beat c i member=C topics=t
----
append member i one-5: instance=one client=a topics=[t] classic=10s coop:"\x00\x00\x00\x00\x00\x01\x00\x01t\xff\xff\xff\xff"
append group i: epoch=0
append meant i one-5:
append current i one-5: epoch=0/0 STABLE has
append target i: epoch=0
append member i C: client=c topics=[t]
append group i: epoch=1
append meant i C: t:[0]
append meant i one-5: t:[1]
append target i: epoch=1
append current i C: epoch=1/0 STABLE has t:0@1
note: the group's members, their subscriptions or topics have changed
-> a: join REBALANCE_IN_PROGRESS member=one-5
-> c: beat member=C epoch=1 assignment t:[0]

# A static member moves to the new protocol without having left.
beat a i member=A instance=one topics=t
----
append current i one-5: null
append meant i one-5: null
append member i one-5: null
append member i A: instance=one client=a topics=[t]
append meant i A: t:[1]
append current i A: epoch=1/0 STABLE has t:1@1
-> a: beat member=A epoch=1 assignment t:[1]

# And the other way round.
join a i v=9 protocols=coop:sub/t instance=one
----
append current i A: null
append meant i A: null
append member i A: null
append member i one-9: instance=one client=a topics=[t] classic=10s coop:"\x00\x00\x00\x00\x00\x01\x00\x01t\xff\xff\xff\xff"
append meant i one-9: t:[1]
append current i one-9: epoch=1/0 STABLE has t:1@1
-> a: join gen=1 member=one-9 leader= protocol=coop

beat a i member=A instance=one epoch=2
----
-> a: beat FENCED_INSTANCE_ID: Static member A with instance id one was fenced by member one-9.

# The group may not go back.
beat c i member=C epoch=-1
----
append current i C: null
append meant i C: null
append member i C: null
append group i: epoch=2
note: 1 members are gone
-> c: beat member=C epoch=-1 interval=0s

describe-consumer i
----
i Assigning epoch=2 assignment-epoch=1 assignor=uniform
  one-9 instance=one epoch=1 type=0 client=a/10.0.0.1 topics=[t] regex=- has t:[1] target t:[1]

# A refusal leaves the group as it was.
config consumer-size=2
----

topics t=2
----

join a g v=3 protocols=coop:sub/t
----
note: member a-1 joins

join b g v=3 protocols=coop:sub/t
----

wait 1s
----
-> a: join gen=1 member=a-1 leader=a-1 protocol=coop members=["a-1:\x00\x00\x00\x00\x00\x01\x00\x01t\xff\xff\xff\xff" "b-2:\x00\x00\x00\x00\x00\x01\x00\x01t\xff\xff\xff\xff"]
-> b: join gen=1 member=b-2 leader=a-1 protocol=coop
  at 0s

beat c g member=C topics=t
----
-> c: beat GROUP_ID_NOT_FOUND: Group g is not a consumer group.

describe g
----
g CompletingRebalance type="consumer" protocol=""
  a-1 client=a host=/10.0.0.1 metadata="" assignment=""
  b-2 client=b host=/10.0.0.1 metadata="" assignment=""

sync a g member=a-1 assign=a-1:asg+t-0,b-2:asg+t-1
----
append g: gen=1 type="consumer" protocol=coop leader=a-1 [a-1 "\x00\x00\x00\x00\x00\x01\x00\x01t\x00\x00\x00\x01\x00\x00\x00\x00\xff\xff\xff\xff"] [b-2 "\x00\x00\x00\x00\x00\x01\x00\x01t\x00\x00\x00\x01\x00\x00\x00\x01\xff\xff\xff\xff"]
-> a: sync protocol=consumer/coop t:[0]
