//! Temporary grants: what a good one permits, what is left out and why, and that none widens anything.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test may fail by panicking"
)]

use airflow_envoy_core::facts::{Call, Caller, Fact};
use airflow_envoy_core::jose::RustCrypto;
use airflow_envoy_core::limits::Limits;
use airflow_envoy_core::policy::{Decision, GrantDocument, Outcome, Policy, PolicySet};
use airflow_envoy_core::reject::Code;
use airflow_envoy_core::time::UnixTime;
use airflow_envoy_corpus::{mint, public_key};
use serde_json::{Value, json};

const LIMITS: Limits = Limits::DEFAULT;
/// When the grants of these tests are signed, in seconds.
const NOW: i64 = 1_800_000_000;
const ON_CALL: (&str, &str) = ("EdDSA", "oncall-ed25519");
const DATA: (&str, &str) = ("ES256", "data-p256");

/// A write to orders that no rule allows.
const WRITE: Call<'static> =
    Call { authority: "orders.internal", scheme: "http", method: "POST", target: "/v1/orders/7" };

fn policy_document() -> Value {
    let keys = |name: &str| json!({"keys": [public_key(name).unwrap()]});
    json!({
        "version": 1,
        "roles": {"science": {"any": [{"teams": ["science"]}]}},
        "destinations": {
            "orders": {"hosts": ["orders.internal"]},
            "cards": {"hosts": ["cards.internal"]},
        },
        "approvers": {"on-call": keys(ON_CALL.1), "data": keys(DATA.1)},
        "grantable": [{
            "id": "orders-write", "intent": "Repair orders by hand.",
            "from": {"dags": ["ds_*"]}, "to": ["orders"],
            "methods": ["POST", "PUT"], "paths": ["/v1/orders/**"],
            "max_duration": "4h", "approvers": ["on-call"],
        }],
        "rules": [
            {"id": "reads", "effect": "allow", "from": {"dags": ["ds_*"]}, "to": ["orders"], "methods": ["GET"]},
            {"id": "no-audit", "effect": "deny", "to": ["orders"], "paths": ["/v1/orders/audit/**"]},
        ],
    })
}

fn policy() -> Policy {
    Policy::from_value(&policy_document(), &LIMITS).unwrap()
}

/// The claims of a good grant, with `change`.
fn claims(change: Value) -> Value {
    let mut claims = json!({
        "version": 1, "id": "g-1", "grantable": "orders-write", "from": {"dags": ["ds_repair"]},
        "reason": "INC-17", "granted_by": "ada", "iat": NOW, "nbf": NOW, "exp": NOW + 3600,
    });
    for (name, value) in change.as_object().unwrap() {
        if value.is_null() {
            claims.as_object_mut().unwrap().remove(name);
        } else {
            claims[name] = value.clone();
        }
    }
    claims
}

fn signed_as((algorithm, key): (&str, &str), header: Value, claims: &Value) -> String {
    let credential = json!({
        "algorithm": algorithm, "key": key, "header": header, "claims_text": claims.to_string(),
    });
    mint(&serde_json::from_value(credential).unwrap(), 0, None).unwrap()
}

fn signed(change: Value) -> String {
    signed_as(ON_CALL, json!({"typ": "airflow-grant+jws"}), &claims(change))
}

fn document(grants: &[String]) -> GrantDocument {
    let document = json!({"version": 1, "grants": grants});
    GrantDocument::parse(document.to_string().as_bytes(), &LIMITS).unwrap()
}

fn caller(dag: &str) -> Caller {
    Caller { dags: Fact::one(dag), teams: Fact::one("science"), ..Caller::default() }
}

/// The set with these grants, as it is loaded now, and why others are left out.
fn granted(set: &PolicySet, grants: &[String]) -> (PolicySet, Vec<String>) {
    let now = UnixTime::from_secs(NOW);
    let (set, unfit) = set.with_grants(&document(grants), now, &LIMITS, &RustCrypto);
    (set, unfit.iter().map(ToString::to_string).collect())
}

