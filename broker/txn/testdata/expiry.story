config expiration=1h
----

init a x
----
append x: Empty 1000/0 timeout=60000ms updated=1000000
-> a: producer 1000/0

init b y timeout=900s
----
append y: Empty 1001/0 timeout=900000ms updated=1000000
-> b: producer 1001/0

init c z
----
append z: Empty 1002/0 timeout=60000ms updated=1000000
-> c: producer 1002/0

add leader z by=1002/0 to=t/0 v=5
----
append z: Ongoing 1002/0 version=2 timeout=60000ms updated=1000000 started=1000000 t[0]
-> leader: [z t/0 ok]

commit c z by=1002/0
----
append z: PrepareCommit 1002/1 last=0 version=2 timeout=60000ms updated=1000000 started=1000000 t[0]
-> c: ok, producer 1002/1
markers z 1002/1 commit coordinator=7 version=2 t[0]

wait 50m
----

init b y timeout=900s
----
append y: Empty 1001/1 timeout=900000ms updated=4000000
-> b: producer 1001/1

expire
----

wait 10m
----

add leader y by=1001/1 to=t/0 v=5
----
append y: Ongoing 1001/1 version=2 timeout=900000ms updated=4600000 started=4600000 t[0]
-> leader: [y t/0 ok]

fail 15
----

expire
----
append fails

expire
----
append x: null
note: expired 1000/0 partitions=0 age=1h0m0s

show
----
y: Ongoing 1001/1 version=2 timeout=900000ms updated=4600000 started=4600000 t[0]
z: PrepareCommit 1002/1 last=0 version=2 timeout=60000ms updated=1000000 started=1000000 t[0] unmarked: t[0]

# Markers that cannot be written keep the id; so does a transaction.
wait 14m
----

expire
----

written z in=t/0
----
append z: CompleteCommit 1002/1 last=0 version=2 timeout=60000ms updated=5440000 started=1000000

commit b y by=1001/1
----
append y: PrepareCommit 1001/2 last=1 version=2 timeout=900000ms updated=5440000 started=4600000 t[0]
-> b: ok, producer 1001/2
markers y 1001/2 commit coordinator=7 version=2 t[0]

written y in=t/0
----
append y: CompleteCommit 1001/2 last=1 version=2 timeout=900000ms updated=5440000 started=4600000

wait 1h
----

expire
----
append y: null
note: expired 1001/2 partitions=0 age=1h0m0s
append z: null
note: expired 1002/1 partitions=0 age=1h0m0s

reload
----

# The producer is still there.
add leader y by=1001/2 to=t/0 v=5
----
-> leader: [y t/0 INVALID_PRODUCER_ID_MAPPING]

abort b y by=1001/2
----
-> b: INVALID_PRODUCER_ID_MAPPING

init b y expect=1001/2
----
append y: Empty 1003/0 timeout=60000ms updated=9040000
-> b: producer 1003/0
