// What the JavaScript client programs share: the plan, the lines they print, the comparison.
import { readFileSync } from 'node:fs'
import { isDeepStrictEqual, inspect } from 'node:util'

export const plan = JSON.parse(readFileSync(process.argv[2], 'utf8'))
export const bootstrap = plan.bootstrap

export async function check(name, body) {
  let line
  try {
    await body()
    line = 'ok ' + name
  } catch (e) {
    console.error(inspect(e, { depth: 6 }))
    line = `FAIL ${name}\t` + why(e).replaceAll('\n', ' ').slice(0, 600)
  }
  console.log(line)
}

// why is an error's message with those of the errors inside.
const why = e => [e?.message ?? `${e}`, ...(e?.errors ?? []).map(why), ...(e?.cause ? [why(e.cause)] : [])].join(': ')

export async function run(phases) {
  for (const phase of process.argv[3].split(',')) await phases[phase]()
  process.stdout.write('end\n', () => process.exit(0))
}

const raw = s => (s === null ? null : Buffer.from(s, 'base64'))

export const records = corpus =>
  plan.corpora[corpus].map(r => ({
    partition: r.partition,
    key: raw(r.key),
    value: raw(r.value),
    timestamp: r.timestamp,
    headers: r.headers.map(([name, value]) => [name, raw(value)])
  }))

// wanted maps a partition to its records in order; each is at its index as offset.
export function wanted(corpus) {
  const parts = new Map()
  for (const r of records(corpus)) {
    if (!parts.has(r.partition)) parts.set(r.partition, [])
    parts.get(r.partition).push(r)
  }
  return parts
}

export function same(what, want, got) {
  if (!isDeepStrictEqual(want, got)) {
    const show = v => inspect(v, { breakLength: Infinity, depth: 4 }).slice(0, 200)
    throw new Error(`${what}: got ${show(got)}, want ${show(want)}`)
  }
}

const bytes = b => (b === null || b === undefined ? null : Buffer.from(b).toString('latin1'))

// compare: got is { offset, key, value, timestamp, headers: [[name, bytes]] }. A client that keeps headers
// in a map cannot tell the order of different names: both sides are put in order of the names.
export function compare(at, want, offset, got) {
  same(at + ' offset', offset, Number(got.offset))
  same(at + ' key', bytes(want.key), bytes(got.key))
  same(at + ' value', bytes(want.value), bytes(got.value))
  const ts = Number(got.timestamp)
  if (want.timestamp !== null) same(at + ' timestamp', want.timestamp, ts)
  else if (ts < plan.started - 1000 || ts > Date.now() + 1000) throw new Error(`${at}: timestamp ${ts}`)
  const list = hs => hs.map(([n, v]) => [n, bytes(v)]).sort((a, b) => (a[0] < b[0] ? -1 : a[0] > b[0] ? 1 : 0))
  same(at + ' headers', list(want.headers), list(got.headers))
}

// wait polls f. Its time is 60 s for the first that waits in vain, and short for those after it.
let patience = 60
export async function wait(what, f) {
  const deadline = Date.now() + patience * 1000
  while (!(await f())) {
    if (Date.now() > deadline) {
      patience = Math.max(2, patience / 4)
      throw new Error('waited in vain for ' + what)
    }
    await new Promise(r => setTimeout(r, 50))
  }
}

export const once = (first, last) => Object.fromEntries(range(first, last).map(i => ['v' + i, 1]))
export const range = (first, last) => Array.from({ length: last - first }, (_, i) => first + i)