fn decide<'c>(set: &PolicySet, caller: &Caller, call: &Call<'c>, seconds: i64) -> Decision<'c> {
    let now = UnixTime::from_secs(seconds);
    set.decide(caller, &set.standing(caller, None), call, now, &LIMITS)
}

/// What permits, as `rule` or `rule by grant`, or the code of the refusal.
fn outcome(set: &PolicySet, dag: &str, call: &Call<'_>, seconds: i64) -> String {
    match decide(set, &caller(dag), call, seconds).outcome {
        Outcome::Permit { rule, grant: None } => rule.to_string(),
        Outcome::Permit { rule, grant: Some(grant) } => format!("{rule} by {grant}"),
        Outcome::Refuse(reject) => reject.code.to_string(),
    }
}

fn refusal(problem: &Result<(), String>) -> &str {
    problem.as_ref().unwrap_err()
}

/// Whether this grant alone is taken, and why not.
fn taken(grant: String) -> Result<(), String> {
    let (set, unfit) = granted(&policy().into(), &[grant]);
    let found = outcome(&set, "ds_repair", &WRITE, NOW);
    match unfit.as_slice() {
        [] => {
            assert_eq!(found, "orders-write by g-1");
            Ok(())
        }
        [problem] => {
            assert_eq!(found, "policy_no_match", "{problem}");
            Err(problem.clone())
        }
        more => panic!("{more:?}"),
    }
}

#[test]
fn a_grant_permits_while_it_is_in_effect_and_ends_by_itself() {
    let (set, unfit) = granted(&policy().into(), &[signed(json!({}))]);
    assert_eq!(unfit, [""; 0]);
    for (seconds, expected) in [
        (NOW - 1, "policy_no_match"),
        (NOW, "orders-write by g-1"),
        (NOW + 3599, "orders-write by g-1"),
        (NOW + 3600, "policy_no_match"),
    ] {
        assert_eq!(outcome(&set, "ds_repair", &WRITE, seconds), expected, "{seconds}");
        let now = UnixTime::from_secs(seconds);
        assert_eq!(set.grants_in_effect(now), usize::from(expected != "policy_no_match"));
    }
    let without = PolicySet::from(policy());
    assert_eq!(outcome(&without, "ds_repair", &WRITE, NOW), "policy_no_match");
}

/// Either half of the comparison counts: what the grant says and what the policy declares.
#[test]
fn a_grant_permits_only_what_both_it_and_its_grantable_are_about() {
    let grants = [
        signed(
            json!({"from": {"dags": ["*"]}, "methods": ["POST", "DELETE"], "to": ["orders", "cards"]}),
        ),
        signed(
            json!({"id": "g-2", "from": {"dags": ["ds_put"]}, "methods": ["PUT"], "paths": ["/v1/orders/7"]}),
        ),
    ];
    let (set, unfit) = granted(&policy().into(), &grants);
    assert_eq!(unfit, [""; 0]);
    let call = |method, target| Call { method, target, ..WRITE };
    for (dag, call, expected) in [
        ("ds_other", WRITE, "orders-write by g-1"),
        ("etl", WRITE, "policy_no_match"),
        ("ds_other", call("DELETE", "/v1/orders/7"), "policy_no_match"),
        ("ds_other", call("PUT", "/v1/orders/7"), "policy_no_match"),
        ("ds_other", call("POST", "/v2/orders/7"), "policy_no_match"),
        ("ds_other", Call { authority: "cards.internal", ..WRITE }, "policy_no_match"),
        ("ds_other", Call { authority: "unknown.internal", ..WRITE }, "destination_unknown"),
        ("ds_put", call("PUT", "/v1/orders/7"), "orders-write by g-2"),
        ("ds_put", call("PUT", "/v1/orders/8"), "policy_no_match"),
        ("ds_put", WRITE, "orders-write by g-1"),
    ] {
        assert_eq!(outcome(&set, dag, &call, NOW), expected, "{dag} {call:?}");
    }
}

