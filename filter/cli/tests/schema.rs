//! The published schemas against the readers that judge: what these accept the schemas accept, and every
//! member that these ask for is in the schemas, and no other.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

use std::collections::{BTreeMap, BTreeSet};

use airflow_envoy_cli::source::load::read_bytes;
use airflow_envoy_core::audit::{
    Begin, CallerParts, Chain, Counts, Decided, Decision, EndReason, Fragment, IdentityParts, Line,
    Loss, LossReason, RequestParts, Signer, TokenParts,
};
use airflow_envoy_core::configuration::{self, Configuration};
use airflow_envoy_core::document::Asked;
use airflow_envoy_core::facts::Fact;
use airflow_envoy_core::filter_state::Told;
use airflow_envoy_core::limits::Limits;
use airflow_envoy_core::policy::{Policy, explain};
use airflow_envoy_core::time::UnixTime;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonschema::Validator;
use serde_json::{Value, json};

const README: &str = include_str!("../../../README.md");
const POLICY: &str = include_str!("../../../schema/policy.schema.json");
const AUDIT: &str = include_str!("../../../schema/audit.schema.json");
const CONFIGURATION: &str = include_str!("../../../schema/configuration.schema.json");

/// 2026-11-21T12:00:00Z.
const NOW: i64 = 1_795_262_400;

