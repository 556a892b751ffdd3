# A producer of the versions before: it adds partitions itself and keeps its epoch.
init a x v=4
----
append x: Empty 1000/0 timeout=60000ms updated=1000000
-> a: producer 1000/0

add a x by=1000/0 to=t/0,t/1
----
append x: Ongoing 1000/0 timeout=60000ms updated=1000000 started=1000000 t[0 1]
-> a: t/0 ok t/1 ok

add-offsets a x by=1000/0 partition=12
----
append x: Ongoing 1000/0 timeout=60000ms updated=1000000 started=1000000 __consumer_offsets[12] t[0 1]
-> a: ok

add-offsets a x by=1000/0 partition=12
----
-> a: ok

commit a x by=1000/0 v=4
----
append x: PrepareCommit 1000/0 timeout=60000ms updated=1000000 started=1000000 __consumer_offsets[12] t[0 1]
-> a: ok
markers x 1000/0 commit coordinator=7 version=0 __consumer_offsets[12] t[0 1]

# Asked again while markers are out, it must wait, whatever it asks.
commit a x by=1000/0 v=4
----
-> a: CONCURRENT_TRANSACTIONS

abort a x by=1000/0 v=4
----
-> a: CONCURRENT_TRANSACTIONS

add a x by=1000/0 to=t/0
----
-> a: t/0 CONCURRENT_TRANSACTIONS

add-offsets a x by=1000/0 partition=3
----
-> a: CONCURRENT_TRANSACTIONS

init a x v=4
----
-> a: CONCURRENT_TRANSACTIONS

written x in=__consumer_offsets/12,t/0,t/1
----
append x: CompleteCommit 1000/0 timeout=60000ms updated=1000000 started=1000000

# The answer was lost: the same end may be asked for again, the other may not.
commit a x by=1000/0 v=4
----
-> a: ok

abort a x by=1000/0 v=4
----
-> a: INVALID_TXN_STATE

add-offsets a x by=1000/0 partition=3
----
append x: Ongoing 1000/0 timeout=60000ms updated=1000000 started=1000000 __consumer_offsets[3]
-> a: ok

abort a x by=1000/0 v=3
----
append x: PrepareAbort 1000/0 timeout=60000ms updated=1000000 started=1000000 __consumer_offsets[3]
-> a: ok
markers x 1000/0 abort coordinator=7 version=0 __consumer_offsets[3]

written x in=__consumer_offsets/3
----
append x: CompleteAbort 1000/0 timeout=60000ms updated=1000000 started=1000000

abort a x by=1000/0 v=3
----
-> a: ok

commit a x by=1000/0 v=3
----
-> a: INVALID_TXN_STATE

init a x
----
append x: Empty 1000/1 timeout=60000ms updated=1000000
-> a: producer 1000/1

# Nothing was begun.
commit a x by=1000/1 v=4
----
-> a: INVALID_TXN_STATE

abort a x by=1000/1 v=4
----
-> a: INVALID_TXN_STATE

show
----
x: Empty 1000/1 timeout=60000ms updated=1000000

# News that comes late is of a transaction that has the same producer id and epoch as the one that ends now, but is not it.
add a x by=1000/1 to=t/0
----
append x: Ongoing 1000/1 timeout=60000ms updated=1000000 started=1000000 t[0]
-> a: t/0 ok

commit a x by=1000/1 v=4
----
append x: PrepareCommit 1000/1 timeout=60000ms updated=1000000 started=1000000 t[0]
-> a: ok
markers x 1000/1 commit coordinator=7 version=0 t[0]

written x in=t/0
----
append x: CompleteCommit 1000/1 timeout=60000ms updated=1000000 started=1000000

add a x by=1000/1 to=t/0
----
append x: Ongoing 1000/1 timeout=60000ms updated=1000000 started=1000000 t[0]
-> a: t/0 ok

commit a x by=1000/1 v=4
----
append x: PrepareCommit 1000/1 timeout=60000ms updated=1000000 started=1000000 t[0]
-> a: ok
markers x 1000/1 commit coordinator=7 version=0 t[0]

written x older=1 in=t/0
----

describe x
----
x PrepareCommit 1000/1 timeout=60000ms start=1000000 t[0]

written x in=t/0
----
append x: CompleteCommit 1000/1 timeout=60000ms updated=1000000 started=1000000
