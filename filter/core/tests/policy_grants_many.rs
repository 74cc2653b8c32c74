//! What must hold of every document of grants, tried on many: it permits just what a grant and its grantable
//! are both about, overrides nothing, leaves nothing behind, and costs a denial next to nothing.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]
#![expect(clippy::disallowed_methods, reason = "what a denial costs is measured")]

use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::{Duration, Instant};

use airflow_envoy_core::facts::{Call, Caller, Fact};
use airflow_envoy_core::jose::{Algorithm, PublicKey, SignatureVerifier};
use airflow_envoy_core::limits::Limits;
use airflow_envoy_core::policy::{GrantDocument, Outcome, Policy, PolicySet};
use airflow_envoy_core::reject::{Code, Reject};
use airflow_envoy_core::time::UnixTime;
use airflow_envoy_corpus::public_key;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value, json};

const LIMITS: Limits = Limits::DEFAULT;
const ON_CALL: &str = "oncall-ed25519";

/// Signatures are tried elsewhere.
struct Gullible;

impl SignatureVerifier for Gullible {
    fn verify(&self, _: &PublicKey, _: Algorithm, _: &[u8], _: &[u8]) -> bool {
        true
    }
}

/// A small generator of the same numbers on every machine (splitmix64).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % bound as u64) as usize
    }

    fn one_in(&mut self, bound: usize) -> bool {
        self.below(bound) == 0
    }

    fn picks(&mut self, texts: &[&str]) -> Value {
        let count = 1 + self.below(2);
        let picked = (0..count).map(|_| texts[self.below(texts.len())]);
        json!(picked.collect::<Vec<_>>())
    }

    fn selector(&mut self) -> Value {
        let mut selector = Map::new();
        for _ in 0..=self.below(2) {
            match self.below(4) {
                0 | 1 => selector.insert("dags".into(), self.picks(&["a", "a*", "*b", "ab", "*"])),
                2 => selector.insert("teams".into(), self.picks(&["t1", "t2", "t*"])),
                _ => selector.insert("roles".into(), self.picks(&["r1", "r2"])),
            };
        }
        selector.into()
    }

    /// `to`, `methods` and `paths`, each but the first perhaps left out.
    fn scope(&mut self, rule: &mut Value) {
        rule["to"] = if self.one_in(4) { json!(["*"]) } else { self.picks(&["d1", "d2"]) };
        if self.one_in(2) {
            rule["methods"] = self.picks(&["GET", "POST"]);
        }
        if self.one_in(3) {
            rule["methods"] = json!(["CONNECT", "GET"]);
        } else if self.one_in(2) {
            rule["paths"] = self.picks(&["/x", "/x/**", "/*", "/y/**"]);
        }
    }

    fn policy(&mut self) -> Value {
        let mut grantable = Vec::new();
        for number in 0..3 {
            let mut one = json!({
                "id": format!("b{number}"), "from": self.selector(), "approvers": ["on-call"],
                "max_duration": "100s",
            });
            self.scope(&mut one);
            grantable.push(one);
        }
        let mut rules = Vec::new();
        for number in 0..self.below(4) {
            let effect = if self.one_in(2) { "deny" } else { "allow" };
            let mut rule =
                json!({"id": format!("r{number}"), "effect": effect, "from": self.selector()});
            self.scope(&mut rule);
            rules.push(rule);
        }
        json!({
            "version": 1,
            "roles": {"r1": {"any": [{"teams": ["t1"]}]}, "r2": {"any": [{"dags": ["*b"]}]}},
            "destinations": {"d1": {"hosts": ["d1", "d1:443"]}, "d2": {"hosts": ["d2", "d2:443"]}},
            "approvers": {"on-call": {"keys": [public_key(ON_CALL).unwrap()]}},
            "grantable": grantable,
            "rules": rules,
        })
    }

    fn claims(&mut self, number: usize) -> Value {
        let begin = self.below(200);
        let mut claims = json!({
            "version": 1, "id": format!("g{number}"), "grantable": format!("b{}", self.below(4)),
            "from": self.selector(), "reason": "r", "granted_by": "g",
            "iat": begin, "nbf": begin, "exp": begin + 1 + self.below(120),
        });
        self.scope(&mut claims);
        if self.one_in(3) {
            claims.as_object_mut().unwrap().remove("to");
        }
        claims
    }

    fn caller(&mut self) -> Caller {
        let mut fact = |values: &[&str]| match self.below(values.len() + 1) {
            0 => Fact::Unknown,
            number => Fact::one(values[number - 1]),
        };
        Caller {
            dags: fact(&["a", "ab", "b", "c"]),
            teams: fact(&["t1", "t2", "x"]),
            ..Caller::default()
        }
    }

    fn call(&mut self) -> Call<'static> {
        let path = ["/x", "/x/1", "/y/2", "/z"][self.below(4)];
        match self.below(5) {
            0 | 1 => Call {
                authority: ["d1:443", "d2:443"][self.below(2)],
                scheme: "",
                method: "CONNECT",
                target: "",
            },
            _ => Call {
                authority: ["d1", "d2"][self.below(2)],
                scheme: "http",
                method: ["GET", "POST"][self.below(2)],
                target: path,
            },
        }
    }
}

