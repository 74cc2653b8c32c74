//! Signed policies: whose are opened, which are refused and why, and that none comes back.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::string_slice,
    reason = "a test may fail by panicking"
)]

use std::borrow::Cow;

use airflow_envoy_core::configuration::Configuration;
use airflow_envoy_core::document::{Node, Report};
use airflow_envoy_core::limits::Limits;
use airflow_envoy_core::pace::Task;
use airflow_envoy_core::policy::{Accepted, Admitted, Opened, Trust};
use airflow_envoy_corpus::{mint, public_key};
use serde_json::{Value, json};

const LIMITS: Limits = Limits::DEFAULT;

/// Keys that may sign policies, and the algorithm of each.
const SIGNERS: [(&str, &str); 2] = [("EdDSA", "policy-ed25519"), ("ES256", "policy-p256")];

fn document(revision: u64) -> String {
    let destinations = json!({"orders": {"hosts": ["orders.internal"]}});
    json!({"version": 1, "revision": revision, "destinations": destinations, "rules": []})
        .to_string()
}

/// `text` signed as `credential` says, which the other members of a signed policy are added to.
fn signed(text: &str, mut credential: Value) -> String {
    credential["claims_text"] = text.into();
    if credential.get("header").is_none() {
        credential["header"] = json!({"typ": "airflow-policy+jws"});
    }
    mint(&serde_json::from_value(credential).unwrap(), 0, None).unwrap()
}

fn by((algorithm, key): (&str, &str)) -> Value {
    json!({"algorithm": algorithm, "key": key})
}

fn read(trust: &Value) -> Result<Trust, String> {
    let mut report = Report::new();
    let trust = Trust::read(&Node::root(trust), &mut report, &LIMITS);
    report.finish(trust).map_err(|faults| faults.to_string())
}

fn trust_in(keys: &[&str], required: bool) -> Trust {
    let keys: Vec<_> = keys.iter().map(|name| public_key(name).unwrap()).collect();
    read(&json!({"keys": keys, "required": required})).unwrap()
}

/// Trust in the keys of [`SIGNERS`].
fn trust(required: bool) -> Trust {
    trust_in(&SIGNERS.map(|(_, key)| key), required)
}

fn open<'d>(
    trust: &Trust,
    document: &'d (impl AsRef<[u8]> + ?Sized),
) -> Result<Opened<'d>, String> {
    trust.open(document.as_ref(), &LIMITS)
}

fn admit(trust: &Trust, document: &str, last: Option<&Accepted>) -> Result<Admitted, String> {
    trust.admit(document.as_bytes(), last, &LIMITS)
}

#[test]
fn a_policy_signed_by_a_trusted_key_is_opened() {
    let text = document(42);
    for signer in SIGNERS {
        for header in [
            json!({"typ": "airflow-policy+jws"}),
            json!({"typ": "application/airflow-policy+jws", "cty": "json"}),
            json!({"typ": "Airflow-Policy+JWS", "jku": "https://evil.example"}),
        ] {
            let mut credential = by(signer);
            credential["header"] = header;
            for without in [&[][..], &["kid"]] {
                credential["header_without"] = json!(without);
                let message = format!("\r\n \t{}\n\n", signed(&text, credential.clone()));
                let trust = trust(true);
                let opened = open(&trust, &message).unwrap();
                assert_eq!(opened.document, text.as_bytes());
                let by = opened.signer.unwrap();
                assert_eq!(by.key_id.as_deref(), Some(signer.1));
                assert_eq!((by.thumbprint.len(), by.to_string()), (43, format!("`{}`", signer.1)));
            }
        }
    }
}

#[test]
fn a_document_that_is_not_signed_passes_only_where_no_signature_is_required() {
    for text in [document(1), format!(" \n{}", document(1)), "{".to_owned()] {
        assert_eq!(open(&trust(true), &text).unwrap_err(), "the policy is not signed, and must be");
        for trust in [trust(false), Trust::default()] {
            let opened = open(&trust, &text).unwrap();
            assert!(matches!(opened.document, Cow::Borrowed(same) if same == text.as_bytes()));
            assert_eq!(opened.signer, None);
        }
    }
}

#[test]
fn without_trust_nobody_can_verify_a_signed_document() {
    let error = open(&Trust::default(), &signed(&document(1), by(SIGNERS[0]))).unwrap_err();
    assert_eq!(error, "the policy is signed, but without `policy.trust` nobody can verify it");
}

