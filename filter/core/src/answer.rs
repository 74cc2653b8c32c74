//! The reply to a request that is refused: status, headers and body, for HTTP and for gRPC.

use std::rc::Rc;
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::arrival::DecisionId;
use crate::audit::Fragment;
use crate::policy::ShadowVerdict;
use crate::reject::{Code, Reject};
use crate::time::Span;

/// A refusal and what belongs to its reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// Why.
    pub reject: Reject,
    /// The decision's name.
    pub decision_id: DecisionId,
    /// When trying again makes sense.
    pub retry_after: Option<Span>,
    /// Whether the caller speaks gRPC.
    pub grpc: bool,
    /// Whether the caller is one of a proxy: it has credentials for a proxy, or none, and none for a server.
    pub by_proxy: bool,
    /// Who called, so far as it was verified, and what the policy made of it.
    pub known: Known,
}

/// What is known about a refused request, for the access log and the audit trail.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Known {
    /// The verified DAG.
    pub dag_id: Option<String>,
    /// The verified task.
    pub task_id: Option<String>,
    /// The verified run.
    pub run_id: Option<String>,
    /// The destination's name in the policy.
    pub destination: Option<Arc<str>>,
    /// Shadow rules that would have permitted it.
    pub shadow: Vec<ShadowVerdict>,
    /// The caller as audit records show it, if there are any.
    pub caller: Option<Rc<Fragment>>,
}

/// The header that carries the code, for callers that do not read the body.
pub const CODE_HEADER: &str = "x-airflow-envoy-code";

impl Rejection {
    /// The HTTP status: that of the code, but 407 for 401 to callers of a proxy (RFC 9110 §15.5.8). To them
    /// 401 would be a word of the server behind it, and many clients send their credentials for a proxy
    /// only when it asks for them so.
    pub fn status(&self) -> u16 {
        match self.reject.code.status() {
            401 if self.by_proxy => 407,
            status => status,
        }
    }

    /// The gRPC status code (the closest of the gRPC `Code` list to the HTTP status).
    pub fn grpc_status(&self) -> u32 {
        match self.status() {
            400 => 3,        // INVALID_ARGUMENT
            401 | 407 => 16, // UNAUTHENTICATED
            403 => 7,        // PERMISSION_DENIED
            431 => 8,        // RESOURCE_EXHAUSTED
            _ => 14,         // UNAVAILABLE
        }
    }

    /// The gRPC status message: the code, so that it can be matched, and the detail.
    pub fn grpc_message(&self) -> String {
        format!("{}: {}", self.reject.code, self.reject.detail)
    }

    /// The headers of the reply; those of an HTTP body only if there is one.
    pub fn headers(&self) -> Vec<(&'static str, String)> {
        let mut headers = vec![(CODE_HEADER, self.reject.code.name().to_owned())];
        if !self.grpc {
            headers.push(("content-type", "application/problem+json".to_owned()));
            headers.push(("cache-control", "no-store".to_owned()));
        }
        match self.status() {
            401 => headers.push(("www-authenticate", self.challenge())),
            // RFC 9110 §11.7.1: each 407 has one. RFC 7617 has no room in it for what was wrong.
            407 => headers.push(("proxy-authenticate", "Basic realm=\"airflow-envoy\"".to_owned())),
            _ => {}
        }
        if let Some(span) = self.retry_after {
            headers.push(("retry-after", span.as_secs_ceil().max(1).to_string()));
        }
        headers
    }

    /// RFC 6750 §3: a caller without any credential learns the scheme, others what was wrong.
    fn challenge(&self) -> String {
        if matches!(self.reject.code, Code::TokenMissing | Code::PeerMissing | Code::PeerInvalid) {
            return "Bearer realm=\"airflow-envoy\"".to_owned();
        }
        // RFC 6750 §3: %x20-21 / %x23-5B / %x5D-7E
        let description: String = self
            .reject
            .detail
            .chars()
            .map(|char| match char {
                '"' | '\\' => '\'',
                ' '..='~' => char,
                _ => '?',
            })
            .collect();
        format!(
            "Bearer realm=\"airflow-envoy\", error=\"invalid_token\", error_description=\"{description}\""
        )
    }