fn schema(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// The configuration's schema with the policy's in it, as an editor puts them together.
fn configuration_schema() -> Value {
    let mut schema = schema(CONFIGURATION);
    let mut policy = self::schema(POLICY);
    policy["$id"] = "urn:policy".into();
    let inline = schema
        .pointer_mut("/properties/policy/properties/sources/items/properties/inline")
        .unwrap();
    assert_eq!(*inline, json!({"$ref": "policy.schema.json"}));
    *inline = policy;
    schema
}

fn validator(schema: &Value) -> Validator {
    jsonschema::draft202012::new(schema).unwrap()
}

fn readme(name: &str) -> Value {
    let (_, rest) = README.split_once(&format!("<!-- tested: {name} -->\n```json\n")).unwrap();
    serde_json::from_str(rest.split_once("\n```").unwrap().0).unwrap()
}

fn is_policy(value: &Value) -> bool {
    Policy::from_value(value, &Limits::DEFAULT).is_ok()
}

fn is_configuration(value: &Value) -> bool {
    let document = value.to_string();
    Configuration::parse(document.as_bytes(), &Limits::DEFAULT, &environment).is_ok()
}

/// Variables that all have a token, and one that has a key.
fn environment(name: &str) -> Option<String> {
    Some(if name == "AUDIT_KEY" { audit_key() } else { "t".to_owned() })
}

/// A private JWK, made when the test runs.
fn audit_key() -> String {
    let key = ed25519_dalek::SigningKey::from_bytes(&[7; 32]);
    let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let (d, x) = (encode(key.as_bytes()), encode(key.verifying_key().as_bytes()));
    json!({"kty": "OKP", "crv": "Ed25519", "d": d, "x": x}).to_string()
}

/// A policy with every member.
fn full_policy() -> Value {
    let fields = [
        "dags",
        "tasks",
        "runs",
        "run_types",
        "owners",
        "tags",
        "teams",
        "airflow_roles",
        "queues",
        "services",
        "spiffe_ids",
        "issuers",
        "key_ids",
        "subjects",
        "scopes",
    ];
    let mut selector = json!({"claims": {"https://x.example/": ["y"], "/a/b": ["c", "*"]}});
    for field in fields {
        selector[field] = json!(["x", "y*"]);
    }
    let mut from = selector.clone();
    from["roles"] = json!(["everything"]);
    let key =
        json!({"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"});
    json!({
        "version": 1, "revision": 18_446_744_073_709_551_615_u64,
        "roles": {"everything": {"any": [selector]}},
        "destinations": {"here": {"hosts": ["here.internal", "*.there.internal:8443", "[::1]:9"]}},
        "approvers": {"on-call": {"keys": [key]}},
        "grantable": [
            {
                "id": "some", "intent": "Some.", "from": from, "to": ["here"], "methods": ["GET"],
                "paths": ["/a/**"], "max_duration": "4h", "approvers": ["on-call"],
            },
            {
                "id": "tunnels", "from": {"dags": ["x"]}, "to": ["*"], "methods": ["CONNECT"],
                "max_duration": "30d", "approvers": ["on-call"],
            },
        ],
        "agreement": [
            {
                "id": "workers",
                "from": {
                    "services": ["airflow-worker"], "spiffe_ids": ["spiffe://td.consul/*"], "issuers": ["airflow"],
                    "key_ids": ["airflow/*"],
                },
                "may_assert": {
                    "dags": ["*"], "tasks": ["*"], "owners": ["x"], "tags": ["x"], "teams": ["x", "y"],
                    "queues": ["x"], "run_types": ["manual"], "airflow_roles": ["User"],
                },
            },
            {"id": "others", "from": {"issuers": ["*"]}},
        ],
        "rules": [
            {
                "id": "full", "intent": "Everything.", "effect": "deny", "from": from, "to": ["here"],
                "methods": ["GET", "M-SEARCH", "CONNECT"], "mode": "shadow",
                "paths": ["/", "/a/*/b*", "/**", "/a/{sub}/b", "/{sub}/**", "/%7Ba%7d"],
                "valid": {"not_before": "2026-11-01T00:00:00.5+01:00", "expires_at": "2027-11-01T00:00:00Z"},
            },
            {"id": "tunnel", "effect": "allow", "to": ["here"], "methods": ["CONNECT", "GET"]},
            {"id": "least", "effect": "allow", "to": ["*"]},
        ],
    })
}

/// Configurations that have every member together.
fn full_configurations() -> Vec<Value> {
    let key = json!({
        "kty": "OKP", "crv": "Ed25519", "kid": "k", "alg": "EdDSA",
        "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo",
    });
    let keys = json!({"keys": [key]});
    let issuer = |name: &str, jwks: Value| {
        json!({
            "name": name, "issuer": format!("https://{name}.example"), "audiences": ["a"],
            "algorithms": ["EdDSA", "ES256"], "max_lifetime": "1h", "clock_skew": "0", "jwks": jwks,
        })
    };
    let uri = json!({
        "cluster": "c", "uri": "https://x.example/jwks", "refresh": "5m", "min_refresh": "500ms",
        "timeout": "2s", "max_age": "7d",
    });
    let discovery = json!({
        "cluster": "c", "discovery": "https://x.example/d", "keys_cluster": "k", "refresh": "5m",
        "min_refresh": "2s", "timeout": "2s", "max_age": "1d",
    });
    let mut token_issuer = issuer("one", uri);
    token_issuer["token_types"] = json!(["at+jwt"]);
    let full = json!({
        "token": "optional", "issuers": [token_issuer, issuer("two", discovery)],
        "airflow": {"identity": "required", "issuers": [issuer("three", json!({"inline": keys}))]},
        "policy": {
            "sources": [
                {"name": "a", "inline": full_policy()},
                {"name": "b", "http": {
                    "cluster": "p", "uri": "http://p/policy", "poll": "5s", "timeout": "5s", "long_poll": "55s",
                }},
                {"name": "c", "consul_kv": {
                    "cluster": "consul", "key": "a/b.json", "wait": "55s", "timeout": "5s", "poll": "5s",
                    "datacenter": "dc1", "token_env": "TOKEN",
                }},
            ],
            "max_age": "15m", "trust": {"keys": [key], "required": false},
            "grants": {"max_age": "5m", "http": {
                "cluster": "g", "uri": "http://g/g.json", "poll": "5s", "timeout": "5s", "long_poll": "55s",
            }},
        },
        "peer": {
            "identity": "optional", "trust_domains": ["td.consul"],
            "source": {"xfcc": {"hops": ["spiffe://td.consul/ns/default/dc/dc1/svc/ingress"]}},
            "narrow": {
                "cluster": "consul", "meta": "airflow_role", "services": ["airflow-worker"], "datacenter": "dc1",
                "wait": "55s", "timeout": "5s", "poll": "5s", "max_age": "15m", "token_env": "TOKEN",
            },
        },
        "proxy_authorization": false, "token_cookie": "_token",
        "forward_token": true, "identity_headers": "edit",
        "filter_state": Told::ALL.iter().map(|(name, _)| *name).collect::<Vec<_>>(),
        "waiting": {"requests": 0, "time": "3s"}, "mode": "shadow",
        "status": {"path": "/status"},
        "audit": {
            "key": {"jwk_env": "AUDIT_KEY"}, "checkpoint": {"records": 100, "every": "5s"},
            "sample_permits": 10, "claims": ["department"],
            "sinks": [{"log": {}}, {"http": {
                "cluster": "audit", "uri": "http://audit/v1/records", "token_env": "TOKEN",
                "batch_bytes": 4096, "batch_time": "1s", "queue_bytes": 65536, "in_flight": 2, "timeout": "5s",
            }}],
        },
    });
    let mut untyped = full.clone();
    untyped["issuers"][0]["token_types"] = "any".into();
    untyped["airflow"] = json!({"identity": "off"});
    untyped["policy"]["grants"] = json!({"inline": {"version": 1, "grants": ["a.b.c"]}});
    let mut proxy = full.clone();
    proxy["proxy_authorization"] = true.into();
    proxy["policy"]["grants"] = json!({"consul_kv": {
        "cluster": "consul", "key": "a/grants.json", "wait": "55s", "timeout": "5s", "poll": "5s",
        "datacenter": "dc1", "token_env": "TOKEN",
    }});
    proxy.as_object_mut().unwrap().remove("token_cookie");
    let mut meshed = full.clone();
    meshed["peer"] = json!({"identity": "required", "trust_domains": ["a.consul", "b.consul"]});
    meshed["policy"]["sources"].as_array_mut().unwrap().push(json!({
        "name": "d", "consul_intentions": {
            "cluster": "consul", "destination": "orders", "hosts": ["orders.internal"], "default": "deny",
            "namespace": "default", "partition": "default", "datacenter": "dc1", "trust_domain": "a.consul",
            "jwt_providers": {"okta": "one"}, "entries": false, "wait": "55s", "timeout": "5s", "poll": "5s",
            "token_env": "TOKEN",
        },
    }));
    vec![full, untyped, proxy, meshed]
}

/// Every policy and every configuration that there is, fit or not.
fn documents() -> (Vec<Value>, Vec<Value>) {
    let mut policies = vec![readme("policy"), full_policy()];
    let mut configurations = full_configurations();
    configurations.push(readme("configuration"));
    for case in airflow_envoy_corpus::cases().unwrap() {
        let exchange = case.exchange(NOW).unwrap();
        let Ok(configuration) = serde_json::from_slice::<Value>(&exchange.configuration) else {
            continue;
        };
        for source in configuration["policy"]["sources"].as_array().into_iter().flatten() {
            policies.extend(source.get("inline").cloned());
        }
        configurations.push(configuration);
    }
    for (name, text) in [
        ("small.yaml", include_str!("../../../examples/policy/small/policy.yaml")),
        ("common.yaml", include_str!("../../../examples/policy/shop/policy/common.yaml")),
    ] {
        policies.push(read_bytes(name, text.as_bytes()).unwrap().value());
    }
    let unique = |values: Vec<Value>| {
        let values: BTreeMap<String, Value> =
            values.into_iter().map(|value| (value.to_string(), value)).collect();
        values.into_values().collect::<Vec<_>>()
    };
    (unique(policies), unique(configurations))
}

/// The document with one value changed, in every place and every way.
fn mutants(document: &Value) -> Vec<(String, Value)> {
    let mut places = Vec::new();
    fn walk(value: &Value, at: &str, places: &mut Vec<String>) {
        places.push(at.to_owned());
        let escape = |name: &str| name.replace('~', "~0").replace('/', "~1");
        match value {
            Value::Object(members) => {
                members.iter().for_each(|(name, value)| {
                    walk(value, &format!("{at}/{}", escape(name)), places)
                });
            }
            Value::Array(elements) => {
                elements
                    .iter()
                    .enumerate()
                    .for_each(|(index, value)| walk(value, &format!("{at}/{index}"), places));
            }
            _ => {}
        }
    }
    walk(document, "", &mut places);
    let mut mutants = Vec::new();
    for place in places {
        for replacement in [
            json!(7.5),
            json!(7),
            json!(""),
            json!("x"),
            json!([]),
            json!({}),
            json!(null),
            json!(true),
            json!(["*"]),
        ] {
            let mut mutant = document.clone();
            *mutant.pointer_mut(&place).unwrap() = replacement.clone();
            mutants.push((format!("{place} = {replacement}"), mutant));
        }
        let mut mutant = document.clone();
        if let Some(Value::Object(members)) = mutant.pointer_mut(&place) {
            members.insert("unknown-member".to_owned(), json!(["x"]));
            mutants.push((format!("{place} + unknown-member"), mutant.clone()));
        }
        if let Some((parent, name)) = place.rsplit_once('/') {
            let mut mutant = document.clone();
            if let Some(Value::Object(members)) = mutant.pointer_mut(parent) {
                members.remove(&name.replace("~1", "/").replace("~0", "~"));
                mutants.push((format!("{place} removed"), mutant));
            }
        }
    }
    mutants
}

fn agree(name: &str, schema: &Value, documents: &[Value], accepts: fn(&Value) -> bool) {
    let validator = validator(schema);
    let (mut fit, mut unfit, mut caught) = (0, 0, 0);
    let full: BTreeSet<String> = [full_policy()]
        .into_iter()
        .chain(full_configurations())
        .map(|document| document.to_string())
        .collect();
    for document in documents {
        let mut tried = vec![("as it is".to_owned(), document.clone())];
        if full.contains(&document.to_string()) {
            assert!(accepts(document), "{name}: {document}");
            tried.extend(mutants(document));
        }
        for (how, document) in tried {
            let told: Vec<String> =
                validator.iter_errors(&document).map(|error| error.to_string()).collect();
            if accepts(&document) {
                fit += 1;
                assert!(
                    told.is_empty(),
                    "{name}, {how}: the reader accepts it, the schema not: {told:?}"
                );
            } else {
                unfit += 1;
                caught += usize::from(!told.is_empty());
                // Within a JWK and a claim's value the schema knows nothing.
                let known = how.contains("/keys") || how.contains("inline = {}");
                if (how.ends_with("= 7.5") || how.ends_with("unknown-member")) && !known {
                    assert!(
                        !told.is_empty(),
                        "{name}, {how}: the reader refuses it, the schema not"
                    );
                }
            }
        }
    }
    println!("{name}: {fit} fit, {unfit} unfit of which the schema knows {caught}");
    assert!(fit > 20 && unfit > 200 && caught * 10 > unfit * 7, "{name}: {fit} {unfit} {caught}");
}

#[test]
fn what_the_readers_accept_the_schemas_accept_and_no_unknown_member() {
    let (policies, configurations) = documents();
    agree("policy", &schema(POLICY), &policies, is_policy);
    agree("configuration", &configuration_schema(), &configurations, is_configuration);
}

/// The part of a schema that is about the place to which a path leads.
fn part<'s>(root: &'s Value, path: &str) -> &'s Value {
    let resolve = |part: &'s Value| match part.get("$ref").and_then(Value::as_str) {
        Some(reference) => root.pointer(reference.strip_prefix('#').unwrap()).unwrap(),
        // Of a word or an object the object.
        None if part.get("properties").is_none() => {
            let mut kinds = part.get("oneOf").and_then(Value::as_array).into_iter().flatten();
            kinds.find(|kind| kind.get("properties").is_some()).unwrap_or(part)
        }
        None => part,
    };
    let mut part = root;
    let mut rest = path;
    while !rest.is_empty() {
        part = resolve(part);
        if let Some(behind) = rest.strip_prefix("[\"") {
            let (_, behind) = behind.split_once("\"]").unwrap();
            (part, rest) = (&part["additionalProperties"], behind);
        } else if let Some(behind) = rest.strip_prefix('[') {
            (part, rest) = (&part["items"], behind.split_once(']').unwrap().1);
        } else {
            let behind = rest.strip_prefix('.').unwrap_or(rest);
            let (name, behind) = behind.split_at(behind.find(['.', '[']).unwrap_or(behind.len()));
            let named = part["properties"].get(name);
            (part, rest) = (named.unwrap_or(&part["additionalProperties"]), behind);
        }
    }
    resolve(part)
}

