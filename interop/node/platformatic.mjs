// @platformatic/kafka: `node platformatic.mjs PLAN.json PHASES`. The phases are those of every client program (README.md).
// It takes zstd from Node.js, which has it from version 22.15 on.
import zlib from 'node:zlib'
import { Admin, Consumer, Producer } from '@platformatic/kafka'
import { bootstrap, check, compare, once, plan, range, records, run, same, wait, wanted } from './common.mjs'

const base = { clientId: 'interop', bootstrapBrokers: [bootstrap], retries: 10, retryDelay: 100 }

// cannot says what this client, whatever the broker, does not do.
function cannot({ codec, by }, reading) {
  if (codec === 'zstd' && !('zstdCompressSync' in zlib)) return 'this Node.js has no zstd'
  if (reading && codec === 'snappy' && (by === 'java' || by === 'kafka-python')) return "its decoder fails on snappy in xerial's framing"
}

async function produce() {
  const p = new Producer(base)
  for (const t of plan.produce) {
    if (cannot(t, false)) {
      console.log(`skip produces / ${t.codec}\t${cannot(t, false)}`)
      continue
    }
    await check('produces / ' + t.codec, async () => {
      const all = records(t.corpus)
      const next = new Map()
      for (let i = 0; i < all.length; i += 100) {
        const messages = all.slice(i, i + 100).map(r => ({
          topic: t.topic,
          partition: r.partition,
          key: r.key ?? undefined,
          value: r.value ?? undefined,
          headers: new Map(r.headers.map(([n, v]) => [Buffer.from(n), v])),
          ...(r.timestamp === null ? {} : { timestamp: BigInt(r.timestamp) })
        }))
        const { offsets } = await p.send({ messages, acks: -1, compression: t.codec })
        for (const o of offsets) {
          same('base offset', next.get(o.partition) ?? 0, Number(o.offset))
          next.set(o.partition, (next.get(o.partition) ?? 0) + messages.filter(m => m.partition === o.partition).length)
        }
      }
    })
  }
  await p.close()
}

async function consume() {
  for (const t of plan.consume) {
    if (cannot(t, true)) {
      console.log(`skip reads ${t.by} / ${t.codec}\t${cannot(t, true)}`)
      continue
    }
    await check(`reads ${t.by} / ${t.codec}`, async () => {
      const want = wanted(t.corpus)
      const got = new Map([...want.keys()].map(p => [p, []]))
      const c = new Consumer({ ...base, groupId: 'platformatic-' + t.topic, autocommit: false })
      try {
        const stream = await c.consume({ topics: [t.topic], mode: 'earliest', autocommit: false, maxWaitTime: 200 })
        let failure
        stream.on('error', e => (failure = e))
        stream.on('data', m => got.get(m.partition).push(m))
        await wait('all records', () => {
          if (failure) throw failure
          return [...want].every(([p, rs]) => got.get(p).length >= rs.length)
        })
      } finally {
        await c.close(true)
      }
      for (const [p, rs] of want) {
        const ms = got.get(p)
        same('records of partition ' + p, rs.length, ms.length)
        rs.forEach((r, i) => {
          const { offset, key, value, timestamp, headers } = ms[i]
          compare(`${t.topic}-${p}@${i}`, r, i, { offset, key, value, timestamp, headers: [...headers].map(([n, v]) => [n.toString(), v]) })
        })
      }
    })
  }
}

async function group() {
  const { topic, group } = plan.group
  async function member(got) {
    const c = new Consumer({ ...base, groupId: group, sessionTimeout: 10000, heartbeatInterval: 300, rebalanceTimeout: 10000 })
    const m = { c, offsets: new Map() }
    m.parts = () => c.assignments?.find(a => a.topic === topic)?.partitions ?? []
    const stream = await c.consume({ topics: [topic], mode: 'committed', fallbackMode: 'earliest', autocommit: false, maxWaitTime: 200 })
    stream.on('error', e => console.error(e))
    stream.on('data', r => {
      const v = r.value.toString()
      got[v] = (got[v] ?? 0) + 1
      m.offsets.set(r.partition, r.offset + 1n)
    })
    m.commit = () => c.commit({ offsets: [...m.offsets].map(([partition, offset]) => ({ topic, partition, offset, leaderEpoch: -1 })) })
    return m
  }
  async function fill(first, last) {
    const p = new Producer(base)
    await p.send({ acks: -1, messages: range(first, last).map(i => ({ topic, partition: i % 6, key: Buffer.from('k' + i), value: Buffer.from('v' + i) })) })
    await p.close()
  }
  await check('two members of a group share the partitions', async () => {
    const got = {}
    const a = await member(got)
    const b = await member(got)
    await wait('an assignment of 3 + 3 partitions', () => a.parts().length === 3 && b.parts().length === 3 && !a.parts().some(p => b.parts().includes(p)))
    await fill(0, 300)
    await wait('300 records', () => Object.keys(got).length >= 300)
    // At least once: the member that gives partitions up may still deliver what it has fetched.
    same('records', once(0, 300), Object.fromEntries(Object.keys(got).map(v => [v, 1])))
    await a.commit()
    await b.commit()
    await a.c.close(true)
    await b.c.close(true)
  })
  await check('a later member of the group resumes at the committed offsets', async () => {
    const got = {}
    await fill(300, 360)
    const a = await member(got)
    await wait('60 records', () => Object.keys(got).length >= 60)
    await new Promise(r => setTimeout(r, 300))
    same('records', once(300, 360), got)
    await a.commit()
    const offsets = await a.c.listCommittedOffsets({ topics: [{ topic, partitions: range(0, 6) }] })
    same('committed offsets', range(0, 6).map(() => 60n), offsets.get(topic))
    await a.c.close(true)
  })
}

async function extra() {
  const admin = new Admin(base)
  await check('admin client: create, list, describe, delete', async () => {
    const topic = 'platformatic-admin'
    await admin.createTopics({ topics: [topic], partitions: 2, replicas: 1 })
    await wait('the topic', async () => (await admin.listTopics()).includes(topic))
    const m = await admin.metadata({ topics: [topic], forceUpdate: true })
    same('partitions', 2, m.topics.get(topic).partitionsCount)
    await admin.deleteTopics({ topics: [topic] })
    await wait('deletion', async () => !(await admin.listTopics()).includes(topic))
  })
  await check('idempotent producer', async () => {
    const p = new Producer({ ...base, idempotent: true, autocreateTopics: true })
    for (let i = 0; i < 20; i++) {
      const { offsets } = await p.send({ messages: range(0, 50).map(j => ({ topic: 'platformatic-idem', value: Buffer.from(`${i * 50 + j}`), partition: 0 })) })
      same('base offset', i * 50, Number(offsets[0].offset))
    }
    await p.close()
  })
  await admin.close()
}

await run({ produce, consume, group, extra })
