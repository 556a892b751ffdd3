# A producer that goes on after an error names what it has (KIP-360).
init a x
----
append x: Empty 1000/0 timeout=60000ms updated=1000000
-> a: producer 1000/0

init a x expect=1000/0
----
append x: Empty 1000/1 last=0 timeout=60000ms updated=1000000
-> a: producer 1000/1

# The answer was lost, and is given again.
init a x expect=1000/0
----
append x: Empty 1000/1 last=0 timeout=60000ms updated=1000000
-> a: producer 1000/1

init a x expect=1000/1 timeout=20s
----
append x: Empty 1000/2 last=1 timeout=20000ms updated=1000000
-> a: producer 1000/2

init a x expect=1000/0
----
-> a: PRODUCER_FENCED

init a x expect=1001/2
----
-> a: PRODUCER_FENCED

init a x expect=1000/7
----
-> a: PRODUCER_FENCED

init b x
----
append x: Empty 1000/3 timeout=60000ms updated=1000000
-> b: producer 1000/3

# Now nobody may name the last epoch.
init a x expect=1000/2
----
-> a: PRODUCER_FENCED

show
----
x: Empty 1000/3 timeout=60000ms updated=1000000

# It goes on out of a transaction: that is aborted, and the epoch of the abort is the producer's.
add a x by=1000/3 to=t/0
----
append x: Ongoing 1000/3 timeout=60000ms updated=1000000 started=1000000 t[0]
-> a: t/0 ok

init a x expect=1000/3
----
append x: PrepareAbort 1000/4 last=3 version=2 timeout=60000ms updated=1000000 started=1000000 t[0]
note: fenced 1000/4 partitions=1 age=0s
-> a: CONCURRENT_TRANSACTIONS
markers x 1000/4 abort coordinator=7 version=2 t[0]

written x in=t/0
----
append x: CompleteAbort 1000/4 last=3 version=2 timeout=60000ms updated=1000000 started=1000000

init a x expect=1000/3
----
append x: Empty 1000/4 last=3 version=2 timeout=60000ms updated=1000000
-> a: producer 1000/4

# An id that is not known, perhaps since it expired, is begun anew.
init a y expect=555/3
----
append y: Empty 1001/0 timeout=60000ms updated=1000000
-> a: producer 1001/0

# The answer may be lost with the coordinator: the record tells the last epoch.
init a y expect=1001/0
----
append y: Empty 1001/1 last=0 timeout=60000ms updated=1000000
-> a: producer 1001/1

reload
----

init a y expect=1001/0
----
append y: Empty 1001/1 last=0 timeout=60000ms updated=1000000
-> a: producer 1001/1

add leader y by=1001/1 to=t/0 v=5
----
append y: Ongoing 1001/1 last=0 version=2 timeout=60000ms updated=1000000 started=1000000 t[0]
-> leader: [y t/0 ok]

commit a y by=1001/1
----
append y: PrepareCommit 1001/2 last=1 version=2 timeout=60000ms updated=1000000 started=1000000 t[0]
-> a: ok, producer 1001/2
markers y 1001/2 commit coordinator=8 version=2 t[0]

written y in=t/0
----
append y: CompleteCommit 1001/2 last=1 version=2 timeout=60000ms updated=1000000 started=1000000

reload
----

init a y expect=1001/1
----
append y: Empty 1001/2 last=1 version=2 timeout=60000ms updated=1000000
-> a: producer 1001/2

reload
----

init a y expect=1001/1
----
append y: Empty 1001/2 last=1 version=2 timeout=60000ms updated=1000000
-> a: producer 1001/2

init b y
----
append y: Empty 1001/3 version=2 timeout=60000ms updated=1000000
-> b: producer 1001/3

reload
----

init a y expect=1001/2
----
-> a: PRODUCER_FENCED

# Without tags only the old coordinator knew, but for transactions whose end raises the epoch.
config version=0
----

init a x
----
append x: Empty 1000/0 previous=-1 timeout=60000ms updated=1000000
-> a: producer 1000/0

init a x expect=1000/0
----
append x: Empty 1000/1 previous=-1 timeout=60000ms updated=1000000
-> a: producer 1000/1

init a x expect=1000/0
----
append x: Empty 1000/1 previous=-1 timeout=60000ms updated=1000000
-> a: producer 1000/1

show
----
x: Empty 1000/1 previous=-1 timeout=60000ms updated=1000000 in memory: last=0

reload
----

init a x expect=1000/0
----
-> a: PRODUCER_FENCED
