//! The closed list of reasons to refuse a request, and a refusal with its explanation.
//!
//! A code is used unchanged in the reply, the access log, the metric and the README's table.

use std::fmt;

/// Defines [`Code`] once: variant, name, HTTP status, title, action.
macro_rules! codes {
    ($($variant:ident $name:literal $status:literal $title:literal $action:literal;)+) => {
        /// Why a request was refused. Closed: tooling may enumerate it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Code {
            $(#[doc = $title] $variant,)+
        }

        impl Code {
            /// Every code, in the order of the README's table.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The stable name, `snake_case`.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// The HTTP status of the reply (RFC 9110 §15).
            pub const fn status(self) -> u16 {
                match self { $(Self::$variant => $status,)+ }
            }

            /// The short, human-readable summary of the reply (RFC 9457 §3.1.3).
            pub const fn title(self) -> &'static str {
                match self { $(Self::$variant => $title,)+ }
            }

            /// What to do about it: for who reads the log of an Airflow task.
            pub const fn action(self) -> &'static str {
                match self { $(Self::$variant => $action,)+ }
            }
        }
    };
}

codes! {
    RequestMalformed "request_malformed" 400 "The request cannot be read unambiguously"
        "send the request in plain HTTP form, as `detail` says; an HTTP library or a proxy before Envoy wrote it otherwise";
    HeaderRepeated "header_repeated" 400 "A security header is repeated"
        "send this header once; a DAG that sets it beside the Airflow connection leaves it out";
    AuthorityInvalid "authority_invalid" 400 "The authority is not a host and port"
        "correct the host and port of the Airflow connection or of the URL";
    PathInvalid "path_invalid" 400 "The path cannot be normalised safely"
        "correct the path of the URL as `detail` says";

    TokenTooLarge "token_too_large" 431 "The access token is too large"
        "ask who runs the OIDC provider for an access token with fewer claims";
    TokenMissing "token_missing" 401 "No access token"
        "mark the Airflow connection with the extra `X-Airflow-Envoy`, or use proxy mode: this call carried no access token";
    TokenSchemeUnsupported "token_scheme_unsupported" 401 "The authorization scheme is not supported"
        "leave login, password and `Authorization` out of the Airflow connection and the code: Envoy reads them as the caller's";
    TokenMalformed "token_malformed" 401 "The access token is not a well-formed JWS"
        "leave `Authorization` out of the Airflow connection and the code: what was sent is no access token of the OIDC provider";
    TokenHeaderUnsupported "token_header_unsupported" 401 "The access token's header asks for something that is not supported"
        "ask who runs the OIDC provider for plain signed access tokens (JWS)";
    TokenTypeMismatch "token_type_mismatch" 401 "The access token is of another type"
        "ask who runs the OIDC provider for access tokens; an ID token is none";
    TokenIssuerUnknown "token_issuer_unknown" 401 "The access token's issuer is not trusted"
        "ask who runs Envoy and Airflow to name the same OIDC provider";
    TokenAlgorithmNotAllowed "token_algorithm_not_allowed" 401 "The access token's algorithm is not allowed for its issuer"
        "ask who runs Envoy and the OIDC provider to agree on an algorithm";
    TokenKeyUnknown "token_key_unknown" 401 "The access token's key is not in its issuer's key set"
        "retry later; if it stays, ask who runs the OIDC provider whether its key set has the key that signs";
    TokenKeyUnsuitable "token_key_unsuitable" 401 "The access token's key may not be used for its algorithm"
        "ask who runs the OIDC provider to mend the key in its key set";
    TokenSignatureInvalid "token_signature_invalid" 401 "The access token's signature is invalid"
        "read the Airflow connection again for fresh credentials; if it stays, tell who runs Envoy: the access token was changed or forged";
    TokenClaimInvalid "token_claim_invalid" 401 "A claim of the access token is missing or of the wrong kind"
        "ask who runs the OIDC provider to issue the claim as `detail` says";
    TokenAudienceMismatch "token_audience_mismatch" 401 "The access token is for another audience"
        "name an audience in the connection's `X-Airflow-Envoy` that Envoy accepts, or ask who runs Airflow which one it is";
    TokenExpired "token_expired" 401 "The access token has expired"
        "read the Airflow connection again for each call: its access token is short-lived";
    TokenNotYetValid "token_not_yet_valid" 401 "The access token is not valid yet"
        "ask who runs the machines to set their clocks right";
    TokenLifetimeTooLong "token_lifetime_too_long" 401 "The access token lives longer than its issuer is allowed"
        "ask who runs the OIDC provider for access tokens that live shorter";
    TokenBindingUnmet "token_binding_unmet" 401 "The access token is bound to a key that the caller did not prove"
        "ask who runs the OIDC provider for access tokens that are bound to no key";
    TokenAmbiguous "token_ambiguous" 401 "Two access tokens, of different callers"
        "leave one of them out, or run the task again: the proxy's credentials and the connection's are of two callers";

    IdentityTooLarge "identity_too_large" 431 "The Airflow identity is too large"
        "ask who runs Airflow why the identity is so large; `owners`, `tags` and `roles` of the DAG are in it";
    IdentityMissing "identity_missing" 401 "No Airflow identity"
        "mark the Airflow connection with the extra `X-Airflow-Envoy`, or use proxy mode: this call carried no Airflow identity";
    IdentityMalformed "identity_malformed" 401 "The Airflow identity is not a well-formed JWS"
        "leave `X-Airflow-Identity` out of the Airflow connection and the code: only the plugin writes it";
    IdentityHeaderUnsupported "identity_header_unsupported" 401 "The Airflow identity's header asks for something that is not supported"
        "ask who runs Airflow to install the airflow-envoy plugin that fits Envoy's filter";
    IdentityTypeMismatch "identity_type_mismatch" 401 "The Airflow identity is of another type"
        "leave `X-Airflow-Identity` out of the Airflow connection and the code: what was sent is no Airflow identity";
    IdentityIssuerUnknown "identity_issuer_unknown" 401 "The Airflow identity's issuer is not trusted"
        "ask who runs Envoy and Airflow to name the same issuer of identities";
    IdentityAlgorithmNotAllowed "identity_algorithm_not_allowed" 401 "The Airflow identity's algorithm is not allowed for its issuer"
        "ask who runs Envoy and Airflow to agree on an algorithm";
    IdentityKeyUnknown "identity_key_unknown" 401 "The Airflow identity's key is not in its issuer's key set"
        "retry later; if it stays, ask who runs Airflow whether the key that signs is published";
    IdentityKeyUnsuitable "identity_key_unsuitable" 401 "The Airflow identity's key may not be used for its algorithm"
        "ask who runs Airflow to mend the key in its key set";
    IdentitySignatureInvalid "identity_signature_invalid" 401 "The Airflow identity's signature is invalid"
        "read the Airflow connection again for fresh credentials; if it stays, tell who runs Envoy: the identity was changed or forged";
    IdentityClaimInvalid "identity_claim_invalid" 401 "A claim of the Airflow identity is missing or of the wrong kind"
        "ask who runs Airflow to install the airflow-envoy plugin that fits Envoy's filter";
    IdentityAudienceMismatch "identity_audience_mismatch" 401 "The Airflow identity is for another audience"
        "name an audience in the connection's `X-Airflow-Envoy` that Envoy accepts, or ask who runs Airflow which one it is";
    IdentityExpired "identity_expired" 401 "The Airflow identity has expired"
        "read the Airflow connection again for each call: its identity lives for a minute or so";
    IdentityNotYetValid "identity_not_yet_valid" 401 "The Airflow identity is not valid yet"
        "ask who runs the machines to set their clocks right";
    IdentityLifetimeTooLong "identity_lifetime_too_long" 401 "The Airflow identity lives longer than its issuer is allowed"
        "ask who runs Airflow to shorten `identity_lifetime`";
    IdentityBindingUnmet "identity_binding_unmet" 401 "The Airflow identity is bound to another access token"
        "send the access token and the identity of one and the same read of the Airflow connection";
    IdentityHeaderMismatch "identity_header_mismatch" 401 "A plain Airflow header contradicts the Airflow identity"
        "leave the plain `x-airflow-` headers out: Envoy sets them";
    IdentityAmbiguous "identity_ambiguous" 401 "Two Airflow identities, of different tasks"
        "leave one of them out, or run the task again: the proxy's credentials and the connection's are of two tasks";

    PeerMissing "peer_missing" 401 "No verified client certificate"
        "call through the mesh: with the client certificate of your service, over a new TLS connection";
    PeerInvalid "peer_invalid" 401 "The client certificate does not name exactly one workload"
        "ask who runs the mesh for a valid certificate with one SPIFFE ID, and who runs Envoy to look at `detail`";
    PeerUntrusted "peer_untrusted" 403 "The mesh peer is not trusted"
        "ask who runs Envoy whether this trust domain, or this hop, is to be trusted";
    PeerNotAllowed "peer_not_allowed" 403 "This mesh peer may not present Airflow identities"
        "call from the service that Airflow runs the task in, or ask who keeps the policy about its `agreement`";
    AssertionNotAllowed "assertion_not_allowed" 403 "This Airflow identity may not be asserted by its issuer or from this peer"
        "ask who keeps the policy whether its `agreement` should let this issuer or peer speak for the task";

    IntentionDenied "intention_denied" 403 "Consul's intentions do not allow this call"
        "ask who runs the mesh for an intention that allows this service to call, as `detail` says";
    DestinationUnknown "destination_unknown" 403 "No policy for this destination"
        "correct the host, or ask who keeps the policy to add it as a destination";
    PolicyNoMatch "policy_no_match" 403 "No rule allows this call"
        "ask who keeps the policy to allow this call, with `decision_id` and `detail`";
    PolicyDenied "policy_denied" 403 "A rule denies this call"
        "do without this call, or ask who keeps the policy about the rule that denies it";

    KeysUnavailable "keys_unavailable" 503 "The issuer's keys are not available"
        "retry after the time that `Retry-After` says; if it stays, ask who runs the issuer";
    PolicyUnavailable "policy_unavailable" 503 "The policy is not available"
        "retry after the time that `Retry-After` says; if it stays, ask who keeps the policy";
    WaitingRoomFull "waiting_room_full" 503 "Too many requests wait for keys or policy"
        "retry after the time that `Retry-After` says";
}

