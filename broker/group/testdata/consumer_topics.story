# Subscriptions to topics that are not there yet, that grow, and that go.
topics t=1
----

beat a g member=A topics=t,u
----
append member g A: client=a topics=[t u]
append group g: epoch=1
append meant g A: t:[0]
append target g: epoch=1
append current g A: epoch=1/0 STABLE has t:0@1
note: the group's members, their subscriptions or topics have changed
-> a: beat member=A epoch=1 assignment t:[0]

topics t=1 u=2
----

beat a g member=A epoch=1
----
append group g: epoch=2
append meant g A: t:[0] u:[0 1]
append target g: epoch=2
append current g A: epoch=2/1 STABLE has t:0@1 u:0@2,1@2
note: the group's members, their subscriptions or topics have changed
-> a: beat member=A epoch=2 assignment t:[0] u:[0 1]

topics t=3 u=2
----

beat a g member=A epoch=2
----
append group g: epoch=3
append meant g A: t:[0 1 2] u:[0 1]
append target g: epoch=3
append current g A: epoch=3/2 STABLE has t:0@1,1@3,2@3 u:0@2,1@2
note: the group's members, their subscriptions or topics have changed
-> a: beat member=A epoch=3 assignment t:[0 1 2] u:[0 1]

topics t=3
----

beat a g member=A epoch=3
----
append group g: epoch=4
append meant g A: t:[0 1 2]
append target g: epoch=4
append current g A: epoch=3/3 UNREVOKED has t:0@1,1@3,2@3 gives u:0@2,1@2
note: the group's members, their subscriptions or topics have changed
-> a: beat member=A epoch=3 assignment t:[0 1 2]

beat a g member=A epoch=3 owned=t:0,t:1,t:2
----
append current g A: epoch=4/3 STABLE has t:0@1,1@3,2@3
-> a: beat member=A epoch=4

# Nothing of it concerns the group.
topics t=3 z=9
----

beat a g member=A epoch=4
----
-> a: beat member=A epoch=4

# A regular expression matches whole names.
beat b g member=B regex=z|u
----
append member g B: client=b topics=[] regex=z|u
append regex g z|u: [z]
append group g: epoch=5
append meant g B: z:[0 1 2 3 4 5 6 7 8]
append target g: epoch=5
append current g B: epoch=5/0 STABLE has z:0@5,1@5,2@5,3@5,4@5,5@5,6@5,7@5,8@5
note: the group's members, their subscriptions or topics have changed
-> b: beat member=B epoch=5 assignment z:[0 1 2 3 4 5 6 7 8]

topics t=3 z=9 u=1 zz=1
----

# Not so often.
beat b g member=B epoch=5
----
append group g: epoch=6
append meant g A: t:[0 1 2] u:[0]
append target g: epoch=6
append current g B: epoch=6/5 STABLE has z:0@5,1@5,2@5,3@5,4@5,5@5,6@5,7@5,8@5
note: the group's members, their subscriptions or topics have changed
-> b: beat member=B epoch=6

wait 10s
----

beat b g member=B epoch=6
----
append regex g z|u: [u z]
append group g: epoch=7
append target g: epoch=7
append current g B: epoch=7/6 STABLE has z:0@5,1@5,2@5,3@5,4@5,5@5,6@5,7@5,8@5
note: the group's members, their subscriptions or topics have changed
-> b: beat member=B epoch=7

beat a g member=A epoch=4
----
append current g A: epoch=7/4 STABLE has t:0@1,1@3,2@3 u:0@7
-> a: beat member=A epoch=7 assignment t:[0 1 2] u:[0]

# It changes its mind, and what nobody asks for is forgotten.
beat b g member=B epoch=7 regex=t
----
append member g B: client=b topics=[] regex=t
append regex g t: [t]
append regex g z|u: null
append group g: epoch=8
append meant g A: t:[2] u:[0]
append meant g B: t:[0 1]
append target g: epoch=8
append current g B: epoch=7/7 UNREVOKED has gives z:0@5,1@5,2@5,3@5,4@5,5@5,6@5,7@5,8@5
note: the group's members, their subscriptions or topics have changed
-> b: beat member=B epoch=7 assignment

beat b g member=B epoch=7 owned=none
----
append current g B: epoch=8/7 UNRELEASED has
-> b: beat member=B epoch=8

