// kafkajs: `node kafkajs.mjs PLAN.json PHASES`. The phases are those of every client program (README.md).
// Its codecs beside gzip are plugged in, as its documentation says.
import kafkajs from 'kafkajs'
import snappy from 'kafkajs-snappy'
import lz4 from 'lz4-napi'
import { Zstd } from '@hpcc-js/wasm-zstd'
import { bootstrap, check, compare, once, plan, range, records, run, same, wait, wanted } from './common.mjs'

const { Kafka, CompressionTypes, CompressionCodecs, logLevel } = kafkajs
process.env.KAFKAJS_NO_PARTITIONER_WARNING = '1'
const zstd = await Zstd.load()
CompressionCodecs[CompressionTypes.Snappy] = snappy
CompressionCodecs[CompressionTypes.LZ4] = () => ({
  compress: async encoder => lz4.compressFrame(encoder.buffer),
  decompress: async buffer => lz4.decompressFrame(buffer)
})
CompressionCodecs[CompressionTypes.ZSTD] = () => ({
  compress: async encoder => Buffer.from(zstd.compress(encoder.buffer)),
  decompress: async buffer => Buffer.from(zstd.decompress(buffer))
})
const codecs = { none: 0, gzip: 1, snappy: 2, lz4: 3, zstd: 4 }

const kafka = new Kafka({ clientId: 'interop', brokers: [bootstrap], logLevel: logLevel.NOTHING, retry: { initialRetryTime: 50, retries: 10 } })

// headers as kafkajs wants them: a map in which a repeated name has an array.
function toMap(list) {
  const m = {}
  for (const [n, v] of list) m[n] = n in m ? [m[n], v].flat() : v
  return m
}
const fromMap = m => Object.entries(m).flatMap(([n, v]) => (Array.isArray(v) ? v.map(x => [n, x]) : [[n, v]]))

async function produce() {
  const p = kafka.producer()
  await p.connect()
  for (const t of plan.produce) {
    await check('produces / ' + t.codec, async () => {
      const all = records(t.corpus)
      const next = new Map()
      for (let i = 0; i < all.length; i += 100) {
        const messages = all.slice(i, i + 100).map(r => ({
          partition: r.partition,
          key: r.key,
          value: r.value,
          headers: toMap(r.headers),
          ...(r.timestamp === null ? {} : { timestamp: String(r.timestamp) })
        }))
        for (const m of await p.send({ topic: t.topic, messages, acks: -1, compression: codecs[t.codec] })) {
          same('base offset', next.get(m.partition) ?? 0, Number(m.baseOffset))
          next.set(m.partition, (next.get(m.partition) ?? 0) + messages.filter(x => x.partition === m.partition).length)
        }
      }
    })
  }
  await p.disconnect()
}

async function consume() {
  const got = new Map(plan.consume.map(t => [t.topic, new Map()]))
  const c = kafka.consumer({ groupId: 'kafkajs-reads', maxBytesPerPartition: 200000 })
  await c.connect()
  await c.subscribe({ topics: [...got.keys()], fromBeginning: true })
  await c.run({
    autoCommit: false,
    eachBatch: async ({ batch }) => {
      const parts = got.get(batch.topic)
      if (!parts.has(batch.partition)) parts.set(batch.partition, [])
      parts.get(batch.partition).push(...batch.messages)
    }
  })
  for (const t of plan.consume) {
    await check(`reads ${t.by} / ${t.codec}`, async () => {
      const want = wanted(t.corpus)
      await wait('all records', () => [...want].every(([p, rs]) => got.get(t.topic).get(p)?.length >= rs.length))
      for (const [p, rs] of want) {
        const ms = got.get(t.topic).get(p)
        same('records of partition ' + p, rs.length, ms.length)
        rs.forEach((r, i) => compare(`${t.topic}-${p}@${i}`, r, i, { ...ms[i], headers: fromMap(ms[i].headers ?? {}) }))
      }
    })
  }
  await c.disconnect()
}

