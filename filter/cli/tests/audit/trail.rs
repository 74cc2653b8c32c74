//! Trails for tests and benches, written by the core's own writer.

use airflow_envoy_core::audit::{
    Begin, CallerParts, Chain, Counts, Decided, Decision, EndReason, Fragment, IdentityParts,
    Predecessor, RequestParts, Signer, TokenParts,
};
use airflow_envoy_core::facts::Fact;
use airflow_envoy_core::time::{Span, UnixTime};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value, json};

/// A key made of a seed: its private and its public JWK.
pub fn key(seed: [u8; 32], id: &str) -> (Value, Value) {
    let public = ed25519_dalek::SigningKey::from_bytes(&seed).verifying_key();
    let x = URL_SAFE_NO_PAD.encode(public.as_bytes());
    let public = json!({"kty": "OKP", "crv": "Ed25519", "kid": id, "x": x});
    let d = URL_SAFE_NO_PAD.encode(seed);
    let private = json!({"kty": "OKP", "crv": "Ed25519", "kid": id, "x": x, "d": d});
    (private, public)
}

/// What signs with a private JWK.
pub fn signer(private: &Value) -> Signer {
    Signer::from_jwk(private.to_string().as_bytes()).unwrap()
}

/// A stream that is written to, call by call.
pub struct Stream {
    pub chain: Chain,
    pub counts: Counts,
    pub now: UnixTime,
    calls: u64,
    number: u64,
}

/// What a call is, as far as the tests vary it.
#[derive(Clone, Copy)]
pub struct Called<'a> {
    pub dag: &'a str,
    pub team: &'a str,
    pub method: &'a str,
    pub path: &'a str,
    pub rule: Option<&'a str>,
    pub code: Option<&'a str>,
    pub grant: Option<&'a str>,
    pub sampled: Option<u64>,
}

impl Called<'static> {
    pub const READ: Self = Self {
        dag: "ds_churn",
        team: "data-science",
        method: "GET",
        path: "/v1/orders/7",
        rule: Some("ds-reads-orders"),
        code: None,
        grant: None,
        sampled: None,
    };
}

impl Stream {
    pub fn begin(
        number: u64,
        signer: Option<Signer>,
        predecessor: Option<&Predecessor>,
    ) -> (Self, String) {
        let now = UnixTime::from_rfc3339("2026-11-22T08:00:00Z").unwrap();
        let begin = Begin {
            time: now,
            stream: number,
            process: 0xabcd,
            version: "0.1.0",
            commit: "unknown",
            mode: "enforce",
            sample: None,
            predecessor,
        };
        let (chain, line) = Chain::begin(&begin, signer);
        let stream = Self { chain, counts: Counts::default(), now, calls: 0, number };
        (stream, line.as_str().to_owned())
    }

    pub fn call(&mut self, called: &Called<'_>) -> String {
        self.now = self.now.plus(Span::from_millis(10));
        self.calls += 1;
        let claims = Map::new().into();
        let one = |text: &str| Fact::one(text);
        let caller = Fragment::caller(&CallerParts {
            identity: Some(IdentityParts {
                dag_id: called.dag,
                task_id: "load",
                run_id: "scheduled__2026-11-22T00:00:00+00:00",
                map_index: -1,
                try_number: 1,
                run_type: &one("scheduled"),
                queue: &one("default"),
                team: &one(called.team),
                owners: &one("ann"),
                tags: &Fact::Known(vec!["etl".to_owned(), "daily".to_owned()]),
                roles: &Fact::Known(Vec::new()),
                taken_roles: &[],
                ti_id: Some("0193a1b2-0000-7000-8000-000000000001"),
                triggering_user_name: None,
                issuer: "airflow",
                key_id: Some("airflow-1"),
            }),
            token: Some(TokenParts {
                issuer: "idp",
                key_id: Some("idp-1"),
                subject: Some("worker"),
                client_id: None,
                scopes: &one("orders"),
                claims: &claims,
                recorded: &[],
            }),
            spiffe_id: None,
            service: None,
        });
        let request = Fragment::request(&RequestParts {
            method: Some(called.method.as_bytes()),
            scheme: Some(b"http"),
            authority: Some(b"orders.internal"),
            path: Some(called.path.as_bytes()),
            query: None,
            request_id: Some(b"3f1b94b0-0000-4000-8000-00000000002a"),
            traceparent: Some(b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        });
        let policies = Fragment::policies([("main", Some(42))].into_iter());
        let decision = if called.code.is_some() { Decision::Reject } else { Decision::Permit };
        match decision {
            Decision::Permit => self.counts.permits += 1,
            _ => self.counts.rejects += 1,
        }
        let id = format!("{:016x}{:016x}", self.number, self.calls);
        let line = self.chain.decision(&Decided {
            time: self.now,
            decision,
            decision_id: &id,
            shadow_mode: false,
            code: called.code,
            detail: called.code.map(|_| "no rule allows it"),
            nearest: called.code.map(|_| "ds-reads-orders"),
            rule: called.rule,
            grant: called.grant,
            destination: Some("orders"),
            shadow: &[],
            policies: Some(&policies),
            caller: Some(&caller),
            request: Some(&request),
            status: Some(if called.code.is_some() { 403 } else { 200 }),
            flags: 0,
            decided_us: Some(37),
            total_us: Some(4_211),
            sampled: called.sampled,
        });
        line.as_str().to_owned()
    }

    pub fn checkpoint(&mut self) -> String {
        self.chain.checkpoint(self.now, &self.counts).as_str().to_owned()
    }

    pub fn end(&mut self) -> String {
        self.chain.end(self.now, &self.counts, EndReason::Shutdown).as_str().to_owned()
    }
}
