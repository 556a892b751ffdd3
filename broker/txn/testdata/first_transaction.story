# A producer of the second transaction version: it adds no partitions itself, the partitions' leaders do, and every end of
# a transaction gives it its next epoch.
init a x timeout=30s
----
append x: Empty 1000/0 timeout=30000ms updated=1000000
-> a: producer 1000/0

add leader x by=1000/0 to=t/1,t/0,u/5 v=5
----
append x: Ongoing 1000/0 version=2 timeout=30000ms updated=1000000 started=1000000 t[0 1] u[5]
-> leader: [x t/1 ok t/0 ok u/5 ok]

add leader x by=1000/0 to=t/0 v=5
----
-> leader: [x t/0 ok]

wait 2s
----

add leader x by=1000/0 to=t/2,__consumer_offsets/7,t/0 v=5
----
append x: Ongoing 1000/0 version=2 timeout=30000ms updated=1002000 started=1000000 __consumer_offsets[7] t[0 1 2] u[5]
-> leader: [x t/2 ok __consumer_offsets/7 ok t/0 ok]

describe x
----
x Ongoing 1000/0 timeout=30000ms start=1000000 __consumer_offsets[7] t[0 1 2] u[5]

commit a x by=1000/0
----
append x: PrepareCommit 1000/1 last=0 version=2 timeout=30000ms updated=1002000 started=1000000 __consumer_offsets[7] t[0 1 2] u[5]
-> a: ok, producer 1000/1
markers x 1000/1 commit coordinator=7 version=2 __consumer_offsets[7] t[0 1 2] u[5]

# The transaction is committed; the next one cannot begin until every partition knows.
add leader x by=1000/1 to=t/0 v=5
----
-> leader: [x t/0 CONCURRENT_TRANSACTIONS]

written x in=t/1,u/5
----

describe x
----
x PrepareCommit 1000/1 timeout=30000ms start=1000000 __consumer_offsets[7] t[0 2]

# News that is old or makes no sense changes nothing.
written x in=t/1,v/9
----

written x older=1 in=t/0,t/2,__consumer_offsets/7
----

written y in=t/0
----

written x in=t/0,t/2,__consumer_offsets/7
----
append x: CompleteCommit 1000/1 last=0 version=2 timeout=30000ms updated=1002000 started=1000000

written x in=t/0
----

describe x
----
x CompleteCommit 1000/1 timeout=30000ms start=1000000

add leader x by=1000/1 to=t/0 v=5
----
append x: Ongoing 1000/1 last=0 version=2 timeout=30000ms updated=1002000 started=1002000 t[0]
-> leader: [x t/0 ok]

abort a x by=1000/1
----
append x: PrepareAbort 1000/2 last=1 version=2 timeout=30000ms updated=1002000 started=1002000 t[0]
-> a: ok, producer 1000/2
markers x 1000/2 abort coordinator=7 version=2 t[0]

written x in=t/0
----
append x: CompleteAbort 1000/2 last=1 version=2 timeout=30000ms updated=1002000 started=1002000

show
----
x: CompleteAbort 1000/2 last=1 version=2 timeout=30000ms updated=1002000 started=1002000