/// Compares the members that the reader asked for with those of the schema, in both directions.
fn compare(name: &str, root: &Value, asked: impl Iterator<Item = Asked>) {
    let mut found: BTreeMap<*const Value, (String, BTreeSet<&str>, &Value)> = BTreeMap::new();
    for (path, mut members) in asked.flatten() {
        // A role is asked for roles only to be told that it cannot ask for any.
        if path.starts_with("roles") {
            members.remove("roles");
        }
        let part = part(root, &path);
        let entry = found.entry(std::ptr::from_ref(part));
        entry.or_insert_with(|| (path, BTreeSet::new(), part)).1.extend(members);
    }
    for (path, members, part) in found.values() {
        let known = part.get("properties").and_then(Value::as_object);
        let known = known.unwrap_or_else(|| panic!("{name}: the schema has no object at `{path}`"));
        let known: BTreeSet<&str> = known.keys().map(String::as_str).collect();
        assert_eq!(*members, known, "{name}: members at `{path}`: the reader's, and the schema's");
        assert_eq!(part["additionalProperties"], false, "{name}: `{path}` is open");
    }
    fn objects<'s>(schema: &'s Value, found: &mut Vec<&'s Value>) {
        match schema {
            Value::Object(members) => {
                if members.get("properties").is_some_and(Value::is_object)
                    && members.contains_key("additionalProperties")
                {
                    found.push(schema);
                }
                members.values().for_each(|value| objects(value, found));
            }
            Value::Array(elements) => elements.iter().for_each(|value| objects(value, found)),
            _ => {}
        }
    }
    let mut all = Vec::new();
    objects(root, &mut all);
    for schema in all {
        assert!(
            found.contains_key(&std::ptr::from_ref(schema)),
            "{name}: no reader asks for {schema}"
        );
    }
}