/// What a fault of verification was found in. The two have the same faults and their own codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Credential {
    /// The OIDC access token of the `authorization` header.
    Token,
    /// The Airflow identity of the `x-airflow-identity` header.
    Identity,
}

impl Credential {
    /// How metrics name it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Identity => "identity",
        }
    }

    /// How sentences name it.
    pub const fn noun(self) -> &'static str {
        match self {
            Self::Token => "access token",
            Self::Identity => "Airflow identity",
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// A refusal: the code and what an engineer needs to mend it. Never holds a token or a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reject {
    /// The reason.
    pub code: Code,
    /// Both sides of the comparison that failed, in a sentence without a full stop.
    pub detail: String,
    /// The rule that denied, by its id.
    pub rule: Option<String>,
    /// The allow rule that came closest, by its id.
    pub nearest: Option<String>,
    /// What could be granted so that the call is permitted, and whom to ask for it.
    pub grantable: Option<String>,
    /// The connection asks for credentials, and nobody on Airflow's side added them.
    pub unserved: bool,
}

/// What to do about a marked connection that nobody served.
pub const UNSERVED_ACTION: &str = "ask who runs Airflow to activate the airflow-envoy plugin on the API server: \
     the Airflow connection is marked with `X-Airflow-Envoy`, and nobody added its credentials";

