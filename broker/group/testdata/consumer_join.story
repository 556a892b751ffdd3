# The first member gets everything at once.
topics t=4
----

beat a g member=A topics=t
----
append member g A: client=a topics=[t]
append group g: epoch=1
append meant g A: t:[0 1 2 3]
append target g: epoch=1
append current g A: epoch=1/0 STABLE has t:0@1,1@1,2@1,3@1
note: the group's members, their subscriptions or topics have changed
-> a: beat member=A epoch=1 assignment t:[0 1 2 3]

# Nothing new: nothing is written, and no assignment is sent.
beat a g member=A epoch=1 owned=t:0,t:1,t:2,t:3
----
-> a: beat member=A epoch=1

# A second member is known, and has to wait until the first gives up what is meant for it.
beat b g member=B topics=t
----
append member g B: client=b topics=[t]
append group g: epoch=2
append meant g A: t:[0 1]
append meant g B: t:[2 3]
append target g: epoch=2
append current g B: epoch=2/0 UNRELEASED has
note: the group's members, their subscriptions or topics have changed
-> b: beat member=B epoch=2 assignment

describe-consumer g
----
g Reconciling epoch=2 assignment-epoch=2 assignor=uniform
  A epoch=1 type=1 client=a/h topics=[t] regex=- has t:[0 1 2 3] target t:[0 1]
  B epoch=2 type=1 client=b/h topics=[t] regex=- has target t:[2 3]

list
----
g consumer Reconciling type="consumer"

# The first hears of it, keeps its epoch, and is asked for the partitions.
beat a g member=A epoch=1
----
append current g A: epoch=1/1 UNREVOKED has t:0@1,1@1 gives t:2@1,3@1
-> a: beat member=A epoch=1 assignment t:[0 1]

# It says nothing of what it has: it may have all of it still.
beat a g member=A epoch=1
----
-> a: beat member=A epoch=1

beat b g member=B epoch=2
----
append current g B: epoch=2/2 UNRELEASED has
-> b: beat member=B epoch=2

# It has given them up.
beat a g member=A epoch=1 owned=t:0,t:1
----
append current g A: epoch=2/1 STABLE has t:0@1,1@1
-> a: beat member=A epoch=2

beat b g member=B epoch=2
----
append current g B: epoch=2/2 STABLE has t:2@2,3@2
-> b: beat member=B epoch=2 assignment t:[2 3]

describe-consumer g
----
g Stable epoch=2 assignment-epoch=2 assignor=uniform
  A epoch=2 type=1 client=a/h topics=[t] regex=- has t:[0 1] target t:[0 1]
  B epoch=2 type=1 client=b/h topics=[t] regex=- has t:[2 3] target t:[2 3]

list types=consumer states=stable
----
g consumer Stable type="consumer"

list types=classic
----

describe g
----
g Dead type="" protocol="" GROUP_ID_NOT_FOUND

# It leaves: what it had is free, and the group has to be assigned.
beat a g member=A epoch=-1
----
append current g A: null
append meant g A: null
append member g A: null
append group g: epoch=3
note: 1 members are gone
-> a: beat member=A epoch=-1 interval=0s

beat b g member=B epoch=2 owned=t:2,t:3
----
append meant g B: t:[0 1 2 3]
append target g: epoch=3
append current g B: epoch=3/2 STABLE has t:0@3,1@3,2@2,3@2
-> b: beat member=B epoch=3 assignment t:[0 1 2 3]

# The answer was lost: the epoch before is good enough, if what it says that it has is.
beat b g member=B epoch=2 owned=t:2,t:3 rebalance=30s topics=t
----
-> b: beat member=B epoch=3 assignment t:[0 1 2 3]

beat b g member=B epoch=2 owned=t:0,u:0
----
-> b: beat FENCED_MEMBER_EPOCH: The consumer group member has a smaller member epoch (2) than the one known by the group coordinator (3). The member must abandon all its partitions and rejoin.

beat b g member=B epoch=7
----
-> b: beat FENCED_MEMBER_EPOCH: The consumer group member has a greater member epoch (7) than the one known by the group coordinator (3). The member must abandon all its partitions and rejoin.

beat b g member=B epoch=1
----
-> b: beat FENCED_MEMBER_EPOCH: The consumer group member has a smaller member epoch (1) than the one known by the group coordinator (3). The member must abandon all its partitions and rejoin.

# It does so, and does not have to wait until its session is over.
beat b g member=B topics=t
----
-> b: beat member=B epoch=3 assignment t:[0 1 2 3]

# A new coordinator knows all of it.
reload
----

describe-consumer g
----
g Stable epoch=3 assignment-epoch=3 assignor=uniform
  B epoch=3 type=1 client=b/h topics=[t] regex=- has t:[0 1 2 3] target t:[0 1 2 3]

beat b g member=B epoch=3
----
-> b: beat member=B epoch=3

beat b g member=B epoch=-1
----
append current g B: null
append meant g B: null
append member g B: null
append group g: epoch=4
note: 1 members are gone
-> b: beat member=B epoch=-1 interval=0s

describe-consumer g
----
g Empty epoch=4 assignment-epoch=3 assignor=uniform

list states=empty
----
g consumer Empty type="consumer"

delete x g
----
append target g: null
append group g: null
-> x: delete g ok

describe-consumer g
----
g GROUP_ID_NOT_FOUND: Group g not found.
