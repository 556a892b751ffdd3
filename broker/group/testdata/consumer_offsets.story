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

commit a g member=A gen=1 offsets=t/0:5,t/3:6
----
append g t/0: 5
append g t/3: 6
-> a: commit t/0 ok t/3 ok

commit a g member=A gen=1 v=8
----
-> a: commit t/0 UNSUPPORTED_VERSION

commit a g member=X gen=1
----
-> a: commit t/0 UNKNOWN_MEMBER_ID

commit admin g
----
-> admin: commit t/0 UNKNOWN_MEMBER_ID

# It has not heard of its new epoch yet. What it has had all along is its own, what it just got is not, and what it
# gave up neither.
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

beat a g member=A epoch=1
----
append current g A: epoch=1/1 UNREVOKED has t:0@1,1@1 gives t:2@1,3@1
-> a: beat member=A epoch=1 assignment t:[0 1]

beat a g member=A epoch=1 owned=t:0,t:1
----
append current g A: epoch=2/1 STABLE has t:0@1,1@1
-> a: beat member=A epoch=2

beat b g member=B epoch=2
----
append current g B: epoch=2/2 STABLE has t:2@2,3@2
-> b: beat member=B epoch=2 assignment t:[2 3]

commit a g member=A gen=1 offsets=t/0:7,t/2:8
----
append g t/0: 7
-> a: commit t/0 ok t/2 STALE_MEMBER_EPOCH

commit a g member=A gen=3
----
-> a: commit t/0 STALE_MEMBER_EPOCH

commit b g member=B gen=1 offsets=t/2:1
----
-> b: commit t/2 STALE_MEMBER_EPOCH

commit b g member=B gen=2 offsets=t/2:9
----
append g t/2: 9
-> b: commit t/2 ok

# A partition that another committed for is fetched by its owner only.
fetch g member=A epoch=2 offsets=t/0:
----
t/0: 7 epoch=7 metadata=""

fetch g member=A epoch=1 offsets=t/0:
----
fetch STALE_MEMBER_EPOCH

fetch g member=X epoch=2 offsets=t/0:
----
fetch UNKNOWN_MEMBER_ID

fetch g offsets=t/2:
----
t/2: 9 epoch=7 metadata=""

delete-offsets x g offsets=t/0:,x/0:
----
-> x: delete-offsets t/0 GROUP_SUBSCRIBED_TO_TOPIC x/0 ok

delete x g
----
-> x: delete g NON_EMPTY_GROUP

beat a g member=A epoch=-1
----
append current g A: null
append meant g A: null
append member g A: null
append group g: epoch=3
note: 1 members are gone
-> a: beat member=A epoch=-1 interval=0s

beat b g member=B epoch=-1
----
append current g B: null
append meant g B: null
append member g B: null
append group g: epoch=4
note: 1 members are gone
-> b: beat member=B epoch=-1 interval=0s

commit admin g offsets=t/0:1
----
append g t/0: 1
-> admin: commit t/0 ok

delete-offsets x g offsets=t/3:
----
append g t/3: null
-> x: delete-offsets t/3 ok

delete x g
----
append g t/0: null
append g t/2: null
append target g: null
append group g: null
-> x: delete g ok

fetch g
----

# Offsets expire by themselves: those of topics that are read stay, and an empty group goes with its last one.
config retention=1h
----

topics t=1 u=1
----

beat a g member=A topics=t session=3h
----
append member g A: client=a topics=[t]
append group g: epoch=1
append meant g A: t:[0]
append target g: epoch=1
append current g A: epoch=1/0 STABLE has t:0@1
note: the group's members, their subscriptions or topics have changed
-> a: beat member=A epoch=1 assignment t:[0]

commit a g member=A gen=1 offsets=t/0:1,u/0:2
----
append g t/0: 1
append g u/0: 2
-> a: commit t/0 ok u/0 ok

wait 2h
----

expire
----
append g u/0: null

beat a g member=A epoch=-1
----
append current g A: null
append meant g A: null
append member g A: null
append group g: epoch=2
note: 1 members are gone
-> a: beat member=A epoch=-1 interval=0s

expire
----
append g t/0: null
append target g: null
append group g: null

describe-consumer g
----
g GROUP_ID_NOT_FOUND: Group g not found.

# With an earlier epoch a member may commit for what it has yet to give up, but not for what it has given up.
topics t=4 u=1
----

beat a e member=A topics=t
----
append member e A: client=a topics=[t]
append group e: epoch=1
append meant e A: t:[0 1 2 3]
append target e: epoch=1
append current e A: epoch=1/0 STABLE has t:0@1,1@1,2@1,3@1
note: the group's members, their subscriptions or topics have changed
-> a: beat member=A epoch=1 assignment t:[0 1 2 3]

beat a e member=A epoch=1 topics=t,u
----
append member e A: client=a topics=[t u]
append group e: epoch=2
append meant e A: t:[0 1 2 3] u:[0]
append target e: epoch=2
append current e A: epoch=2/1 STABLE has t:0@1,1@1,2@1,3@1 u:0@2
note: the group's members, their subscriptions or topics have changed
-> a: beat member=A epoch=2 assignment t:[0 1 2 3] u:[0]

beat b e member=B topics=t,u
----
append member e B: client=b topics=[t u]
append group e: epoch=3
append meant e A: t:[0 1 2]
append meant e B: t:[3] u:[0]
append target e: epoch=3
append current e B: epoch=3/0 UNRELEASED has
note: the group's members, their subscriptions or topics have changed
-> b: beat member=B epoch=3 assignment

beat a e member=A epoch=2
----
append current e A: epoch=2/2 UNREVOKED has t:0@1,1@1,2@1 gives t:3@1 u:0@2
-> a: beat member=A epoch=2 assignment t:[0 1 2]

commit a e member=A gen=1 offsets=t/0:1,t/2:1,t/3:1,u/0:1
----
append e t/0: 1
append e t/2: 1
append e t/3: 1
-> a: commit t/0 ok t/2 ok t/3 ok u/0 STALE_MEMBER_EPOCH

beat a e member=A epoch=2 owned=t:0,t:1
----
append current e A: epoch=3/2 STABLE has t:0@1,1@1,2@1
-> a: beat member=A epoch=3

commit a e member=A gen=1 offsets=t/0:2,t/3:2,u/0:2
----
append e t/0: 2
-> a: commit t/0 ok t/3 STALE_MEMBER_EPOCH u/0 STALE_MEMBER_EPOCH