fn message(claims: &Value) -> String {
    let header = json!({"alg": "EdDSA", "typ": "airflow-grant+jws", "kid": ON_CALL});
    let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let (header, claims) = (header.to_string(), claims.to_string());
    let signature = encode(&[7; 64]);
    format!("{}.{}.{signature}", encode(header.as_bytes()), encode(claims.as_bytes()))
}

fn with_grants(set: &PolicySet, grants: &[Value]) -> (PolicySet, usize) {
    let messages: Vec<String> = grants.iter().map(message).collect();
    let document = json!({"version": 1, "grants": messages});
    let document = GrantDocument::from_value(&document, &LIMITS).unwrap();
    let (set, unfit) = set.with_grants(&document, UnixTime::from_secs(0), &LIMITS, &Gullible);
    (set, unfit.len())
}

fn outcome(set: &PolicySet, caller: &Caller, call: &Call<'_>, now: i64) -> Outcome {
    let standing = set.standing(caller, None);
    set.decide(caller, &standing, call, UnixTime::from_secs(now), &LIMITS).outcome
}

fn set(document: &Value) -> PolicySet {
    Policy::from_value(document, &LIMITS).unwrap().into()
}

/// The policy with `rule` as its only one.
fn with_only(policy: &Value, rule: &Value, names: &[&str]) -> PolicySet {
    let mut only = json!({"id": "only", "effect": "allow", "to": ["*"]});
    for name in names.iter().filter(|name| rule.get(**name).is_some()) {
        only[*name] = rule[*name].clone();
    }
    let mut policy = policy.clone();
    policy["rules"] = json!([only]);
    policy["grantable"] = json!([]);
    set(&policy)
}

