config
----

join a g v=3 protocols=range:r,sticky:s,own:o
----
note: member a-1 joins

# All must have one in common, and the type.
join b g v=3 protocols=other:r
----
-> b: join INCONSISTENT_GROUP_PROTOCOL member=

join b g v=3 type=connect protocols=range:r
----
-> b: join INCONSISTENT_GROUP_PROTOCOL member=

join b g v=3 protocols=none
----
-> b: join INCONSISTENT_GROUP_PROTOCOL member=

join b g v=3 protocols=sticky:s,range:r
----

join c g v=3 protocols=sticky:s,range:r
----

# Most prefer sticky.
wait 1ms
----
-> a: join gen=1 member=a-1 leader=a-1 protocol=sticky members=["a-1:s" "b-5:s" "c-6:s"]
-> b: join gen=1 member=b-5 leader=a-1 protocol=sticky
-> c: join gen=1 member=c-6 leader=a-1 protocol=sticky
  at 0s

join d g v=3 type=connect
----
-> d: join INCONSISTENT_GROUP_PROTOCOL member=

# A name that comes twice does not count twice.
config
----

join a h v=3 protocols=x:1,x:2
----
note: member a-1 joins

join b h v=3 protocols=y:1,x:2
----

wait 1ms
----
-> a: join gen=1 member=a-1 leader=a-1 protocol=x members=["a-1:1" "b-2:2"]
-> b: join gen=1 member=b-2 leader=a-1 protocol=x
  at 0s

# Other protocol types than consumer's.
join w connect v=3 type=connect protocols=default:url
----
note: member w-3 joins

wait 1ms
----
-> w: join gen=1 member=w-3 leader=w-3 protocol=default members=["w-3:url"]
  at 1ms

sync w connect member=w-3 assign=w-3:tasks
----
append connect: gen=1 type="connect" protocol=default leader=w-3 [w-3 "tasks"]
-> w: sync "tasks" protocol=connect/default

describe connect
----
connect Stable type="connect" protocol="default"
  w-3 client=w host=/10.0.0.1 metadata="url" assignment="tasks"
