//! The signature algorithms, by name.

use std::fmt;

/// Defines [`Algorithm`] once: variant and registered name.
macro_rules! algorithms {
    ($($variant:ident $name:literal $meaning:literal;)+) => {
        /// A digital signature algorithm of the JOSE registry (RFC 7518 §3.1, RFC 8037 §3.1).
        ///
        /// Closed on purpose: the `HS*` family would make a verification key a signing key, and
        /// `none` is no signature, so neither can be named, configured or reached.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Algorithm {
            $(#[doc = $meaning] $variant,)+
        }

        impl Algorithm {
            /// Every algorithm.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The registered name.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }
        }
    };
}

algorithms! {
    Rs256 "RS256" "RSASSA-PKCS1-v1_5 with SHA-256 (RFC 7518 §3.3).";
    Rs384 "RS384" "RSASSA-PKCS1-v1_5 with SHA-384 (RFC 7518 §3.3).";
    Rs512 "RS512" "RSASSA-PKCS1-v1_5 with SHA-512 (RFC 7518 §3.3).";
    Ps256 "PS256" "RSASSA-PSS with SHA-256 and MGF1 (RFC 7518 §3.5).";
    Ps384 "PS384" "RSASSA-PSS with SHA-384 and MGF1 (RFC 7518 §3.5).";
    Ps512 "PS512" "RSASSA-PSS with SHA-512 and MGF1 (RFC 7518 §3.5).";
    Es256 "ES256" "ECDSA on P-256 with SHA-256 (RFC 7518 §3.4).";
    Es384 "ES384" "ECDSA on P-384 with SHA-384 (RFC 7518 §3.4).";
    Es512 "ES512" "ECDSA on P-521 with SHA-512 (RFC 7518 §3.4).";
    EdDsa "EdDSA" "Ed25519 (RFC 8037 §3.1); Ed448 is not supported.";
}

impl Algorithm {
    /// The algorithm called `name`, compared case-sensitively (RFC 8725 §3.1). `Ed25519` is the
    /// fully specified name of [`Algorithm::EdDsa`] (RFC 9864 §2.2).
    pub fn from_name(name: &str) -> Option<Self> {
        if name == "Ed25519" {
            return Some(Self::EdDsa);
        }
        Self::ALL.iter().copied().find(|algorithm| algorithm.name() == name)
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_exact_and_asymmetric() {
        for algorithm in Algorithm::ALL {
            assert_eq!(Algorithm::from_name(algorithm.name()), Some(*algorithm));
        }
        assert_eq!(Algorithm::from_name("Ed25519"), Some(Algorithm::EdDsa));
        for name in [
            "", "none", "None", "noNE", "HS256", "HS384", "HS512", "rs256", "RS256 ", "Rs256",
            "eddsa", "EDDSA", "ed25519", "Ed448", "ES256K", "RS1", "RSA-OAEP", "dir",
        ] {
            assert_eq!(Algorithm::from_name(name), None, "{name:?}");
        }
    }
}