beat a g member=A epoch=7
----
append current g A: epoch=7/7 UNREVOKED has t:2@3 u:0@7 gives t:0@1,1@3
-> a: beat member=A epoch=7 assignment t:[2] u:[0]

beat a g member=A epoch=7 owned=t:0,t:1
----
-> a: beat member=A epoch=7

beat b g member=B epoch=8
----
append current g B: epoch=8/8 UNRELEASED has
-> b: beat member=B epoch=8

describe-consumer g
----
g Reconciling epoch=8 assignment-epoch=8 assignor=uniform
  A epoch=7 type=1 client=a/h topics=[t u] regex=- has t:[2] u:[0] target t:[2] u:[0]
  B epoch=8 type=1 client=b/h topics=[] regex=t has target t:[0 1]

# Names and an expression together.
beat b g member=B epoch=8 topics=z regex=t
----
append member g B: client=b topics=[z] regex=t
append group g: epoch=9
append meant g A: t:[0 1 2] u:[0]
append meant g B: z:[0 1 2 3 4 5 6 7 8]
append target g: epoch=9
append current g B: epoch=9/8 STABLE has z:0@9,1@9,2@9,3@9,4@9,5@9,6@9,7@9,8@9
note: the group's members, their subscriptions or topics have changed
-> b: beat member=B epoch=9 assignment z:[0 1 2 3 4 5 6 7 8]

beat b g member=B epoch=-1
----
append current g B: null
append meant g B: null
append member g B: null
append regex g t: null
append group g: epoch=10
note: 1 members are gone
-> b: beat member=B epoch=-1 interval=0s

# Assigned by range, as most of those prefer that have a preference.
topics r=3 s=3
----

beat a h member=A topics=r,s assignor=range
----
append member h A: client=a topics=[r s]
append group h: epoch=1
append meant h A: r:[0 1 2] s:[0 1 2]
append target h: epoch=1
append current h A: epoch=1/0 STABLE has r:0@1,1@1,2@1 s:0@1,1@1,2@1
note: the group's members, their subscriptions or topics have changed
-> a: beat member=A epoch=1 assignment r:[0 1 2] s:[0 1 2]

beat b h member=B topics=r,s
----
append member h B: client=b topics=[r s]
append group h: epoch=2
append meant h A: r:[0 1] s:[0 1]
append meant h B: r:[2] s:[2]
append target h: epoch=2
append current h B: epoch=2/0 UNRELEASED has
note: the group's members, their subscriptions or topics have changed
-> b: beat member=B epoch=2 assignment

describe-consumer h
----
h Reconciling epoch=2 assignment-epoch=2 assignor=range
  A epoch=1 type=1 client=a/h topics=[r s] regex=- has r:[0 1 2] s:[0 1 2] target r:[0 1] s:[0 1]
  B epoch=2 type=1 client=b/h topics=[r s] regex=- has target r:[2] s:[2]

# Racks: who is near gets it.
topics n=2:x/y
----

beat a i member=A topics=none rack=y
----
append member i A: client=a topics=[]
append group i: epoch=1
append meant i A:
append target i: epoch=1
append current i A: epoch=1/0 STABLE has
note: the group's members, their subscriptions or topics have changed
-> a: beat member=A epoch=1 assignment

beat b i member=B topics=none rack=x
----
append member i B: client=b topics=[]
append current i B: epoch=1/0 STABLE has
-> b: beat member=B epoch=1 assignment

beat a i member=A epoch=1 topics=n
----
append member i A: client=a topics=[n]
append group i: epoch=2
append meant i A: n:[0 1]
append meant i B:
append target i: epoch=2
append current i A: epoch=2/1 STABLE has n:0@2,1@2
note: the group's members, their subscriptions or topics have changed
-> a: beat member=A epoch=2 assignment n:[0 1]

beat b i member=B epoch=1 topics=n
----
append member i B: client=b topics=[n]
append group i: epoch=3
append meant i A: n:[1]
append meant i B: n:[0]
append target i: epoch=3
append current i B: epoch=3/1 UNRELEASED has
note: the group's members, their subscriptions or topics have changed
-> b: beat member=B epoch=3

beat a i member=A epoch=2
----
append current i A: epoch=2/2 UNREVOKED has n:1@2 gives n:0@2
-> a: beat member=A epoch=2 assignment n:[1]