#[test]
fn the_schemas_have_every_member_that_the_readers_know_and_no_other() {
    let (policies, configurations) = documents();
    let limits = Limits::DEFAULT;
    compare(
        "policy",
        &schema(POLICY),
        policies.iter().map(|policy| explain::fields(policy, &limits)),
    );
    let root = schema(CONFIGURATION);
    compare(
        "configuration",
        &root,
        configurations.iter().map(|document| configuration::fields(document, &limits)),
    );
}

#[test]
fn the_schemas_know_what_cannot_stand_together() {
    let policy = |rule: Value| {
        let mut policy = full_policy();
        policy["rules"] = json!([rule]);
        policy
    };
    let rule = |effect: &str, more: Value| {
        let mut rule = json!({"id": "x", "effect": effect, "to": ["here"]});
        rule.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        policy(rule)
    };
    let validator = validator(&schema(POLICY));
    for (document, fit) in [
        (rule("allow", json!({"methods": ["GET", "CONNECT"]})), true),
        (rule("allow", json!({"methods": ["GET", "CONNECT"], "paths": ["/a"]})), false),
        (rule("deny", json!({"methods": ["GET", "CONNECT"], "paths": ["/a"]})), true),
        (rule("allow", json!({"methods": ["GET"], "paths": ["/a"]})), true),
        (rule("allow", json!({"paths": ["/{sub}/**"]})), true),
        (rule("allow", json!({"paths": ["/{sub}"]})), true),
        (rule("allow", json!({"paths": ["/a{sub}"]})), false),
        (rule("allow", json!({"paths": ["/{dag}/a"]})), false),
        (rule("allow", json!({"paths": ["/a/{sub}b"]})), false),
        (rule("allow", json!({"paths": ["/a/%7Bsub%7D"]})), true),
    ] {
        assert_eq!(is_policy(&document), fit, "{document}");
        assert_eq!(validator.is_valid(&document), fit, "{document}");
    }
    let validator = self::validator(&configuration_schema());
    let base = full_configurations().remove(0);
    for (member, value, fit) in [
        ("proxy_authorization", json!(true), false),
        ("proxy_authorization", json!("yes"), false),
        ("token_cookie", json!("__Host-t"), true),
        ("token_cookie", json!("a b"), false),
        ("token_cookie", json!("a=b"), false),
        ("token_cookie", json!(""), false),
    ] {
        let mut document = base.clone();
        document[member] = value;
        assert_eq!(is_configuration(&document), fit, "{member} {}", document[member]);
        assert_eq!(validator.is_valid(&document), fit, "{member} {}", document[member]);
    }
}