impl Reject {
    /// A refusal that no rule caused.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self {
            code,
            detail: detail.into(),
            rule: None,
            nearest: None,
            grantable: None,
            unserved: false,
        }
    }

    /// What to do about it: that of the code, with the rule that it is about.
    pub fn action(&self) -> String {
        self.action_parts().concat()
    }

    /// The parts of [`Self::action`] in their order; the last ones may be empty.
    pub(crate) fn action_parts(&self) -> [&str; 4] {
        let missing = matches!(self.code, Code::TokenMissing | Code::IdentityMissing);
        if self.unserved && missing {
            return [UNSERVED_ACTION, "", "", ""];
        }
        let action = self.code.action();
        match (&self.grantable, &self.rule, &self.nearest) {
            (Some(grantable), ..) => [grantable, ", or ", action, ""],
            (None, Some(rule), _) => [action, ": `", rule, "`"],
            (None, None, Some(nearest)) => [action, "; the nearest rule is `", nearest, "`"],
            (None, None, None) => [action, "", "", ""],
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn code_names_are_unique_snake_case() {
        let names: BTreeSet<_> = Code::ALL.iter().map(|code| code.name()).collect();
        assert_eq!(names.len(), Code::ALL.len());
        for name in names {
            assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{name}");
        }
    }

    #[test]
    fn every_code_says_what_to_do_in_one_line() {
        for code in Code::ALL {
            let action = code.action();
            assert!((20..=160).contains(&action.len()), "{code}: {action}");
            assert!(
                action.starts_with(|first: char| first.is_ascii_lowercase()),
                "{code}: {action}"
            );
            assert!(!action.ends_with('.') && !action.contains(['\n', '|']), "{code}: {action}");
            assert_ne!(action, code.title());
        }
    }

    #[test]
    fn the_action_names_the_rule_and_knows_a_connection_that_nobody_served() {
        let mut reject = Reject::new(Code::PolicyNoMatch, "x");
        assert_eq!(reject.action(), Code::PolicyNoMatch.action());
        reject.nearest = Some("ds-reads".to_owned());
        assert!(
            reject.action().ends_with("; the nearest rule is `ds-reads`"),
            "{}",
            reject.action()
        );
        let rule = Some("no-cards".to_owned());
        let denied = Reject { rule, unserved: true, ..Reject::new(Code::PolicyDenied, "x") };
        assert!(denied.action().ends_with("about the rule that denies it: `no-cards`"));
        for code in [Code::TokenMissing, Code::IdentityMissing] {
            let unserved = Reject { unserved: true, ..Reject::new(code, "x") };
            assert_eq!(unserved.action(), UNSERVED_ACTION);
        }
    }
}
