#!/usr/bin/env -S node --no-warnings --no-turbo-fast-api-calls --no-liftoff --no-wasm-lazy-compilation --single-threaded --expose-gc
// What one worker's memory holds, and how long loading keeps its requests waiting, by the filter's module under Node
// (V8, as in Envoy): the bytes of its WebAssembly linear memory, which never shrinks, and how long it
// keeps requests waiting while it loads: its longest callback, less what this script's own objects cost meanwhile.
//   scripts/memory.mjs [--quick] [MODULE]
// Policies come by callout and are loaded in slices, as in Envoy; callers come with two credentials of their own.
// Prints a table in Markdown. `--quick` takes fewer of all and fails if a bound is not kept.
import { PerformanceObserver, performance } from 'node:perf_hooks';
import { argv, exit } from 'node:process';
import { setTimeout } from 'node:timers/promises';
import { MODULE, TRUST, configuration, credentials, headers, load, pairs, policy, rules, signed } from './host.mjs';

const args = argv.slice(2);
const quick = args[0] === '--quick';
if (quick) args.shift();
const module = args[0] ?? MODULE;

/** Milliseconds of processor time so far: what else runs on the machine makes no callback longer. */
const used = () => {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1000;
};
/** It is also the time that the filter is told, on top of what is let pass. */
const now = Math.floor(Date.now() / 1000);
let passedBy = 0;
const clock = () => BigInt(now) * 1_000_000_000n + BigInt(Math.round((used() + passedBy) * 1000)) * 1000n;
/** When the collector of this script's own objects was at work: Envoy has none. The growth of the module's memory rouses it. */
let collections = [];
new PerformanceObserver((list) => collections.push(...list.getEntries())).observe({ entryTypes: ['gc'] });
const mebibytes = (bytes) => (bytes / 1024 / 1024).toFixed(1);

// ── policies ─────────────────────────────────────────────────────────────────────────────────────
/** As a generator writes them: each about a DAG and a path of its own. The last one is the caller's. */
const ofDags = (count) => policy(Array.from({ length: count }, (_, number) => ({
  id: `rule-${number}`, effect: 'allow', from: { dags: [number === count - 1 ? 'ds_churn' : `dag_${number}`], teams: ['data-science'] },
  to: ['orders'], methods: ['GET', 'HEAD'], paths: [`/v1/teams/${number}/**`],
})));
/** Which DAG may call which destination: each of the rules is another pair. */
function ofPairs(count, dags, destinations) {
  const pairs = Array.from({ length: count }, (_, number) => ({
    id: `rule-${number}`, effect: 'allow', from: { dags: [`dag_${number % dags}`] },
    to: [`destination-${(number + Math.floor(number / dags) * 7) % destinations}`], methods: ['GET', 'HEAD'],
  }));
  pairs.push({ id: 'last', effect: 'allow', from: { dags: ['ds_churn'] }, to: ['orders'] });
  const all = policy(pairs);
  for (let number = 0; number < destinations; number += 1) {
    all.destinations[`destination-${number}`] = { hosts: [`destination-${number}.internal`] };
  }
  return all;
}
const thousands = (number) => String(number).replace(/\B(?=(\d{3})+$)/g, ' ');
const most = quick ? 1_000 : 100_000;
const POLICIES = [
  ['no rule', () => policy([])],
  ['50 rules', () => ofDags(50)],
  ...(quick ? [] : [['10 000 rules', () => ofDags(10_000)]]),
  [`${thousands(most)} rules`, () => ofDags(most)],
  ...['EdDSA', 'ES256'].map((algorithm) => [`${thousands(most)} rules, signed (${algorithm})`, () => ofDags(most), algorithm]),
  ...(quick ? [] : [['100 000 rules about 10 000 DAGs and 1 000 destinations', () => ofPairs(100_000, 10_000, 1_000)]]),
];
/** Two revisions of a policy as they are sent, its number of rules and a path of the last one. */
function written(policy, algorithm) {
  const texts = [1, 2].map((revision) => JSON.stringify({ ...policy, revision }));
  const bodies = texts.map((text) => (algorithm ? signed(text, algorithm) : Buffer.from(text)));
  return { bodies, trust: algorithm && TRUST, count: policy.rules.length, path: policy.rules.at(-1)?.paths?.[0].replace('**', 'x') ?? '/x' };
}
/** Loading is repeated, for what disturbs the machine makes callbacks longer: the shortest of the longest ones counts. */
const TURNS = quick ? 3 : 5;

const caller = headers(credentials(now), { path: '/v1/anything' });

