config
----

join a g v=3
----
note: member a-1 joins

join b g v=3
----

wait 1ms
----
-> a: join gen=1 member=a-1 leader=a-1 protocol=range members=["a-1:m" "b-2:m"]
-> b: join gen=1 member=b-2 leader=a-1 protocol=range
  at 0s

sync a g member=a-1 assign=a-1:x,b-2:y
----
append g: gen=1 type="consumer" protocol=range leader=a-1 [a-1 "x"] [b-2 "y"]
-> a: sync "x" protocol=consumer/range

leave b g member=b-2
----
note: 1 members left
-> b: leave ok [b-2 ok]

leave nobody g member=b-2
----
-> nobody: leave ok [b-2 UNKNOWN_MEMBER_ID]

# Version 2 has one member, and its code is the request's.
leave nobody g member=b-2 v=2
----
-> nobody: leave UNKNOWN_MEMBER_ID

join a g member=a-1
----
-> a: join gen=2 member=a-1 leader=a-1 protocol=range members=["a-1:m"]

# The leader has gone while the group waits for its assignment.
leave a g member=a-1 v=2
----
append g: gen=3 type="consumer" protocol=- leader=-
note: 1 members left
-> a: leave ok

show
----
g: Empty gen=3 type="consumer" protocol=- leader=

join c g
----
-> c: join MEMBER_ID_REQUIRED member=c-4

# Who was only handed a member id can give it back.
leave c g member=c-4
----
-> c: leave ok [c-4 ok]

show
----
g: Empty gen=3 type="consumer" protocol=- leader=

leave c missing member=c-4
----
-> c: leave ok [c-4 UNKNOWN_MEMBER_ID]
