//! Access tokens and Airflow identities against an issuer's rules, case by case.

use airflow_envoy_core::credential::{IssuerRules, Presented, Verified};
use airflow_envoy_core::jose::{Algorithm, KeySet, RustCrypto};
use airflow_envoy_core::limits::Limits;
use airflow_envoy_core::reject::{Code, Credential, Reject};
use airflow_envoy_core::time::{Span, UnixTime};
use rsa::rand_core::RngCore as _;
use serde_json::{Value, json};

use crate::signers::{Seeded, encode, jwk, key_set, sign, signed, with};

/// The time of every case, unless it says otherwise.
const NOW: i64 = 1_795_000_000;

fn rules() -> IssuerRules {
    IssuerRules {
        name: "idp".to_owned(),
        issuer: "https://idp.example".to_owned(),
        audiences: vec!["orders".to_owned(), "urn:stock".to_owned()],
        algorithms: vec![Algorithm::Es256, Algorithm::EdDsa],
        token_types: vec!["at+jwt".to_owned(), "JWT".to_owned()],
        max_lifetime: Some(Span::from_secs(3600)),
        clock_skew: Span::from_secs(30),
    }
}

fn header() -> Value {
    json!({"alg": "ES256", "kid": "key", "typ": "at+jwt"})
}

fn claims() -> Value {
    json!({
        "iss": "https://idp.example", "aud": "orders", "sub": "airflow",
        "iat": NOW - 60, "nbf": NOW - 60, "exp": NOW + 240,
    })
}

fn verify(
    text: &str,
    credential: Credential,
    rules: &IssuerRules,
    now: i64,
) -> Result<Verified, Reject> {
    let keys = key_set(&[jwk(Algorithm::Es256), with(jwk(Algorithm::EdDsa), json!({"kid": "ed"}))]);
    Presented::parse(text.as_bytes(), credential, &Limits::DEFAULT)?.verify(
        rules,
        &keys,
        &RustCrypto,
        UnixTime::from_secs(now),
    )
}

/// Both credentials fail alike: `suffix` is the code without `token_` or `identity_`.
#[track_caller]
fn refused(what: &str, text: &str, rules: &IssuerRules, suffix: &str, detail: &str) {
    for (credential, family) in [(Credential::Token, "token"), (Credential::Identity, "identity")] {
        let reject = verify(text, credential, rules, NOW).expect_err(what);
        assert_eq!(reject.code.name(), format!("{family}_{suffix}"), "{what}: {}", reject.detail);
        assert!(reject.detail.contains(detail), "{what}: {}", reject.detail);
        assert!(reject.detail.starts_with(credential.noun()), "{what}: {}", reject.detail);
        assert!(!reject.detail.ends_with('.'), "{what}: {}", reject.detail);
        assert!(reject.detail.len() < 2000, "{what}: {}", reject.detail);
        assert!(!reject.detail.chars().any(char::is_control), "{what}: {:?}", reject.detail);
        for part in text.split('.').filter(|part| part.len() > 20) {
            assert!(!reject.detail.contains(part), "{what} shows the credential");
        }
    }
}

#[test]
fn a_genuine_credential_is_verified_and_described() {
    let text = signed(Algorithm::Es256, &header(), claims().to_string());
    let verified = verify(&text, Credential::Token, &rules(), NOW).unwrap();
    assert_eq!(verified.issuer_name, "idp");
    assert_eq!(verified.key_id.as_deref(), Some("key"));
    assert_eq!(verified.algorithm, Algorithm::Es256);
    assert_eq!(verified.expires_at, UnixTime::from_secs(NOW + 240));
    assert_eq!(verified.not_before, Some(UnixTime::from_secs(NOW - 60)));
    assert_eq!(verified.issued_at, Some(UnixTime::from_secs(NOW - 60)));
    assert_eq!(verified.claims, claims().as_object().cloned().unwrap().into());
}