#[test]
fn a_denial_by_a_rule_and_a_rule_that_allows_come_before_every_grant() {
    let mut wide = policy_document();
    wide["grantable"][0]["methods"] = json!(["GET", "POST"]);
    let set = Policy::from_value(&wide, &LIMITS).unwrap().into();
    let (set, unfit) = granted(&set, &[signed(json!({}))]);
    assert_eq!(unfit, [""; 0]);
    let call = |method, target| Call { method, target, ..WRITE };
    let decided = |call: &Call<'_>| outcome(&set, "ds_repair", call, NOW);
    assert_eq!(decided(&call("POST", "/v1/orders/audit/7")), "policy_denied");
    assert_eq!(decided(&call("POST", "/v1/orders/audit;x/7")), "policy_denied");
    assert_eq!(decided(&call("GET", "/v1/orders/7")), "reads");
    assert_eq!(decided(&WRITE), "orders-write by g-1");
}

#[test]
fn a_grant_may_ask_for_the_roles_of_its_policy() {
    let (set, unfit) = granted(
        &policy().into(),
        &[signed(json!({"from": {"dags": ["ds_*"], "roles": ["science"]}}))],
    );
    assert_eq!(unfit, [""; 0]);
    assert_eq!(outcome(&set, "ds_repair", &WRITE, NOW), "orders-write by g-1");
    let other = Caller { teams: Fact::one("web"), ..caller("ds_repair") };
    let refused = decide(&set, &other, &WRITE, NOW).outcome;
    assert!(matches!(refused, Outcome::Refuse(reject) if reject.code == Code::PolicyNoMatch));
    let unknown = Caller { teams: Fact::Unknown, ..caller("ds_repair") };
    assert!(matches!(decide(&set, &unknown, &WRITE, NOW).outcome, Outcome::Refuse(_)));
}

#[test]
fn only_a_key_of_an_approver_whom_the_grantable_names_signs() {
    let typed = || json!({"typ": "airflow-grant+jws"});
    let by = |signer| taken(signed_as(signer, typed(), &claims(json!({}))));
    assert_eq!(by(ON_CALL), Ok(()));
    assert_eq!(
        refusal(&by(DATA)),
        "grants[0] `g-1`: the key `data-p256` is of approver `data`, who may not grant `orders-write`"
    );
    assert_eq!(
        refusal(&by(("EdDSA", "mallory-ed25519"))),
        "grants[0] `g-1`: the key `mallory-ed25519` is of none of the approvers of `orders-write`: `on-call`"
    );
    let posing = json!({"typ": "airflow-grant+jws", "kid": ON_CALL.1});
    assert_eq!(
        refusal(&taken(signed_as(("EdDSA", "mallory-ed25519"), posing, &claims(json!({}))))),
        "grants[0] `g-1`: the `EdDSA` signature is not by the key"
    );
    let mut changed = signed(json!({}));
    changed.insert(changed.len() - 4, 'A');
    assert!(taken(changed).is_err());
    // Both may sign when both are named, each by its own algorithm.
    let mut both = policy_document();
    both["grantable"][0]["approvers"] = json!(["on-call", "data"]);
    let both = PolicySet::from(Policy::from_value(&both, &LIMITS).unwrap());
    for signer in [ON_CALL, DATA] {
        let (set, unfit) = granted(&both, &[signed_as(signer, typed(), &claims(json!({})))]);
        assert_eq!(unfit, [""; 0]);
        assert_eq!(outcome(&set, "ds_repair", &WRITE, NOW), "orders-write by g-1");
    }
    let swapped = signed_as(
        ("ES256", DATA.1),
        json!({"typ": "airflow-grant+jws", "kid": ON_CALL.1}),
        &claims(json!({})),
    );
    assert_eq!(
        granted(&both, &[swapped]).1,
        [
            "grants[0] `g-1`: the key `oncall-ed25519`: the key is for Ed25519, the algorithm is `ES256`"
        ]
    );
}

