init a x timeout=10s
----
append x: Empty 1000/0 timeout=10000ms updated=1000000
-> a: producer 1000/0

init b y timeout=30s
----
append y: Empty 1001/0 timeout=30000ms updated=1000000
-> b: producer 1001/0

wait 1m
----

add leader x by=1000/0 to=t/0 v=5
----
append x: Ongoing 1000/0 version=2 timeout=10000ms updated=1060000 started=1060000 t[0]
-> leader: [x t/0 ok]

wait 4s
----

# Further partitions do not prolong a transaction.
add leader x by=1000/0 to=t/1 v=5
----
append x: Ongoing 1000/0 version=2 timeout=10000ms updated=1064000 started=1060000 t[0 1]
-> leader: [x t/1 ok]

add leader y by=1001/0 to=t/0 v=5
----
append y: Ongoing 1001/0 version=2 timeout=30000ms updated=1064000 started=1064000 t[0]
-> leader: [y t/0 ok]

tick x
----

wait 10s
----
append x: PrepareAbort 1000/1 last=0 version=2 timeout=10000ms updated=1070000 started=1060000 t[0 1]
note: timed out 1000/1 partitions=2 age=10s
markers x 1000/1 abort coordinator=7 version=2 t[0 1]
  at 1m10s

# Its producer finds its transaction aborted: if that is what it wants, it may go on.
commit a x by=1000/0
----
-> a: CONCURRENT_TRANSACTIONS

abort a x by=1000/0
----
-> a: CONCURRENT_TRANSACTIONS

written x in=t/0,t/1
----
append x: CompleteAbort 1000/1 last=0 version=2 timeout=10000ms updated=1074000 started=1060000

commit a x by=1000/0
----
-> a: PRODUCER_FENCED

add leader x by=1000/0 to=t/1 v=5
----
-> leader: [x t/1 PRODUCER_FENCED]

abort a x by=1000/0
----
-> a: ok, producer 1000/1

# What could not be appended is done a little later.
fail 15
----

wait 20s
----
append fails
  at 1m34s
append y: PrepareAbort 1001/1 last=0 version=2 timeout=30000ms updated=1095000 started=1064000 t[0]
note: timed out 1001/1 partitions=1 age=31s
markers y 1001/1 abort coordinator=7 version=2 t[0]
  at 1m35s

show
----
x: CompleteAbort 1000/1 last=0 version=2 timeout=10000ms updated=1074000 started=1060000
y: PrepareAbort 1001/1 last=0 version=2 timeout=30000ms updated=1095000 started=1064000 t[0] unmarked: t[0]

# A new coordinator does not give more time.
init c z timeout=10s
----
append z: Empty 1002/0 timeout=10000ms updated=1095000
-> c: producer 1002/0

add leader z by=1002/0 to=t/0 v=5
----
append z: Ongoing 1002/0 version=2 timeout=10000ms updated=1095000 started=1095000 t[0]
-> leader: [z t/0 ok]

reload
----
markers y 1001/1 abort coordinator=8 version=2 t[0]

wait 9s
----

wait 1s
----
append z: PrepareAbort 1002/1 last=0 version=2 timeout=10000ms updated=1105000 started=1095000 t[0]
note: timed out 1002/1 partitions=1 age=10s
markers z 1002/1 abort coordinator=8 version=2 t[0]
  at 1m45s

# Below version 2 the epoch of the abort is nobody's.
config version=1
----

init a x timeout=10s
----
append x: Empty 1000/0 timeout=10000ms updated=1000000
-> a: producer 1000/0

add a x by=1000/0 to=t/0
----
append x: Ongoing 1000/0 timeout=10000ms updated=1000000 started=1000000 t[0]
-> a: t/0 ok

wait 10s
----
append x: PrepareAbort 1000/1 timeout=10000ms updated=1010000 started=1000000 t[0]
note: timed out 1000/1 partitions=1 age=10s
markers x 1000/1 abort coordinator=7 version=0 t[0]
  at 10s

written x in=t/0
----
append x: CompleteAbort 1000/1 timeout=10000ms updated=1010000 started=1000000

abort a x by=1000/0 v=4
----
-> a: PRODUCER_FENCED
