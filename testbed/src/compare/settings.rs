//! What Envoy and everything in it are told: the same rules for the same callers, in each one's own words.

use std::net::SocketAddr;

use airflow_envoy_core::arrival::{DECISION_HEADER, PLAIN_HEADERS};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use crate::ORDERS;
use crate::error::{Context as _, Result};
use crate::identity::{AUDIENCE, ISSUER};

use super::credentials::{IDP, Issuers, role};
use super::variants::{Module, Variant};

/// Where servers of the measurement are.
#[derive(Debug, Clone, Copy)]
pub struct Servers {
    /// An authorizer that speaks HTTP.
    pub http: SocketAddr,
    /// One that speaks gRPC.
    pub grpc: SocketAddr,
    /// A collector of audit records.
    pub collector: SocketAddr,
    /// The server of the large policy.
    pub policy: SocketAddr,
    /// OPA that allows everything, and one that decides.
    pub opa: Option<(SocketAddr, SocketAddr)>,
}

/// What `jwt_authn` remembers.
#[derive(Debug, Clone, Copy)]
pub enum Cache {
    /// Nothing, which is its default.
    Off,
    /// As much as it does if it is told nothing else: 100 tokens.
    Default,
    /// So many tokens.
    Size(u32),
}

/// Whose roles rules ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asks {
    /// The access token's.
    Token,
    /// The Airflow identity's.
    Airflow,
}

/// Envoy's own verification, of the access token or of both credentials.
pub fn jwt_authn(issuers: &Issuers, cache: Cache, both: bool) -> Value {
    let provider = |issuer: &str, keys: Value| {
        let mut provider = json!({
            "issuer": issuer, "audiences": [AUDIENCE],
            "local_jwks": { "inline_string": keys.to_string() },
            "payload_in_metadata": issuer,
        });
        let cached = match cache {
            Cache::Off => None,
            Cache::Default => Some(json!({})),
            Cache::Size(size) => Some(json!({ "jwt_cache_size": size })),
        };
        if let (Some(members), Some(cached)) = (provider.as_object_mut(), cached) {
            members.insert("jwt_cache_config".to_owned(), cached);
        }
        provider
    };
    let mut providers = Map::new();
    providers.insert("idp".to_owned(), provider(IDP, issuers.token_keys()));
    let mut requires = json!({ "provider_name": "idp" });
    if both {
        let mut airflow = provider(ISSUER, issuers.identity_keys());
        if let Some(members) = airflow.as_object_mut() {
            let header = json!([{ "name": "x-airflow-identity" }]);
            members.insert("from_headers".to_owned(), header);
        }
        providers.insert("airflow".to_owned(), airflow);
        let requirements = json!([requires, { "provider_name": "airflow" }]);
        requires = json!({ "requires_all": { "requirements": requirements } });
    }
    http_filter(
        "jwt_authn",
        "jwt_authn.v3.JwtAuthentication",
        &json!({
            "providers": providers,
            "rules": [{ "match": { "prefix": "/" }, "requires": requires }],
        }),
    )
}

/// The filter's configuration with a policy source.
pub fn configuration(issuers: &Issuers, source: &Value) -> Value {
    let issuer = |name: &str, issuer: &str, keys: Value| {
        json!({
            "name": name, "issuer": issuer, "audiences": [AUDIENCE], "max_lifetime": "1d",
            "jwks": { "inline": keys },
        })
    };
    let mut main = source.as_object().cloned().unwrap_or_default();
    main.insert("name".to_owned(), "main".into());
    json!({
        "issuers": [issuer("idp", IDP, issuers.token_keys())],
        "airflow": { "issuers": [issuer("airflow", ISSUER, issuers.identity_keys())] },
        "policy": { "sources": [main], "max_age": "1d" },
    })
}

/// A policy of so many rules, each of which allows a role to read below a path.
pub fn document(rules: usize, asks: Asks) -> Value {
    let rule = |number: usize| {
        let from = match asks {
            Asks::Airflow => json!({ "airflow_roles": [role(number)] }),
            Asks::Token => json!({ "claims": { "roles": [role(number)] } }),
        };
        json!({
            "id": format!("rule-{number}"), "effect": "allow", "from": from, "to": ["orders"],
            "methods": ["GET"], "paths": [format!("/api/v1/res{number}/**")],
        })
    };
    json!({
        "version": 1, "revision": 1, "destinations": { "orders": { "hosts": [ORDERS] } },
        "rules": (0..rules).map(rule).collect::<Vec<_>>(),
    })
}