#[test]
fn what_looks_signed_and_is_not_well_signed_is_refused_also_where_no_signature_is_required() {
    let foreign = "neither a JSON object nor a signed policy: ";
    let unfit = "signed policy: ";
    let eddsa = |more: Value| {
        let mut credential = by(SIGNERS[0]);
        let members = more.as_object().unwrap().clone();
        credential.as_object_mut().unwrap().extend(members);
        signed(&document(1), credential)
    };
    let typed = |more: Value| {
        let mut header = json!({"typ": "airflow-policy+jws"});
        header.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        eddsa(json!({"header": header}))
    };
    let no_key = "the algorithm is `RS256`, allowed: `EdDSA`, `ES256`";
    let cases = [
        (String::new(), format!("{foreign}not the compact form of three parts, but 1")),
        (
            "<html>Not found.</html>".to_owned(),
            format!("{foreign}not the compact form of three parts, but 2"),
        ),
        ("[]".to_owned(), format!("{foreign}not the compact form of three parts, but 1")),
        (
            "a.b.c.d.e".to_owned(),
            format!("{foreign}five parts: encrypted (JWE), only signed (JWS) is accepted"),
        ),
        (
            format!("\u{feff}{}", document(1)),
            format!("{foreign}not the compact form of three parts, but 2"),
        ),
        (
            eddsa(json!({"header": {}})),
            format!("{unfit}`typ` is missing, accepted: `airflow-policy+jws`"),
        ),
        (
            eddsa(json!({"header": {"typ": "airflow-task+jwt"}})),
            format!("{unfit}`typ` is `airflow-task+jwt`, accepted: `airflow-policy+jws`"),
        ),
        (
            eddsa(json!({"header": {"typ": "text/airflow-policy+jws"}})),
            format!("{unfit}`typ` is `text/airflow-policy+jws`, accepted: `airflow-policy+jws`"),
        ),
        (
            typed(json!({"crit": ["exp"]})),
            format!("{foreign}the header parameter `crit` is not supported"),
        ),
        (
            typed(json!({"b64": false})),
            format!("{foreign}the header parameter `b64` is not supported"),
        ),
        (
            typed(json!({"zip": "DEF"})),
            format!("{foreign}the header parameter `zip` is not supported"),
        ),
        (typed(json!({"kid": 7})), format!("{foreign}the header parameter `kid` is not a string")),
        (
            typed(json!({"kid": "policy-other"})),
            format!("{unfit}none of the 2 keys has the `kid` `policy-other`"),
        ),
        (
            typed(json!({"kid": "policy-p256"})),
            format!("{unfit}the key `policy-p256`: the key is for P-256, the algorithm is `EdDSA`"),
        ),
        (
            // The algorithm of another key's kind, by a header that was never signed with it.
            typed(json!({"alg": "ES256", "kid": "policy-p256"})),
            format!("{unfit}the `ES256` signature is not by the key"),
        ),
        (signed(&document(1), by(("RS256", "policy-rsa"))), format!("{unfit}{no_key}")),
        (
            signed(&document(1), by(("HS256", "policy-ed25519"))),
            format!("{unfit}{}", no_key.replace("RS256", "HS256")),
        ),
        (
            signed(&document(1), by(("ES384", "policy-p384"))),
            format!("{unfit}{}", no_key.replace("RS256", "ES384")),
        ),
        (
            signed(
                &document(1),
                json!({"algorithm": "none", "key": "policy-ed25519", "tamper": [{"part": [2, "AA"]}]}),
            ),
            format!("{unfit}{}", no_key.replace("RS256", "none")),
        ),
        (
            signed(&document(1), by(("none", "policy-ed25519"))),
            format!("{foreign}the signature is empty"),
        ),
        (
            signed(
                &document(1),
                json!({"algorithm": "EdDSA", "key": "stranger-ed25519", "header": {"typ": "airflow-policy+jws", "kid": "policy-ed25519"}}),
            ),
            format!("{unfit}the `EdDSA` signature is not by the key"),
        ),
        (
            eddsa(json!({"tamper": [{"encode": [1, document(2)]}]})),
            format!("{unfit}the `EdDSA` signature is not by the key"),
        ),
        (eddsa(json!({"tamper": [{"part": [1, ""]}]})), format!("{foreign}the payload is empty")),
        (
            eddsa(json!({"tamper": [{"unused_bits": 2}]})),
            format!("{foreign}the signature is not canonical unpadded base64url"),
        ),
        (
            format!("{}{}.e30.AA", "A".repeat(LIMITS.token_bytes), "A"),
            "neither a JSON object nor a header of at most 16384 bytes".to_owned(),
        ),
    ];
    for (text, expected) in cases {
        for required in [true, false] {
            let error = open(&trust(required), &text).unwrap_err();
            assert_eq!(error, expected, "{}", text.chars().take(80).collect::<String>());
        }
    }
}

