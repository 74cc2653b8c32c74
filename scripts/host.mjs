// A proxy-wasm host that does next to nothing, under Node (V8, as in Envoy), for what measures the module itself:
// who calls and what for, a configuration that lets them, and the module with the host calls that it needs.
import { createHash, createPublicKey, generateKeyPairSync, randomBytes, sign, verify } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { WASI } from 'node:wasi';

export const MODULE = 'target/wasm32-wasip1/release/airflow_envoy.wasm';

// ── who calls, and what ──────────────────────────────────────────────────────────────────────────
const encode = (value) => Buffer.from(typeof value === 'string' ? value : JSON.stringify(value)).toString('base64url');
const rsa = generateKeyPairSync('rsa', { modulusLength: 2048 });
const ec = generateKeyPairSync('ec', { namedCurve: 'P-256' });
const ed = generateKeyPairSync('ed25519');
const jwk = (pair, kid, alg) => ({ ...pair.publicKey.export({ format: 'jwk' }), kid, alg, use: 'sig' });
const signature = {
  genuine: (text, key) => sign('sha256', text, { key, dsaEncoding: 'ieee-p1363' }),
  // For a host that believes anything: as long as a genuine one, and made a thousand times as fast. As a number it is
  // less than any modulus of its length: others are refused before anybody is asked.
  forged: (_, key) => {
    const bytes = randomBytes(key.asymmetricKeyType === 'rsa' ? 256 : 64);
    bytes[0] &= 127;
    return bytes;
  },
};
const jwt = (header, claims, key, kind) => {
  const text = `${encode(header)}.${encode(claims)}`;
  return `${text}.${signature[kind](text, key).toString('base64url')}`;
};

/** Who may sign policies. */
export const TRUST = { keys: [jwk(ed, 'EdDSA', 'EdDSA'), jwk(ec, 'ES256', 'ES256')] };

/** A policy as it is sent, signed by this algorithm of these two. */
export function signed(text, algorithm) {
  const input = Buffer.from(`${encode({ alg: algorithm, kid: algorithm, typ: 'airflow-policy+jws' })}.${encode(text)}`);
  const by = algorithm === 'EdDSA' ? sign(null, input, ed.privateKey) : signature.genuine(input, ec.privateKey);
  return Buffer.concat([input, Buffer.from(`.${by.toString('base64url')}`)]);
}

/** The two credentials of the caller of this number: no two callers have the same. `now` are seconds since the epoch;
 * `kind` is `genuine` or `forged`. */
export function credentials(now, number = 0, kind = 'genuine') {
  const times = { iat: now - 5, exp: now + 500 };
  const unique = String(number).padStart(12, '0');
  const token = jwt({ alg: 'RS256', typ: 'at+jwt', kid: 'idp-1' }, {
    iss: 'https://idp.example', aud: 'orders', sub: 'service-account-airflow', client_id: 'airflow', ...times,
    scope: 'openid profile email orders:read orders:write billing:read', jti: `c6a1f1a2-8c5e-4b5e-9a36-${unique}`,
    roles: ['reader', 'writer', 'operator', 'auditor'], tenant: 'acme-eu-1', email: 'airflow@acme.example',
    preferred_username: 'service-account-airflow', azp: 'airflow', sid: `7c2f0a9e-5b1d-4c8e-9f3a-${unique}`,
  }, rsa.privateKey, kind);
  const identity = jwt({ alg: 'ES256', typ: 'airflow-task+jwt', kid: 'airflow-1' }, {
    iss: 'https://airflow.example', aud: 'orders', ...times, nbf: now - 5, jti: `x${unique}`, sub: 'airflow:ds_churn/load',
    ath: createHash('sha256').update(token).digest('base64url'),
    airflow: {
      dag_id: 'ds_churn', task_id: 'load', run_id: 'scheduled__2026-11-21T00:00:00+00:00', map_index: -1,
      try_number: 1, ti_id: `01939d5c-0000-7000-8000-${unique}`, state: 'running', queue: 'default',
      owners: ['data-science'], tags: ['churn', 'daily'], roles: ['DataScience'], team: 'data-science',
      run_type: 'scheduled',
    },
  }, ec.privateKey, kind);
  return { token, identity };
}

/** The plain headers that Airflow's side sends beside an identity, where it may send them all. */
const PLAIN = [
  ['x-airflow-dag-id', 'ds_churn'], ['x-airflow-task-id', 'load'], ['x-airflow-run-id', 'scheduled__2026-11-21T00:00:00+00:00'],
  ['x-airflow-try-number', '1'], ['x-airflow-map-index', '-1'],
];

/** The headers of one call of a caller; `path` is among those that the rules below allow. Without `plain` it sends no more
 * than the credentials. */