async function group() {
  const { topic, group } = plan.group
  async function member(got) {
    const c = kafka.consumer({ groupId: group, sessionTimeout: 10000, heartbeatInterval: 300, rebalanceTimeout: 10000 })
    const m = { c, parts: [], offsets: new Map() }
    c.on(c.events.GROUP_JOIN, e => (m.parts = e.payload.memberAssignment[topic] ?? []))
    await c.connect()
    await c.subscribe({ topic, fromBeginning: true })
    await c.run({
      autoCommit: false,
      eachMessage: async ({ partition, message }) => {
        const v = message.value.toString()
        got[v] = (got[v] ?? 0) + 1
        m.offsets.set(partition, String(Number(message.offset) + 1))
      }
    })
    m.commit = () => c.commitOffsets([...m.offsets].map(([partition, offset]) => ({ topic, partition, offset })))
    return m
  }
  async function fill(first, last) {
    const p = kafka.producer()
    await p.connect()
    await p.send({ topic, messages: range(first, last).map(i => ({ key: 'k' + i, value: 'v' + i, partition: i % 6 })) })
    await p.disconnect()
  }
  await check('two members of a group share the partitions', async () => {
    const got = {}
    const a = await member(got)
    const b = await member(got)
    await wait('an assignment of 3 + 3 partitions', () => a.parts.length === 3 && b.parts.length === 3 && !a.parts.some(p => b.parts.includes(p)))
    await fill(0, 300)
    await wait('300 records', () => Object.keys(got).length >= 300)
    same('records', once(0, 300), got)
    await a.commit()
    await b.commit()
    await a.c.disconnect()
    await b.c.disconnect()
  })
  await check('a later member of the group resumes at the committed offsets', async () => {
    const got = {}
    await fill(300, 360)
    const a = await member(got)
    await wait('60 records', () => Object.keys(got).length >= 60)
    await new Promise(r => setTimeout(r, 300))
    same('records', once(300, 360), got)
    await a.commit()
    await a.c.disconnect()
    const admin = kafka.admin()
    await admin.connect()
    const [offsets] = await admin.fetchOffsets({ groupId: group, topics: [topic] })
    for (const p of offsets.partitions) same('committed offset of ' + p.partition, 60, Number(p.offset))
    await admin.disconnect()
  })
}

async function extra() {
  const admin = kafka.admin()
  await admin.connect()
  await check('admin client: create, list, describe, alter, grow, delete', async () => {
    const topic = 'kafkajs-admin'
    await admin.createTopics({ waitForLeaders: true, topics: [{ topic, numPartitions: 2, replicationFactor: 1, configEntries: [{ name: 'retention.ms', value: '7200000' }] }] })
    same('listed', true, (await admin.listTopics()).includes(topic))
    await admin.createPartitions({ topicPartitions: [{ topic, count: 4 }] })
    await wait('4 partitions', async () => (await admin.fetchTopicMetadata({ topics: [topic] })).topics[0].partitions.length === 4)
    const describe = async () => (await admin.describeConfigs({ resources: [{ type: 2, name: topic, configNames: ['retention.ms'] }] })).resources[0].configEntries[0].configValue
    same('retention.ms', '7200000', await describe())
    await admin.alterConfigs({ validateOnly: false, resources: [{ type: 2, name: topic, configEntries: [{ name: 'retention.ms', value: '3600000' }] }] })
    await wait('the change', async () => (await describe()) === '3600000')
    await admin.deleteTopics({ topics: [topic] })
    await wait('deletion', async () => !(await admin.listTopics()).includes(topic))
  })
  await check('idempotent producer', async () => {
    const p = kafka.producer({ idempotent: true, maxInFlightRequests: 1 })
    await p.connect()
    for (let i = 0; i < 20; i++) {
      const [m] = await p.send({ topic: 'kafkajs-idem', messages: range(0, 50).map(j => ({ value: `${i * 50 + j}`, partition: 0 })) })
      same('base offset', i * 50, Number(m.baseOffset))
    }
    await p.disconnect()
  })
  await check('offsets: of a topic, by time', async () => {
    const p = kafka.producer()
    const topic = 'kafkajs-times'
    const base = plan.started - 600000
    await p.connect()
    for (let i = 0; i < 5; i++) await p.send({ topic, messages: [{ value: `${i}`, partition: 0, timestamp: String(base + 1000 * i) }] })
    await p.disconnect()
    const [o] = await admin.fetchTopicOffsets(topic)
    same('offsets', ['0', '5'], [o.low, o.high])
    const [t] = await admin.fetchTopicOffsetsByTimestamp(topic, base + 1500)
    same('by time', '2', t.offset)
    await admin.deleteTopicRecords({ topic, partitions: [{ partition: 0, offset: '3' }] })
    same('low after deletion', '3', (await admin.fetchTopicOffsets(topic))[0].low)
  })
  await admin.disconnect()
}

await run({ produce, consume, group, extra })