/// The same rules in Rego.
pub fn rego(rules: usize, issuers: &Issuers) -> String {
    let entry = |number: usize| json!({ "prefix": format!("/api/v1/res{number}/"), "method": "GET", "role": role(number) });
    let entries: Vec<Value> = (0..rules).map(entry).collect();
    format!(
        "package envoy.authz\n\nimport rego.v1\n\ndefault allow := false\n\n\
         keys := `{}`\n\nrules := {}\n\nhttp := input.attributes.request.http\n\n\
         verified := io.jwt.decode_verify(substring(http.headers.authorization, 7, -1), \
         {{\"cert\": keys, \"alg\": \"RS256\", \"iss\": \"{IDP}\", \"aud\": \"{AUDIENCE}\"}})\n\n\
         allow if {{\n  verified[0]\n  some rule in rules\n  rule.method == http.method\n  \
         startswith(http.path, rule.prefix)\n  rule.role in verified[2].roles\n}}\n",
        issuers.token_keys(),
        Value::Array(entries),
    )
}

/// Rego that allows everything.
pub const ALLOW: &str = "package envoy.authz\n\ndefault allow := true\n";

/// A policy in the filter's configuration itself.
pub fn inline(policy: &Value) -> Value {
    json!({ "inline": policy })
}

/// The same rules for Envoy's RBAC. It tries them in the order of their names: the last one matches.
pub fn rbac(rules: usize) -> Value {
    let policy = |number: usize| {
        let exact = json!({ "exact": "GET" });
        let permission = json!({ "and_rules": { "rules": [
            { "url_path": { "path": { "prefix": format!("/api/v1/res{number}/") } } },
            { "header": { "name": ":method", "string_match": exact } },
        ] } });
        let one_of = json!({ "string_match": { "exact": role(number) } });
        let principal = json!({ "metadata": {
            "filter": "envoy.filters.http.jwt_authn",
            "path": [{ "key": IDP }, { "key": "roles" }],
            "value": { "list_match": { "one_of": one_of } },
        } });
        let body = json!({ "permissions": [permission], "principals": [principal] });
        (format!("rule-{number:06}"), body)
    };
    let policies: Map<String, Value> = (0..rules).map(policy).collect();
    let rules = json!({ "rules": { "action": "ALLOW", "policies": policies } });
    http_filter("rbac", "rbac.v3.RBAC", &rules)
}

/// The header of a request that wants to see those that an upstream would get.
pub const ECHO: &str = "x-echo";

/// A header that a caller makes up in Airflow's name.
pub const MADE_UP: &str = "x-airflow-team";

/// Headers that are no upstream's business.
const CREDENTIALS: [&str; 2] = ["authorization", "x-airflow-identity"];

/// What Envoy does in place of the filter where callers name themselves: it takes their credentials away. Where an
/// upstream answers, `request_headers_to_remove` of its route does the same; Envoy's own answer does not know of it.
pub fn header_mutation() -> Value {
    let removed: Vec<Value> =
        CREDENTIALS.iter().map(|header| json!({ "remove": header })).collect();
    let mutations = json!({ "mutations": { "request_mutations": removed } });
    http_filter("header_mutation", "header_mutation.v3.HeaderMutation", &mutations)
}

/// A route for whoever asks to see what an upstream would get.
fn echo(answer: &Value) -> Value {
    let headers = CREDENTIALS.into_iter().chain(PLAIN_HEADERS).chain([DECISION_HEADER, MADE_UP]);
    let echoed = headers.map(|header| {
        json!({ "header": { "key": format!("echo-{header}"), "value": format!("%REQ({header})%") } })
    });
    json!({
        "match": { "prefix": "/", "headers": [{ "name": ECHO, "present_match": true }] },
        "direct_response": answer, "response_headers_to_add": echoed.collect::<Vec<_>>(),
    })
}

/// Envoy's filter that asks an authorizer.
pub fn ext_authz(service: &Value) -> Value {
    let mut members = service.as_object().cloned().unwrap_or_default();
    members.insert("transport_api_version".to_owned(), "V3".into());
    http_filter("ext_authz", "ext_authz.v3.ExtAuthz", &Value::Object(members))
}

/// The filter in a VM of its own.
pub fn wasm(id: &str, module: &Module, configuration: &Value) -> Value {
    in_vm(id, &json!({ "filename": module.path }), configuration)
}

