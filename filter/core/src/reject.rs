//! The closed list of reasons to refuse a request, and a refusal with its explanation.
//!
//! A code is used unchanged in the reply, the access log, the metric and the README's table.

use std::fmt;

/// Defines [`Code`] once: variant, name, HTTP status, title.
macro_rules! codes {
    ($($variant:ident $name:literal $status:literal $title:literal;)+) => {
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
        }
    };
}

codes! {
    RequestMalformed "request_malformed" 400 "The request cannot be read unambiguously";
    HeaderRepeated "header_repeated" 400 "A security header is repeated";
    AuthorityInvalid "authority_invalid" 400 "The authority is not a host and port";
    PathInvalid "path_invalid" 400 "The path cannot be normalised safely";

    TokenTooLarge "token_too_large" 431 "The access token is too large";
    TokenMissing "token_missing" 401 "No access token";
    TokenSchemeUnsupported "token_scheme_unsupported" 401 "The authorization scheme is not Bearer";
    TokenMalformed "token_malformed" 401 "The access token is not a well-formed JWS";
    TokenHeaderUnsupported "token_header_unsupported" 401 "The access token's header asks for something that is not supported";
    TokenTypeMismatch "token_type_mismatch" 401 "The access token is of another type";
    TokenIssuerUnknown "token_issuer_unknown" 401 "The access token's issuer is not trusted";
    TokenAlgorithmNotAllowed "token_algorithm_not_allowed" 401 "The access token's algorithm is not allowed for its issuer";
    TokenKeyUnknown "token_key_unknown" 401 "The access token's key is not in its issuer's key set";
    TokenKeyUnsuitable "token_key_unsuitable" 401 "The access token's key may not be used for its algorithm";
    TokenSignatureInvalid "token_signature_invalid" 401 "The access token's signature is invalid";
    TokenClaimInvalid "token_claim_invalid" 401 "A claim of the access token is missing or of the wrong kind";
    TokenAudienceMismatch "token_audience_mismatch" 401 "The access token is for another audience";
    TokenExpired "token_expired" 401 "The access token has expired";
    TokenNotYetValid "token_not_yet_valid" 401 "The access token is not valid yet";
    TokenLifetimeTooLong "token_lifetime_too_long" 401 "The access token lives longer than its issuer is allowed";
    TokenBindingUnmet "token_binding_unmet" 401 "The access token is bound to a key that the caller did not prove";

    IdentityTooLarge "identity_too_large" 431 "The Airflow identity is too large";
    IdentityMissing "identity_missing" 401 "No Airflow identity";
    IdentityMalformed "identity_malformed" 401 "The Airflow identity is not a well-formed JWS";
    IdentityHeaderUnsupported "identity_header_unsupported" 401 "The Airflow identity's header asks for something that is not supported";
    IdentityTypeMismatch "identity_type_mismatch" 401 "The Airflow identity is of another type";
    IdentityIssuerUnknown "identity_issuer_unknown" 401 "The Airflow identity's issuer is not trusted";
    IdentityAlgorithmNotAllowed "identity_algorithm_not_allowed" 401 "The Airflow identity's algorithm is not allowed for its issuer";
    IdentityKeyUnknown "identity_key_unknown" 401 "The Airflow identity's key is not in its issuer's key set";
    IdentityKeyUnsuitable "identity_key_unsuitable" 401 "The Airflow identity's key may not be used for its algorithm";
    IdentitySignatureInvalid "identity_signature_invalid" 401 "The Airflow identity's signature is invalid";
    IdentityClaimInvalid "identity_claim_invalid" 401 "A claim of the Airflow identity is missing or of the wrong kind";
    IdentityAudienceMismatch "identity_audience_mismatch" 401 "The Airflow identity is for another audience";
    IdentityExpired "identity_expired" 401 "The Airflow identity has expired";
    IdentityNotYetValid "identity_not_yet_valid" 401 "The Airflow identity is not valid yet";
    IdentityLifetimeTooLong "identity_lifetime_too_long" 401 "The Airflow identity lives longer than its issuer is allowed";
    IdentityBindingUnmet "identity_binding_unmet" 401 "The Airflow identity is bound to another access token";
    IdentityHeaderMismatch "identity_header_mismatch" 401 "A plain Airflow header contradicts the Airflow identity";

    DestinationUnknown "destination_unknown" 403 "No policy for this destination";
    PolicyNoMatch "policy_no_match" 403 "No rule allows this call";
    PolicyDenied "policy_denied" 403 "A rule denies this call";

    KeysUnavailable "keys_unavailable" 503 "The issuer's keys are not available";
    PolicyUnavailable "policy_unavailable" 503 "The policy is not available";
    WaitingRoomFull "waiting_room_full" 503 "Too many requests wait for keys or policy";
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
}

impl Reject {
    /// A refusal that no rule caused.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into(), rule: None, nearest: None }
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
}
