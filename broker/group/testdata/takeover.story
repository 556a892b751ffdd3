config
----

join a g v=3
----
note: member a-1 joins

join b g v=3
----

wait 1ms
----
-> a: join gen=1 member=a-1 leader=a-1 protocol=range members=["a-1:m" "b-2:m"]
-> b: join gen=1 member=b-2 leader=a-1 protocol=range
  at 0s

sync a g member=a-1 assign=a-1:x,b-2:y
----
append g: gen=1 type="consumer" protocol=range leader=a-1 [a-1 "x"] [b-2 "y"]
-> a: sync "x" protocol=consumer/range

commit a g member=a-1 gen=1 offsets=t/0:5
----
append g t/0: 5
-> a: commit t/0 ok

# A rebalance under way is lost with its coordinator; the last completed generation goes on.
join a g member=a-1
----
note: leader a-1 joins again

reload
----

show
----
g: Stable gen=1 type="consumer" protocol=range leader=a-1
  a-1 "x" session=+10s
  b-2 "y" session=+10s
  t/0: 5

heartbeat b g member=b-2
----
-> b: heartbeat ok

commit b g member=b-2 gen=1 offsets=t/1:7
----
append g t/1: 7
-> b: commit t/1 ok

sync b g member=b-2
----
-> b: sync "y" protocol=consumer/range

wait 12s
----
append g: gen=2 type="consumer" protocol=- leader=-
note: a-1 not heard of within its session timeout
note: member a-1 was not heard of within its session timeout
note: b-2 not heard of within its session timeout
  at 10.001s

# A member of the lost generation cannot commit.
commit b g member=b-2 gen=2
----
-> b: commit t/0 UNKNOWN_MEMBER_ID

show
----
g: Empty gen=2 type="consumer" protocol=- leader=
  t/0: 5
  t/1: 7
