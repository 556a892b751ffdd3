# The last epoch that a client may have is 32766: after that it gets another producer id. The log is one of long ago.
log x state=0 by=500/32765
----

reload
----

add leader x by=500/32765 to=t/0 v=5
----
append x: Ongoing 500/32765 version=2 timeout=3000ms updated=1000000 started=1000000 t[0]
-> leader: [x t/0 ok]

commit a x by=500/32765
----
append x: PrepareCommit 500/32766 last=32765 version=2 timeout=3000ms updated=1000000 started=1000000 t[0]
-> a: ok, producer 500/32766
markers x 500/32766 commit coordinator=8 version=2 t[0]

written x in=t/0
----
append x: CompleteCommit 500/32766 last=32765 version=2 timeout=3000ms updated=1000000 started=1000000

add leader x by=500/32766 to=t/0 v=5
----
append x: Ongoing 500/32766 last=32765 version=2 timeout=3000ms updated=1000000 started=1000000 t[0]
-> leader: [x t/0 ok]

dry
----

commit a x by=500/32766
----
no producer id
-> a: COORDINATOR_LOAD_IN_PROGRESS

commit a x by=500/32766
----
append x: PrepareCommit 500/32767 next=1000 last=32766 version=2 timeout=3000ms updated=1000000 started=1000000 t[0]
-> a: ok, producer 1000/0
markers x 500/32767 commit coordinator=8 version=2 t[0]

# The new identity is current only after the markers, which fence the old one.
add leader x by=1000/0 to=t/0 v=5
----
-> leader: [x t/0 CONCURRENT_TRANSACTIONS]

abort a x by=1000/0
----
-> a: CONCURRENT_TRANSACTIONS

init a x expect=1000/0
----
-> a: CONCURRENT_TRANSACTIONS

reload
----
markers x 500/32767 commit coordinator=9 version=2 t[0]

written x in=t/0
----
append x: CompleteCommit 1000/0 previous=500 last=32766 version=2 timeout=3000ms updated=1000000 started=1000000

# The answer was lost.
commit a x by=500/32766
----
-> a: ok, producer 1000/0

abort a x by=500/32766
----
-> a: INVALID_TXN_STATE

init a x expect=500/32766
----
append x: Empty 1000/0 last=32766 version=2 timeout=60000ms updated=1000000
-> a: producer 1000/0

init a x expect=500/32765
----
-> a: PRODUCER_FENCED

show
----
x: Empty 1000/0 last=32766 version=2 timeout=60000ms updated=1000000

# Without a transaction InitProducerId does the same.
log x state=0 by=500/32766
----

reload
----

dry
----

init a x
----
no producer id
-> a: COORDINATOR_LOAD_IN_PROGRESS

init a x expect=500/32766
----
append x: Empty 1001/0 previous=500 last=32766 timeout=60000ms updated=1000000
-> a: producer 1001/0

init a x expect=500/32766
----
append x: Empty 1001/0 last=32766 timeout=60000ms updated=1000000
-> a: producer 1001/0

init b x
----
append x: Empty 1001/1 timeout=60000ms updated=1000000
-> b: producer 1001/1

init a x expect=500/32766
----
-> a: PRODUCER_FENCED

# A producer that is fenced, or out of time, at the last epoch.
log x state=1 by=500/32766 version=2 in=t/0
----

log y state=1 by=2000/32766 version=2 in=t/0
----

reload
----

dry
----

init b x
----
no producer id
-> b: COORDINATOR_LOAD_IN_PROGRESS

init b x
----
append x: PrepareAbort 500/32767 next=1002 last=32766 version=2 timeout=3000ms updated=1000000 started=1000000 t[0]
note: fenced 500/32767 partitions=1 age=0s
-> b: CONCURRENT_TRANSACTIONS
markers x 500/32767 abort coordinator=11 version=2 t[0]

dry
----

wait 5s
----
no producer id
  at 3s
append y: PrepareAbort 2000/32767 next=1003 last=32766 version=2 timeout=3000ms updated=1004000 started=1000000 t[0]
note: timed out 2000/32767 partitions=1 age=4s
markers y 2000/32767 abort coordinator=11 version=2 t[0]
  at 4s

abort a x by=500/32766
----
-> a: CONCURRENT_TRANSACTIONS

written x in=t/0
----
append x: CompleteAbort 1002/0 previous=500 last=32766 version=2 timeout=3000ms updated=1005000 started=1000000

abort a x by=500/32766
----
-> a: ok, producer 1002/0

init b x
----
append x: Empty 1002/1 version=2 timeout=60000ms updated=1005000
-> b: producer 1002/1

show
----
x: Empty 1002/1 version=2 timeout=60000ms updated=1005000
y: PrepareAbort 2000/32767 next=1003 last=32766 version=2 timeout=3000ms updated=1004000 started=1000000 t[0] unmarked: t[0]

# Below version 2 an epoch above the last fences, and the next InitProducerId needs another id.
config version=0
----

log x state=1 by=500/32766 in=t/0
----

reload
----

init b x
----
append x: PrepareAbort 500/32767 previous=-1 timeout=3000ms updated=1000000 started=1000000 t[0]
note: fenced 500/32767 partitions=1 age=0s
-> b: CONCURRENT_TRANSACTIONS
markers x 500/32767 abort coordinator=8 version=0 t[0]

written x in=t/0
----
append x: CompleteAbort 500/32767 previous=-1 timeout=3000ms updated=1000000 started=1000000

init b x
----
append x: Empty 1000/0 previous=-1 timeout=60000ms updated=1000000
-> b: producer 1000/0

# A log may have that epoch in a transaction, though nobody should have written it.
log x state=1 by=500/32767 in=t/0
----

reload
----

init b x
----
append x: PrepareAbort 500/32767 previous=-1 timeout=3000ms updated=1000000 started=1000000 t[0]
note: fenced 500/32767 partitions=1 age=0s
-> b: CONCURRENT_TRANSACTIONS
markers x 500/32767 abort coordinator=9 version=0 t[0]

# An end of nothing takes the last epoch too.
config
----

log x state=5 by=500/32766 version=2
----

reload
----

abort a x by=500/32766
----
append x: PrepareAbort 500/32767 next=1000 last=32766 version=2 timeout=3000ms updated=1000000 started=1000000
append x: CompleteAbort 1000/0 previous=500 last=32766 version=2 timeout=3000ms updated=1000000 started=1000000
-> a: ok, producer 1000/0

abort a x by=500/32766
----
-> a: ok, producer 1000/0

# An epoch that goes with the other producer id is nobody's.
abort a x by=1000/-1
----
-> a: PRODUCER_FENCED

init a x expect=1000/32766
----
-> a: PRODUCER_FENCED

# Kafka did not always write down which producer id comes next (KAFKA-20310). Nobody gets the epoch that is left then.
log x state=2 by=500/32767 version=2 in=t/0
----

reload
----
markers x 500/32767 commit coordinator=9 version=2 t[0]

written x in=t/0
----
append x: CompleteCommit 500/32767 last=32766 version=2 timeout=3000ms updated=1000000 started=1000000

commit a x by=500/32766
----
-> a: PRODUCER_FENCED

init a x expect=500/32766
----
-> a: PRODUCER_FENCED

commit a x by=500/32767
----
-> a: PRODUCER_FENCED

init a x
----
append x: Empty 1001/0 previous=500 version=2 timeout=60000ms updated=1000000
-> a: producer 1001/0
