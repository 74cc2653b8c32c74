//! The corpus, decided by the tools as by the filter.
//!
//! The tools take credentials as verified. So of each case the claims are read out of what it presents,
//! and every case counts of which the filter decides by policy.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use airflow_envoy_cli::evaluate::{Evaluator, Request, Said, Token};
use airflow_envoy_core::arrival::{Arrival, DecisionId, Request as Arrived, StreamId};
use airflow_envoy_core::gate::{Gate, Host, Verdict};
use airflow_envoy_core::jose::RustCrypto;
use airflow_envoy_core::limits::Limits;
use airflow_envoy_core::policy::{GrantDocument, Policy};
use airflow_envoy_core::reject::{Code, Reject};
use airflow_envoy_core::time::UnixTime;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Map, Value};

/// 2026-11-21T12:00:00Z.
const NOW: i64 = 1_795_262_400;

/// What the filter says: the rule that permits, or the refusal.
fn filter(configuration: &[u8], headers: &[(Vec<u8>, Vec<u8>)]) -> Option<Result<String, Reject>> {
    let mut gate = Gate::new(configuration, Host::alone(Box::new(RustCrypto))).ok()?;
    let headers: Vec<(&[u8], &[u8])> =
        headers.iter().map(|(name, value)| (name.as_slice(), value.as_slice())).collect();
    let verdict = gate.request(&Arrival {
        stream: StreamId(1),
        headers: &headers,
        peer: None,
        now: UnixTime::from_secs(NOW),
        decision_id: DecisionId::new(7, 1),
    });
    match verdict {
        Verdict::Permit(permit) => Some(Ok(permit.rule().to_owned())),
        Verdict::Reject(rejection) => Some(Err(rejection.reject)),
        _ => None,
    }
}

fn is_by_policy(answer: &Result<String, Reject>) -> bool {
    match answer {
        Ok(_) => true,
        Err(reject) => matches!(
            reject.code,
            Code::PolicyDenied
                | Code::PolicyNoMatch
                | Code::DestinationUnknown
                | Code::PathInvalid
                | Code::AuthorityInvalid
        ),
    }
}

/// Header and claims of a JWS, unverified.
fn parts(token: &str) -> (Value, Map<String, Value>) {
    let mut parts = token.split('.').map(|part| URL_SAFE_NO_PAD.decode(part).unwrap());
    let mut next = || serde_json::from_slice::<Value>(&parts.next().unwrap()).unwrap();
    let header = next();
    (header, next().as_object().unwrap().clone())
}

/// The access token and the identity of credentials for a proxy.
fn by_proxy(value: Option<String>) -> (Option<String>, Option<String>) {
    let Some(value) = value else { return (None, None) };
    let credentials = STANDARD.decode(value.split_once(' ').unwrap().1.trim()).unwrap();
    let credentials = String::from_utf8(credentials).unwrap();
    let (user, password) = credentials.split_once(':').unwrap();
    let given = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    (given(user).filter(|user| user != "airflow"), given(password))
}

/// The value of a cookie.
fn cookie(headers: &[(&[u8], &[u8])], wanted: &str) -> Option<String> {
    let cookies = headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case(b"cookie"));
    cookies.flat_map(|(_, value)| std::str::from_utf8(value).unwrap().split(';')).find_map(|pair| {
        let (name, value) = pair.trim().split_once('=')?;
        (name == wanted).then(|| value.to_owned())
    })
}

/// The configured name of the issuer that a credential names.
fn issuer(issuers: &Value, claims: &Map<String, Value>) -> String {
    let mut issuers = issuers.as_array().unwrap().iter();
    let issuer = issuers.find(|issuer| issuer["issuer"] == claims["iss"]).unwrap();
    issuer["name"].as_str().unwrap().to_owned()
}

#[test]
fn the_tools_decide_every_case_as_the_filter_does() {
    let (mut compared, mut tunnels, mut subjects, mut granted) = (0, 0, 0, 0);
    let mut seen = std::collections::BTreeMap::<String, usize>::new();
    for case in airflow_envoy_corpus::cases().unwrap() {
        let exchange = case.exchange(NOW).unwrap();
        let Some(answer) = filter(&exchange.configuration, &exchange.headers) else { continue };
        if !is_by_policy(&answer) {
            continue;
        }
        let configuration: Value = serde_json::from_slice(&exchange.configuration).unwrap();
        let [source] = configuration["policy"]["sources"].as_array().unwrap().as_slice() else {
            panic!("{}: more than one policy", case.name);
        };
        let headers: Vec<(&[u8], &[u8])> =
            exchange.headers.iter().map(|(name, value)| (&**name, &**value)).collect();
        let arrived = Arrived::read(&headers).unwrap();
        let text =
            |value: Option<&[u8]>| value.map(|value| String::from_utf8(value.to_vec()).unwrap());
        let off = |requirement: &Value| requirement == "off";
        let served = configuration["proxy_authorization"] == true;
        let (user, password) = by_proxy(text(arrived.proxy_authorization).filter(|_| served));
        let token = text(arrived.authorization)
            .map(|value| value.split_once(' ').unwrap().1.trim().to_owned())
            .or(user)
            .or_else(|| cookie(&headers, configuration["token_cookie"].as_str()?));
        let token = token.filter(|_| !off(&configuration["token"])).map(|token| {
            let (header, claims) = parts(&token);
            let issuer = issuer(&configuration["issuers"], &claims);
            let key_id = header["kid"].as_str().map(str::to_owned);
            Token { issuer, key_id, claims }
        });
        let identity = text(arrived.identity).or(password);
        let identity = identity.filter(|_| !off(&configuration["airflow"]["identity"]));
        let identity = identity.map(|value| {
            let (header, claims) = parts(&value);
            let mut said = claims["airflow"].as_object().unwrap().clone();
            said.insert(
                "issuer".into(),
                issuer(&configuration["airflow"]["issuers"], &claims).into(),
            );
            said.insert("key_id".into(), header["kid"].clone());
            said
        });
        let caller = Said { identity, token, peer: None }.caller().unwrap_or_else(|problem| {
            panic!("{}: {problem}", case.name);
        });
        let request = Request {
            method: arrived.method.to_owned(),
            scheme: arrived.scheme.to_owned(),
            host: arrived.authority.to_owned(),
            path: arrived.target.to_owned(),
        };
        let policy = Policy::from_value(&source["inline"], &Limits::DEFAULT).unwrap();
        let (now, mut evaluator) = (UnixTime::from_secs(NOW), Evaluator::new(policy));
        if let Some(grants) = configuration["policy"].get("grants") {
            let grants = GrantDocument::from_value(&grants["inline"], &Limits::DEFAULT).unwrap();
            (evaluator, _) = evaluator.with_grants(&grants, now);
            granted += 1;
        }
        let decided = evaluator.decide(&caller, &request, now);
        assert_eq!(decided.outcome, answer, "{}", case.name);
        compared += 1;
        tunnels += usize::from(request.is_tunnel());
        subjects += usize::from(source["inline"].to_string().contains("{sub}"));
        let kind =
            answer.map_or_else(|reject| reject.code.name().to_owned(), |_| "permit".to_owned());
        *seen.entry(kind).or_default() += 1;
    }
    println!("{compared} cases of the corpus, {seen:?}");
    assert!(tunnels > 8 && subjects > 5, "{tunnels} tunnels, {subjects} paths of callers");
    assert!(granted > 40, "{granted} with grants");
    assert!(compared > 150 && seen.len() == 6, "too few were compared: {compared}, {seen:?}");
}
