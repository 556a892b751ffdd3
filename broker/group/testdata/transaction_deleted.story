config retention=1h
----

# A group of which there is nothing but a transaction under way is there, and is gone when that is aborted.
commit p g offsets=t/0:1 pid=1
----
append [1/0] g t/0: 1
-> p: commit t/0 ok

list
----
g classic Empty type=""

expire
----

marker pid=1 abort
----
append abort of 1/0

list
----

# Deleting the group deletes what is pending; the marker finds nothing.
commit a g offsets=t/0:1
----
append g t/0: 1
-> a: commit t/0 ok

commit p g offsets=t/0:2,t/1:2 pid=1
----
append [1/0] g t/0: 2
append [1/0] g t/1: 2
-> p: commit t/0 ok t/1 ok

commit q g offsets=t/1:3 pid=2
----
append [2/0] g t/1: 3
-> q: commit t/1 ok

delete a g
----
append g t/0: null
append g t/1: null
-> a: delete g ok

show
----

marker pid=1 commit
----
append commit of 1/0

marker pid=2 commit
----
append commit of 2/0

show
----

# So does deleting an offset, for every transaction; what is committed in the transaction after that counts.
commit p g offsets=t/0:2,t/1:2 pid=1
----
append [1/0] g t/0: 2
append [1/0] g t/1: 2
-> p: commit t/0 ok t/1 ok

commit q g offsets=t/1:3 pid=2
----
append [2/0] g t/1: 3
-> q: commit t/1 ok

delete-offsets a g offsets=t/1:
----
append g t/1: null
-> a: delete-offsets t/1 ok

commit p g offsets=t/1:4 pid=1
----
append [1/0] g t/1: 4
-> p: commit t/1 ok

reload
----

marker pid=1 commit
----
append commit of 1/0

marker pid=2 commit
----
append commit of 2/0

show
----
g: Empty gen=0 type="" protocol=- leader=
  t/0: 2
  t/1: 4

# And deleting the topic.
commit p g offsets=t/0:9,u/0:9 pid=1
----
append [1/0] g t/0: 9
append [1/0] g u/0: 9
-> p: commit t/0 ok u/0 ok

drop-topic t
----
append g t/0: null
append g t/1: null

show
----
g: Empty gen=0 type="" protocol=- leader=
  u/0: 9 pending of 1/0

marker pid=1 commit
----
append commit of 1/0

show
----
g: Empty gen=0 type="" protocol=- leader=
  u/0: 9

# Nothing expires that a transaction may still replace.
commit a g offsets=t/3:1
----
append g t/3: 1
-> a: commit t/3 ok

commit p g offsets=u/0:10 pid=1
----
append [1/0] g u/0: 10
-> p: commit u/0 ok

wait 2h
----

expire
----
append g t/3: null

show
----
g: Empty gen=0 type="" protocol=- leader=
  u/0: 9
  u/0: 10 pending of 1/0

marker pid=1 abort
----
append abort of 1/0

expire
----
append g u/0: null

show
----

# A failed append leaves nothing pending.
fail 15
----

commit p g offsets=t/0:1 pid=1
----
append fails
-> p: commit t/0 COORDINATOR_NOT_AVAILABLE

show
----