export const headers = ({ token, identity }, { path = '/api/v1/res49/item/123', plain = true } = {}) => [
  [':authority', 'orders.internal'], [':path', path], [':method', 'GET'], [':scheme', 'http'],
  ['user-agent', 'python-requests/2.32.3'], ['accept', '*/*'], ['accept-encoding', 'gzip, deflate'],
  ['x-request-id', '7c2f0a9e-5b1d-4c8e-9f3a-000000000000'], ['x-forwarded-proto', 'http'],
  ['traceparent', '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01'],
  ...(token ? [['authorization', `Bearer ${token}`]] : []), ...(identity ? [['x-airflow-identity', identity]] : []),
  ...(identity && plain ? PLAIN : []),
];

/** So many rules for the team of every caller, each with a path of its own. */
export const rules = (count) => Array.from({ length: count }, (_, number) => ({
  id: `rule-${number}`, effect: 'allow', from: { teams: ['data-science'] }, to: ['orders'], methods: ['GET'],
  paths: [`/api/v1/res${String(number).padStart(2, '0')}/**`],
}));

export const policy = (rules) =>
  ({ version: 1, revision: 1, destinations: { orders: { hosts: ['orders.internal'] } }, rules });

/** The key of the audit trail, for the configuration member `audit` below. */
const auditKey = generateKeyPairSync('ed25519').privateKey.export({ format: 'jwk' });
export const AUDIT = { audit: { key: { jwk_env: 'AUDIT_KEY' } } };

/** A configuration that trusts the two issuers; `more` are members beside, or instead. */
export const configuration = (more = {}) => ({
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
  policy: { sources: [{ name: 'main', inline: policy(rules(50)) }] },
  ...more,
});

// ── the host ─────────────────────────────────────────────────────────────────────────────────────
/** Headers as the ABI carries them. */
export function pairs(headers) {
  const sizes = Buffer.alloc(4 + 8 * headers.length);
  sizes.writeUInt32LE(headers.length);
  headers.forEach(([name, value], index) => {
    sizes.writeUInt32LE(Buffer.byteLength(name), 4 + 8 * index);
    sizes.writeUInt32LE(Buffer.byteLength(value), 8 + 8 * index);
  });
  return new Uint8Array(Buffer.concat([sizes, Buffer.from(headers.flat().map((part) => `${part}\0`).join(''))]));
}

const NUMBERS = { 'response\0code': 200n, 'response\0flags': 0n };
const properties = Object.fromEntries(Object.entries(NUMBERS).map(([name, value]) => {
  const bytes = new Uint8Array(8);
  new DataView(bytes.buffer).setBigUint64(0, value, true);
  return [name, bytes];
}));

/** Fields 1 and up of a protobuf message that all are length-delimited. */
function fields(bytes) {
  const found = [];
  const number = (at) => {
    let value = 0;
    for (let shift = 0; ; shift += 7) {
      value |= (bytes[at] & 127) << shift;
      if (bytes[at++] < 128) return [value, at];
    }
  };
  for (let at = 0; at < bytes.length;) {
    const field = bytes[at] >> 3;
    const [length, begun] = number(at + 1);
    found[field] = bytes.subarray(begun, at = begun + length);
  }
  return found;
}

const VERIFIED = Uint8Array.of(8, 1);

/** Envoy's foreign function of this name: what it returns, true or not. */
function verifySignature(argument) {
  const [, hash, key, signature, text] = fields(argument);
  try {
    const spki = createPublicKey({ key: Buffer.from(key), format: 'der', type: 'spki' });
    return verify(Buffer.from(hash).toString(), text, spki, signature) ? VERIFIED : new Uint8Array();
  } catch {
    return new Uint8Array();
  }
}

const BUFFERS = { calloutBody: 4, configuration: 7 };
const MAPS = { calloutHeaders: 6 };

/**
 * A filter in one worker, configured.
 *   clock     the time that it is told, in nanoseconds since the epoch (BigInt)
 *   verifies  whether the host verifies signatures, as Envoy does; without, the module has to
 */