#[test]
fn a_key_without_a_kid_is_named_by_its_thumbprint() {
    let mut document = policy_document();
    let key = document["approvers"]["on-call"]["keys"][0].as_object_mut().unwrap();
    key.remove("kid");
    let policy = Policy::from_value(&document, &LIMITS).unwrap();
    let thumbprint = {
        let jwk = Value::Object(public_key(ON_CALL.1).unwrap());
        let key = airflow_envoy_core::jose::PublicKey::from_jwk(&jwk, &LIMITS).unwrap();
        key.thumbprint().to_owned()
    };
    let header = json!({"typ": "airflow-grant+jws", "kid": thumbprint});
    let (set, unfit) = granted(&policy.into(), &[signed_as(ON_CALL, header, &claims(json!({})))]);
    assert_eq!(unfit, [""; 0]);
    assert_eq!(outcome(&set, "ds_repair", &WRITE, NOW), "orders-write by g-1");
}

#[test]
fn what_is_no_grant_is_left_out_with_its_reason() {
    let good = || claims(json!({}));
    for (header, problem) in [
        (json!({}), "`typ` is missing, accepted: `airflow-grant+jws`"),
        (
            json!({"typ": "airflow-policy+jws"}),
            "`typ` is `airflow-policy+jws`, accepted: `airflow-grant+jws`",
        ),
        (
            json!({"typ": "airflow-grant+jws", "crit": ["b64"]}),
            "the header parameter `crit` is not supported",
        ),
    ] {
        let found = taken(signed_as(ON_CALL, header, &good()));
        assert_eq!(refusal(&found), format!("grants[0]: {problem}"));
    }
    let unsigned = {
        let credential = json!({
            "algorithm": "EdDSA", "key": ON_CALL.1, "header": {"typ": "airflow-grant+jws", "alg": "none"},
            "claims_text": good().to_string(),
        });
        mint(&serde_json::from_value(credential).unwrap(), 0, None).unwrap()
    };
    assert_eq!(
        refusal(&taken(unsigned)),
        "grants[0] `g-1`: the algorithm is `none`, allowed: `EdDSA`, `ES256`"
    );
    for (change, problem) in [
        (json!({"version": 2}), "version: the only version is 1"),
        (json!({"color": "red"}), "unknown field `color`"),
        (json!({"grantable": "orders-all"}), "nothing is grantable as `orders-all`"),
        (json!({"grantable": "reads"}), "nothing is grantable as `reads`"),
        (json!({"grantable": null}), "`grantable` is missing"),
        (json!({"from": null}), "`from` is missing"),
        (json!({"from": {}}), "from: must not be empty"),
        (json!({"from": {"roles": ["root"]}}), "from.roles: there is no role `root`"),
        (json!({"to": ["cellar"]}), "to: there is no destination `cellar`"),
        (json!({"methods": []}), "methods: must not be empty"),
        (
            json!({"methods": ["CONNECT"], "paths": ["/a"]}),
            "tunnels need a rule of their own, without `paths`",
        ),
        (json!({"paths": ["/a/../b"]}), "paths[0]: `/a/../b` has empty or dot segments"),
        (json!({"reason": ""}), "reason: must not be empty"),
        (json!({"granted_by": null}), "`granted_by` is missing"),
        (json!({"id": "g 1"}), "id: `g 1` is not a name of"),
        (json!({"iat": "now"}), "iat: expected a whole number, found a string"),
        (
            json!({"exp": NOW + 4 * 3600 + 1}),
            "14401 s from `nbf` to `exp` are more than 14400 s, the `max_duration` of `orders-write`",
        ),
        (json!({"nbf": NOW + 3600}), "is not earlier than `exp`"),
        (json!({"exp": 1e300}), "exp: expected a whole number, found a number"),
        (json!({"exp": u64::MAX}), "is not between 0 and 253402300799"),
    ] {
        let found = taken(signed(change.clone()));
        let found = refusal(&found);
        assert!(found.contains(problem), "{change}: {found}");
    }
    assert_eq!(taken(signed(json!({"exp": NOW + 4 * 3600}))), Ok(()), "just as long as may be");
}

