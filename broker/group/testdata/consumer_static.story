topics t=2
----

beat a g member=A instance=one topics=t
----
append member g A: instance=one client=a topics=[t]
append group g: epoch=1
append meant g A: t:[0 1]
append target g: epoch=1
append current g A: epoch=1/0 STABLE has t:0@1,1@1
note: the group's members, their subscriptions or topics have changed
-> a: beat member=A epoch=1 assignment t:[0 1]

beat b g member=B instance=two topics=t
----
append member g B: instance=two client=b topics=[t]
append group g: epoch=2
append meant g A: t:[0]
append meant g B: t:[1]
append target g: epoch=2
append current g B: epoch=2/0 UNRELEASED has
note: the group's members, their subscriptions or topics have changed
-> b: beat member=B epoch=2 assignment

beat a g member=A instance=one epoch=1
----
append current g A: epoch=1/1 UNREVOKED has t:0@1 gives t:1@1
-> a: beat member=A epoch=1 assignment t:[0]

beat a g member=A instance=one epoch=1 owned=t:0
----
append current g A: epoch=2/1 STABLE has t:0@1
-> a: beat member=A epoch=2

beat b g member=B instance=two epoch=2
----
append current g B: epoch=2/2 STABLE has t:1@2
-> b: beat member=B epoch=2 assignment t:[1]

# Another process must not take the place while it is there.
beat x g member=X instance=one topics=t
----
-> x: beat UNRELEASED_INSTANCE_ID: Static member X with instance id one cannot join the group because the instance id is owned by A member.

# Nor go on as if it were the other.
beat x g member=X instance=one epoch=2
----
-> x: beat FENCED_INSTANCE_ID: Static member X with instance id one was fenced by member A.

beat x g member=X instance=three epoch=2
----
-> x: beat UNKNOWN_MEMBER_ID: Instance id three is unknown.

beat x g member=X instance=one epoch=-1
----
-> x: beat FENCED_INSTANCE_ID: Static member X with instance id one was fenced by member A.

# It leaves for a moment: its place is kept, and nothing moves.
beat a g member=A instance=one epoch=-2
----
append current g A: epoch=-2/1 STABLE has t:0@1
-> a: beat member=A epoch=-2 interval=0s

beat b g member=B instance=two epoch=2
----
-> b: beat member=B epoch=2

describe-consumer g
----
g Reconciling epoch=2 assignment-epoch=2 assignor=uniform
  A instance=one epoch=-2 type=1 client=a/h topics=[t] regex=- has t:[0] target t:[0]
  B instance=two epoch=2 type=1 client=b/h topics=[t] regex=- has t:[1] target t:[1]

# It comes back as another process.
beat a g member=A2 instance=one topics=t
----
append current g A: null
append meant g A: null
append member g A: null
append member g A2: instance=one client=a topics=[t]
append meant g A2: t:[0]
append current g A2: epoch=2/0 STABLE has t:0@1
-> a: beat member=A2 epoch=2 assignment t:[0]

beat b g member=B instance=two epoch=2
----
-> b: beat member=B epoch=2

beat a g member=A instance=one epoch=2
----
-> a: beat FENCED_INSTANCE_ID: Static member A with instance id one was fenced by member A2.

describe-consumer g
----
g Stable epoch=2 assignment-epoch=2 assignor=uniform
  A2 instance=one epoch=2 type=1 client=a/h topics=[t] regex=- has t:[0] target t:[0]
  B instance=two epoch=2 type=1 client=b/h topics=[t] regex=- has t:[1] target t:[1]

# Away for good, as nobody comes back in time.
beat a g member=A2 instance=one epoch=-2
----
append current g A2: epoch=-2/0 STABLE has t:0@1
-> a: beat member=A2 epoch=-2 interval=0s

wait 40s
----

beat b g member=B instance=two epoch=2
----
-> b: beat member=B epoch=2

wait 5s
----
append current g A2: null
append meant g A2: null
append member g A2: null
append group g: epoch=3
note: A2 not heard of within its session timeout
note: 1 members are gone
  at 45s

beat b g member=B instance=two epoch=2
----
append meant g B: t:[0 1]
append target g: epoch=3
append current g B: epoch=3/2 STABLE has t:0@3,1@2
-> b: beat member=B epoch=3 assignment t:[0 1]

# It leaves while it has to give something up: it has given up everything.
beat c g member=C topics=t
----
append member g C: client=c topics=[t]
append group g: epoch=4
append meant g B: t:[0]
append meant g C: t:[1]
append target g: epoch=4
append current g C: epoch=4/0 UNRELEASED has
note: the group's members, their subscriptions or topics have changed
-> c: beat member=C epoch=4 assignment

beat b g member=B instance=two epoch=3
----
append current g B: epoch=3/3 UNREVOKED has t:0@3 gives t:1@2
-> b: beat member=B epoch=3 assignment t:[0]

beat b g member=B instance=two epoch=-2
----
append current g B: epoch=-2/3 STABLE has t:0@3
-> b: beat member=B epoch=-2 interval=0s

beat c g member=C epoch=4
----
append current g C: epoch=4/4 STABLE has t:1@4
-> c: beat member=C epoch=4 assignment t:[1]

# Back under the same member id.
beat b g member=B instance=two topics=t
----
append current g B: epoch=4/0 STABLE has t:0@3
-> b: beat member=B epoch=4 assignment t:[0]

# A member id is one member's.
beat b g member=B instance=two epoch=-2
----
append current g B: epoch=-2/0 STABLE has t:0@3
-> b: beat member=B epoch=-2 interval=0s

beat c g member=C instance=two topics=t
----
-> c: beat UNRELEASED_INSTANCE_ID: Static member C with instance id two cannot join the group because the instance id is owned by B member.

# Somebody lost the answer to its first request.
beat d g member=D instance=four topics=t
----
append member g D: instance=four client=d topics=[t]
append group g: epoch=5
append meant g D:
append target g: epoch=5
append current g D: epoch=5/0 STABLE has
note: the group's members, their subscriptions or topics have changed
-> d: beat member=D epoch=5 assignment

beat d g member=D instance=four topics=t
----
-> d: beat member=D epoch=5 assignment
