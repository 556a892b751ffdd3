topics t=2
----

beat a g member=A topics=t rebalance=10s
----
append member g A: client=a topics=[t]
append group g: epoch=1
append meant g A: t:[0 1]
append target g: epoch=1
append current g A: epoch=1/0 STABLE has t:0@1,1@1
note: the group's members, their subscriptions or topics have changed
-> a: beat member=A epoch=1 assignment t:[0 1]

beat b g member=B topics=t session=8s interval=2s
----
append member g B: client=b topics=[t]
append group g: epoch=2
append meant g A: t:[0]
append meant g B: t:[1]
append target g: epoch=2
append current g B: epoch=2/0 UNRELEASED has
note: the group's members, their subscriptions or topics have changed
-> b: beat member=B epoch=2 interval=2s assignment

beat a g member=A epoch=1
----
append current g A: epoch=1/1 UNREVOKED has t:0@1 gives t:1@1
-> a: beat member=A epoch=1 assignment t:[0]

wait 7s
----

beat b g member=B epoch=2 session=8s
----
append current g B: epoch=2/2 UNRELEASED has
-> b: beat member=B epoch=2

# A does not give up what it was asked for.
wait 3s
----
append current g A: null
append meant g A: null
append member g A: null
append group g: epoch=3
note: A did not give up partitions within the rebalance timeout
note: 1 members are gone
  at 10s

beat a g member=A epoch=1
----
-> a: beat UNKNOWN_MEMBER_ID: Member A is not a member of group g.

# B may have it now.
beat b g member=B epoch=2 session=8s
----
append meant g B: t:[0 1]
append target g: epoch=3
append current g B: epoch=3/2 STABLE has t:0@3,1@3
-> b: beat member=B epoch=3 assignment t:[0 1]

# And is not heard of any more.
wait 8s
----
append current g B: null
append meant g B: null
append member g B: null
append group g: epoch=4
note: B not heard of within its session timeout
note: 1 members are gone
  at 18s

beat b g member=B epoch=3
----
-> b: beat UNKNOWN_MEMBER_ID: Member B is not a member of group g.

describe-consumer g
----
g Empty epoch=4 assignment-epoch=3 assignor=uniform

# After a change of coordinator members have their time anew.
beat c g member=C topics=t
----
append member g C: client=c topics=[t]
append group g: epoch=5
append meant g C: t:[0 1]
append target g: epoch=5
append current g C: epoch=5/0 STABLE has t:0@5,1@5
note: the group's members, their subscriptions or topics have changed
-> c: beat member=C epoch=5 assignment t:[0 1]

beat d g member=D topics=t
----
append member g D: client=d topics=[t]
append group g: epoch=6
append meant g C: t:[0]
append meant g D: t:[1]
append target g: epoch=6
append current g D: epoch=6/0 UNRELEASED has
note: the group's members, their subscriptions or topics have changed
-> d: beat member=D epoch=6 assignment

beat c g member=C epoch=5
----
append current g C: epoch=5/5 UNREVOKED has t:0@5 gives t:1@5
-> c: beat member=C epoch=5 assignment t:[0]

reload
----

wait 29s
----

beat c g member=C epoch=5
----
-> c: beat member=C epoch=5

wait 1s
----
append current g C: null
append meant g C: null
append member g C: null
append group g: epoch=7
note: C did not give up partitions within the rebalance timeout
note: 1 members are gone
  at 48s

describe-consumer g
----
g Assigning epoch=7 assignment-epoch=6 assignor=uniform
  D epoch=6 type=1 client=d/h topics=[t] regex=- has target t:[1]

wait 15s
----
append current g D: null
append meant g D: null
append member g D: null
append group g: epoch=8
note: D not heard of within its session timeout
note: 1 members are gone
  at 1m3s