#[test]
fn keys_rotate_and_a_withdrawn_one_signs_nothing_more() {
    let (old, new) = (("EdDSA", "old-ed25519"), ("EdDSA", "new-ed25519"));
    let text = document(1);
    let [by_old, by_new] = [old, new].map(|signer| signed(&text, by(signer)));
    let both = trust_in(&[old.1, new.1], true);
    assert!(open(&both, &by_old).is_ok() && open(&both, &by_new).is_ok());
    let mut nameless = by(new);
    nameless["header_without"] = json!(["kid"]);
    let error = open(&both, &signed(&text, nameless.clone())).unwrap_err();
    assert_eq!(
        error,
        "signed policy: without a `kid` exactly one key must fit `EdDSA`, but 2 do: a `kid` is needed"
    );
    let after = trust_in(&[new.1], true);
    assert!(open(&after, &by_new).is_ok() && open(&after, &signed(&text, nameless)).is_ok());
    let error = open(&after, &by_old).unwrap_err();
    assert_eq!(error, "signed policy: none of the 1 keys has the `kid` `old-ed25519`");
}

#[test]
fn trust_is_in_public_keys_that_may_sign_policies() {
    let key = |name: &str| Value::Object(public_key(name).unwrap());
    let with = |name: &str, member: &str, value: Value| {
        let mut key = key(name);
        key[member] = value;
        key
    };
    let good = key("policy-ed25519");
    for (trust, expected) in [
        (json!({}), "`keys` is missing"),
        (json!({"keys": []}), "keys: must not be empty"),
        (json!({"keys": good}), "keys: expected an array, found an object"),
        (
            json!({"keys": [good], "required": "no"}),
            "required: expected true or false, found a string",
        ),
        (
            json!({"keys": [good], "require": true}),
            "unknown field `require`, did you mean `required`?",
        ),
        (json!({"keys": [good, 7]}), "keys[1]: not an object"),
        (
            json!({"keys": [with("policy-ed25519", "d", "AA".into())]}),
            "keys[0]: a private key has been published (`d` is present), so it is not trusted",
        ),
        (
            json!({"keys": [key("policy-hmac")]}),
            "keys[0]: a symmetric key: whoever verifies with it can sign with it, so it is never used",
        ),
        (json!({"keys": [good, key("policy-rsa")]}), "keys[1]: fits neither `EdDSA` nor `ES256`"),
        (json!({"keys": [key("policy-p384")]}), "keys[0]: fits neither `EdDSA` nor `ES256`"),
        (
            json!({"keys": [with("policy-p256", "use", "enc".into())]}),
            "keys[0]: fits neither `EdDSA` nor `ES256`",
        ),
        (
            json!({"keys": [with("policy-p256", "alg", "ES384".into())]}),
            "keys[0]: fits neither `EdDSA` nor `ES256`",
        ),
    ] {
        assert_eq!(read(&trust).unwrap_err(), expected, "{trust}");
    }
    let error = open(&read(&json!({"keys": [good]})).unwrap(), &document(1)).unwrap_err();
    assert_eq!(error, "the policy is not signed, and must be", "required unless said otherwise");
}

