config delay=3s
----

# Two consumers start at the same time. A client that gives no member id is told
# one first, so that a lost answer leaves no member behind (KIP-394).
join a g protocols=range:sub/t,sticky:sub/t
----
-> a: join MEMBER_ID_REQUIRED member=a-1

join a g member=a-1 protocols=range:sub/t,sticky:sub/t
----
note: member a-1 joins

wait 2s
----

join b g protocols=range:sub/t
----
-> b: join MEMBER_ID_REQUIRED member=b-3

join b g member=b-3 protocols=range:sub/t
----

show
----
g: PreparingRebalance gen=0 type="consumer" protocol=- leader=a-1 join-by=+1s
  a-1 "" session=+4m58s
  b-3 "" session=+5m0s

# b came during the initial delay: it is extended once.
wait 10s
----
-> a: join gen=1 member=a-1 leader=a-1 protocol=range members=["a-1:\x00\x00\x00\x00\x00\x01\x00\x01t\xff\xff\xff\xff" "b-3:\x00\x00\x00\x00\x00\x01\x00\x01t\xff\xff\xff\xff"]
-> b: join gen=1 member=b-3 leader=a-1 protocol=range
  at 6s

# A follower's SyncGroup waits for the leader's.
sync b g member=b-3 gen=1
----

describe g
----
g CompletingRebalance type="consumer" protocol=""
  a-1 client=a host=/10.0.0.1 metadata="" assignment=""
  b-3 client=b host=/10.0.0.1 metadata="" assignment=""

sync a g member=a-1 gen=1 assign=a-1:t0,b-3:t1
----
append g: gen=1 type="consumer" protocol=range leader=a-1 [a-1 "t0"] [b-3 "t1"]
-> a: sync "t0" protocol=consumer/range
-> b: sync "t1" protocol=consumer/range

show
----
g: Stable gen=1 type="consumer" protocol=range leader=a-1
  a-1 "t0" session=+10s
  b-3 "t1" session=+10s

describe g
----
g Stable type="consumer" protocol="range"
  a-1 client=a host=/10.0.0.1 metadata="\x00\x00\x00\x00\x00\x01\x00\x01t\xff\xff\xff\xff" assignment="t0"
  b-3 client=b host=/10.0.0.1 metadata="\x00\x00\x00\x00\x00\x01\x00\x01t\xff\xff\xff\xff" assignment="t1"

describe missing
----
missing Dead type="" protocol="" GROUP_ID_NOT_FOUND

describe missing v=5
----
missing Dead type="" protocol=""

list
----
g classic Stable type="consumer"

list states=stable types=CLASSIC
----
g classic Stable type="consumer"

list states=empty
----

list types=consumer
----

heartbeat a g member=a-1 gen=1
----
-> a: heartbeat ok

heartbeat a g member=a-1 gen=0
----
-> a: heartbeat ILLEGAL_GENERATION

heartbeat a g member=nobody gen=1
----
-> a: heartbeat UNKNOWN_MEMBER_ID

heartbeat a missing member=a-1 gen=1
----
-> a: heartbeat UNKNOWN_MEMBER_ID
