init a none
----
-> a: INVALID_REQUEST

init a none null
----
-> a: INVALID_REQUEST

init a x timeout=0s
----
-> a: INVALID_TRANSACTION_TIMEOUT

init a x timeout=901s
----
-> a: INVALID_TRANSACTION_TIMEOUT

init a x timeout=900s 2pc
----
-> a: TRANSACTIONAL_ID_AUTHORIZATION_FAILED

init a x timeout=900s keep
----
-> a: UNSUPPORTED_VERSION

init a x expect=1000/-1
----
-> a: INVALID_REQUEST

init a x expect=-1/0
----
-> a: INVALID_REQUEST

show
----

add a none by=1000/0 to=t/0
----
-> a: t/0 INVALID_REQUEST

add leader none by=1000/0 to=t/0 v=4
----
-> leader: [ t/0 INVALID_REQUEST]

add leader none by=1000/0 to=t/0 v=5 verify
----
-> leader: [ t/0 INVALID_REQUEST]

add-offsets a none by=1000/0 partition=0
----
-> a: INVALID_REQUEST

abort a none by=1000/0
----
-> a: INVALID_REQUEST

abort a none by=1000/0 v=4
----
-> a: INVALID_REQUEST

describe none
----
 INVALID_REQUEST

# An id that is not known.
add a x by=1000/0 to=t/0
----
-> a: t/0 INVALID_PRODUCER_ID_MAPPING

add leader x by=1000/0 to=t/0 v=5
----
-> leader: [x t/0 INVALID_PRODUCER_ID_MAPPING]

add leader x by=1000/0 to=t/0 v=5 verify
----
-> leader: [x t/0 INVALID_PRODUCER_ID_MAPPING]

add-offsets a x by=1000/0 partition=0
----
-> a: INVALID_PRODUCER_ID_MAPPING

abort a x by=1000/0
----
-> a: INVALID_PRODUCER_ID_MAPPING

abort a x by=1000/0 v=4
----
-> a: INVALID_PRODUCER_ID_MAPPING

describe x
----
x TRANSACTIONAL_ID_NOT_FOUND

# A producer id that is not the one.
init a x
----
append x: Empty 1000/0 timeout=60000ms updated=1000000
-> a: producer 1000/0

add a x by=999/0 to=t/0
----
-> a: t/0 INVALID_PRODUCER_ID_MAPPING

add leader x by=999/0 to=t/0 v=5
----
-> leader: [x t/0 INVALID_PRODUCER_ID_MAPPING]

add leader x by=999/0 to=t/0 v=5 verify
----
-> leader: [x t/0 INVALID_PRODUCER_ID_MAPPING]

add-offsets a x by=999/0 partition=0
----
-> a: INVALID_PRODUCER_ID_MAPPING

abort a x by=999/0
----
-> a: INVALID_PRODUCER_ID_MAPPING

abort a x by=999/0 v=4
----
-> a: INVALID_PRODUCER_ID_MAPPING

# An epoch from the future is as wrong as one from the past.
add a x by=1000/1 to=t/0
----
-> a: t/0 PRODUCER_FENCED

abort a x by=1000/1
----
-> a: PRODUCER_FENCED

abort a x by=1000/1 v=4
----
-> a: PRODUCER_FENCED

show
----
x: Empty 1000/0 timeout=60000ms updated=1000000

# A cluster that has not finalized version 1 has no room in its log for what follows from EndTxn 5.
config version=0
----

init a x
----
append x: Empty 1000/0 previous=-1 timeout=60000ms updated=1000000
-> a: producer 1000/0

add leader x by=1000/0 to=t/0 v=5
----
append x: Ongoing 1000/0 previous=-1 timeout=60000ms updated=1000000 started=1000000 t[0]
-> leader: [x t/0 ok]

commit a x by=1000/0
----
-> a: UNSUPPORTED_VERSION

commit a x by=1000/0 v=4
----
append x: PrepareCommit 1000/0 previous=-1 timeout=60000ms updated=1000000 started=1000000 t[0]
-> a: ok
markers x 1000/0 commit coordinator=7 version=0 t[0]

# At version 1 it has. What the coordinator does by itself is as before, what the client asks for is done.
config version=1
----

init a x
----
append x: Empty 1000/0 timeout=60000ms updated=1000000
-> a: producer 1000/0

add leader x by=1000/0 to=t/0 v=5
----
append x: Ongoing 1000/0 version=2 timeout=60000ms updated=1000000 started=1000000 t[0]
-> leader: [x t/0 ok]

commit a x by=1000/0
----
append x: PrepareCommit 1000/1 last=0 version=2 timeout=60000ms updated=1000000 started=1000000 t[0]
-> a: ok, producer 1000/1
markers x 1000/1 commit coordinator=7 version=2 t[0]

written x in=t/0
----
append x: CompleteCommit 1000/1 last=0 version=2 timeout=60000ms updated=1000000 started=1000000

add leader x by=1000/1 to=t/0 v=5
----
append x: Ongoing 1000/1 last=0 version=2 timeout=60000ms updated=1000000 started=1000000 t[0]
-> leader: [x t/0 ok]

init b x
----
append x: PrepareAbort 1000/2 timeout=60000ms updated=1000000 started=1000000 t[0]
note: fenced 1000/2 partitions=1 age=0s
-> b: CONCURRENT_TRANSACTIONS
markers x 1000/2 abort coordinator=7 version=0 t[0]