#[test]
fn these_variations_are_accepted() {
    for (what, header_change, claim_change) in [
        ("typ without case", json!({"typ": "AT+JWT"}), json!({})),
        ("typ with its prefix", json!({"typ": "application/at+jwt"}), json!({})),
        ("typ with its prefix in capitals", json!({"typ": "Application/JWT"}), json!({})),
        ("several audiences", json!({}), json!({"aud": ["a", "urn:stock", "b"]})),
        ("no nbf", json!({}), json!({"nbf": null})),
        (
            "a fraction of a second",
            json!({}),
            json!({"exp": NOW as f64 + 0.5, "iat": 1_794_999_999.25}),
        ),
        ("an exponent", json!({}), json!({"nbf": 1.0e9})),
        ("expired, within the skew", json!({}), json!({"exp": NOW - 29})),
        ("not yet valid, within the skew", json!({}), json!({"nbf": NOW + 30})),
        ("issued in the future, within the skew", json!({}), json!({"iat": NOW + 30})),
        ("exactly the longest lifetime", json!({}), json!({"iat": NOW - 60, "exp": NOW + 3540})),
        (
            "claims nobody asked for",
            json!({}),
            json!({"https://sts.amazonaws.com/": {"a": [1, {}]}}),
        ),
        (
            "headers that point to other keys",
            json!({
                "jku": "https://evil.example/jwks", "x5u": "https://evil.example/cert",
                "jwk": jwk(Algorithm::EdDsa), "x5c": ["AAAA"], "x5t": "AAAA", "cty": "x",
            }),
            json!({}),
        ),
    ] {
        let claims = with(claims(), claim_change).to_string();
        let text = signed(Algorithm::Es256, &with(header(), header_change), claims);
        verify(&text, Credential::Token, &rules(), NOW).expect(what);
    }
}

#[test]
fn a_fault_of_the_header_has_its_code() {
    let long = "k".repeat(257);
    for (what, change, code, detail) in [
        ("no alg", json!({"alg": null}), "malformed", "`alg` is missing"),
        ("alg not a string", json!({"alg": ["ES256"]}), "malformed", "`alg` is not a string"),
        (
            "none",
            json!({"alg": "none"}),
            "algorithm_not_allowed",
            "`none`, allowed: `ES256`, `EdDSA`",
        ),
        ("HS256", json!({"alg": "HS256"}), "algorithm_not_allowed", "`HS256`, allowed: `ES256`"),
        ("not allowed for the issuer", json!({"alg": "RS256"}), "algorithm_not_allowed", "`RS256`"),
        ("alg in lower case", json!({"alg": "es256"}), "algorithm_not_allowed", "`es256`"),
        ("crit", json!({"crit": ["exp"], "exp": 1}), "header_unsupported", "`crit`"),
        ("empty crit", json!({"crit": []}), "header_unsupported", "`crit`"),
        ("b64", json!({"b64": true}), "header_unsupported", "`b64`"),
        ("zip", json!({"zip": "DEF"}), "header_unsupported", "`zip`"),
        ("enc", json!({"enc": "A128GCM"}), "header_unsupported", "`enc`"),
        ("kid not a string", json!({"kid": 7}), "malformed", "`kid` is not a string"),
        ("kid too long", json!({"kid": long}), "malformed", "`kid` is too long"),
        ("kid with a line break", json!({"kid": "a\nb"}), "malformed", "control characters"),
        (
            "unknown kid",
            json!({"kid": "other"}),
            "key_unknown",
            "issuer `idp`: none of the 2 keys has the `kid` `other`",
        ),
        ("kid in another case", json!({"kid": "KEY"}), "key_unknown", "`KEY`"),
        ("empty kid", json!({"kid": ""}), "key_unknown", "``"),
        (
            "kid of another kind of key",
            json!({"kid": "ed"}),
            "key_unsuitable",
            "the key is for Ed25519, the algorithm is `ES256`",
        ),
        ("typ not a string", json!({"typ": 1}), "malformed", "`typ` is not a string"),
        (
            "no typ",
            json!({"typ": null}),
            "type_mismatch",
            "`typ` is missing, accepted: `at+jwt`, `JWT`",
        ),
        ("an ID token", json!({"typ": "id+jwt"}), "type_mismatch", "`typ` is `id+jwt`"),
        (
            "typ with another prefix",
            json!({"typ": "text/at+jwt"}),
            "type_mismatch",
            "`text/at+jwt`",
        ),
        ("typ with a prefix twice", json!({"typ": "application/x/at+jwt"}), "type_mismatch", ""),
        ("an ugly typ", json!({"typ": "\u{1b}[2J\n`"}), "type_mismatch", r"`\u{1b}[2J\n'`"),
    ] {
        let text = signed(Algorithm::Es256, &with(header(), change), claims().to_string());
        refused(what, &text, &rules(), code, detail);
    }
}

