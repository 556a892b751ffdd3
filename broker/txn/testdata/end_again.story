# The table of EndTxn with epochs that are bumped: an answer that was lost is given again.
init a x
----
append x: Empty 1000/0 timeout=60000ms updated=1000000
-> a: producer 1000/0

commit a x by=1000/0
----
-> a: INVALID_TXN_STATE

abort a x by=1000/0
----
append x: PrepareAbort 1000/1 last=0 version=2 timeout=60000ms updated=1000000 started=1000000
append x: CompleteAbort 1000/1 last=0 version=2 timeout=60000ms updated=1000000 started=1000000
-> a: ok, producer 1000/1

# Aborting nothing is an end too: the producer did not know that its first partition was never added.
abort a x by=1000/0
----
-> a: ok, producer 1000/1

commit a x by=1000/0
----
-> a: PRODUCER_FENCED

commit a x by=1000/1
----
-> a: INVALID_TXN_STATE

abort a x by=1000/1
----
append x: PrepareAbort 1000/2 last=1 version=2 timeout=60000ms updated=1000000 started=1000000
append x: CompleteAbort 1000/2 last=1 version=2 timeout=60000ms updated=1000000 started=1000000
-> a: ok, producer 1000/2

add leader x by=1000/2 to=t/0 v=5
----
append x: Ongoing 1000/2 last=1 version=2 timeout=60000ms updated=1000000 started=1000000 t[0]
-> leader: [x t/0 ok]

# The coordinator has not seen an end of the transaction of this epoch; it is not the one that ended before.
abort a x by=1000/1
----
-> a: PRODUCER_FENCED

commit a x by=1000/2
----
append x: PrepareCommit 1000/3 last=2 version=2 timeout=60000ms updated=1000000 started=1000000 t[0]
-> a: ok, producer 1000/3
markers x 1000/3 commit coordinator=7 version=2 t[0]

commit a x by=1000/2
----
-> a: CONCURRENT_TRANSACTIONS

abort a x by=1000/2
----
-> a: CONCURRENT_TRANSACTIONS

abort a x by=1000/3
----
-> a: CONCURRENT_TRANSACTIONS

written x in=t/0
----
append x: CompleteCommit 1000/3 last=2 version=2 timeout=60000ms updated=1000000 started=1000000

commit a x by=1000/2
----
-> a: ok, producer 1000/3

abort a x by=1000/2
----
-> a: INVALID_TXN_STATE

commit a x by=1000/3
----
-> a: INVALID_TXN_STATE

commit a x by=1000/1
----
-> a: PRODUCER_FENCED

abort a x by=1000/3
----
append x: PrepareAbort 1000/4 last=3 version=2 timeout=60000ms updated=1000000 started=1000000
append x: CompleteAbort 1000/4 last=3 version=2 timeout=60000ms updated=1000000 started=1000000
-> a: ok, producer 1000/4

commit a x by=1000/2
----
-> a: PRODUCER_FENCED

show
----
x: CompleteAbort 1000/4 last=3 version=2 timeout=60000ms updated=1000000 started=1000000

# A transaction in which there is nothing needs no markers, whoever ends it.
add a x by=1000/4
----
append x: Ongoing 1000/4 last=3 timeout=60000ms updated=1000000 started=1000000
-> a:

init b x
----
append x: PrepareAbort 1000/5 last=4 version=2 timeout=60000ms updated=1000000 started=1000000
append x: CompleteAbort 1000/5 last=4 version=2 timeout=60000ms updated=1000000 started=1000000
note: fenced 1000/5 partitions=0 age=0s
-> b: CONCURRENT_TRANSACTIONS

init b x
----
append x: Empty 1000/6 version=2 timeout=60000ms updated=1000000
-> b: producer 1000/6

abort a x by=1000/6
----
append x: PrepareAbort 1000/7 last=6 version=2 timeout=60000ms updated=1000000 started=1000000
append x: CompleteAbort 1000/7 last=6 version=2 timeout=60000ms updated=1000000 started=1000000
-> a: ok, producer 1000/7