#[test]
fn what_is_not_yet_or_no_longer_is_not_in_effect() {
    let far = 20 * 24 * 3600;
    for (change, before, from, until) in [
        // Far ahead.
        (json!({"nbf": NOW + far, "exp": NOW + far + 60}), NOW, NOW + far, NOW + far + 60),
        // Signed by a clock that is ahead: tolerated by half a minute.
        (json!({"iat": NOW + 30}), NOW - 1, NOW, NOW + 3600),
        (json!({"iat": NOW + 31}), NOW, NOW + 1, NOW + 3600),
        (json!({"iat": NOW + 600}), NOW + 569, NOW + 570, NOW + 3600),
    ] {
        let (set, unfit) = granted(&policy().into(), &[signed(change.clone())]);
        assert_eq!(unfit, [""; 0]);
        for (seconds, expected) in [
            (before, "policy_no_match"),
            (from, "orders-write by g-1"),
            (until - 1, "orders-write by g-1"),
            (until, "policy_no_match"),
        ] {
            assert_eq!(outcome(&set, "ds_repair", &WRITE, seconds), expected, "{change} {seconds}");
        }
    }
    // One that has ended is no fault, and is not even verified: it may be by a key that is gone.
    let ended = claims(json!({"nbf": NOW - 60, "exp": NOW}));
    let header = json!({"typ": "airflow-grant+jws"});
    let ended = signed_as(("EdDSA", "mallory-ed25519"), header, &ended);
    assert_eq!(granted(&policy().into(), &[ended]).1, [""; 0]);
}

#[test]
fn one_bad_grant_never_spoils_the_others() {
    let good = signed(json!({"id": "good"}));
    let double = signed(json!({"id": "good", "reason": "another one"}));
    let document = json!({"version": 1, "grants": [
        7, "", "a.b.c", null, signed(json!({"id": "bad", "exp": NOW + 100_000})), good, double, good,
        signed(json!({"id": "more", "from": {"dags": ["ds_more"]}})),
    ]});
    let document = GrantDocument::from_value(&document, &LIMITS).unwrap();
    let now = UnixTime::from_secs(NOW);
    let (set, unfit) = PolicySet::from(policy()).with_grants(&document, now, &LIMITS, &RustCrypto);
    let places: Vec<_> = unfit.iter().map(|unfit| unfit.index).collect();
    assert_eq!(places, [0, 1, 2, 3, 4, 6, 7]);
    assert_eq!(unfit[5].to_string(), "grants[6] `good`: the id is that of a grant before it");
    assert_eq!(outcome(&set, "ds_repair", &WRITE, NOW), "orders-write by good");
    assert_eq!(outcome(&set, "ds_more", &WRITE, NOW), "orders-write by more");
    assert_eq!(set.grants_in_effect(now), 2);
}