#[test]
fn the_configuration_says_whom_to_trust() {
    let configuration = |policy: Value| {
        let configuration = json!({
            "token": "off",
            "airflow": {"issuers": [{
                "name": "airflow", "issuer": "https://airflow.example", "audiences": ["orders"],
                "jwks": {"inline": {"keys": [public_key("airflow-p256").unwrap()]}},
            }]},
            "policy": policy,
        });
        Configuration::try_from(&configuration).map_err(|faults| faults.to_string())
    };
    let source = json!({"name": "main", "inline": {"version": 1, "rules": []}});
    let keys = json!([public_key("policy-p256").unwrap()]);
    let trust = |policy| configuration(policy).unwrap().policy.trust;
    let trusting = trust(json!({"sources": [source], "trust": {"keys": keys}}));
    let message = signed(&document(1), by(SIGNERS[1]));
    assert!(open(&trusting, &message).is_ok() && open(&trusting, &document(1)).is_err());
    let nobody = trust(json!({"sources": [source]}));
    assert!(open(&nobody, &message).is_err() && open(&nobody, &document(1)).is_ok());
    let error = configuration(json!({"sources": [source], "trust": {"keys": [{"kty": "oct"}]}}));
    assert!(error.unwrap_err().starts_with("policy.trust.keys[0]: a symmetric key"));
}

#[test]
fn the_largest_policy_can_be_signed_and_no_larger_one() {
    let text = document(1);
    let trust = trust(true);
    // The last byte of each length of a base64 group.
    for spaces in 0..3 {
        let text = format!("{}{text}", " ".repeat(spaces));
        for signer in SIGNERS {
            let message = signed(&text, by(signer));
            let open = |policy_bytes: usize| {
                let limits = Limits { policy_bytes, token_bytes: 300, ..LIMITS };
                trust.open(message.as_bytes(), &limits).map(|opened| opened.document.len())
            };
            assert_eq!(open(text.len()), Ok(text.len()));
            let most = text.len() - 1;
            let error = format!("signed policy: {} bytes are more than {most}", text.len());
            assert_eq!(open(most), Err(error));
        }
    }
    let limits = Limits { policy_bytes: 30, token_bytes: 100, ..LIMITS };
    let message = signed(&text, by(SIGNERS[0]));
    let error = trust.open(message.as_bytes(), &limits).unwrap_err();
    let expected = format!("{} bytes, more than 140", message.len());
    assert!(error.ends_with(&expected), "{error}");
    assert_eq!(Trust::default().document_bytes(&limits), 30);

    // What holds for tokens does not hold for policies.
    let long = format!("{}{text}", " ".repeat(LIMITS.token_bytes * 4));
    assert!(open(&trust, &signed(&long, by(SIGNERS[1]))).is_ok());
}

