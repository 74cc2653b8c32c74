// The testbed's OIDC provider: client_credentials -> JWT access tokens (RFC 9068), a JWK set, and keys
// that rotate at run time. Everything secret is made or handed over per run; nothing is stored.
//
// The parameter resource=urn:<algorithm>:<audience>:<seconds> (RFC 8707) picks signing algorithm, audience and
// lifetime, for example urn:ES256:airflow-egress:300.
// For tests:
//   POST /_test/rotate {"drop": true|false}   makes new keys and drops or keeps the old ones
//   POST /_test/serve {"path", "cacheControl"?, "fault"?}   serves that path with this cache-control, or in this way
//                                             badly: {"status", "body"}, "hang" or "close"; without them, well
//   GET /_test/requests                       the requests so far, by path
//
// Environment: OIDC_PORT, OIDC_ISSUER, OIDC_CLIENT_ID, OIDC_CLIENT_SECRET, OIDC_CERTIFICATE, OIDC_KEY (files, PEM), and
// OIDC_SIGNING_KEYS, the file that keeps its keys, so that it has the same ones after a restart.
// It prints one JSON line {"port": …} when it listens, and ends when its standard input does.
import { existsSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:https';
import { exportJWK, generateKeyPair } from 'jose';
import { Provider } from 'oidc-provider';

const {
  OIDC_PORT, OIDC_ISSUER, OIDC_CLIENT_ID, OIDC_CLIENT_SECRET, OIDC_CERTIFICATE, OIDC_KEY, OIDC_SIGNING_KEYS,
} = process.env;
const ALGORITHMS = { RS256: {}, PS256: {}, ES256: {}, EdDSA: { crv: 'Ed25519' } };

let generation = 0;
let keys = [];
let handle;
const served = new Map(); // path → { cacheControl, fault }
const requests = {}; // path → how many

async function freshKeys() {
  generation += 1;
  return Promise.all(Object.entries(ALGORITHMS).map(async ([alg, options]) => {
    const { privateKey } = await generateKeyPair(alg, { ...options, extractable: true });
    return { ...(await exportJWK(privateKey)), kid: `${alg.toLowerCase()}-${generation}`, alg, use: 'sig' };
  }));
}

function resourceServer(resource) {
  const [, alg, audience, seconds] = resource.split(':');
  return {
    audience,
    scope: 'orders:read orders:write reports:write',
    accessTokenFormat: 'jwt',
    accessTokenTTL: Number(seconds),
    jwt: { sign: { alg } },
  };
}

// The library fixes its keys at construction, so a rotation is a new provider behind the same port.
function build() {
  const provider = new Provider(OIDC_ISSUER, {
    clients: [{
      client_id: OIDC_CLIENT_ID,
      client_secret: OIDC_CLIENT_SECRET,
      grant_types: ['client_credentials'],
      redirect_uris: [],
      response_types: [],
    }],
    jwks: { keys },
    enabledJWA: { idTokenSigningAlgValues: Object.keys(ALGORITHMS) },
    features: {
      devInteractions: { enabled: false },
      clientCredentials: { enabled: true },
      resourceIndicators: {
        enabled: true,
        getResourceServerInfo: (_context, resource) => resourceServer(resource),
        useGrantedResource: () => true,
      },
    },
  });
  provider.proxy = true;
  handle = provider.callback();
}

function use(fresh) {
  keys = fresh;
  build();
  // Written aside and renamed: whoever reads it reads it whole.
  writeFileSync(`${OIDC_SIGNING_KEYS}.draft`, JSON.stringify({ generation, keys }), { mode: 0o600 });
  renameSync(`${OIDC_SIGNING_KEYS}.draft`, OIDC_SIGNING_KEYS);
}

async function steer(request, response) {
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  const asked = JSON.parse(Buffer.concat(chunks).toString() || '{}');
  let said = {};
  if (request.url === '/_test/rotate') {
    use([...await freshKeys(), ...(asked.drop ? [] : keys)]);
    said = { kids: keys.map(({ kid }) => kid) };
  } else if (request.url === '/_test/serve') {
    served.set(asked.path, asked);
  } else {
    said = requests;
  }
  response.setHeader('content-type', 'application/json');
  response.end(JSON.stringify(said));
}

function answer(request, response) {
  const [path] = request.url.split('?');
  requests[path] = (requests[path] ?? 0) + 1;
  const { cacheControl, fault } = served.get(path) ?? {};
  if (fault === 'hang') return;
  if (fault === 'close') {
    request.socket.destroy();
  } else if (fault) {
    response.writeHead(fault.status, { 'content-type': 'application/json' }).end(fault.body);
  } else {
    if (cacheControl) response.setHeader('cache-control', cacheControl);
    handle(request, response);
  }
}

if (existsSync(OIDC_SIGNING_KEYS)) {
  const kept = JSON.parse(readFileSync(OIDC_SIGNING_KEYS));
  generation = kept.generation;
  use(kept.keys);
} else {
  use(await freshKeys());
}
const tls = { cert: readFileSync(OIDC_CERTIFICATE), key: readFileSync(OIDC_KEY) };
const server = createServer(tls, (request, response) => {
  if (request.url.startsWith('/_test/')) steer(request, response);
  else answer(request, response);
});
server.listen(Number(OIDC_PORT), '127.0.0.1', () => console.log(JSON.stringify({ port: server.address().port })));
process.stdin.on('end', () => process.exit(0)).resume();
