config size=2 member-bytes=100 assignment-bytes=10 pending=2
----

join a g v=3
----
note: member a-1 joins

join b g v=3
----

join c g v=3
----
note: the group is full
-> c: join GROUP_MAX_SIZE_REACHED member=

wait 1ms
----
-> a: join gen=1 member=a-1 leader=a-1 protocol=range members=["a-1:m" "b-2:m"]
-> b: join gen=1 member=b-2 leader=a-1 protocol=range
  at 0s

sync a g member=a-1 assign=a-1:x,b-2:y
----
append g: gen=1 type="consumer" protocol=range leader=a-1 [a-1 "x"] [b-2 "y"]
-> a: sync "x" protocol=consumer/range

join c g v=3
----
note: the group is full
-> c: join GROUP_MAX_SIZE_REACHED member=

# The members' metadata, and the leader's assignment, are bounded.
join a g member=a-1 protocols=range:0123456789012345678901234567890123456789
----
note: a-1 the member's metadata is too large
-> a: join INVALID_REQUEST member=a-1

join a g member=a-1 protocols=range:new
----
note: member a-1 changes what it offers

join b g member=b-2 protocols=range:m
----
-> a: join gen=2 member=a-1 leader=a-1 protocol=range members=["a-1:new" "b-2:m"]
-> b: join gen=2 member=b-2 leader=a-1 protocol=range

sync a g member=a-1 gen=2 assign=a-1:0123456789,b-2:y
----
note: a-1 the assignment is too large
-> a: sync INVALID_REQUEST

sync a g member=a-1 gen=2 assign=a-1:x,b-2:y
----
append g: gen=2 type="consumer" protocol=range leader=a-1 [a-1 "x"] [b-2 "y"]
-> a: sync "x" protocol=consumer/range

# So is the number of member ids that are handed out.
join d h
----
-> d: join MEMBER_ID_REQUIRED member=d-8

join d h
----
-> d: join MEMBER_ID_REQUIRED member=d-9

join d h
----
note: the group is full
-> d: join GROUP_MAX_SIZE_REACHED member=

# After a start with a smaller group.max.size the group rebalances, and who comes last is refused.
reload size=1
----
note: the group is above group.max.size

join b g member=b-2
----

join a g member=a-1
----
note: a-1 the group is full
-> a: join GROUP_MAX_SIZE_REACHED member=
-> b: join gen=3 member=b-2 leader=b-2 protocol=range members=["b-2:m"]

sync b g member=b-2 gen=3 assign=b-2:x
----
append g: gen=3 type="consumer" protocol=range leader=b-2 [b-2 "x"]
-> b: sync "x" protocol=consumer/range

# A group may take so much memory.
config group-bytes=1200
----

join a g v=3
----
note: member a-1 joins

join b g v=3
----

join c g v=3
----

join c g
----
note: the group is full
-> c: join GROUP_MAX_SIZE_REACHED member=

# Nonsense.
config
----

heartbeat a g
----
-> a: heartbeat UNKNOWN_MEMBER_ID

join a g member=forged-1
----
-> a: join UNKNOWN_MEMBER_ID member=forged-1