#[test]
fn a_document_of_grants_is_read_strictly_and_bounded() {
    let many = |count: usize| json!({"version": 1, "grants": vec!["a.b.c"; count]}).to_string();
    for (document, problem) in [
        ("[]".to_owned(), "expected an object, found an array"),
        ("{".to_owned(), "not valid JSON at line 1 column 1"),
        (r#"{"grants": []}"#.to_owned(), "`version` is missing"),
        (r#"{"version": 2, "grants": []}"#.to_owned(), "version: the only version is 1"),
        (
            r#"{"version": 1, "grants": {}}"#.to_owned(),
            "grants: expected an array, found an object",
        ),
        (
            r#"{"version": 1, "grants": [], "grant": 1}"#.to_owned(),
            "unknown field `grant`, did you mean `grants`?",
        ),
        (many(1_001), "grants: 1001 grants are more than the 1000 that are allowed"),
    ] {
        let found = GrantDocument::parse(document.as_bytes(), &LIMITS).unwrap_err();
        assert_eq!(found.to_string(), problem);
    }
    assert_eq!(
        GrantDocument::parse(many(1_000).as_bytes(), &LIMITS).unwrap().messages().len(),
        1_000
    );
    let limits = Limits { grants_bytes: 10, ..LIMITS };
    let found = GrantDocument::parse(many(1).as_bytes(), &limits).unwrap_err();
    assert_eq!(found.to_string(), "32 bytes are more than 10");
}

/// What revokes is that a document without it is loaded: the store may put it back until it ends.
#[test]
fn a_grant_that_is_taken_out_is_revoked_and_may_come_back_until_it_ends() {
    let grant = signed(json!({}));
    let (with, _) = granted(&policy().into(), std::slice::from_ref(&grant));
    let (revoked, _) = granted(&with, &[]);
    let (again, _) = granted(&revoked, &[grant]);
    assert_eq!(outcome(&with, "ds_repair", &WRITE, NOW), "orders-write by g-1");
    assert_eq!(outcome(&revoked, "ds_repair", &WRITE, NOW), "policy_no_match");
    assert_eq!(outcome(&again, "ds_repair", &WRITE, NOW + 3599), "orders-write by g-1");
    assert_eq!(outcome(&again, "ds_repair", &WRITE, NOW + 3600), "policy_no_match");
}

/// Which approver may grant is the policy's to say, at any time.
#[test]
fn a_grant_stands_only_under_a_policy_that_still_has_its_approver_and_its_grantable() {
    let grant = [signed(json!({}))];
    for change in ["approvers", "grantable", "shorter"] {
        let mut document = policy_document();
        match change {
            "approvers" => {
                document["approvers"]["on-call"]["keys"][0] =
                    Value::Object(public_key("next-ed25519").unwrap())
            }
            "grantable" => document["grantable"][0]["id"] = json!("orders-repair"),
            _ => document["grantable"][0]["max_duration"] = json!("30m"),
        }
        let policy = Policy::from_value(&document, &LIMITS).unwrap();
        let (set, unfit) = granted(&policy.into(), &grant);
        assert_eq!(unfit.len(), 1, "{change}");
        assert_eq!(outcome(&set, "ds_repair", &WRITE, NOW), "policy_no_match", "{change}");
    }
}

#[test]
fn several_sources_are_told_apart() {
    let source = |name: &str, policy| (name.into(), std::rc::Rc::new(policy));
    let mut other = policy_document();
    other["grantable"][0]["approvers"] = json!(["data"]);
    other["rules"] = json!([{"id": "team-denies", "effect": "deny", "to": ["orders"], "paths": ["/v1/orders/9"]}]);
    let other = || Policy::from_value(&other, &LIMITS).unwrap();
    let both = PolicySet::new(vec![source("main", policy()), source("team", other())]);
    let (set, unfit) = granted(
        &both,
        &[signed(json!({})), signed(json!({"id": "g-2", "grantable": "main/orders-write"}))],
    );
    assert_eq!(
        unfit,
        [
            "grants[0] `g-1`: `orders-write` is grantable by the policies `main` and `team`: name one before it"
        ]
    );
    assert_eq!(outcome(&set, "ds_repair", &WRITE, NOW), "main/orders-write by g-2");
    let ninth = Call { target: "/v1/orders/9", ..WRITE };
    assert_eq!(outcome(&set, "ds_repair", &ninth, NOW), "policy_denied", "another source denies");
    let wrong = signed(json!({"grantable": "team/orders-write"}));
    assert_eq!(
        granted(&both, &[wrong]).1,
        [
            "grants[0] `g-1`: the key `oncall-ed25519` is of approver `on-call`, who may not grant `orders-write`"
        ]
    );
    let alone = PolicySet::new(vec![source("main", policy())]);
    for (name, taken) in
        [("main/orders-write", true), ("orders-write", true), ("team/orders-write", false)]
    {
        let (set, unfit) = granted(&alone, &[signed(json!({"grantable": name}))]);
        assert_eq!(unfit.is_empty(), taken, "{name}");
        let expected = if taken { "orders-write by g-1" } else { "policy_no_match" };
        assert_eq!(outcome(&set, "ds_repair", &WRITE, NOW), expected);
    }
}

#[test]
fn a_tunnel_is_granted_only_where_both_name_it() {
    let tunnel =
        Call { authority: "orders.internal:443", scheme: "", method: "CONNECT", target: "" };
    let mut document = policy_document();
    document["destinations"]["orders"]["hosts"] = json!(["orders.internal", "orders.internal:443"]);
    // What a tunnel carries nobody sees, so a rule about some paths denies it.
    document["rules"].as_array_mut().unwrap().pop();
    for (grantable, grant, permitted) in [
        (json!({"methods": ["CONNECT"]}), json!({"methods": ["CONNECT"]}), true),
        (json!({"methods": ["CONNECT"]}), json!({}), false),
        (json!({}), json!({"methods": ["CONNECT"]}), false),
        (json!({}), json!({}), false),
    ] {
        let mut document = document.clone();
        let members = document["grantable"][0].as_object_mut().unwrap();
        members.remove("paths");
        members.remove("methods");
        members.extend(grantable.as_object().unwrap().clone());
        let policy = Policy::from_value(&document, &LIMITS).unwrap();
        let (set, unfit) = granted(&policy.into(), &[signed(grant.clone())]);
        assert_eq!(unfit, [""; 0]);
        let expected = if permitted { "orders-write by g-1" } else { "policy_no_match" };
        assert_eq!(outcome(&set, "ds_repair", &tunnel, NOW), expected, "{grantable} {grant}");
    }
}

#[test]
fn a_denial_says_what_is_grantable_and_by_whom() {
    let set = PolicySet::from(policy());
    let Outcome::Refuse(reject) = decide(&set, &caller("ds_repair"), &WRITE, NOW).outcome else {
        panic!("permitted")
    };
    assert!(
        reject.detail.ends_with("; `orders-write` would allow it, and is grantable by `on-call`"),
        "{}",
        reject.detail
    );
    assert!(reject.action().starts_with("ask `on-call` to grant `orders-write`, or ask who"));
    for (dag, call) in [("etl", WRITE), ("ds_repair", Call { method: "DELETE", ..WRITE })] {
        let Outcome::Refuse(reject) = decide(&set, &caller(dag), &call, NOW).outcome else {
            panic!("permitted")
        };
        assert!(!reject.detail.contains("grantable") && reject.grantable.is_none());
    }
}

#[test]
fn a_shadow_rule_that_would_deny_is_reported_beside_a_grant() {
    let mut document = policy_document();
    let rule = json!({"id": "soon-denied", "effect": "deny", "to": ["orders"], "mode": "shadow"});
    document["rules"].as_array_mut().unwrap().push(rule);
    let policy = Policy::from_value(&document, &LIMITS).unwrap();
    let (set, _) = granted(&policy.into(), &[signed(json!({}))]);
    let decision = decide(&set, &caller("ds_repair"), &WRITE, NOW);
    assert!(matches!(decision.outcome, Outcome::Permit { grant: Some(_), .. }));
    assert_eq!(decision.destination.as_deref(), Some("orders"));
    let [verdict] = decision.shadow.as_slice() else { panic!("{:?}", decision.shadow) };
    assert_eq!((&*verdict.rule, verdict.permits), ("soon-denied", false));
}

#[test]
fn every_fault_of_what_is_grantable_is_told_with_its_path() {
    let jwk = |name: &str| Value::Object(public_key(name).unwrap());
    let mut private = jwk(ON_CALL.1);
    private["d"] = json!("AA");
    let oncall = "/approvers/on-call/keys";
    for (place, value, problem) in [
        (oncall, json!([]), "approvers.on-call.keys: must not be empty"),
        (
            oncall,
            json!([private]),
            "approvers.on-call.keys[0]: a private key has been published (`d` is present), so it is not trusted",
        ),
        (
            oncall,
            json!([jwk("a-rsa")]),
            "approvers.on-call.keys[0]: fits neither `EdDSA` nor `ES256`",
        ),
        (
            oncall,
            json!([jwk("a-hmac")]),
            "approvers.on-call.keys[0]: a symmetric key: whoever verifies with it can sign with it, so it is never used",
        ),
        ("/approvers/on-call", json!({}), "approvers.on-call: `keys` is missing"),
        (
            "/approvers/on-call",
            json!({"keys": [jwk(ON_CALL.1)], "key": 1}),
            "approvers.on-call: unknown field `key`, did you mean `keys`?",
        ),
        (
            "/grantable/0/id",
            json!("reads"),
            "grantable[0]: the id `reads` is that of rules[0] already",
        ),
        (
            "/grantable/0/id",
            json!("a b"),
            "grantable[0].id: `a b` is not a name of 1 to 128 letters, digits, `.`, `_` and `-`",
        ),
        (
            "/grantable/0/max_duration",
            json!("31d"),
            "grantable[0].max_duration: 2678400 s is not between 1 s and 2592000 s",
        ),
        (
            "/grantable/0/max_duration",
            json!("0"),
            "grantable[0].max_duration: 0 s is not between 1 s and 2592000 s",
        ),
        (
            "/grantable/0/max_duration",
            json!(5),
            "grantable[0].max_duration: expected a string, found a number",
        ),
        ("/grantable/0/approvers", json!([]), "grantable[0].approvers: must not be empty"),
        (
            "/grantable/0/approvers",
            json!(["oncall"]),
            "grantable[0].approvers: there is no approver `oncall`, did you mean `on-call`?",
        ),
        ("/grantable/0/from", json!({}), "grantable[0].from: must not be empty"),
        ("/grantable/0/to", json!(["cellar"]), "grantable[0].to: there is no destination `cellar`"),
        (
            "/grantable/0/methods",
            json!(["CONNECT"]),
            "grantable[0]: allows `CONNECT` for some paths, and a tunnel has none that can be seen: tunnels need a rule of their own, without `paths`",
        ),
    ] {
        let mut document = policy_document();
        *document.pointer_mut(place).unwrap() = value.clone();
        let found = Policy::from_value(&document, &LIMITS).unwrap_err();
        assert_eq!(found.to_string(), problem, "{place} {value}");
    }
    for member in ["id", "from", "to", "max_duration", "approvers"] {
        let mut document = policy_document();
        document["grantable"][0].as_object_mut().unwrap().remove(member);
        let found = Policy::from_value(&document, &LIMITS).unwrap_err();
        assert_eq!(found.to_string(), format!("grantable[0]: `{member}` is missing"));
    }
    for member in ["effect", "valid", "mode"] {
        let mut document = policy_document();
        document["grantable"][0][member] = json!("allow");
        let found = Policy::from_value(&document, &LIMITS).unwrap_err();
        assert!(found.to_string().starts_with(&format!("grantable[0]: unknown field `{member}`")));
    }
    let mut document = policy_document();
    let again = document["grantable"][0].clone();
    document["grantable"].as_array_mut().unwrap().push(again);
    let found = Policy::from_value(&document, &LIMITS).unwrap_err();
    assert_eq!(
        found.to_string(),
        "grantable[1]: the id `orders-write` is that of grantable[0] already"
    );
}