    /// The body: problem details (RFC 9457).
    pub fn body(&self) -> String {
        let reject = &self.reject;
        let mut problem = Map::new();
        let mut member = |name: &str, value: Value| problem.insert(name.to_owned(), value);
        member("type", format!("urn:airflow-envoy:code:{}", reject.code).into());
        member("title", reject.code.title().into());
        member("status", self.status().into());
        member("code", reject.code.name().into());
        member("detail", reject.detail.as_str().into());
        member("action", reject.action().into());
        member("decision_id", self.decision_id.as_str().into());
        if let Some(rule) = &reject.rule {
            member("rule", rule.as_str().into());
        }
        if let Some(nearest) = &reject.nearest {
            member("nearest", nearest.as_str().into());
        }
        Value::Object(problem).to_string()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rejection(code: Code, detail: &str) -> Rejection {
        Rejection {
            reject: Reject::new(code, detail),
            decision_id: DecisionId::new(1, 2),
            retry_after: None,
            grpc: false,
            by_proxy: false,
            known: Known::default(),
        }
    }

    fn header(rejection: &Rejection, name: &str) -> Option<String> {
        rejection.headers().into_iter().find(|(known, _)| *known == name).map(|(_, value)| value)
    }

    #[test]
    fn the_body_is_problem_details_with_the_code() {
        let mut rejection = rejection(Code::PolicyNoMatch, "no rule");
        rejection.reject.nearest = Some("ds-reads-orders".to_owned());
        let body: Value = serde_json::from_str(&rejection.body()).unwrap();
        assert_eq!(
            body,
            json!({
                "type": "urn:airflow-envoy:code:policy_no_match",
                "title": "No rule allows this call",
                "status": 403,
                "code": "policy_no_match",
                "detail": "no rule",
                "action": "ask who keeps the policy to allow this call, with `decision_id` and `detail`; \
                           the nearest rule is `ds-reads-orders`",
                "decision_id": "00000000000000010000000000000002",
                "nearest": "ds-reads-orders",
            })
        );
        assert_eq!(header(&rejection, CODE_HEADER).as_deref(), Some("policy_no_match"));
        assert_eq!(header(&rejection, "www-authenticate"), None);
    }

    #[test]
    fn only_a_caller_with_a_credential_is_told_what_was_wrong_with_it() {
        let missing = header(&rejection(Code::TokenMissing, "x"), "www-authenticate").unwrap();
        assert_eq!(missing, "Bearer realm=\"airflow-envoy\"");
        let wrong = rejection(Code::TokenExpired, "a \"quoted\\\" é\r\n");
        assert_eq!(
            header(&wrong, "www-authenticate").unwrap(),
            "Bearer realm=\"airflow-envoy\", error=\"invalid_token\", \
             error_description=\"a 'quoted'' ???\""
        );
    }

    #[test]
    fn callers_of_a_proxy_are_asked_by_the_proxy() {
        for (code, status) in [
            (Code::TokenMissing, 407),
            (Code::IdentityExpired, 407),
            (Code::PolicyDenied, 403),
            (Code::RequestMalformed, 400),
            (Code::KeysUnavailable, 503),
        ] {
            let rejection = Rejection { by_proxy: true, ..rejection(code, "x") };
            assert_eq!(rejection.status(), status, "{code}");
            let body: Value = serde_json::from_str(&rejection.body()).unwrap();
            assert_eq!(body["status"], status);
            let challenge = (status == 407).then_some("Basic realm=\"airflow-envoy\"");
            assert_eq!(header(&rejection, "proxy-authenticate").as_deref(), challenge, "{code}");
            assert_eq!(header(&rejection, "www-authenticate"), None);
            let of_server = Rejection { by_proxy: false, ..rejection.clone() };
            assert_eq!(of_server.grpc_status(), rejection.grpc_status());
        }
    }

    #[test]
    fn unavailability_says_when_to_try_again() {
        let mut rejection = rejection(Code::KeysUnavailable, "x");
        rejection.retry_after = Some(Span::from_millis(1));
        assert_eq!(header(&rejection, "retry-after").as_deref(), Some("1"));
    }

    #[test]
    fn every_code_has_a_grpc_status_of_its_class() {
        for &code in Code::ALL {
            let expected = match code.status() {
                400 => 3,
                401 => 16,
                403 => 7,
                431 => 8,
                503 => 14,
                other => panic!("{code} has status {other}"),
            };
            assert_eq!(rejection(code, "").grpc_status(), expected, "{code}");
        }
        assert_eq!(
            rejection(Code::TokenExpired, "at noon").grpc_message(),
            "token_expired: at noon"
        );
    }
}