/** A worker that was given the policy, and then it again as a newer one. */
async function given({ bodies, trust, count, path }) {
  const settings = configuration({
    policy: { sources: [{ name: 'main', http: { cluster: 'policy', uri: 'http://policy/policy.json', poll: '1s' } }], trust },
  });
  const filter = await load(module, { settings, clock });
  const answers = [], slices = [];
  let all = 0;
  const timed = (call, calls = []) => {
    const from = used();
    const begun = performance.now();
    call();
    const taken = used() - from;
    all += taken;
    calls.push({ begun, ended: performance.now(), taken });
  };
  collections = [];
  gc();
  const update = (body) => {
    // It polls once a second, or a little later.
    for (let waited = 0; filter.callouts.size === 0; waited += 100) {
      if (waited > 10_000) throw new Error('it fetches no policy');
      passedBy += 100;
      timed(() => filter.tick());
    }
    all = 0;
    // For the first answer that is large, it makes memory ready and asks again.
    while (filter.callouts.size > 0) {
      const [token] = filter.callouts.keys();
      timed(() => filter.answer(token, [[':status', '200']], body), answers);
      while (filter.period === 1) timed(() => filter.tick(), slices);
    }
    return all;
  };
  const first = update(bodies[0]);
  const once = filter.bytes();
  const taken = update(bodies[1]);
  // It decides by that policy: what the last rule is about is permitted, or nothing is.
  const asked = headers(credentials(now), { path });
  filter.reply = null;
  const permitted = filter.request(pairs(asked), asked.length);
  if (permitted !== (count > 0)) throw new Error(`permitted: ${permitted}; ${JSON.stringify(filter.reply)}`);
  if (!permitted && JSON.parse(filter.reply.body).code !== 'policy_no_match') throw new Error(filter.reply.body);
  // What the collector did is told a little later.
  await setTimeout(20);
  // It is told in time that passed, of which others may have had some: so much less of it counts.
  const collected = ({ begun, ended, taken }) => Math.max(0, taken - (ended - begun) + collections
    .filter(({ startTime }) => begun <= startTime && startTime < ended)
    .reduce((sum, { duration }) => sum + duration, 0));
  const longest = (calls) => calls.reduce((most, call) => Math.max(most, call.taken - collected(call)), 0);
  return { once, twice: filter.bytes(), answer: longest(answers), slice: longest(slices), all: Math.min(first, taken) };
}

// ── callers ──────────────────────────────────────────────────────────────────────────────────────
/** A worker that so many callers came to, twice. */
async function met(callers) {
  const filter = await load(module, { settings: configuration(), clock, verifies: true });
  const begun = filter.bytes();
  const verified = () => filter.counts.get('call_foreign_function') ?? 0;
  const known = [];
  filter.counts = new Map();
  for (let number = 0; number < callers; number += 1) {
    const asked = headers(credentials(now, number));
    known.push([pairs(asked), asked.length]);
    if (!filter.request(...known.at(-1))) throw new Error('it was not permitted');
  }
  if (verified() !== 2 * callers) throw new Error(`${verified()} signatures were verified by the host for ${callers} callers`);
  const once = filter.bytes();
  filter.counts = new Map();
  for (const asked of known) if (!filter.request(...asked)) throw new Error('it was not permitted');
  return { begun, once, twice: filter.bytes(), verified: verified() };
}

// ── the table ────────────────────────────────────────────────────────────────────────────────────
let passed = 0, failed = 0;
const bound = (what, kept) => {
  if (kept) passed += 1;
  else failed += 1;
  if (quick) console.log(`${what}: ${kept ? 'ok' : 'FAILED'}`);
};

console.log('| one worker has loaded | MiB | MiB after an update | ms of work | ms for the answer | longest slice, ms |\n|---|--:|--:|--:|--:|--:|');
for (const [name, make, algorithm] of POLICIES) {
  const turns = [];
  const policy = written(make(), algorithm);
  for (let turn = 0; turn < TURNS; turn += 1) turns.push(await given(policy));
  const [{ once, twice }] = turns;
  const least = (name) => Math.min(...turns.map((turn) => turn[name]));
  console.log(`| ${name} | ${mebibytes(once)} | ${mebibytes(twice)} | ${least('all').toFixed(1)} | ${least('answer').toFixed(1)} | ${least('slice').toFixed(1)} |`);
  // Some slices are two turns long; a slow machine takes longer for each.
  bound(`${name}: no slice of more than 15 ms`, least('slice') <= 15);
}

console.log('\n| one worker has met | MiB | bytes for each | verified again when all come once more |\n|---|--:|--:|--:|');
for (const callers of quick ? [1_000] : [1_000, 2_000, 10_000]) {
  const { begun, once, twice, verified } = await met(callers);
  const each = Math.round((once - begun) / callers);
  console.log(`| ${thousands(callers)} callers | ${mebibytes(twice)} | ${thousands(each)} | ${thousands(verified)} |`);
  if (callers === 1_000) {
    bound('1 000 callers: none is verified twice', verified === 0);
    bound('1 000 callers: at most 8 KiB for each', each <= 8 * 1024);
  }
}
if (quick) console.log(`test result: ${failed ? 'FAILED' : 'ok'}. ${passed} passed; ${failed} failed; 0 ignored`);
exit(failed && quick ? 1 : 0);
