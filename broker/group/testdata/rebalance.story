config
----

join a g v=3 rebalance=20s
----
note: member a-1 joins

wait 1ms
----
-> a: join gen=1 member=a-1 leader=a-1 protocol=range members=["a-1:m"]
  at 0s

sync a g member=a-1 assign=a-1:all
----
append g: gen=1 type="consumer" protocol=range leader=a-1 [a-1 "all"]
-> a: sync "all" protocol=consumer/range

# Another member joins: the first learns of it by its heartbeat, and joins again.
join b g v=3 rebalance=20s
----
note: member b-2 joins

heartbeat a g member=a-1
----
-> a: heartbeat REBALANCE_IN_PROGRESS

# Its commit of the old generation still counts: it owns its partitions until it has joined again.
commit a g member=a-1 gen=1 offsets=t/0:10
----
append g t/0: 10
-> a: commit t/0 ok

join a g member=a-1 rebalance=20s
----
-> a: join gen=2 member=a-1 leader=a-1 protocol=range members=["a-1:m" "b-2:m"]
-> b: join gen=2 member=b-2 leader=a-1 protocol=range

commit a g member=a-1 gen=2 offsets=t/0:11
----
-> a: commit t/0 REBALANCE_IN_PROGRESS

commit a g member=a-1 gen=1 offsets=t/0:12
----
-> a: commit t/0 ILLEGAL_GENERATION

sync a g member=a-1 gen=1
----
-> a: sync ILLEGAL_GENERATION

sync a g member=a-1 gen=2 protocol=sticky
----
-> a: sync INCONSISTENT_GROUP_PROTOCOL

sync b g member=b-2 gen=2
----

# The leader assigns; a member that it made up is ignored.
sync a g member=a-1 gen=2 assign=a-1:x,b-2:y,ghost:z
----
append g: gen=2 type="consumer" protocol=range leader=a-1 [a-1 "x"] [b-2 "y"]
-> a: sync "x" protocol=consumer/range
-> b: sync "y" protocol=consumer/range

# A follower that joins again with what it said before is told the generation.
join b g member=b-2 rebalance=20s
----
-> b: join gen=2 member=b-2 leader=a-1 protocol=range

sync b g member=b-2 gen=2
----
-> b: sync "y" protocol=consumer/range

# When the leader joins again it wants to assign anew.
join a g member=a-1 rebalance=20s
----
note: leader a-1 joins again

# b does not join within the rebalance timeout, though its heartbeats come.
wait 9s
----

heartbeat b g member=b-2 gen=2
----
-> b: heartbeat REBALANCE_IN_PROGRESS

wait 9s
----

heartbeat b g member=b-2 gen=2
----
-> b: heartbeat REBALANCE_IN_PROGRESS

wait 2s
----
note: b-2 did not join within the rebalance timeout
-> a: join gen=3 member=a-1 leader=a-1 protocol=range members=["a-1:m"]
  at 20.001s

show
----
g: CompletingRebalance gen=3 type="consumer" protocol=range leader=a-1 sync-by=+20s
  a-1 "x" session=+10s
  t/0: 10

sync a g member=a-1 gen=3 assign=a-1:x
----
append g: gen=3 type="consumer" protocol=range leader=a-1 [a-1 "x"]
-> a: sync "x" protocol=consumer/range

# A member that does not sync is removed after the rebalance timeout.
join c g v=3 session=100s rebalance=20s
----
note: member c-6 joins

join a g member=a-1 session=100s rebalance=20s
----
-> a: join gen=4 member=a-1 leader=a-1 protocol=range members=["a-1:m" "c-6:m"]
-> c: join gen=4 member=c-6 leader=a-1 protocol=range

sync a g member=a-1 gen=4 assign=a-1:x,c-6:y
----
append g: gen=4 type="consumer" protocol=range leader=a-1 [a-1 "x"] [c-6 "y"]
-> a: sync "x" protocol=consumer/range

wait 20s
----
note: c-6 did not sync within the rebalance timeout
note: members did not sync within the rebalance timeout
  at 40.001s

show
----
g: PreparingRebalance gen=4 type="consumer" protocol=range leader=a-1 join-by=+20s
  a-1 "x" session=+1m20s
  t/0: 10