export async function load(path, { settings, clock, verifies = false }) {
  const wasi = new WASI({ version: 'preview1', env: { AUDIT_KEY: JSON.stringify(auditKey) } });
  const shared = new Map();
  const log = [];
  const configured = Buffer.from(JSON.stringify(settings));
  let exports, view, metrics = 0, callouts = 0;
  const filter = {
    path, log,
    /** Host calls by name, while it is a map. */
    counts: undefined,
    /** The answer that the filter gave to a request. Where none is expected it is `undefined`, and one is thrown;
     * `'unread'` while one is expected that nobody looks at, as reading it costs more than writing it. */
    reply: undefined,
    /** While it is true, a host that verifies signatures finds each of them right, and has not looked. */
    believes: false,
    /** Callouts under way: by their numbers, where to. */
    callouts: new Map(),
    /** Milliseconds between two ticks. */
    period: 0,
  };
  let requestPairs, answer;
  const memory = () => (view === undefined || view.buffer !== exports.memory.buffer
    ? (view = new DataView(exports.memory.buffer)) : view);
  const bytes = (at, length) => new Uint8Array(exports.memory.buffer, at, length);
  const text = (at, length) => Buffer.from(exports.memory.buffer, at, length).toString();
  const give = (given, data, size) => {
    const at = exports.proxy_on_memory_allocate(given.length);
    bytes(at, given.length).set(given);
    memory().setUint32(data, at, true);
    memory().setUint32(size, given.length, true);
    return 0;
  };
  const host = {
    log: (level, at, length) => { if (filter.counts || level > 2) log.push(text(at, length)); return 0; },
    get_log_level: (at) => { memory().setUint32(at, 2, true); return 0; },
    get_current_time_nanoseconds: (at) => { memory().setBigUint64(at, clock(), true); return 0; },
    set_tick_period_milliseconds: (period) => { filter.period = period; return 0; },
    get_buffer_bytes: (buffer, start, most, data, size) => {
      const whole = { [BUFFERS.configuration]: configured, [BUFFERS.calloutBody]: answer?.body }[buffer];
      return whole ? give(whole.subarray(start, start + (most >>> 0)), data, size) : 1;
    },
    get_header_map_pairs: (map, data, size) =>
      give(map === MAPS.calloutHeaders ? answer.pairs : requestPairs, data, size),
    get_property: (at, length, data, size) => {
      const found = properties[text(at, length).replace(/\0$/, '')];
      return found ? give(found, data, size) : 1;
    },
    define_metric: (_, __, ___, id) => { memory().setUint32(id, metrics += 1, true); return 0; },
    get_metric: (_, value) => { memory().setBigUint64(value, 0n, true); return 0; },
    get_shared_data: (at, length, data, size, cas) => {
      const known = shared.get(text(at, length));
      if (!known) return 1;
      memory().setUint32(cas, known.stamp, true);
      return give(known.value, data, size);
    },
    set_shared_data: (at, length, value, size, unchanged) => {
      const key = text(at, length);
      const former = shared.get(key)?.stamp ?? 0;
      if (unchanged !== 0 && unchanged !== former) return 8;
      shared.set(key, { value: Uint8Array.from(bytes(value, size)), stamp: former + 1 });
      return 0;
    },
    http_call: (at, length, _, __, ___, ____, _____, ______, _______, token) => {
      filter.callouts.set(callouts += 1, text(at, length));
      memory().setUint32(token, callouts, true);
      return 0;
    },
    call_foreign_function: (at, length, argument, size, data, given) => {
      if (!verifies || text(at, length) !== 'verify_signature') return 1;
      return give(filter.believes ? VERIFIED : verifySignature(Uint8Array.from(bytes(argument, size))), data, given);
    },
    send_local_response: (status, _, __, body, length) => {
      if (filter.reply === 'unread') return 0;
      if (filter.reply === undefined) throw new Error(`${status}: ${text(body, length)}`);
      filter.reply = { status, body: text(body, length) };
      return 0;
    },
  };
  const module = await WebAssembly.compile(await readFile(path));
  const env = {};
  for (const { module: from, name } of WebAssembly.Module.imports(module)) {
    if (from !== 'env') continue;
    const short = name.replace(/^proxy_/, '');
    const act = host[short] ?? (() => 0);
    env[name] = (...args) => {
      if (filter.counts) filter.counts.set(short, (filter.counts.get(short) ?? 0) + 1);
      return act(...args);
    };
  }
  const instance = await WebAssembly.instantiate(module, { env, ...wasi.getImportObject() });
  exports = instance.exports;
  wasi.initialize(instance);
  const call = (name, ...args) => exports[`proxy_on_${name}`]?.(...args);
  call('context_create', 1, 0);
  call('vm_start', 1, 0);
  if (!call('configure', 1, configured.length)) {
    throw new Error(`${path} refuses its configuration: ${log.join('\n')}`);
  }
  let stream = 1;
  // What Envoy calls for a GET that is permitted: each is a call into the module only if the module exports it.
  const after = ['response_headers', 'response_body', 'log', 'done', 'delete'];
  filter.present = after.filter((name) => exports[`proxy_on_${name}`]);
  /** One request from its first header to its end; `given` are its headers by [`pairs`]. Whether it was let through at once. */
  filter.request = (given, headers) => {
    requestPairs = given;
    stream += 1;
    call('context_create', stream, 1);
    const goes = exports.proxy_on_request_headers(stream, headers, 1) === 0;
    for (const name of filter.present) exports[`proxy_on_${name}`](stream, 0, 1);
    return goes;
  };
  filter.tick = () => call('tick', 1);
  /** Answers a callout, with headers by [`pairs`]. */
  filter.answer = (token, headers, body) => {
    filter.callouts.delete(token);
    answer = { pairs: pairs(headers), body };
    call('http_call_response', 1, token, headers.length, body.length, 0);
    answer = undefined;
  };
  /** Bytes of its linear memory. It never shrinks. */
  filter.bytes = () => exports.memory.buffer.byteLength;
  return filter;
}