#[test]
fn a_fault_of_a_claim_has_its_code() {
    for (what, change, code, detail) in [
        ("no iss", json!({"iss": null}), "claim_invalid", "`iss` is missing"),
        (
            "iss not a string",
            json!({"iss": ["https://idp.example"]}),
            "claim_invalid",
            "`iss` is not a string",
        ),
        (
            "another issuer",
            json!({"iss": "https://idp.example/"}),
            "issuer_unknown",
            "`https://idp.example/`, trusted: `https://idp.example`",
        ),
        ("no aud", json!({"aud": null}), "claim_invalid", "`aud` is missing"),
        ("aud a number", json!({"aud": 1}), "claim_invalid", "neither a string nor an array"),
        (
            "aud with a number",
            json!({"aud": ["orders", 1]}),
            "claim_invalid",
            "neither a string nor an array",
        ),
        (
            "empty aud",
            json!({"aud": []}),
            "audience_mismatch",
            "`aud` is none, accepted: `orders`, `urn:stock`",
        ),
        ("another aud", json!({"aud": "https://orders"}), "audience_mismatch", "`https://orders`"),
        (
            "aud in another case",
            json!({"aud": ["Orders", "orders/"]}),
            "audience_mismatch",
            "`Orders`, `orders/`",
        ),
        (
            "a thousand audiences",
            json!({"aud": vec!["x".repeat(9); 1000]}),
            "audience_mismatch",
            "and 992 more",
        ),
        ("no exp", json!({"exp": null}), "claim_invalid", "`exp` is missing"),
        ("exp a string", json!({"exp": "1795000240"}), "claim_invalid", "`exp` is not a number"),
        ("exp negative", json!({"exp": -1}), "claim_invalid", "not a date"),
        (
            "exp after the year 9999",
            json!({"exp": 253_402_300_800_i64}),
            "claim_invalid",
            "not a date",
        ),
        ("exp beyond all integers", json!({"exp": 1e300}), "claim_invalid", "not a date"),
        ("exp in milliseconds", json!({"exp": NOW * 1000}), "claim_invalid", "not a date"),
        ("nbf a string", json!({"nbf": "soon"}), "claim_invalid", "`nbf` is not a number"),
        ("nbf true", json!({"nbf": true}), "claim_invalid", "`nbf` is not a number"),
        ("iat an object", json!({"iat": {}}), "claim_invalid", "`iat` is not a number"),
        ("no iat", json!({"iat": null}), "claim_invalid", "`iat` is missing"),
        (
            "expired at the skew",
            json!({"exp": NOW - 30}),
            "expired",
            "expired at 2026-11-18T11:06:10Z, it is 2026-11-18T11:06:40Z, clock skew 30 s",
        ),
        (
            "not yet valid",
            json!({"nbf": NOW + 31}),
            "not_yet_valid",
            "valid from 2026-11-18T11:07:11Z",
        ),
        ("issued in the future", json!({"iat": NOW + 31}), "not_yet_valid", "issued in the future"),
        (
            "lives too long",
            json!({"iat": NOW - 60, "exp": NOW + 3541}),
            "lifetime_too_long",
            "lives 3601 s, allowed: 3600 s",
        ),
    ] {
        let text = signed(Algorithm::Es256, &header(), with(claims(), change).to_string());
        refused(what, &text, &rules(), code, detail);
    }
}

