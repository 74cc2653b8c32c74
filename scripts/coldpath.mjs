#!/usr/bin/env -S node --no-warnings --no-turbo-fast-api-calls --no-liftoff
// What a caller that nobody knows costs in the module itself, beside its signatures, under Node (V8, as in Envoy):
//   scripts/coldpath.mjs [--set MEMBER=JSON]… [MODULE…]
// Each request brings credentials that the module has not seen, or not lately: a fresh access token alone, or a fresh
// pair. They are minted beforehand, with signatures that are none: while time is taken this host answers
// `verify_signature` with true and verifies nothing. Before that it does verify, or the module would not ask it.
// What it costs to forget the oldest callers is part of the figures. The modules take turns, as in scripts/hotpath.mjs,
// and here too the figures are good only to be compared with each other.
import { argv } from 'node:process';
import { MODULE, configuration, credentials, headers, load, pairs, policy, rules } from './host.mjs';

const args = argv.slice(2);
const modules = [];
const more = {};
for (let arg = args.shift(); arg !== undefined; arg = args.shift()) {
  if (arg === '--set') {
    const [name, value] = args.shift().split(/=(.*)/s);
    more[name] = JSON.parse(value);
  } else modules.push(arg);
}
if (modules.length === 0) modules.push(MODULE);

const NOW = 1_800_000_000;
// More callers than a worker remembers, and so many in a batch that it has to forget some in each.
const BATCH = 4096;
const CALLERS = 3 * BATCH;
const minted = Array.from({ length: CALLERS }, (_, number) => credentials(NOW, number, 'forged'));
const anybody = rules(50).map((rule) => ({ ...rule, from: { scopes: ['orders:read'] } }));
const KINDS = {
  token: {
    settings: configuration({
      airflow: { identity: 'off' }, policy: { sources: [{ name: 'main', inline: policy(anybody) }] }, ...more,
    }),
    requests: minted.map(({ token }) => headers({ token })),
  },
  pair: { settings: configuration(more), requests: minted.map((both) => headers(both)) },
};

const samples = [];
const turns = [];
for (const [kind, { settings, requests }] of Object.entries(KINDS)) {
  const size = requests[0].length;
  const given = requests.map(pairs);
  for (const path of modules) {
    let clock = BigInt(NOW) * 1_000_000_000n;
    const filter = await load(path, { settings, clock: () => clock, verifies: true });
    filter.believes = true;
    let next = 0;
    const batch = () => {
      for (let count = 0; count < BATCH; count += 1) {
        if (!filter.request(given[next], size)) throw new Error('it was not permitted');
        next = (next + 1) % CALLERS;
        // As often as ticks are, so that what waits for one is part of it.
        if (count % 512 === 0) { clock += 1_000_000n; filter.tick(); }
      }
    };
    filter.counts = new Map();
    if (!filter.request(given[CALLERS - 1], size)) throw new Error('it was not permitted');
    const verified = filter.counts.get('call_foreign_function');
    if (verified !== (kind === 'pair' ? 2 : 1)) throw new Error(`it had ${verified} signatures verified`);
    filter.counts = undefined;
    const taken = [];
    samples.push({ kind, path, taken, filter });
    turns.push((counts) => {
      const begun = process.hrtime.bigint();
      batch();
      if (counts) taken.push(Number(process.hrtime.bigint() - begun) / BATCH / 1000);
    });
  }
}
for (let round = 0; round < 60; round += 1) for (const turn of turns) turn(round >= 6);
for (const { kind, path, taken, filter } of samples) {
  taken.sort((one, other) => one - other);
  const [least, lower] = [taken[0], taken[taken.length >> 2]].map((figure) => figure.toFixed(2));
  console.log(`${path}: fresh ${kind}: least ${least} µs, lower quartile ${lower} µs, memory ${filter.bytes() >> 20} MiB`);
}
