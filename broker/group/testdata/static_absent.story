config
----

join a g instance=one session=2m rebalance=10s
----
note: member one-1 joins

join b g instance=two session=2m rebalance=10s
----

wait 1ms
----
-> a: join gen=1 member=one-1 leader=one-1 protocol=range members=["one-1/one:m" "two-2/two:m"]
-> b: join gen=1 member=two-2 leader=one-1 protocol=range
  at 0s

sync a g member=one-1 instance=one assign=one-1:x,two-2:y
----
append g: gen=1 type="consumer" protocol=range leader=one-1 [one-1 instance=one "x"] [two-2 instance=two "y"]
-> a: sync "x" protocol=consumer/range

# A static member that does not join in time stays a member: its session timeout decides.
join a g member=one-1 instance=one session=2m rebalance=10s
----
note: leader one-1 joins again

wait 10s
----
-> a: join gen=2 member=one-1 leader=one-1 protocol=range members=["one-1/one:m" "two-2/two:m"]
  at 10.001s

show
----
g: CompletingRebalance gen=2 type="consumer" protocol=range leader=one-1 sync-by=+10s
  one-1 instance=one "x" session=+2m0s
  two-2 instance=two "y" session=+2m0s

sync a g member=one-1 instance=one gen=2 assign=one-1:x
----
append g: gen=2 type="consumer" protocol=range leader=one-1 [one-1 instance=one "x"] [two-2 instance=two ""]
-> a: sync "x" protocol=consumer/range

# If none of them joins, the group waits for one that does.
join c g v=3 session=6s rebalance=10s
----
note: member c-4 joins

leave c g member=c-4
----
-> c: join UNKNOWN_MEMBER_ID member=
-> c: leave ok [c-4 ok]

wait 25s
----

show
----
g: PreparingRebalance gen=2 type="consumer" protocol=range leader=one-1 join-by=+5s
  one-1 instance=one "x" session=+1m35s
  two-2 instance=two "" session=+1m35s

join b g member=two-2 instance=two session=2m rebalance=10s
----

wait 10s
----
-> b: join gen=3 member=two-2 leader=two-2 protocol=range members=["one-1/one:m" "two-2/two:m"]
  at 40.001s