/// A Wasm filter that asks of Envoy what ours asks for any request, and decides nothing.
///
/// # Errors
/// If it cannot be assembled.
pub fn wasm_that_reads(id: &str) -> Result<Value> {
    let code = wat::parse_str(include_str!("reads.wat")).context("assembling reads.wat")?;
    Ok(in_vm(id, &json!({ "inline_bytes": STANDARD.encode(code) }), &json!({})))
}

fn in_vm(id: &str, code: &Value, configuration: &Value) -> Value {
    let configuration = json!({
        "@type": "type.googleapis.com/google.protobuf.StringValue",
        "value": configuration.to_string(),
    });
    http_filter(
        "wasm",
        "wasm.v3.Wasm",
        &json!({ "config": {
            "name": id, "root_id": "airflow_envoy", "failure_policy": "FAIL_RELOAD",
            "vm_config": {
                "vm_id": id, "runtime": "envoy.wasm.runtime.v8",
                "code": { "local": code },
            },
            "configuration": configuration,
        } }),
    )
}

fn http_filter(name: &str, kind: &str, settings: &Value) -> Value {
    let mut typed = settings.as_object().cloned().unwrap_or_default();
    let kind = format!("type.googleapis.com/envoy.extensions.filters.http.{kind}");
    typed.insert("@type".to_owned(), kind.into());
    json!({ "name": format!("envoy.filters.http.{name}"), "typed_config": typed })
}

impl Variant {
    /// Its listener, which answers itself what the filters let through.
    pub fn listener(&self) -> Value {
        let answer = json!({ "status": 200, "body": { "inline_string": "ok" } });
        let route =
            |prefix: String| json!({ "match": { "prefix": prefix }, "direct_response": answer });
        let before = (1..self.routes).map(|number| route(format!("/not-here/{number}/")));
        // What it takes to look at the first one is in every variant, those without a filter too.
        let routes: Vec<Value> =
            [echo(&answer)].into_iter().chain(before).chain([route("/".to_owned())]).collect();
        let mut filters = self.filters.clone();
        filters.push(http_filter("router", "router.v3.Router", &json!({})));
        let manager = json!({
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": self.id.replace('.', "_"),
            "route_config": { "virtual_hosts": [
                { "name": "all", "domains": ["*"], "routes": routes },
            ] },
            "http_filters": filters,
        });
        let chain = json!({ "filters": [
            { "name": "envoy.filters.network.http_connection_manager", "typed_config": manager },
        ] });
        json!({ "name": self.id, "address": socket(0), "filter_chains": [chain] })
    }
}

fn socket(port: u16) -> Value {
    json!({ "socket_address": { "address": "127.0.0.1", "port_value": port } })
}

/// The whole configuration of Envoy.
pub fn bootstrap(variants: &[Variant], servers: &Servers) -> Value {
    let cluster = |name: &str, address: SocketAddr, http2: bool| {
        let protocol = if http2 { "http2_protocol_options" } else { "http_protocol_options" };
        let kind = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
        let endpoint = json!({ "endpoint": { "address": socket(address.port()) } });
        json!({
            "name": name, "type": "STATIC", "connect_timeout": "1s",
            "load_assignment": {
                "cluster_name": name, "endpoints": [{ "lb_endpoints": [endpoint] }],
            },
            "typed_extension_protocol_options": { kind: {
                "@type": format!("type.googleapis.com/{kind}"),
                "explicit_http_config": { protocol: {} },
            } },
        })
    };
    let mut clusters = vec![
        cluster("authz-http", servers.http, false),
        cluster("authz-grpc", servers.grpc, true),
        cluster("audit", servers.collector, false),
        cluster("policy", servers.policy, false),
    ];
    if let Some((allow, rules)) = servers.opa {
        clusters.extend([cluster("opa-allow", allow, true), cluster("opa-rules", rules, true)]);
    }
    json!({
        "admin": { "address": socket(0) },
        "static_resources": {
            "listeners": variants.iter().map(Variant::listener).collect::<Vec<_>>(),
            "clusters": clusters,
        },
    })
}

#[cfg(test)]
mod tests {
    /// Envoy would not call what it does not find, and the figure would be of less than it says.
    #[test]
    fn the_filter_that_only_reads_has_the_callbacks_of_ours() {
        let code = wat::parse_str(include_str!("reads.wat")).unwrap();
        for name in ["context_create", "request_headers", "delete"] {
            let name = format!("proxy_on_{name}");
            // A name in a module stands behind its length.
            let export = [&[u8::try_from(name.len()).unwrap()], name.as_bytes()].concat();
            assert!(code.windows(export.len()).any(|part| part == export), "{name}");
        }
    }
}
