#!/usr/bin/env -S node --no-warnings --no-turbo-fast-api-calls --no-liftoff
// What one request costs in the module itself, under Node (V8, as in Envoy), with a host that does next to nothing:
//   scripts/hotpath.mjs [--audit] [--set MEMBER=JSON]… [MODULE…]
// Lists the host calls of one cached permit by name, and the time of one: the least and the lower quartile of many
// batches. The modules take turns, so that what disturbs the machine disturbs each of them. Compare its figures
// only with each other: Envoy's own host calls cost more.
import { createHash, createPrivateKey, generateKeyPairSync, sign } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { argv } from 'node:process';
import { WASI } from 'node:wasi';

const args = argv.slice(2);
const modules = [];
const more = {};
let audit = false;
for (let arg = args.shift(); arg !== undefined; arg = args.shift()) {
  if (arg === '--audit') audit = true;
  else if (arg === '--set') {
    const [name, value] = args.shift().split(/=(.*)/s);
    more[name] = JSON.parse(value);
  } else modules.push(arg);
}
if (modules.length === 0) modules.push('target/wasm32-wasip1/release/airflow_envoy.wasm');

// ── who calls, and what ──────────────────────────────────────────────────────────────────────────
const NOW = 1_800_000_000;
const encode = (value) => Buffer.from(typeof value === 'string' ? value : JSON.stringify(value)).toString('base64url');
const rsa = generateKeyPairSync('rsa', { modulusLength: 2048 });
const ec = generateKeyPairSync('ec', { namedCurve: 'P-256' });
const jwk = (pair, kid, alg) => ({ ...pair.publicKey.export({ format: 'jwk' }), kid, alg, use: 'sig' });
const jwt = (header, claims, key) => {
  const text = `${encode(header)}.${encode(claims)}`;
  return `${text}.${sign('sha256', text, { key, dsaEncoding: 'ieee-p1363' }).toString('base64url')}`;
};
const times = { iat: NOW - 5, exp: NOW + 500 };
const token = jwt({ alg: 'RS256', typ: 'at+jwt', kid: 'idp-1' }, {
  iss: 'https://idp.example', aud: 'orders', sub: 'service-account-airflow', client_id: 'airflow', ...times,
  scope: 'openid profile email orders:read orders:write billing:read', jti: 'c6a1f1a2-8c5e-4b5e-9a36-000000000000',
  roles: ['reader', 'writer', 'operator', 'auditor'], tenant: 'acme-eu-1', email: 'airflow@acme.example',
  preferred_username: 'service-account-airflow', azp: 'airflow', sid: '7c2f0a9e-5b1d-4c8e-9f3a-000000000000',
}, rsa.privateKey);
const identity = jwt({ alg: 'ES256', typ: 'airflow-task+jwt', kid: 'airflow-1' }, {
  iss: 'https://airflow.example', aud: 'orders', ...times, nbf: NOW - 5, jti: 'x', sub: 'airflow:ds_churn/load',
  ath: createHash('sha256').update(token).digest('base64url'),
  airflow: {
    dag_id: 'ds_churn', task_id: 'load', run_id: 'scheduled__2026-11-21T00:00:00+00:00', map_index: -1,
    try_number: 1, ti_id: '01939d5c-0000-7000-8000-000000000000', state: 'running', queue: 'default',
    owners: ['data-science'], tags: ['churn', 'daily'], roles: ['DataScience'], team: 'data-science',
    run_type: 'scheduled',
  },
}, ec.privateKey);
const rules = Array.from({ length: 50 }, (_, number) => ({
  id: `rule-${number}`, effect: 'allow', from: { teams: ['data-science'] }, to: ['orders'], methods: ['GET'],
  paths: [`/api/v1/res${String(number).padStart(2, '0')}/**`],
}));
const key = generateKeyPairSync('ed25519').privateKey.export({ format: 'jwk' });
const configuration = {
  issuers: [{
    name: 'idp', issuer: 'https://idp.example', audiences: ['orders'], algorithms: ['RS256'],
    jwks: { inline: { keys: [jwk(rsa, 'idp-1', 'RS256')] } },
  }],
  airflow: {
    identity: 'required',
    issuers: [{
      name: 'airflow', issuer: 'https://airflow.example', audiences: ['orders'], algorithms: ['ES256'],
      jwks: { inline: { keys: [jwk(ec, 'airflow-1', 'ES256')] } },
    }],
  },
  policy: { sources: [{ name: 'main', inline: {
    version: 1, revision: 1, destinations: { orders: { hosts: ['orders.internal'] } }, rules,
  } }] },
  ...(audit ? { audit: { key: { jwk_env: 'AUDIT_KEY' } } } : {}),
  ...more,
};
const HEADERS = [
  [':authority', 'orders.internal'], [':path', '/api/v1/res49/item/123'], [':method', 'GET'], [':scheme', 'http'],
  ['user-agent', 'python-requests/2.32.3'], ['accept', '*/*'], ['accept-encoding', 'gzip, deflate'],
  ['x-request-id', '7c2f0a9e-5b1d-4c8e-9f3a-000000000000'], ['x-forwarded-proto', 'http'],
  ['traceparent', '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01'],
  ['authorization', `Bearer ${token}`], ['x-airflow-identity', identity],
];

