//! The budget for work that a caller, an issuer or a policy author could make large on purpose.

/// Bounds of everything whose size somebody else chooses. Exceeding one has a reject code or a
/// document error of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a compact JWS, in a header.
    pub token_bytes: usize,
    /// Bytes of a `kid`, in a token or a key set (RFC 7515 §4.1.4 leaves it open).
    pub key_id_bytes: usize,
    /// Keys read from one key set; the rest is skipped, and said so.
    pub keys_per_set: usize,
    /// Bytes of a key set document.
    pub key_set_bytes: usize,
    /// Bits of the largest RSA modulus accepted: verification costs its square.
    pub rsa_modulus_bits: usize,
    /// Bytes of a policy document: what Envoy buffers of a callout's answer, unless its runtime key
    /// `http.async_response_buffer_limit` says otherwise. Beyond, there is no answer to see.
    pub policy_bytes: usize,
    /// Rules in a policy.
    pub policy_rules: usize,
    /// Entries of a policy's agreement: each new caller is put to all of them.
    pub policy_agreements: usize,
    /// Pairs of a destination and a path that the rules of a policy name together: a rule stands in
    /// the index once for each of its own.
    pub policy_places: usize,
    /// Grants in a document of them: each costs a signature once, and its place in the index.
    pub grants: usize,
    /// Bytes of a document of grants.
    pub grants_bytes: usize,
    /// Intentions about one destination.
    pub intentions: usize,
    /// Bytes of an answer with them.
    pub intentions_bytes: usize,
    /// Nesting of a JSON document or a token's claims.
    pub json_depth: usize,
    /// Bytes of a request's path without the query.
    pub path_bytes: usize,
    /// Path segments of a request.
    pub path_segments: usize,
    /// Rules looked at to find the nearest one for a denial's explanation.
    pub nearest_rules: usize,
}

impl Limits {
    /// The limits that the filter ships with.
    pub const DEFAULT: Self = Self {
        token_bytes: 16 * 1024,
        key_id_bytes: 256,
        keys_per_set: 100,
        key_set_bytes: 256 * 1024,
        rsa_modulus_bits: 4096,
        policy_bytes: 32 * 1024 * 1024,
        policy_rules: 200_000,
        policy_agreements: 1_000,
        policy_places: 1_000_000,
        grants: 1_000,
        grants_bytes: 4 * 1024 * 1024,
        intentions: 10_000,
        intentions_bytes: 4 * 1024 * 1024,
        json_depth: 32,
        path_bytes: 8 * 1024,
        path_segments: 128,
        nearest_rules: 64,
    };
}

impl Default for Limits {
    fn default() -> Self {
        Self::DEFAULT
    }
}
