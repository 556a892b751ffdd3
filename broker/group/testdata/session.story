config
----

join a g v=3 session=10s
----
note: member a-1 joins

join b g v=3 session=20s
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

sync b g member=b-2
----
-> b: sync "y" protocol=consumer/range

wait 8s
----

# A commit is a sign of life too.
commit a g member=a-1 gen=1
----
append g t/0: 1
-> a: commit t/0 ok

wait 9s
----

show
----
g: Stable gen=1 type="consumer" protocol=range leader=a-1
  a-1 "x" session=+1s
  b-2 "y" session=+2.999s
  t/0: 1

wait 1s
----
note: a-1 not heard of within its session timeout
note: member a-1 was not heard of within its session timeout
  at 18.001s

join b g member=b-2
----
-> b: join gen=2 member=b-2 leader=b-2 protocol=range members=["b-2:m"]

sync b g member=b-2 gen=2 assign=b-2:xy
----
append g: gen=2 type="consumer" protocol=range leader=b-2 [b-2 "xy"]
-> b: sync "xy" protocol=consumer/range

# The last member goes: the group is empty and keeps its offsets.
wait 20s
----
append g: gen=3 type="consumer" protocol=- leader=-
note: b-2 not heard of within its session timeout
note: member b-2 was not heard of within its session timeout
  at 28.001s

fetch g
----
t/0: 1 epoch=7 metadata=""

describe g
----
g Empty type="consumer" protocol=""

# A member id that was handed out and never used is forgotten.
join c g session=10s
----
-> c: join MEMBER_ID_REQUIRED member=c-4

show
----
g: Empty gen=3 type="consumer" protocol=- leader=
  pending c-4 +10s
  t/0: 1

wait 10s
----

show
----
g: Empty gen=3 type="consumer" protocol=- leader=
  t/0: 1

join c g member=c-4
----
-> c: join UNKNOWN_MEMBER_ID member=c-4

join d g session=1s
----
-> d: join INVALID_SESSION_TIMEOUT member=

join d g session=31m
----
-> d: join INVALID_SESSION_TIMEOUT member=

# A new member that waits for the rebalance keeps its place for five minutes only, as it cannot heartbeat.
join e g v=3 rebalance=29m session=29m
----
note: member e-8 joins

wait 1ms
----
-> e: join gen=4 member=e-8 leader=e-8 protocol=range members=["e-8:m"]
  at 48.001s

sync e g member=e-8 gen=4 assign=e-8:xy
----
append g: gen=4 type="consumer" protocol=range leader=e-8 [e-8 "xy"]
-> e: sync "xy" protocol=consumer/range

join f g v=3 rebalance=29m session=6s
----
note: member f-9 joins

wait 5m
----
note: f-9 not heard of within its session timeout
-> f: join UNKNOWN_MEMBER_ID member=
  at 5m48.002s

show
----
g: PreparingRebalance gen=4 type="consumer" protocol=range leader=e-8 join-by=+24m0s
  e-8 "xy" session=+24m0s
  t/0: 1
