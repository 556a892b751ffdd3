config retention=1h metadata=4
----

# Offsets without a group: nobody owns the partitions.
commit a simple offsets=t/0:5,t/1:6
----
append simple t/0: 5
append simple t/1: 6
-> a: commit t/0 ok t/1 ok

fetch simple
----
t/0: 5 epoch=7 metadata=""
t/1: 6 epoch=7 metadata=""

fetch simple offsets=t/1:,t/2:,u/0:
----
t/1: 6 epoch=7 metadata=""
t/2: -1 epoch=-1 metadata=""
u/0: -1 epoch=-1 metadata=""

fetch missing offsets=t/0:
----
t/0: -1 epoch=-1 metadata=""

describe simple
----
simple Empty type="" protocol=""

commit a simple gen=3 member=x
----
-> a: commit t/0 UNKNOWN_MEMBER_ID

commit a missing gen=3 member=x
----
-> a: commit t/0 GROUP_ID_NOT_FOUND

commit a missing gen=3 member=x v=8
----
-> a: commit t/0 ILLEGAL_GENERATION

# Offsets may go back: a reset.
commit a simple offsets=t/0:2 metadata=abcd
----
append simple t/0: 2
-> a: commit t/0 ok

commit a simple offsets=t/0:3 metadata=abcde
----
-> a: commit t/0 OFFSET_METADATA_TOO_LARGE

fetch simple
----
t/0: 2 epoch=7 metadata="abcd"
t/1: 6 epoch=7 metadata=""

delete-offsets a simple offsets=t/1:,t/7:,t/1:
----
append simple t/1: null
-> a: delete-offsets t/1 ok t/7 ok t/1 ok

delete-offsets a missing
----
-> a: delete-offsets GROUP_ID_NOT_FOUND

# Each offset's retention runs from its commit.
wait 30m
----

commit a simple offsets=t/1:9
----
append simple t/1: 9
-> a: commit t/1 ok

wait 30m
----

expire
----
append simple t/0: null

# A retention of the client's own, before version 5. The record has no room for a leader epoch then.
commit a simple offsets=u/0:1 retention=10m v=4
----
append simple u/0: 1 expires=5200000
-> a: commit u/0 ok

wait 9m
----

expire
----

wait 1m
----

expire
----
append simple u/0: null

fetch simple
----
t/1: 9 epoch=7 metadata=""

drop-topic t
----
append simple t/1: null

list
----

# A group's offsets are kept while it has members that may want them, and from when the last one left.
config retention=1h
----

join a g v=3 protocols=range:sub/t session=30m rebalance=30m
----
note: member a-1 joins

wait 1ms
----
-> a: join gen=1 member=a-1 leader=a-1 protocol=range members=["a-1:\x00\x00\x00\x00\x00\x01\x00\x01t\xff\xff\xff\xff"]
  at 0s

sync a g member=a-1 assign=a-1:x
----
append g: gen=1 type="consumer" protocol=range leader=a-1 [a-1 "x"]
-> a: sync "x" protocol=consumer/range

commit a g member=a-1 gen=1 offsets=t/0:5,old/0:7
----
append g t/0: 5
append g old/0: 7
-> a: commit t/0 ok old/0 ok

delete a g
----
-> a: delete g NON_EMPTY_GROUP

delete-offsets a g offsets=t/0:,old/0:
----
append g old/0: null
-> a: delete-offsets t/0 GROUP_SUBSCRIBED_TO_TOPIC old/0 ok

commit a g offsets=t/0:6
----
-> a: commit t/0 UNKNOWN_MEMBER_ID

commit a g gen=1 member=b
----
-> a: commit t/0 UNKNOWN_MEMBER_ID

commit a g member=a-1 gen=1 offsets=old/0:8
----
append g old/0: 8
-> a: commit old/0 ok

wait 29m
----

heartbeat a g member=a-1
----
-> a: heartbeat ok

wait 29m
----

heartbeat a g member=a-1
----
-> a: heartbeat ok

# Topics that are no longer subscribed expire.
wait 2m
----

expire
----
append g old/0: null

leave a g member=a-1
----
append g: gen=2 type="consumer" protocol=- leader=-
note: 1 members left
-> a: leave ok [a-1 ok]

wait 59m
----

expire
----

wait 1m
----

expire
----
append g t/0: null
append g: null

list
----

# Deleting a group takes its offsets with it.
commit a h offsets=t/0:1,t/1:2
----
append h t/0: 1
append h t/1: 2
-> a: commit t/0 ok t/1 ok

delete a h
----
append h t/0: null
append h t/1: null
-> a: delete h ok

delete a h
----
-> a: delete h GROUP_ID_NOT_FOUND

list
----
