# A cooperative member is to give up partitions, and has not heard of it when the first of the consumer protocol comes: they
# are its own until it says that it does not have them any more.
topics t=4
----

join a g v=3 protocols=coop:sub/t session=10s
----
note: member a-1 joins

wait 1s
----
-> a: join gen=1 member=a-1 leader=a-1 protocol=coop members=["a-1:\x00\x00\x00\x00\x00\x01\x00\x01t\xff\xff\xff\xff"]
  at 0s

sync a g member=a-1 assign=a-1:asg+t-0+t-1+t-2+t-3
----
append g: gen=1 type="consumer" protocol=coop leader=a-1 [a-1 "\x00\x00\x00\x00\x00\x01\x00\x01t\x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x02\x00\x00\x00\x03\xff\xff\xff\xff"]
-> a: sync protocol=consumer/coop t:[0 1 2 3]

join b g v=3 protocols=coop:sub/t session=10s
----
note: member b-2 joins

join a g v=3 member=a-1 protocols=coop:sub/t+t-0+t-1+t-2+t-3 session=10s
----
-> a: join gen=2 member=a-1 leader=a-1 protocol=coop members=["a-1:\x00\x01\x00\x00\x00\x01\x00\x01t\xff\xff\xff\xff\x00\x00\x00\x01\x00\x01t\x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x02\x00\x00\x00\x03" "b-2:\x00\x00\x00\x00\x00\x01\x00\x01t\xff\xff\xff\xff"]
-> b: join gen=2 member=b-2 leader=a-1 protocol=coop

# The leader gives to nobody what somebody has, so that it has to be given up first. Its answer is lost.
sync a g member=a-1 gen=2 assign=a-1:asg+t-0+t-1,b-2:asg
----
append g: gen=2 type="consumer" protocol=coop leader=a-1 [a-1 "\x00\x00\x00\x00\x00\x01\x00\x01t\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x01\xff\xff\xff\xff"] [b-2 "asg"]
-> a: sync protocol=consumer/coop t:[0 1]

sync b g member=b-2 gen=2
----
-> b: sync "asg" protocol=consumer/coop

beat c g member=C topics=t
----
append g: null
append member g a-1: client=a topics=[t] classic=10s coop:"\x00\x01\x00\x00\x00\x01\x00\x01t\xff\xff\xff\xff\x00\x00\x00\x01\x00\x01t\x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x02\x00\x00\x00\x03"
append member g b-2: client=b topics=[t] classic=10s coop:"\x00\x00\x00\x00\x00\x01\x00\x01t\xff\xff\xff\xff"
append group g: epoch=2
append meant g a-1: t:[0 1 2 3]
append current g a-1: epoch=2/2 STABLE has t:0@2,1@2,2@2,3@2
append meant g b-2:
append current g b-2: epoch=2/2 STABLE has
append target g: epoch=2
append member g C: client=c topics=[t]
append group g: epoch=3
append meant g C: t:[2]
append meant g a-1: t:[0 1]
append meant g b-2: t:[3]
append target g: epoch=3
append current g C: epoch=3/0 UNRELEASED has
note: the group's members, their subscriptions or topics have changed
-> c: beat member=C epoch=3 assignment

describe-consumer g
----
g Reconciling epoch=3 assignment-epoch=3 assignor=uniform
  C epoch=3 type=1 client=c/h topics=[t] regex=- has target t:[2]
  a-1 epoch=2 type=0 client=a/10.0.0.1 topics=[t] regex=- has t:[0 1 2 3] target t:[0 1]
  b-2 epoch=2 type=0 client=b/10.0.0.1 topics=[t] regex=- has target t:[3]

beat c g member=C epoch=3
----
append current g C: epoch=3/3 UNRELEASED has
-> c: beat member=C epoch=3

join a g v=3 member=a-1 protocols=coop:sub/t+t-0+t-1 session=10s
----
append member g a-1: client=a topics=[t] classic=10s coop:"\x00\x01\x00\x00\x00\x01\x00\x01t\xff\xff\xff\xff\x00\x00\x00\x01\x00\x01t\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x01"
append current g a-1: epoch=3/2 STABLE has t:0@2,1@2
-> a: join gen=3 member=a-1 leader= protocol=coop

beat c g member=C epoch=3
----
append current g C: epoch=3/3 STABLE has t:2@3
-> c: beat member=C epoch=3 assignment t:[2]