#[test]
fn a_grant_permits_just_what_it_and_its_grantable_would_permit_as_rules_and_no_rule_speaks_of() {
    let mut random = Random(42);
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for _ in 0..600 {
        let policy = random.policy();
        let grants: Vec<Value> = (0..8).map(|number| random.claims(number)).collect();
        let without = set(&policy);
        let (with, unfit) = with_grants(&without, &grants);
        let span = |grant: &Value| grant["exp"].as_i64().unwrap() - grant["nbf"].as_i64().unwrap();
        let is_fit = |grant: &&Value| grant["grantable"] != "b3" && span(grant) <= 100;
        assert_eq!(unfit, grants.iter().filter(|grant| !is_fit(grant)).count());
        let scope = ["from", "to", "methods", "paths"];
        let grantables: BTreeMap<&str, PolicySet> = policy["grantable"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| (one["id"].as_str().unwrap(), with_only(&policy, one, &scope)))
            .collect();
        let fit: Vec<(&Value, PolicySet)> = grants
            .iter()
            .filter(is_fit)
            .map(|grant| (grant, with_only(&policy, grant, &scope)))
            .collect();
        for _ in 0..20 {
            let (caller, call) = (random.caller(), random.call());
            let now = random.below(350) as i64;
            let before = outcome(&without, &caller, &call, now);
            let after = outcome(&with, &caller, &call, now);
            let permits = |set: &PolicySet| {
                matches!(outcome(set, &caller, &call, now), Outcome::Permit { .. })
            };
            let granted = fit.iter().find(|(grant, rule)| {
                let time = grant["nbf"].as_i64().unwrap()..grant["exp"].as_i64().unwrap();
                let grantable = grant["grantable"].as_str().unwrap();
                time.contains(&now) && permits(rule) && permits(&grantables[grantable])
            });
            let undecided =
                matches!(&before, Outcome::Refuse(Reject { code: Code::PolicyNoMatch, .. }));
            let expected = match granted.filter(|_| undecided) {
                Some((grant, _)) => Outcome::Permit {
                    rule: grant["grantable"].as_str().unwrap().into(),
                    grant: Some(grant["id"].as_str().unwrap().into()),
                },
                None => before.clone(),
            };
            assert_eq!(after, expected, "{policy} {grants:?} {caller:?} {call:?} {now}");
            let kind = match (&before, &after, granted) {
                (_, Outcome::Permit { grant: Some(_), .. }, _) if call.method == "CONNECT" => {
                    "tunnel granted"
                }
                (_, Outcome::Permit { grant: Some(_), .. }, _) => "granted",
                (Outcome::Permit { .. }, ..) => "permitted by a rule",
                (_, _, Some(_)) => "denied in spite of a grant",
                (Outcome::Refuse(Reject { grantable: Some(_), .. }), ..) => "grantable",
                _ => "refused",
            };
            *seen.entry(kind.to_owned()).or_default() += 1;
            // Behind the end of all of them it is as if there had never been any.
            assert_eq!(outcome(&with, &caller, &call, 400), outcome(&without, &caller, &call, 400));
        }
    }
    println!("{seen:?}");
    for kind in [
        "granted",
        "tunnel granted",
        "permitted by a rule",
        "denied in spite of a grant",
        "grantable",
        "refused",
    ] {
        assert!(seen.get(kind).is_some_and(|count| *count >= 10), "{kind} is too rare: {seen:?}");
    }
}

/// Of a thousand grants those of other callers are not looked at. Best of several, for machines that are busy.
#[test]
fn a_thousand_grants_to_others_make_no_denial_slow() {
    let mut policy = Random(1).policy();
    policy["rules"] = json!([]);
    policy["grantable"] = json!([{
        "id": "b0", "from": {"dags": ["*"]}, "to": ["d1"], "max_duration": "100s", "approvers": ["on-call"],
    }]);
    let without = set(&policy);
    let grants: Vec<Value> = (0..1000)
        .map(|number| {
            json!({
                "version": 1, "id": format!("g{number}"), "grantable": "b0",
                "from": {"dags": [format!("dag_{number}")]}, "reason": "r", "granted_by": "g",
                "iat": 0, "nbf": 0, "exp": 100,
            })
        })
        .collect();
    let begun = Instant::now();
    let (with, unfit) = with_grants(&without, &grants);
    println!("1000 grants are read in {:?}, their signatures not counted", begun.elapsed());
    assert_eq!((unfit, with.grants_in_effect(UnixTime::from_secs(1))), (0, 1000));
    let call = Call { authority: "d1", scheme: "http", method: "GET", target: "/x" };
    let caller = |dag: &str| Caller { dags: Fact::one(dag), ..Caller::default() };
    let (other, own) = (caller("other"), caller("dag_500"));
    let granted = outcome(&with, &own, &call, 1);
    assert!(matches!(granted, Outcome::Permit { grant: Some(grant), .. } if *grant == *"g500"));
    let time = |set: &PolicySet| {
        let standing = set.standing(&other, None);
        let now = UnixTime::from_secs(1);
        let mut best = Duration::MAX;
        for _ in 0..50 {
            let begun = Instant::now();
            for _ in 0..20 {
                black_box(set.decide(&other, &standing, &call, now, &LIMITS));
            }
            best = best.min(begun.elapsed() / 20);
        }
        best
    };
    let (few, many) = (time(&without), time(&with));
    println!("a denial takes {few:?} without grants, {many:?} with 1000");
    assert!(many < few * 3, "{few:?} {many:?}");
}
