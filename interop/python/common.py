"""What the Python client programs share: the plan, the lines they print, the comparison."""

import base64
import json
import sys
import time
import traceback

with open(sys.argv[1]) as f:
    plan = json.load(f)
bootstrap = plan["bootstrap"]


def check(name, body):
    try:
        body()
        line = "ok " + name
    except BaseException as e:  # a client's fatal errors are not all Exceptions
        traceback.print_exc()
        line = "FAIL %s\t%s" % (name, (type(e).__name__ + ": " + str(e)).replace("\n", " ")[:600])
    print(line, flush=True)


def run(phases):
    for phase in sys.argv[2].split(","):
        phases[phase]()
    print("end", flush=True)


def raw(s):
    return None if s is None else base64.b64decode(s)


def records(corpus):
    """The records of a corpus with their bytes decoded."""
    out = []
    for r in plan["corpora"][corpus]:
        out.append(
            dict(
                partition=r["partition"],
                key=raw(r["key"]),
                value=raw(r["value"]),
                timestamp=r["timestamp"],
                headers=[(h[0], raw(h[1])) for h in r["headers"]],
            )
        )
    return out


def same(what, want, got):
    if want != got:
        raise AssertionError("%s: got %.200r, want %.200r" % (what, got, want))


def compare(at, want, offset, key, value, timestamp, headers):
    same(at + " offset", want["offset"], offset)
    same(at + " key", want["key"], key)
    same(at + " value", want["value"], value)
    if want["timestamp"] is None:
        if not plan["started"] - 1000 <= timestamp <= time.time() * 1000 + 1000:
            raise AssertionError("%s: timestamp %s" % (at, timestamp))
    else:
        same(at + " timestamp", want["timestamp"], timestamp)
    same(at + " headers", want["headers"], headers)


def wanted(corpus):
    """Partition to its records in order, each with the offset it must have."""
    parts = {}
    for r in records(corpus):
        p = parts.setdefault(r["partition"], [])
        r["offset"] = len(p)
        p.append(r)
    return parts


patience = 60


def wait(what, f):
    """Polls f. Its time is 60 s for the first that waits in vain, and short for those after it."""
    global patience
    deadline = time.monotonic() + patience
    while not f():
        if time.monotonic() > deadline:
            patience = max(2, patience / 4)
            raise AssertionError("waited in vain for " + what)
        time.sleep(0.02)
