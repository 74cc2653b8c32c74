// The testbed's OIDC provider: client_credentials -> JWT access tokens (RFC 9068), a JWK set, and keys
// that rotate at run time. Everything secret is made or handed over per run; nothing is stored.
//
// The parameter resource=urn:<algorithm>:<audience>:<seconds> (RFC 8707) picks signing algorithm, audience and
// lifetime, for example urn:ES256:airflow-egress:300.
// For tests: POST /_test/rotate {"drop": true|false} makes new keys and drops or keeps the old ones.
//
// Environment: OIDC_ISSUER, OIDC_CLIENT_ID, OIDC_CLIENT_SECRET, OIDC_CERTIFICATE, OIDC_KEY (files, PEM).
// It prints one JSON line {"port": …} when it listens, and ends when its standard input does.
import { readFileSync } from 'node:fs';
import { createServer } from 'node:https';
import { exportJWK, generateKeyPair } from 'jose';
import { Provider } from 'oidc-provider';

const { OIDC_ISSUER, OIDC_CLIENT_ID, OIDC_CLIENT_SECRET, OIDC_CERTIFICATE, OIDC_KEY } = process.env;
const ALGORITHMS = { RS256: {}, PS256: {}, ES256: {}, EdDSA: { crv: 'Ed25519' } };

let generation = 0;
let keys = [];
let handle;

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

async function rotate(request, response) {
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  const { drop = false } = JSON.parse(Buffer.concat(chunks).toString() || '{}');
  keys = [...await freshKeys(), ...(drop ? [] : keys)];
  build();
  response.setHeader('content-type', 'application/json');
  response.end(JSON.stringify({ kids: keys.map(({ kid }) => kid) }));
}

keys = await freshKeys();
build();
const tls = { cert: readFileSync(OIDC_CERTIFICATE), key: readFileSync(OIDC_KEY) };
const server = createServer(tls, (request, response) => {
  if (request.method === 'POST' && request.url === '/_test/rotate') rotate(request, response);
  else handle(request, response);
});
server.listen(0, '127.0.0.1', () => console.log(JSON.stringify({ port: server.address().port })));
process.stdin.on('end', () => process.exit(0)).resume();
