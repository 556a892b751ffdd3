# Members and generations count in a transaction too, if they are given (KIP-447).
commit p g offsets=t/0:1 pid=1 gen=1 member=x
----
-> p: commit t/0 ILLEGAL_GENERATION

join a g v=3
----
note: member a-1 joins

wait 0s
----
-> a: join gen=1 member=a-1 leader=a-1 protocol=range members=["a-1:m"]
  at 0s

commit p g offsets=t/0:1 pid=1
----
append [1/0] g t/0: 1
-> p: commit t/0 ok

# The leader has not said yet who gets what: whoever knows the generation may commit.
commit p g offsets=t/0:2 pid=1 gen=1 member=a-1
----
append [1/0] g t/0: 2
-> p: commit t/0 ok

commit a g offsets=t/0:2 gen=1 member=a-1
----
-> a: commit t/0 REBALANCE_IN_PROGRESS

sync a g member=a-1 assign=a-1:x
----
append g: gen=1 type="consumer" protocol=range leader=a-1 [a-1 "x"]
-> a: sync "x" protocol=consumer/range

commit p g offsets=t/0:3 pid=1 gen=1 member=a-1
----
append [1/0] g t/0: 3
-> p: commit t/0 ok

commit p g offsets=t/0:3 pid=1 gen=0 member=a-1
----
-> p: commit t/0 ILLEGAL_GENERATION

commit p g offsets=t/0:3 pid=1 gen=1 member=zombie
----
-> p: commit t/0 UNKNOWN_MEMBER_ID

commit p g offsets=t/0:3 pid=1 gen=1
----
-> p: commit t/0 UNKNOWN_MEMBER_ID

commit p g offsets=t/0:3 pid=1 gen=-1 member=a-1
----
-> p: commit t/0 ILLEGAL_GENERATION

# It is no heartbeat.
wait 9s
----

commit p g offsets=t/0:4 pid=1 gen=1 member=a-1
----
append [1/0] g t/0: 4
-> p: commit t/0 ok

wait 1s
----
append g: gen=2 type="consumer" protocol=- leader=-
note: a-1 not heard of within its session timeout
note: member a-1 was not heard of within its session timeout
  at 10s

# Nobody is left, and what is pending stays pending.
fetch g stable offsets=t/0:
----
t/0: -1 epoch=-1 metadata="" UNSTABLE_OFFSET_COMMIT

marker pid=1 commit
----
append commit of 1/0

fetch g stable
----
t/0: 4 epoch=7 metadata=""

# A static member that was replaced is fenced.
join a s v=5 instance=one
----
note: member one-2 joins

wait 0s
----
-> a: join gen=1 member=one-2 leader=one-2 protocol=range members=["one-2/one:m"]
  at 10s

sync a s member=one-2 instance=one assign=one-2:x
----
append s: gen=1 type="consumer" protocol=range leader=one-2 [one-2 instance=one "x"]
-> a: sync "x" protocol=consumer/range

join b s v=5 instance=one
----
append s: gen=1 type="consumer" protocol=range leader=one-3 [one-3 instance=one "x"]
-> b: join gen=1 member=one-3 leader=one-2 protocol=range

commit p s offsets=t/0:3 pid=1 gen=1 member=one-2 instance=one
----
-> p: commit t/0 FENCED_INSTANCE_ID

commit p s offsets=t/0:3 pid=1 gen=1 member=one-3 instance=one
----
append [1/0] s t/0: 3
-> p: commit t/0 ok

# The consumer protocol: the member's epoch in place of the generation. Producers know ILLEGAL_GENERATION only.
topics t=2 u=1
----

beat a c member=A topics=t,u
----
append member c A: client=a topics=[t u]
append group c: epoch=1
append meant c A: t:[0 1] u:[0]
append target c: epoch=1
append current c A: epoch=1/0 STABLE has t:0@1,1@1 u:0@1
note: the group's members, their subscriptions or topics have changed
-> a: beat member=A epoch=1 assignment t:[0 1] u:[0]

commit p c offsets=t/0:1 pid=7 gen=1 member=A
----
append [7/0] c t/0: 1
-> p: commit t/0 ok

commit p c offsets=t/0:1 pid=7
----
append [7/0] c t/0: 1
-> p: commit t/0 ok

commit p c offsets=t/0:1 pid=7 gen=2 member=A
----
-> p: commit t/0 ILLEGAL_GENERATION

commit p c offsets=t/0:1 pid=7 gen=1 member=B
----
-> p: commit t/0 UNKNOWN_MEMBER_ID

commit p c offsets=t/0:1 pid=7 gen=-1 member=A
----
-> p: commit t/0 ILLEGAL_GENERATION

beat b c member=B topics=t,u
----
append member c B: client=b topics=[t u]
append group c: epoch=2
append meant c A: t:[0 1]
append meant c B: u:[0]
append target c: epoch=2
append current c B: epoch=2/0 UNRELEASED has
note: the group's members, their subscriptions or topics have changed
-> b: beat member=B epoch=2 assignment

beat a c member=A epoch=1 owned=t:0,t:1,u:0
----
append current c A: epoch=1/1 UNREVOKED has t:0@1,1@1 gives u:0@1
-> a: beat member=A epoch=1 assignment t:[0 1]

# An earlier epoch is good for what the member has had since then, and for nothing else.
beat a c member=A epoch=1 owned=t:0,t:1
----
append current c A: epoch=2/1 STABLE has t:0@1,1@1
-> a: beat member=A epoch=2

commit p c offsets=t/0:5 pid=7 gen=1 member=A
----
append [7/0] c t/0: 5
-> p: commit t/0 ok

beat b c member=B epoch=-1
----
append current c B: null
append meant c B: null
append member c B: null
append group c: epoch=3
note: 1 members are gone
-> b: beat member=B epoch=-1 interval=0s

beat a c member=A epoch=2 owned=t:0,t:1
----
append meant c A: t:[0 1] u:[0]
append target c: epoch=3
append current c A: epoch=3/2 STABLE has t:0@1,1@1 u:0@3
-> a: beat member=A epoch=3 assignment t:[0 1] u:[0]

commit p c offsets=t/0:6 pid=7 gen=2 member=A
----
append [7/0] c t/0: 6
-> p: commit t/0 ok

commit p c offsets=t/0:7,u/0:7 pid=7 gen=2 member=A
----
-> p: commit t/0 ILLEGAL_GENERATION u/0 ILLEGAL_GENERATION

commit a c offsets=t/0:7,u/0:7 gen=2 member=A
----
append c t/0: 7
-> a: commit t/0 ok u/0 STALE_MEMBER_EPOCH

marker pid=7 commit
----
append commit of 7/0

fetch c stable
----
t/0: 7 epoch=7 metadata=""