// ── a host ───────────────────────────────────────────────────────────────────────────────────────
const pairs = (() => {
  const bytes = [];
  const number = (value) => bytes.push(value & 255, (value >> 8) & 255, (value >> 16) & 255, value >> 24);
  number(HEADERS.length);
  for (const [name, value] of HEADERS) { number(name.length); number(value.length); }
  for (const part of HEADERS.flat()) bytes.push(...Buffer.from(part), 0);
  return Uint8Array.from(bytes);
})();
const NUMBERS = { 'response\0code': 200n, 'response\0flags': 0n };
const properties = Object.fromEntries(Object.entries(NUMBERS).map(([name, value]) => {
  const bytes = new Uint8Array(8);
  new DataView(bytes.buffer).setBigUint64(0, value, true);
  return [name, bytes];
}));

async function load(path) {
  const wasi = new WASI({ version: 'preview1', env: { AUDIT_KEY: JSON.stringify(key) } });
  const shared = new Map();
  let exports, counts, view, log = [], metrics = 0, clock = BigInt(NOW) * 1_000_000_000n;
  const memory = () => (view === undefined || view.buffer !== exports.memory.buffer
    ? (view = new DataView(exports.memory.buffer)) : view);
  const text = (at, length) => Buffer.from(exports.memory.buffer, at, length).toString();
  const give = (bytes, data, size) => {
    const at = exports.proxy_on_memory_allocate(bytes.length);
    new Uint8Array(exports.memory.buffer, at, bytes.length).set(bytes);
    memory().setUint32(data, at, true);
    memory().setUint32(size, bytes.length, true);
    return 0;
  };
  const settings = Buffer.from(JSON.stringify(configuration));
  const host = {
    log: (level, at, length) => { if (counts || level > 2) log.push(text(at, length)); return 0; },
    get_log_level: (at) => { memory().setUint32(at, 2, true); return 0; },
    get_current_time_nanoseconds: (at) => { memory().setBigUint64(at, clock, true); return 0; },
    set_tick_period_milliseconds: () => 0,
    get_buffer_bytes: (_, start, most, data, size) => give(settings.subarray(start, start + (most >>> 0)), data, size),
    get_header_map_pairs: (_, data, size) => give(pairs, data, size),
    get_property: (at, length, data, size) => {
      const found = properties[text(at, length).replace(/\0$/, '')];
      return found ? give(found, data, size) : 1;
    },
    define_metric: (_, __, ___, id) => { memory().setUint32(id, metrics += 1, true); return 0; },
    get_metric: (_, value) => { memory().setBigUint64(value, 0n, true); return 0; },
    get_shared_data: (at, length, data, size, stamp) => {
      const known = shared.get(text(at, length));
      if (!known) return 1;
      memory().setUint32(stamp, 1, true);
      return give(known, data, size);
    },
    set_shared_data: (at, length, value, size) => {
      shared.set(text(at, length), Uint8Array.from(new Uint8Array(exports.memory.buffer, value, size)));
      return 0;
    },
    call_foreign_function: () => 1,
    send_local_response: (status, _, __, body, length) => { throw new Error(`${status}: ${text(body, length)}`); },
  };
  const module = await WebAssembly.compile(await readFile(path));
  const env = {};
  for (const { module: from, name } of WebAssembly.Module.imports(module)) {
    if (from !== 'env') continue;
    const short = name.replace(/^proxy_/, '');
    const act = host[short] ?? (() => 0);
    env[name] = (...args) => {
      if (counts) counts.set(short, (counts.get(short) ?? 0) + 1);
      return act(...args);
    };
  }
  const instance = await WebAssembly.instantiate(module, { env, ...wasi.getImportObject() });
  exports = instance.exports;
  wasi.initialize(instance);
  const call = (name, ...args) => exports[`proxy_on_${name}`]?.(...args);
  call('context_create', 1, 0);
  call('vm_start', 1, 0);
  if (!call('configure', 1, settings.length)) throw new Error(`${path} refuses its configuration: ${log.join('\n')}`);
  let stream = 1;
  // What Envoy calls for a GET that is permitted: each is a call into the module only if the module exports it.
  const after = ['response_headers', 'response_body', 'log', 'done', 'delete'];
  const present = after.filter((name) => exports[`proxy_on_${name}`]);
  const once = () => {
    stream += 1;
    call('context_create', stream, 1);
    if (exports.proxy_on_request_headers(stream, HEADERS.length, 1) !== 0) throw new Error('it was not permitted');
    for (const name of present) exports[`proxy_on_${name}`](stream, 0, 1);
  };
  const tick = () => { clock += 1_000_000n; call('tick', 1); };
  for (let count = 0; count < 20_000; count += 1) { once(); if (count % 500 === 0) tick(); }
  counts = new Map();
  once();
  const calls = counts;
  counts = undefined;
  return { path, once, tick, calls, present, samples: [] };
}

const loaded = [];
for (const path of modules) loaded.push(await load(path));
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