#[test]
fn a_text_that_is_no_jws_with_json_claims_is_malformed() {
    let genuine = signed(Algorithm::Es256, &header(), claims().to_string());
    let of = |payload: &[u8]| signed(Algorithm::Es256, &header(), payload);
    let of_header = |header: &str| {
        let input = format!("{}.{}", encode(header), encode(claims().to_string()));
        format!("{input}.{}", encode(sign(Algorithm::Es256, input.as_bytes())))
    };
    let deep = format!(r#"{{"iss":{}{}}}"#, "[".repeat(40), "]".repeat(40));
    for (what, text, detail) in [
        ("nothing", String::new(), "but 1"),
        ("one part", "abc".to_owned(), "but 1"),
        ("two parts", "abc.def".to_owned(), "but 2"),
        ("four parts", format!("{genuine}.AAAA"), "but 4"),
        ("five parts", format!("{genuine}.AAAA.AAAA"), "encrypted (JWE)"),
        ("dots only", "..".to_owned(), "the header is empty"),
        ("JSON", r#"{"payload":"e30","signatures":[]}"#.to_owned(), "but 1"),
        ("not ASCII", "é.é.é".to_owned(), "the header is not canonical unpadded base64url"),
        ("the header is a list", of_header("[]"), "the header is not a JSON object"),
        ("the header is no JSON", of_header("{"), "the header: not valid JSON"),
        ("alg twice", of_header(r#"{"alg":"ES256","alg":"none"}"#), "`alg` occurs more than once"),
        (
            "alg twice, once in escapes",
            of_header(r#"{"alg":"ES256","\u0061lg":"none"}"#),
            "more than once",
        ),
        ("the payload is a list", of(b"[]"), "the payload is not a JSON object"),
        ("the payload is text", of(b"claims"), "the payload: not valid JSON"),
        ("the payload is not UTF-8", of(b"{\"iss\":\"\xff\"}"), "the payload: not valid JSON"),
        ("a claim twice", of(br#"{"aud":"orders","aud":"evil"}"#), "`aud` occurs more than once"),
        (
            "an ugly claim twice",
            of(br#"{"a\nb`\u0000":1,"a\nb`\u0000":2}"#),
            r"member `a\nb'\0` occurs more than once",
        ),
        ("too deep", of(deep.as_bytes()), "nested too deeply"),
        ("something behind the claims", of(b"{} {}"), "not valid JSON"),
    ] {
        refused(what, &text, &rules(), "malformed", detail);
    }
    let large = "a".repeat(Limits::DEFAULT.token_bytes + 1);
    refused("too large", &large, &rules(), "too_large", "16385 bytes, more than 16384");
}

#[test]
fn a_wrong_signature_is_reported_as_that_whatever_else_is_wrong() {
    let header = with(header(), json!({"typ": "id+jwt"}));
    let claims = with(claims(), json!({"exp": 0, "aud": "x", "nbf": "y"})).to_string();
    let genuine = signed(Algorithm::Es256, &header, claims);
    let (input, _) = genuine.rsplit_once('.').unwrap();
    let forged = format!("{input}.{}", encode([1; 64]));
    refused(
        "forged",
        &forged,
        &rules(),
        "signature_invalid",
        "the `ES256` signature is not by the key",
    );
    let short = format!("{input}.{}", encode([1; 63]));
    refused("short", &short, &rules(), "signature_invalid", "");
}

#[test]
fn without_a_kid_exactly_one_key_must_fit() {
    let text =
        signed(Algorithm::Es256, &with(header(), json!({"kid": null})), claims().to_string());
    let es256 = jwk(Algorithm::Es256);
    let unnamed = with(es256.clone(), json!({"kid": null}));
    let ed25519 = with(jwk(Algorithm::EdDsa), json!({"kid": "ed"}));
    for (what, keys, expected) in [
        ("one key", vec![es256.clone()], Ok(Some("key"))),
        ("one key without a name", vec![unnamed.clone()], Ok(None)),
        ("one that fits", vec![ed25519.clone(), es256.clone()], Ok(Some("key"))),
        (
            "one for signatures",
            vec![with(unnamed.clone(), json!({"use": "enc"})), es256.clone()],
            Ok(Some("key")),
        ),
        ("two that fit", vec![es256.clone(), unnamed], Err("2 do: a `kid` is needed")),
        ("none that fits", vec![ed25519], Err("0 do")),
        ("none", vec![], Err("0 do")),
    ] {
        let result = Presented::parse(text.as_bytes(), Credential::Identity, &Limits::DEFAULT)
            .unwrap()
            .verify(&rules(), &key_set(&keys), &RustCrypto, UnixTime::from_secs(NOW));
        match (result, expected) {
            (Ok(verified), Ok(key_id)) => assert_eq!(verified.key_id.as_deref(), key_id, "{what}"),
            (Err(reject), Err(detail)) => {
                assert_eq!(reject.code, Code::IdentityKeyUnknown, "{what}");
                assert!(reject.detail.contains(detail), "{what}: {}", reject.detail);
            }
            (result, _) => panic!("{what}: {result:?}"),
        }
    }
}

#[test]
fn a_key_is_bound_to_what_its_jwk_says() {
    let text = signed(Algorithm::Es256, &header(), claims().to_string());
    let p256 = |members| with(jwk(Algorithm::Es256), members);
    let unsuitable = |detail| Err((Code::TokenKeyUnsuitable, detail));
    for (what, keys, expected) in [
        (
            "bound to its algorithm",
            vec![p256(json!({"alg": "ES256", "use": "sig", "key_ops": ["verify"]}))],
            Ok(()),
        ),
        ("one of several operations", vec![p256(json!({"key_ops": ["sign", "verify"]}))], Ok(())),
        (
            "bound to another",
            vec![p256(json!({"alg": "ES384"}))],
            unsuitable("bound to `ES384`, the algorithm is `ES256`"),
        ),
        ("bound to encryption", vec![p256(json!({"alg": "ECDH-ES"}))], unsuitable("`ECDH-ES`")),
        (
            "used for encryption",
            vec![p256(json!({"use": "enc"}))],
            unsuitable("`use` is `enc`, not `sig`"),
        ),
        (
            "another operation",
            vec![p256(json!({"key_ops": ["encrypt"]}))],
            unsuitable("`key_ops` are `encrypt`"),
        ),
        ("no operation", vec![p256(json!({"key_ops": []}))], unsuitable("`key_ops` are none")),
        (
            "two of a name, one fits",
            vec![with(jwk(Algorithm::EdDsa), json!({})), p256(json!({}))],
            Ok(()),
        ),
        ("two of a name and kind", vec![other_p256(), p256(json!({}))], Ok(())),
        (
            "two of a name, neither is it",
            vec![other_p256(), other_p256()],
            Err((Code::TokenSignatureInvalid, "by none of 2 keys")),
        ),
    ] {
        let result = Presented::parse(text.as_bytes(), Credential::Token, &Limits::DEFAULT)
            .unwrap()
            .verify(&rules(), &key_set(&keys), &RustCrypto, UnixTime::from_secs(NOW));
        match (result, expected) {
            (Ok(_), Ok(())) => {}
            (Err(reject), Err((code, detail))) => {
                assert_eq!(reject.code, code, "{what}: {}", reject.detail);
                assert!(reject.detail.contains(detail), "{what}: {}", reject.detail);
            }
            (result, _) => panic!("{what}: {result:?}"),
        }
    }
}

#[test]
fn an_eddsa_key_bound_by_its_newer_name_is_the_same() {
    for (of_header, of_key) in [("EdDSA", "Ed25519"), ("Ed25519", "EdDSA"), ("Ed25519", "Ed25519")]
    {
        let header = json!({"alg": of_header, "kid": "key", "typ": "JWT"});
        let text = signed(Algorithm::EdDsa, &header, claims().to_string());
        let keys = key_set(&[with(jwk(Algorithm::EdDsa), json!({"alg": of_key}))]);
        Presented::parse(text.as_bytes(), Credential::Token, &Limits::DEFAULT)
            .unwrap()
            .verify(&rules(), &keys, &RustCrypto, UnixTime::from_secs(NOW))
            .unwrap();
    }
}

#[test]
fn rules_without_types_lifetime_or_skew_mean_what_they_say() {
    let text = |change| {
        let header = json!({"alg": "ES256", "kid": "key"});
        signed(Algorithm::Es256, &header, with(claims(), change).to_string())
    };
    let rules = IssuerRules {
        token_types: Vec::new(),
        max_lifetime: None,
        clock_skew: Span::ZERO,
        ..rules()
    };
    let verify = |change| verify(&text(change), Credential::Token, &rules, NOW);
    verify(json!({"iat": null, "nbf": null, "exp": NOW + 1})).unwrap();
    verify(json!({"iat": NOW, "nbf": NOW, "exp": 253_402_300_799_i64})).unwrap();
    for (change, code) in [
        (json!({"exp": NOW}), Code::TokenExpired),
        (json!({"nbf": NOW + 1}), Code::TokenNotYetValid),
        (json!({"nbf": NOW as f64 + 0.5}), Code::TokenNotYetValid),
        (json!({"iat": NOW + 1}), Code::TokenNotYetValid),
    ] {
        assert_eq!(verify(change.clone()).unwrap_err().code, code, "{change}");
    }
}

#[test]
fn nothing_is_accepted_for_no_audience_or_by_no_algorithm() {
    let text = signed(Algorithm::Es256, &header(), claims().to_string());
    let no_audience = IssuerRules { audiences: Vec::new(), ..rules() };
    refused("no audience", &text, &no_audience, "audience_mismatch", "accepted: none");
    let no_algorithm = IssuerRules { algorithms: Vec::new(), ..rules() };
    refused("no algorithm", &text, &no_algorithm, "algorithm_not_allowed", "allowed: none");
}

#[test]
fn a_remembered_credential_expires_like_a_new_one() {
    let text = signed(Algorithm::Es256, &header(), claims().to_string());
    let rules = rules();
    for after in [-200, -91, -90, -60, 0, 240, 269, 270, 271, 100_000] {
        let now = NOW + after;
        let fresh = verify(&text, Credential::Identity, &rules, now).map(|_| ());
        let remembered = verify(&text, Credential::Identity, &rules, NOW).unwrap();
        assert_eq!(remembered.check_time(&rules, UnixTime::from_secs(now)), fresh, "{after}");
        assert_eq!(fresh.is_ok(), (-90..270).contains(&after), "{after}");
    }
}

#[test]
fn whether_other_keys_could_help_is_known_without_a_signature() {
    let text = |header: &Value, claims: &Value| {
        let input = format!("{}.{}", encode(header.to_string()), encode(claims.to_string()));
        format!("{input}.{}", encode([1; 64]))
    };
    fn presented(text: &str) -> Presented<'_> {
        Presented::parse(text.as_bytes(), Credential::Token, &Limits::DEFAULT).unwrap()
    }
    let keys = key_set(&[jwk(Algorithm::Es256)]);
    let known = text(&header(), &claims());
    let known = presented(&known);
    assert_eq!(known.issuer(), "https://idp.example");
    assert_eq!(known.key_id(), Some("key"));
    assert_eq!(known.check_key(&rules(), &keys), Ok(()));
    for (header, claims, code) in [
        (with(header(), json!({"kid": "new"})), claims(), Code::TokenKeyUnknown),
        (with(header(), json!({"alg": "EdDSA"})), claims(), Code::TokenKeyUnsuitable),
        // These must not make anybody fetch keys: the first fault counts.
        (json!({"alg": "none", "kid": "new"}), claims(), Code::TokenAlgorithmNotAllowed),
        (
            json!({"alg": "none", "kid": "new"}),
            with(claims(), json!({"iss": "x"})),
            Code::TokenIssuerUnknown,
        ),
    ] {
        let text = text(&header, &claims);
        let reject = presented(&text).check_key(&rules(), &keys).unwrap_err();
        assert_eq!(reject.code, code, "{}", reject.detail);
    }
}

/// Nothing that a caller or an issuer sends may trap the VM.
#[test]
fn no_bytes_make_a_reader_panic() {
    let token = signed(Algorithm::Es256, &header(), claims().to_string());
    let keys = json!({"keys": Algorithm::ALL.iter().map(|a| jwk(*a)).collect::<Vec<_>>()});
    let limits = Limits::DEFAULT;
    let set = key_set(&[jwk(Algorithm::Es256)]);
    let mut random = Seeded::new("bytes");
    let mut read = 0;
    for document in [token, header().to_string(), claims().to_string(), keys.to_string()] {
        for _ in 0..400 {
            let mut bytes = document.clone().into_bytes();
            for _ in 0..=random.next_u32() % 3 {
                let at = random.next_u32() as usize % bytes.len();
                match random.next_u32() % 4 {
                    0 => bytes[at] = random.next_u32() as u8,
                    1 => bytes[at] = b"\"{}[]:,.0-\\A"[random.next_u32() as usize % 12],
                    2 => bytes.truncate(at.max(1)),
                    _ => bytes.insert(at, bytes[at]),
                }
            }
            // Also with the bytes in the place of each part.
            let part = encode(&bytes);
            let as_header = format!("{part}.e30.AAAA").into_bytes();
            let as_payload = signed(Algorithm::Es256, &header(), &bytes).into_bytes();
            for text in [bytes.clone(), as_header, as_payload] {
                if let Ok(presented) = Presented::parse(&text, Credential::Token, &limits) {
                    let now = UnixTime::from_secs(NOW);
                    read += usize::from(presented.verify(&rules(), &set, &RustCrypto, now).is_ok());
                }
            }
            read += KeySet::parse(&bytes, &limits).map_or(0, |(set, _)| set.len());
        }
    }
    assert!(read > 100, "changes that break everything prove nothing");
}

#[test]
fn debug_output_shows_neither_claims_nor_the_credential() {
    let text = signed(Algorithm::Es256, &header(), claims().to_string());
    let presented = Presented::parse(text.as_bytes(), Credential::Token, &Limits::DEFAULT).unwrap();
    let debug = format!("{presented:?}");
    assert!(!debug.contains("airflow\""), "{debug}");
    for part in text.split('.') {
        assert!(!debug.contains(part), "{debug}");
    }
}

/// Another P-256 key of the same name.
fn other_p256() -> Value {
    let point = p256::ecdsa::SigningKey::from_slice(&[7; 32]).unwrap();
    let point = point.verifying_key().to_encoded_point(false);
    let members = json!({"x": encode(point.x().unwrap()), "y": encode(point.y().unwrap())});
    with(jwk(Algorithm::Es256), members)
}