#[test]
fn an_older_signed_policy_never_comes_back() {
    let trust = trust(true);
    let message = |revision| signed(&document(revision), by(SIGNERS[0]));
    let accept = |text: &str, last| admit(&trust, text, last).map(|admitted| admitted.accepted);
    let last = accept(&message(42), None).unwrap();
    assert_eq!(last.unwrap().revision, 42);
    assert_eq!(accept(&message(42), last.as_ref()), Ok(last), "the same one again");
    let other_key = signed(&document(42), by(SIGNERS[1]));
    assert_eq!(accept(&other_key, last.as_ref()), Ok(last), "the same one, signed anew");
    assert_eq!(accept(&message(43), last.as_ref()).unwrap().unwrap().revision, 43);
    assert_eq!(accept(&message(u64::MAX), last.as_ref()).unwrap().unwrap().revision, u64::MAX);
    let changed = signed(&format!("{} ", document(42)), by(SIGNERS[0]));
    for (text, expected) in [
        (message(41), "revision 41 is older than revision 42, which was accepted"),
        (message(0), "revision 0 is older than revision 42, which was accepted"),
        (
            changed,
            "revision 42 is another document than the accepted revision 42: a change needs a greater one",
        ),
        (
            signed(r#"{"version":1,"rules":[]}"#, by(SIGNERS[0])),
            "a signed policy needs a `revision`",
        ),
        (signed(r#"{"version":2,"rules":[]}"#, by(SIGNERS[0])), "version: the only version is 1"),
        // A signature around a signature is no policy.
        (signed(&message(43), by(SIGNERS[0])), "not valid JSON at line 1 column 1"),
    ] {
        assert_eq!(accept(&text, last.as_ref()).unwrap_err(), expected);
    }
}

#[test]
fn what_is_not_signed_has_no_order_and_needs_no_revision() {
    let text = r#"{"version":1,"rules":[]}"#;
    let last = Accepted { revision: 42, digest: [7; 32] };
    let admitted = admit(&trust(false), text, Some(&last)).unwrap();
    assert_eq!((admitted.accepted, admitted.signer), (Some(last), None), "what was accepted stays");
    assert_eq!(admit(&trust(false), text, None).unwrap().accepted, None);
    assert_eq!(admitted.policy.rule_count(), 0);
    assert!(admit(&Trust::default(), &document(41), Some(&last)).is_ok());
}

#[test]
fn what_was_accepted_is_remembered_as_text() {
    for revision in [0, 42, u64::MAX] {
        let accepted = Accepted { revision, digest: [revision.to_le_bytes()[0]; 32] };
        assert_eq!(Accepted::from_text(&accepted.to_string()), Some(accepted));
    }
    let text = Accepted { revision: 42, digest: [255; 32] }.to_string();
    assert_eq!(text, "42 __________________________________________8");
    for damaged in [
        "",
        "42",
        " ",
        &text[..text.len() - 1],
        &format!("{text} "),
        &format!("+{text}"),
        &format!("0{text}"),
        &text.replace("42", "18446744073709551616"),
        &text.replace('8', "9"),
        &text.replace(' ', "  "),
    ] {
        assert_eq!(Accepted::from_text(damaged), None, "{damaged:?}");
    }
}

/// One generic check for both algorithms: what was changed in any way is refused.
#[test]
fn a_signed_policy_that_was_changed_anywhere_is_refused() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut below = |bound: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        ((state >> 16) % bound as u64) as usize
    };
    for required in [true, false] {
        let trust = trust(required);
        for signer in SIGNERS {
            let original = signed(&document(42), by(signer)).into_bytes();
            let refused = |changed: &[u8], how: &str| {
                let opened = open(&trust, changed);
                assert!(opened.is_err(), "{how}: {}", String::from_utf8_lossy(changed));
            };
            for at in 0..original.len() {
                let mut changed = original.clone();
                changed[at] ^= 1 << below(8);
                // A brace in front makes it a document that nobody signed: not a policy then.
                if changed[0] != b'{' {
                    refused(&changed, "a bit");
                }
                refused(&original[..at], "the end is missing");
                if at > 0 {
                    refused(&original[at..], "the beginning is missing");
                }
            }
            for _ in 0..500 {
                let mut changed = original.clone();
                for _ in 0..=below(3) {
                    let (at, from) = (below(changed.len()), below(original.len()));
                    let to = from + below((original.len() - from).min(40)) + 1;
                    match below(4) {
                        0 => changed.insert(at, below(256) as u8),
                        1 => drop(changed.remove(at)),
                        2 => drop(changed.splice(at..at, original[from..to].iter().copied())),
                        _ => changed.truncate(at.max(1)),
                    }
                }
                if changed.trim_ascii() != original && changed.trim_ascii().first() != Some(&b'{') {
                    refused(&changed, "edited");
                }
            }
        }
    }
}

#[test]
fn trust_in_the_same_key_under_another_name_is_another_trust() {
    let named = |kid: &str| {
        let mut key = Value::Object(public_key(SIGNERS[0].1).unwrap());
        key["kid"] = kid.into();
        read(&json!({ "keys": [key] })).unwrap().id()
    };
    assert_eq!(named("a"), named("a"));
    assert_ne!(named("a"), named("b"));
}

/// To look for the parts of a signed document, to decode it, and to verify it: none of it is one long step.
#[test]
fn a_large_signed_policy_is_opened_a_slice_at_a_time() {
    const STEP: usize = 16 * 1024;
    let text = document(1) + &" ".repeat(30 * STEP);
    for signer in SIGNERS {
        let genuine = signed(&text, by(signer));
        let forged = format!("{}AAAA{}", &genuine[..STEP], &genuine[STEP + 4..]);
        for message in [genuine, forged] {
            let expected = admit(&trust(true), &message, None).map(|admitted| admitted.accepted);
            let steps = message.len() / STEP;
            let mut task = Task::new(|pace| async move {
                let admitted = trust(true).load(message.as_bytes(), None, &LIMITS, &pace).await;
                admitted.map(|admitted| admitted.accepted)
            });
            let mut slices = 1;
            let found = loop {
                match task.go_on(1) {
                    Ok(found) => break found,
                    Err(rest) => task = rest,
                }
                slices += 1;
            };
            assert_eq!(found, expected);
            assert!(slices > 3 * steps, "{signer:?}: {slices} slices of {steps} parts");
        }
    }
}
