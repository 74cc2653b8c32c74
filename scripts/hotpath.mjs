#!/usr/bin/env -S node --no-warnings --no-turbo-fast-api-calls --no-liftoff
// What one request costs in the module itself, under Node (V8, as in Envoy), with a host that does next to nothing:
//   scripts/hotpath.mjs [--audit] [--set MEMBER=JSON]… [MODULE…]
// Lists the host calls of one cached permit by name, and the time of one: the least and the lower quartile of many
// batches. The modules take turns, so that what disturbs the machine disturbs each of them. Compare its figures
// only with each other: Envoy's own host calls cost more.
import { argv } from 'node:process';
import { AUDIT, MODULE, configuration, credentials, headers, load, pairs } from './host.mjs';

const args = argv.slice(2);
const modules = [];
const more = {};
for (let arg = args.shift(); arg !== undefined; arg = args.shift()) {
  if (arg === '--audit') Object.assign(more, AUDIT);
  else if (arg === '--set') {
    const [name, value] = args.shift().split(/=(.*)/s);
    more[name] = JSON.parse(value);
  } else modules.push(arg);
}
if (modules.length === 0) modules.push(MODULE);

const NOW = 1_800_000_000;
const HEADERS = headers(credentials(NOW));
const settings = configuration(more);
const given = pairs(HEADERS);

async function prepare(path) {
  let clock = BigInt(NOW) * 1_000_000_000n;
  const filter = await load(path, { settings, clock: () => clock });
  const once = () => {
    if (!filter.request(given, HEADERS.length)) throw new Error('it was not permitted');
  };
  const tick = () => { clock += 1_000_000n; filter.tick(); };
  for (let count = 0; count < 20_000; count += 1) { once(); if (count % 500 === 0) tick(); }
  filter.counts = new Map();
  once();
  const calls = filter.counts;
  filter.counts = undefined;
  return { path, once, tick, calls, present: filter.present, samples: [] };
}

const loaded = [];
for (const path of modules) loaded.push(await prepare(path));
const BATCH = 400;
for (let round = 0; round < 400; round += 1) {
  for (const filter of loaded) {
    filter.tick();
    const begun = process.hrtime.bigint();
    for (let count = 0; count < BATCH; count += 1) filter.once();
    filter.samples.push(Number(process.hrtime.bigint() - begun) / BATCH / 1000);
  }
}
for (const { path, calls, present, samples } of loaded) {
  samples.sort((one, other) => one - other);
  console.log(`${path}: least ${samples[0].toFixed(2)} µs, lower quartile ${samples[samples.length >> 2].toFixed(2)} µs`);
  console.log(`  callbacks: request_headers ${present.join(' ')}`);
  console.log(`  host calls: ${[...calls].map(([name, count]) => `${name} ${count}`).join(', ')}`);
}
