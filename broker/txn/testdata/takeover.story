# A coordinator that takes over goes on with the markers: of what is decided nothing else can become.
init a x
----
append x: Empty 1000/0 timeout=60000ms updated=1000000
-> a: producer 1000/0

init b y
----
append y: Empty 1001/0 timeout=60000ms updated=1000000
-> b: producer 1001/0

init c z
----
append z: Empty 1002/0 timeout=60000ms updated=1000000
-> c: producer 1002/0

add leader x by=1000/0 to=t/0,t/1 v=5
----
append x: Ongoing 1000/0 version=2 timeout=60000ms updated=1000000 started=1000000 t[0 1]
-> leader: [x t/0 ok t/1 ok]

add b y by=1001/0 to=t/1,u/0
----
append y: Ongoing 1001/0 timeout=60000ms updated=1000000 started=1000000 t[1] u[0]
-> b: t/1 ok u/0 ok

add c z by=1002/0 to=t/0
----
append z: Ongoing 1002/0 timeout=60000ms updated=1000000 started=1000000 t[0]
-> c: t/0 ok

commit a x by=1000/0
----
append x: PrepareCommit 1000/1 last=0 version=2 timeout=60000ms updated=1000000 started=1000000 t[0 1]
-> a: ok, producer 1000/1
markers x 1000/1 commit coordinator=7 version=2 t[0 1]

abort b y by=1001/0 v=4
----
append y: PrepareAbort 1001/0 timeout=60000ms updated=1000000 started=1000000 t[1] u[0]
-> b: ok
markers y 1001/0 abort coordinator=7 version=0 t[1] u[0]

written x in=t/0
----

lead 8
----
markers x 1000/1 commit coordinator=8 version=2 t[1]
markers y 1001/0 abort coordinator=8 version=0 t[1] u[0]

# The runtime lost sight of some, or the record that all are written could not be appended.
tick x
----
markers x 1000/1 commit coordinator=8 version=2 t[1]

fail 15
----

written x in=t/1
----
append fails

tick x
----
markers x 1000/1 commit coordinator=8 version=2 t[1]

reload
----
markers x 1000/1 commit coordinator=9 version=2 t[0 1]
markers y 1001/0 abort coordinator=9 version=0 t[1] u[0]

written x in=t/0,t/1
----
append x: CompleteCommit 1000/1 last=0 version=2 timeout=60000ms updated=1000000 started=1000000

written y in=t/1
----

written y in=u/0
----
append y: CompleteAbort 1001/0 timeout=60000ms updated=1000000 started=1000000

reload
----

show
----
x: CompleteCommit 1000/1 last=0 version=2 timeout=60000ms updated=1000000 started=1000000
y: CompleteAbort 1001/0 timeout=60000ms updated=1000000 started=1000000
z: Ongoing 1002/0 timeout=60000ms updated=1000000 started=1000000 t[0]

# Kafka may leave an end without partitions and without the record that it is complete.
log w state=3 by=3000/4 version=2
----

reload
----
markers w 3000/4 abort coordinator=11 version=2

written w
----
append w: CompleteAbort 3000/4 last=3 version=2 timeout=3000ms updated=1000000 started=1000000
