init a x-1
----
append x-1: Empty 1000/0 timeout=60000ms updated=1000000
-> a: producer 1000/0

init b x-2
----
append x-2: Empty 1001/0 timeout=60000ms updated=1000000
-> b: producer 1001/0

init c y
----
append y: Empty 1002/0 timeout=60000ms updated=1000000
-> c: producer 1002/0

add leader x-2 by=1001/0 to=t/0 v=5
----
append x-2: Ongoing 1001/0 version=2 timeout=60000ms updated=1000000 started=1000000 t[0]
-> leader: [x-2 t/0 ok]

wait 5s
----

add leader y by=1002/0 to=t/0 v=5
----
append y: Ongoing 1002/0 version=2 timeout=60000ms updated=1005000 started=1005000 t[0]
-> leader: [y t/0 ok]

commit c y by=1002/0
----
append y: PrepareCommit 1002/1 last=0 version=2 timeout=60000ms updated=1005000 started=1005000 t[0]
-> c: ok, producer 1002/1
markers y 1002/1 commit coordinator=7 version=2 t[0]

list
----
x-1 Empty 1000
x-2 Ongoing 1001
y PrepareCommit 1002

list states=Ongoing,PrepareCommit
----
x-2 Ongoing 1001
y PrepareCommit 1002

list states=Ongoing,ongoing,Nonsense
----
unknown states: ["ongoing" "Nonsense"]
x-2 Ongoing 1001

list states=Nonsense
----
unknown states: ["Nonsense"]

list states=Dead
----

list ids=1000,1002,77
----
x-1 Empty 1000
y PrepareCommit 1002

list longer=0s
----
x-1 Empty 1000
x-2 Ongoing 1001

list longer=4999ms
----
x-1 Empty 1000
x-2 Ongoing 1001

list longer=5s
----
x-1 Empty 1000

list longer=5s states=Ongoing
----

list
x-.
----
x-1 Empty 1000
x-2 Ongoing 1001

list
x
----

list
.*[2y]
----
x-2 Ongoing 1001
y PrepareCommit 1002

list
x-1|y
----
x-1 Empty 1000
y PrepareCommit 1002

list
x-1)|(y
----
list INVALID_REGULAR_EXPRESSION

list
(x
----
list INVALID_REGULAR_EXPRESSION

list
(x{900})(x{900})(x{900})(x{900})(x{900})(x{900})(x{900})(x{900})(x{900})(x{900})(x{900})(x{900})
----
list INVALID_REGULAR_EXPRESSION