/// One record of each kind with every member that there is, and one with as few as there can be.
fn audit_lines() -> Vec<Line> {
    let time = UnixTime::from_secs(NOW);
    let predecessor = airflow_envoy_core::audit::Predecessor {
        stream: "00000000000000aa".to_owned(),
        seq: 7,
        hash: "h".repeat(43),
    };
    let begin = Begin {
        time,
        stream: 1,
        process: 2,
        version: "0.1.0",
        commit: "unknown",
        mode: "enforce",
        sample: Some(10),
        predecessor: Some(&predecessor),
    };
    let (several, one) = (Fact::Known(vec!["a".to_owned(), "b".to_owned()]), Fact::one("a"));
    let claims = json!({"department": {"name": "x"}});
    let caller = Fragment::caller(&CallerParts {
        identity: Some(IdentityParts {
            dag_id: "d",
            task_id: "t",
            run_id: "r",
            map_index: -1,
            try_number: 1,
            run_type: &one,
            queue: &several,
            team: &one,
            owners: &several,
            tags: &several,
            roles: &several,
            taken_roles: &["Op".to_owned()],
            ti_id: Some("i"),
            triggering_user_name: Some("u"),
            issuer: "airflow",
            key_id: Some("k"),
        }),
        token: Some(TokenParts {
            issuer: "idp",
            key_id: Some("k"),
            subject: Some("s"),
            client_id: Some("c"),
            scopes: &several,
            claims: &claims.as_object().cloned().unwrap().into(),
            recorded: &["department".to_owned()],
        }),
        spiffe_id: Some("spiffe://x/y"),
        service: Some("w"),
    });
    let long = vec![b'x'; 2000];
    let request = Fragment::request(&RequestParts {
        method: Some(b"GET"),
        scheme: Some(b"http"),
        authority: Some(b"a"),
        path: Some(&long),
        query: Some(b"q"),
        request_id: Some(b"r"),
        traceparent: Some(b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
    });
    let policies = Fragment::policies([("main", Some(42)), ("other", None)].into_iter());
    let least_request = Fragment::request(&RequestParts::default());
    let least = Decided {
        time,
        decision: Decision::Abandoned,
        decision_id: "00000000000000010000000000000001",
        shadow_mode: false,
        code: None,
        detail: None,
        nearest: None,
        rule: None,
        grant: None,
        destination: None,
        shadow: &[],
        policies: None,
        caller: None,
        request: Some(&least_request),
        status: None,
        flags: 0,
        decided_us: None,
        total_us: None,
        sampled: None,
    };
    let shadow = ["a:permit".to_owned()];
    let most = Decided {
        decision: Decision::Reject,
        shadow_mode: true,
        code: Some("policy_no_match"),
        detail: Some("d"),
        nearest: Some("n"),
        rule: Some("r"),
        grant: Some("g"),
        destination: Some("o"),
        shadow: &shadow,
        policies: Some(&policies),
        caller: Some(&caller),
        request: Some(&request),
        status: Some(403),
        flags: 1,
        decided_us: Some(1),
        total_us: Some(2),
        sampled: Some(10),
        ..least
    };
    let counts = Counts::default();
    let mut lines = Vec::new();
    for signer in [Some(Signer::from_jwk(audit_key().as_bytes()).unwrap()), None] {
        let (mut chain, first) = Chain::begin(&begin, signer);
        lines.extend([first, chain.decision(&least), chain.decision(&most)]);
        lines.push(chain.checkpoint(time, &counts));
        for reason in [LossReason::Collector, LossReason::Log, LossReason::Memory] {
            lines.push(chain.loss(time, &Loss { records: 1, from_seq: 1, to_seq: 2, reason }));
        }
        for reason in [EndReason::Shutdown, EndReason::Reconfigured] {
            lines.push(chain.end(time, &counts, reason));
        }
    }
    lines
}

#[test]
fn every_audit_record_is_what_its_schema_says_and_nothing_else() {
    let root = schema(AUDIT);
    let validator = validator(&root);
    let mut met: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    fn members(value: &Value, at: &str, met: &mut BTreeMap<String, BTreeSet<String>>) {
        if let Value::Object(object) = value {
            met.entry(at.to_owned()).or_default().extend(object.keys().cloned());
            object.iter().for_each(|(name, value)| members(value, &format!("{at}/{name}"), met));
        }
    }
    for line in audit_lines() {
        let record: Value = serde_json::from_str(line.as_str()).unwrap();
        let told: Vec<_> = validator.iter_errors(&record).map(|error| error.to_string()).collect();
        assert!(told.is_empty(), "{record}: {told:?}");
        members(&record, record["kind"].as_str().unwrap(), &mut met);
        for name in record.as_object().unwrap().keys() {
            let mut other = record.clone();
            other[name] = json!(null);
            assert!(!validator.is_valid(&other), "{name} may be null");
        }
        let mut other = record.clone();
        other["unknown"] = json!(1);
        assert!(!validator.is_valid(&other));
    }
    // Every member that the schema knows was met: it promises nothing that is never written.
    for (at, members) in met {
        let (kind, inner) = at.split_once('/').unwrap_or((&at, ""));
        let pointer: String = inner
            .split('/')
            .filter(|name| !name.is_empty())
            .map(|name| format!("/properties/{name}"))
            .collect();
        let part = root.pointer(&format!("/$defs/{kind}{pointer}")).unwrap_or(&Value::Null);
        let Some(known) = part.get("properties").and_then(Value::as_object) else { continue };
        let known: BTreeSet<_> = known.keys().cloned().collect();
        assert_eq!(members, known, "{at}");
    }
}
