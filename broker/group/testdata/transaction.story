config retention=1h metadata=4
----

# What a transaction commits is pending until its marker: readers see what was there, or are told to wait.
commit a g offsets=t/0:5
----
append g t/0: 5
-> a: commit t/0 ok

commit p g offsets=t/0:9,t/1:3 pid=1 pepoch=0
----
append [1/0] g t/0: 9
append [1/0] g t/1: 3
-> p: commit t/0 ok t/1 ok

fetch g
----
t/0: 5 epoch=7 metadata=""

fetch g offsets=t/0:,t/1:,t/2:
----
t/0: 5 epoch=7 metadata=""
t/1: -1 epoch=-1 metadata=""
t/2: -1 epoch=-1 metadata=""

fetch g offsets=t/0:,t/1:,t/2: stable
----
t/0: -1 epoch=-1 metadata="" UNSTABLE_OFFSET_COMMIT
t/1: -1 epoch=-1 metadata="" UNSTABLE_OFFSET_COMMIT
t/2: -1 epoch=-1 metadata=""

fetch g stable
----
t/0: -1 epoch=-1 metadata="" UNSTABLE_OFFSET_COMMIT

show
----
g: Empty gen=0 type="" protocol=- leader=
  t/0: 5
  t/0: 9 pending of 1/0
  t/1: 3 pending of 1/0

reload
----

show
----
g: Empty gen=0 type="" protocol=- leader=
  t/0: 5
  t/0: 9 pending of 1/0
  t/1: 3 pending of 1/0

marker pid=1 pepoch=0 commit
----
append commit of 1/0

fetch g stable
----
t/0: 9 epoch=7 metadata=""
t/1: 3 epoch=7 metadata=""

# A marker may come again, and for a producer that has nothing here.
marker pid=1 pepoch=0 commit
----
append commit of 1/0

marker pid=2 pepoch=0 abort
----
append abort of 2/0

fetch g stable
----
t/0: 9 epoch=7 metadata=""
t/1: 3 epoch=7 metadata=""

# Aborted: as if it had never been.
commit p g offsets=t/0:20,u/0:1 pid=1 pepoch=0
----
append [1/0] g t/0: 20
append [1/0] g u/0: 1
-> p: commit t/0 ok u/0 ok

marker pid=1 pepoch=1 abort
----
append abort of 1/1

show
----
g: Empty gen=0 type="" protocol=- leader=
  t/0: 9
  t/1: 3

# Twice in one transaction: the last counts.
commit p g offsets=t/0:30 pid=1 pepoch=1
----
append [1/1] g t/0: 30
-> p: commit t/0 ok

commit p g offsets=t/0:31 pid=1 pepoch=1 metadata=abcde
----
-> p: commit t/0 OFFSET_METADATA_TOO_LARGE

commit p g offsets=t/0:31 pid=1 pepoch=1 metadata=abcd
----
append [1/1] g t/0: 31
-> p: commit t/0 ok

marker pid=1 pepoch=1 commit
----
append commit of 1/1

fetch g
----
t/0: 31 epoch=7 metadata="abcd"
t/1: 3 epoch=7 metadata=""

# A plain commit after a pending one is the later record, whenever the marker comes.
commit p g offsets=t/0:40,t/1:40 pid=1 pepoch=1
----
append [1/1] g t/0: 40
append [1/1] g t/1: 40
-> p: commit t/0 ok t/1 ok

commit a g offsets=t/0:35
----
append g t/0: 35
-> a: commit t/0 ok

fetch g offsets=t/0:
----
t/0: 35 epoch=7 metadata=""

reload
----

marker pid=1 pepoch=1 commit
----
append commit of 1/1

fetch g
----
t/0: 35 epoch=7 metadata=""
t/1: 40 epoch=7 metadata=""

reload
----

fetch g
----
t/0: 35 epoch=7 metadata=""
t/1: 40 epoch=7 metadata=""

# Two transactions at once on one partition: of those that commit, the later record counts, not the later marker.
commit p g offsets=t/0:50 pid=1 pepoch=1
----
append [1/1] g t/0: 50
-> p: commit t/0 ok

commit q g offsets=t/0:60 pid=2
----
append [2/0] g t/0: 60
-> q: commit t/0 ok

marker pid=2 commit
----
append commit of 2/0

fetch g offsets=t/0: stable
----
t/0: -1 epoch=-1 metadata="" UNSTABLE_OFFSET_COMMIT

marker pid=1 pepoch=1 commit
----
append commit of 1/1

fetch g offsets=t/0: stable
----
t/0: 60 epoch=7 metadata=""

# A producer's earlier epoch is over once a later one has written.
commit p g offsets=t/0:70 pid=1 pepoch=3
----
append [1/3] g t/0: 70
-> p: commit t/0 ok

commit p g offsets=t/0:71 pid=1 pepoch=2
----
-> p: commit t/0 INVALID_PRODUCER_EPOCH

marker pid=1 pepoch=3 abort
----
append abort of 1/3

# One transaction, two groups: both or neither.
commit p g offsets=t/0:80 pid=1 pepoch=3
----
append [1/3] g t/0: 80
-> p: commit t/0 ok

commit p h offsets=t/0:81 pid=1 pepoch=3
----
append [1/3] h t/0: 81
-> p: commit t/0 ok

show
----
g: Empty gen=0 type="" protocol=- leader=
  t/0: 60
  t/1: 40
  t/0: 80 pending of 1/3
h: Empty gen=0 type="" protocol=- leader=
  t/0: 81 pending of 1/3

marker pid=1 pepoch=3 commit
----
append commit of 1/3

show
----
g: Empty gen=0 type="" protocol=- leader=
  t/0: 80
  t/1: 40
h: Empty gen=0 type="" protocol=- leader=
  t/0: 81
