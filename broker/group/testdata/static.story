config
----

# Static members need no second JoinGroup.
join a g instance=one protocols=range:ma
----
note: member one-1 joins

join b g instance=two protocols=range:mb
----

wait 1ms
----
-> a: join gen=1 member=one-1 leader=one-1 protocol=range members=["one-1/one:ma" "two-2/two:mb"]
-> b: join gen=1 member=two-2 leader=one-1 protocol=range
  at 0s

sync b g member=two-2 instance=two
----

sync a g member=one-1 instance=one assign=one-1:x,two-2:y
----
append g: gen=1 type="consumer" protocol=range leader=one-1 [one-1 instance=one "x"] [two-2 instance=two "y"]
-> a: sync "x" protocol=consumer/range
-> b: sync "y" protocol=consumer/range

# b restarts: it gets its assignment back, and nobody else notices.
join b2 g instance=two protocols=range:mb2
----
append g: gen=1 type="consumer" protocol=range leader=one-1 [one-1 instance=one "x"] [two-3 instance=two "y"]
-> b2: join gen=1 member=two-3 leader=one-1 protocol=range

sync b2 g member=two-3 instance=two
----
-> b2: sync "y" protocol=consumer/range

# The old process is fenced.
heartbeat b g member=two-2 instance=two
----
-> b: heartbeat FENCED_INSTANCE_ID

commit b g member=two-2 instance=two gen=1
----
-> b: commit t/0 FENCED_INSTANCE_ID

sync b g member=two-2 instance=two
----
-> b: sync FENCED_INSTANCE_ID

join b g member=two-2 instance=two
----
-> b: join FENCED_INSTANCE_ID member=two-2

leave b g members=two-2:two
----
-> b: leave ok [two-2 instance=two FENCED_INSTANCE_ID]

# Without its instance id it is merely unknown.
heartbeat b g member=two-2
----
-> b: heartbeat UNKNOWN_MEMBER_ID

heartbeat a g member=one-1 instance=one
----
-> a: heartbeat ok

# The leader restarts. From version 9 on it is told that it leads, and not to assign.
join a2 g instance=one protocols=range:ma
----
append g: gen=1 type="consumer" protocol=range leader=one-5 [one-5 instance=one "x"] [two-3 instance=two "y"]
-> a2: join gen=1 member=one-5 leader=one-5 protocol=range members=["one-5/one:ma" "two-3/two:mb2"] skip-assignment

# Before that, it must not think that it leads.
join a3 g instance=one protocols=range:ma v=8
----
append g: gen=1 type="consumer" protocol=range leader=one-6 [one-6 instance=one "x"] [two-3 instance=two "y"]
-> a3: join gen=1 member=one-6 leader=one-5 protocol=range

describe g
----
g Stable type="consumer" protocol="range"
  one-6 instance=one client=a3 host=/10.0.0.1 metadata="ma" assignment="x"
  two-3 instance=two client=b2 host=/10.0.0.1 metadata="mb2" assignment="y"

# What the log holds is what a new coordinator knows.
reload
----

show
----
g: Stable gen=1 type="consumer" protocol=range leader=one-6
  one-6 instance=one "x" session=+10s
  two-3 instance=two "y" session=+10s

# An operator removes a member by its instance id.
leave admin g members=:two,:three
----
note: 1 members left
-> admin: leave ok [ instance=two ok] [ instance=three UNKNOWN_MEMBER_ID]

# A restart that changes the protocol makes the group rebalance.
join a4 g member=one-6 instance=one protocols=range:m,sticky:m
----
-> a4: join gen=2 member=one-6 leader=one-6 protocol=range members=["one-6/one:m"]

sync a4 g member=one-6 instance=one gen=2 assign=one-6:xy
----
append g: gen=2 type="consumer" protocol=range leader=one-6 [one-6 instance=one "xy"]
-> a4: sync "xy" protocol=consumer/range

join a5 g instance=one protocols=sticky:m
----
note: static member one-8 changes the protocol that the group chooses
-> a5: join gen=3 member=one-8 leader=one-8 protocol=sticky members=["one-8/one:m"]

# A restart in the middle of a rebalance fences the parked request of the old process.
join b3 g instance=two protocols=sticky:m
----
note: member two-9 joins

show
----
g: PreparingRebalance gen=3 type="consumer" protocol=sticky leader=one-8 join-by=+1m0s
  one-8 instance=one "" session=+10s
  two-9 instance=two "" session=+5m0s

join a6 g instance=one protocols=sticky:m
----
-> a6: join gen=4 member=one-10 leader=one-10 protocol=sticky members=["one-10/one:m" "two-9/two:m"]
-> b3: join gen=4 member=two-9 leader=one-10 protocol=sticky

join b4 g instance=two protocols=sticky:m
----
note: static member two-11 joins
