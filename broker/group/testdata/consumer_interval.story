# The group is assigned at most once a second: members that come together are assigned together.
config interval=1s
----

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

wait 100ms
----

beat b g member=B topics=t
----
append member g B: client=b topics=[t]
append group g: epoch=2
append current g B: epoch=1/0 STABLE has
note: the group's members, their subscriptions or topics have changed
-> b: beat member=B epoch=1 assignment

beat c g member=C topics=t
----
append member g C: client=c topics=[t]
append group g: epoch=3
append current g C: epoch=1/0 STABLE has
note: the group's members, their subscriptions or topics have changed
-> c: beat member=C epoch=1 assignment

beat a g member=A epoch=1 owned=t:0,t:1,t:2,t:3
----
-> a: beat member=A epoch=1

describe-consumer g
----
g Assigning epoch=3 assignment-epoch=1 assignor=uniform
  A epoch=1 type=1 client=a/h topics=[t] regex=- has t:[0 1 2 3] target t:[0 1 2 3]
  B epoch=1 type=1 client=b/h topics=[t] regex=- has target
  C epoch=1 type=1 client=c/h topics=[t] regex=- has target

# Another coordinator knows when it was.
reload
----

beat b g member=B epoch=1
----
-> b: beat member=B epoch=1

wait 900ms
----

beat b g member=B epoch=1
----
append meant g A: t:[0 1]
append meant g B: t:[2]
append meant g C: t:[3]
append target g: epoch=3
append current g B: epoch=3/1 UNRELEASED has
-> b: beat member=B epoch=3

describe-consumer g
----
g Reconciling epoch=3 assignment-epoch=3 assignor=uniform
  A epoch=1 type=1 client=a/h topics=[t] regex=- has t:[0 1 2 3] target t:[0 1]
  B epoch=3 type=1 client=b/h topics=[t] regex=- has target t:[2]
  C epoch=1 type=1 client=c/h topics=[t] regex=- has target t:[3]

beat a g member=A epoch=1
----
append current g A: epoch=1/1 UNREVOKED has t:0@1,1@1 gives t:2@1,3@1
-> a: beat member=A epoch=1 assignment t:[0 1]

# Who leaves a topic gives it up at once.
config interval=10s
----

topics t=1 u=1
----

beat a g member=A topics=t,u
----
append member g A: client=a topics=[t u]
append group g: epoch=1
append meant g A: t:[0] u:[0]
append target g: epoch=1
append current g A: epoch=1/0 STABLE has t:0@1 u:0@1
note: the group's members, their subscriptions or topics have changed
-> a: beat member=A epoch=1 assignment t:[0] u:[0]

beat a g member=A epoch=1 topics=t
----
append member g A: client=a topics=[t]
append group g: epoch=2
append current g A: epoch=1/1 UNREVOKED has t:0@1 gives u:0@1
note: the group's members, their subscriptions or topics have changed
-> a: beat member=A epoch=1 assignment t:[0]

beat a g member=A epoch=1 owned=t:0
----
append current g A: epoch=1/1 STABLE has t:0@1
-> a: beat member=A epoch=1

beat a g member=A epoch=1 owned=t:0
----
-> a: beat member=A epoch=1

wait 10s
----

beat a g member=A epoch=1 owned=t:0
----
append meant g A: t:[0]
append target g: epoch=2
append current g A: epoch=2/1 STABLE has t:0@1
-> a: beat member=A epoch=2

# A clock that is set back makes nobody wait until it is there again.
config interval=0s
----

topics t=2
----

beat a g member=A topics=t
----
append member g A: client=a topics=[t]
append group g: epoch=1
append meant g A: t:[0 1]
append target g: epoch=1
append current g A: epoch=1/0 STABLE has t:0@1,1@1
note: the group's members, their subscriptions or topics have changed
-> a: beat member=A epoch=1 assignment t:[0 1]

wait -1h
----

beat b g member=B topics=t
----
append member g B: client=b topics=[t]
append group g: epoch=2
append meant g A: t:[0]
append meant g B: t:[1]
append target g: epoch=2
append current g B: epoch=2/0 UNRELEASED has
note: the group's members, their subscriptions or topics have changed
-> b: beat member=B epoch=2 assignment

beat a g member=A epoch=1 owned=t:0,t:1
----
append current g A: epoch=1/1 UNREVOKED has t:0@1 gives t:1@1
-> a: beat member=A epoch=1 assignment t:[0]
