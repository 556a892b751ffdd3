# A second producer with the same transactional id takes over; the transaction of the first is aborted.
init a x
----
append x: Empty 1000/0 timeout=60000ms updated=1000000
-> a: producer 1000/0

add a x by=1000/0 to=t/0
----
append x: Ongoing 1000/0 timeout=60000ms updated=1000000 started=1000000 t[0]
-> a: t/0 ok

wait 5s
----

init b x
----
append x: PrepareAbort 1000/1 last=0 version=2 timeout=60000ms updated=1005000 started=1000000 t[0]
note: fenced 1000/1 partitions=1 age=5s
-> b: CONCURRENT_TRANSACTIONS
markers x 1000/1 abort coordinator=7 version=2 t[0]

init b x
----
-> b: CONCURRENT_TRANSACTIONS

written x in=t/0
----
append x: CompleteAbort 1000/1 last=0 version=2 timeout=60000ms updated=1005000 started=1000000

init b x
----
append x: Empty 1000/2 version=2 timeout=60000ms updated=1005000
-> b: producer 1000/2

# The first one is a zombie.
add a x by=1000/0 to=t/1
----
-> a: t/1 PRODUCER_FENCED

add a x by=1000/0 to=t/1 v=1
----
-> a: t/1 INVALID_PRODUCER_EPOCH

add leader x by=1000/0 to=t/1 v=5
----
-> leader: [x t/1 PRODUCER_FENCED]

add leader x by=1000/0 to=t/1 v=5 verify
----
-> leader: [x t/1 PRODUCER_FENCED]

add-offsets a x by=1000/0 partition=1
----
-> a: PRODUCER_FENCED

add-offsets a x by=1000/0 partition=1 v=1
----
-> a: INVALID_PRODUCER_EPOCH

commit a x by=1000/0
----
-> a: PRODUCER_FENCED

commit a x by=1000/0 v=4
----
-> a: PRODUCER_FENCED

commit a x by=1000/0 v=1
----
-> a: INVALID_PRODUCER_EPOCH

abort a x by=1000/1
----
-> a: PRODUCER_FENCED

init a x expect=1000/0
----
-> a: PRODUCER_FENCED

init a x expect=1000/0 v=3
----
-> a: INVALID_PRODUCER_EPOCH

init a x expect=1000/1
----
-> a: PRODUCER_FENCED

show
----
x: Empty 1000/2 version=2 timeout=60000ms updated=1005000

# While the second has a transaction, the zombie does not have it aborted by naming what it once was.
add b x by=1000/2 to=t/0
----
append x: Ongoing 1000/2 timeout=60000ms updated=1005000 started=1005000 t[0]
-> b: t/0 ok

init a x expect=1000/0
----
-> a: PRODUCER_FENCED

init a x expect=1000/1
----
-> a: PRODUCER_FENCED

init a x expect=999/2
----
-> a: PRODUCER_FENCED

# The coordinator below version 2 fences by an epoch that nobody gets.
config version=0
----

init a x
----
append x: Empty 1000/0 previous=-1 timeout=60000ms updated=1000000
-> a: producer 1000/0

add a x by=1000/0 to=t/0
----
append x: Ongoing 1000/0 previous=-1 timeout=60000ms updated=1000000 started=1000000 t[0]
-> a: t/0 ok

init b x
----
append x: PrepareAbort 1000/1 previous=-1 timeout=60000ms updated=1000000 started=1000000 t[0]
note: fenced 1000/1 partitions=1 age=0s
-> b: CONCURRENT_TRANSACTIONS
markers x 1000/1 abort coordinator=7 version=0 t[0]

written x in=t/0
----
append x: CompleteAbort 1000/1 previous=-1 timeout=60000ms updated=1000000 started=1000000

init a x expect=1000/0
----
-> a: PRODUCER_FENCED

init b x
----
append x: Empty 1000/2 previous=-1 timeout=60000ms updated=1000000
-> b: producer 1000/2

show
----
x: Empty 1000/2 previous=-1 timeout=60000ms updated=1000000
