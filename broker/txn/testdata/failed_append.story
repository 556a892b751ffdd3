# When an append fails the state is what it was, and the request can be repeated.
fail 15
----

init a x
----
append fails
-> a: COORDINATOR_NOT_AVAILABLE

show
----

init a x
----
append x: Empty 1001/0 timeout=60000ms updated=1000000
-> a: producer 1001/0

fail 16
----

add a x by=1001/0 to=t/0,t/1
----
append fails
-> a: t/0 NOT_COORDINATOR t/1 NOT_COORDINATOR

fail 15
----

add leader x by=1001/0 to=t/0 v=5
----
append fails
-> leader: [x t/0 COORDINATOR_NOT_AVAILABLE]

fail 15
----

add-offsets a x by=1001/0 partition=0
----
append fails
-> a: COORDINATOR_NOT_AVAILABLE

show
----
x: Empty 1001/0 timeout=60000ms updated=1000000

add a x by=1001/0 to=t/0
----
append x: Ongoing 1001/0 timeout=60000ms updated=1000000 started=1000000 t[0]
-> a: t/0 ok

fail 15
----

commit a x by=1001/0
----
append fails
-> a: COORDINATOR_NOT_AVAILABLE

# It did not happen, so that the other end is still possible.
abort a x by=1001/0
----
append x: PrepareAbort 1001/1 last=0 version=2 timeout=60000ms updated=1000000 started=1000000 t[0]
-> a: ok, producer 1001/1
markers x 1001/1 abort coordinator=7 version=2 t[0]

written x in=t/0
----
append x: CompleteAbort 1001/1 last=0 version=2 timeout=60000ms updated=1000000 started=1000000

add a x by=1001/1 to=t/0
----
append x: Ongoing 1001/1 last=0 timeout=60000ms updated=1000000 started=1000000 t[0]
-> a: t/0 ok

fail 15
----

init b x
----
append fails
-> b: COORDINATOR_NOT_AVAILABLE

show
----
x: Ongoing 1001/1 last=0 timeout=60000ms updated=1000000 started=1000000 t[0]

init b x
----
append x: PrepareAbort 1001/2 last=1 version=2 timeout=60000ms updated=1000000 started=1000000 t[0]
note: fenced 1001/2 partitions=1 age=0s
-> b: CONCURRENT_TRANSACTIONS
markers x 1001/2 abort coordinator=7 version=2 t[0]
