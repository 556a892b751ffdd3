# The leader of a partition asks, before it appends what a client of an older version produced, whether the client has added
# the partition.
init a x
----
append x: Empty 1000/0 timeout=60000ms updated=1000000
-> a: producer 1000/0

add leader x by=1000/0 to=t/0,t/1 v=5 verify
----
-> leader: [x t/0 TRANSACTION_ABORTABLE t/1 TRANSACTION_ABORTABLE]

add a x by=1000/0 to=t/0
----
append x: Ongoing 1000/0 timeout=60000ms updated=1000000 started=1000000 t[0]
-> a: t/0 ok

add leader x by=1000/0 to=t/0,t/1 v=5 verify
----
-> leader: [x t/0 ok t/1 TRANSACTION_ABORTABLE]

add leader x by=1000/0 to=t/0,t/1 v=4 verify
----
-> leader: [x t/0 ok t/1 TRANSACTION_ABORTABLE]

# In versions of clients there is no such thing.
add a x by=1000/0 to=t/1 v=3 verify
----
append x: Ongoing 1000/0 timeout=60000ms updated=1000000 started=1000000 t[0 1]
-> a: t/1 ok

commit a x by=1000/0 v=4
----
append x: PrepareCommit 1000/0 timeout=60000ms updated=1000000 started=1000000 t[0 1]
-> a: ok
markers x 1000/0 commit coordinator=7 version=0 t[0 1]

add leader x by=1000/0 to=t/0 v=5 verify
----
-> leader: [x t/0 CONCURRENT_TRANSACTIONS]

written x in=t/0,t/1
----
append x: CompleteCommit 1000/0 timeout=60000ms updated=1000000 started=1000000

add leader x by=1000/0 to=t/0 v=5 verify
----
-> leader: [x t/0 TRANSACTION_ABORTABLE]
