config
----

# When an append fails the state is what it was, and the request can be repeated.
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

sync b g member=b-2
----

fail 15
----

sync a g member=a-1 assign=a-1:x,b-2:y
----
append fails
-> a: sync COORDINATOR_NOT_AVAILABLE

show
----
g: CompletingRebalance gen=1 type="consumer" protocol=range leader=a-1 sync-by=+59.999s
  a-1 "" session=+9.999s
  b-2 "" parked

sync a g member=a-1 assign=a-1:x,b-2:y
----
append g: gen=1 type="consumer" protocol=range leader=a-1 [a-1 "x"] [b-2 "y"]
-> a: sync "x" protocol=consumer/range
-> b: sync "y" protocol=consumer/range

fail 15
----

commit a g member=a-1 gen=1 offsets=t/0:1
----
append fails
-> a: commit t/0 COORDINATOR_NOT_AVAILABLE

fetch g
----

commit a g member=a-1 gen=1 offsets=t/0:1
----
append g t/0: 1
-> a: commit t/0 ok

leave b g member=b-2
----
note: 1 members left
-> b: leave ok [b-2 ok]

join a g member=a-1
----
-> a: join gen=2 member=a-1 leader=a-1 protocol=range members=["a-1:m"]

sync a g member=a-1 gen=2 assign=a-1:xy
----
append g: gen=2 type="consumer" protocol=range leader=a-1 [a-1 "xy"]
-> a: sync "xy" protocol=consumer/range

fail 16
----

leave a g member=a-1
----
append fails
-> a: leave NOT_COORDINATOR

show
----
g: Stable gen=2 type="consumer" protocol=range leader=a-1
  a-1 "xy" session=+10s
  t/0: 1

leave a g member=a-1
----
append g: gen=3 type="consumer" protocol=- leader=-
note: 1 members left
-> a: leave ok [a-1 ok]

fail 15
----

delete a g
----
append fails
-> a: delete g COORDINATOR_NOT_AVAILABLE

fail 15
----

delete-offsets a g
----
append fails
-> a: delete-offsets COORDINATOR_NOT_AVAILABLE

show
----
g: Empty gen=3 type="consumer" protocol=- leader=
  t/0: 1

# A static member's replacement that cannot be written leaves the old one in its place.
join s1 h instance=one
----
note: member one-4 joins

wait 1ms
----
-> s1: join gen=1 member=one-4 leader=one-4 protocol=range members=["one-4/one:m"]
  at 1ms

sync s1 h member=one-4 assign=one-4:x
----
append h: gen=1 type="consumer" protocol=range leader=one-4 [one-4 instance=one "x"]
-> s1: sync "x" protocol=consumer/range

fail 15
----

join s2 h instance=one
----
append fails
-> s2: join COORDINATOR_NOT_AVAILABLE member=

heartbeat s1 h member=one-4 instance=one
----
-> s1: heartbeat ok
