config partitions=3
----

init a x
----
append x: Empty 1000/0 timeout=60000ms updated=1000000
-> a: producer 1000/0

add a x by=1000/0 to=t/0,t/1
----
append x: Ongoing 1000/0 timeout=60000ms updated=1000000 started=1000000 t[0 1]
-> a: t/0 ok t/1 ok

add a x by=1000/0 to=t/2,t/3
----
note: 4 partitions of about 65 bytes, of 3 and 921600 1000/0 partitions=4 age=0s
-> a: t/2 INVALID_REQUEST t/3 INVALID_REQUEST

add a x by=1000/0 to=t/2,t/2,t/0
----
append x: Ongoing 1000/0 timeout=60000ms updated=1000000 started=1000000 t[0 1 2]
-> a: t/2 ok t/2 ok t/0 ok

add-offsets a x by=1000/0 partition=0
----
note: 4 partitions of about 131 bytes, of 3 and 921600 1000/0 partitions=4 age=0s
-> a: INVALID_REQUEST

commit a x by=1000/0 v=4
----
append x: PrepareCommit 1000/0 timeout=60000ms updated=1000000 started=1000000 t[0 1 2]
-> a: ok
markers x 1000/0 commit coordinator=7 version=0 t[0 1 2]

config bytes=120
----

init a x
----
append x: Empty 1000/0 timeout=60000ms updated=1000000
-> a: producer 1000/0

add a x by=1000/0 to=t/0,t/1
----
append x: Ongoing 1000/0 timeout=60000ms updated=1000000 started=1000000 t[0 1]
-> a: t/0 ok t/1 ok

add a x by=1000/0 to=topic-with-a-long-name/0
----
note: 3 partitions of about 131 bytes, of 100000 and 120 1000/0 partitions=3 age=0s
-> a: topic-with-a-long-name/0 INVALID_REQUEST

add a x by=1000/0 to=u/0
----
append x: Ongoing 1000/0 timeout=60000ms updated=1000000 started=1000000 t[0 1] u[0]
-> a: u/0 ok

abort a x by=1000/0
----
append x: PrepareAbort 1000/1 last=0 version=2 timeout=60000ms updated=1000000 started=1000000 t[0 1] u[0]
-> a: ok, producer 1000/1
markers x 1000/1 abort coordinator=7 version=2 t[0 1] u[0]
