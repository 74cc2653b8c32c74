//! Signature verification by Envoy's own cryptographic library, many times faster than in wasm.
//!
//! Envoy offers it as the foreign function `verify_signature`. A host need not have it, and need not
//! have it right: each algorithm is used only after it accepted a known signature and refused a
//! changed one; every other algorithm is verified here.

use airflow_envoy_core::jose::{
    Algorithm, Jws, KeySet, PublicKey, RustCrypto, SignatureVerifier, ecdsa_signature_der,
};
use airflow_envoy_core::limits::Limits;
use proxy_wasm::hostcalls;

/// Verifies by the host what the host was found to verify correctly.
#[derive(Debug, Clone, Default)]
pub(crate) struct HostCrypto {
    trusted: Vec<Algorithm>,
}

impl HostCrypto {
    /// Asks the host the known answers.
    pub(crate) fn probe() -> Self {
        let trusted =
            KNOWN_ANSWERS.into_iter().filter(KnownAnswer::is_given).map(|known| known.algorithm);
        Self { trusted: trusted.collect() }
    }

    /// The algorithms that the host verifies.
    pub(crate) fn trusted(&self) -> &[Algorithm] {
        &self.trusted
    }
}

impl SignatureVerifier for HostCrypto {
    fn verify(
        &self,
        key: &PublicKey,
        algorithm: Algorithm,
        message: &[u8],
        signature: &[u8],
    ) -> bool {
        let by_host = self.trusted.contains(&algorithm);
        // A host that could not answer is no verdict.
        by_host
            .then(|| ask(key, algorithm, message, signature))
            .flatten()
            .unwrap_or_else(|| RustCrypto.verify(key, algorithm, message, signature))
    }
}

/// Asks the host; `None` if it cannot answer.
fn ask(key: &PublicKey, algorithm: Algorithm, message: &[u8], signature: &[u8]) -> Option<bool> {
    let (hash, signature) = match algorithm {
        Algorithm::Rs256 => ("sha256", signature.to_vec()),
        Algorithm::Es256 => ("sha256", ecdsa_signature_der(signature)),
        _ => return None,
    };
    // VerifySignatureArguments: hash_function = 1, public_key = 2 (SubjectPublicKeyInfo), signature = 3, text = 4
    let mut arguments = Vec::with_capacity(message.len().saturating_add(1024));
    let key = key.subject_public_key_info();
    for (field, bytes) in [(1, hash.as_bytes()), (2, &key), (3, &signature), (4, message)] {
        length_delimited(&mut arguments, field, bytes);
    }
    let result = hostcalls::call_foreign_function("verify_signature", Some(&arguments)).ok()?;
    // VerifySignatureResult: result = 1 (bool; false is not encoded), error = 2
    Some(result?.starts_with(&[0x08, 0x01]))
}

/// A field of a protobuf message whose value is bytes.
fn length_delimited(message: &mut Vec<u8>, field: u8, bytes: &[u8]) {
    message.push((field << 3) | 2);
    let mut length = bytes.len();
    while length >= 0x80 {
        message.push((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    message.push(length as u8);
    message.extend_from_slice(bytes);
}

/// A signature that must verify, and after a change must not.
struct KnownAnswer {
    algorithm: Algorithm,
    keys: &'static str,
    token: &'static str,
}

impl KnownAnswer {
    /// Whether the host accepts the signature and refuses a changed one.
    fn is_given(&self) -> bool {
        let host = HostCrypto { trusted: vec![self.algorithm] };
        let limits = &Limits::DEFAULT;
        let Ok((keys, _)) = KeySet::parse(self.keys.as_bytes(), limits) else { return false };
        let verifies = |token: &str| {
            Jws::parse(token.as_bytes(), limits.token_bytes, limits)
                .is_ok_and(|jws| jws.verify(&[self.algorithm], &keys, &host).is_ok())
        };
        // Another signature of the same length: the last but one character, for the last has unused bits.
        let mut changed = self.token.to_owned();
        let (last, before) = (changed.pop(), changed.pop());
        changed.push(if before == Some('A') { 'B' } else { 'A' });
        changed.extend(last);
        self.answered_by_host(&keys) && verifies(self.token) && !verifies(&changed)
    }

    /// Whether it is the host that answers, not [`RustCrypto`] in its stead.
    fn answered_by_host(&self, keys: &KeySet) -> bool {
        keys.keys().first().is_some_and(|key| {
            ask(key, self.algorithm, b"", &vec![0; key.signature_length()]).is_some()
        })
    }
}

/// RFC 7515, appendices A.2 and A.3.
const KNOWN_ANSWERS: [KnownAnswer; 2] = [
    KnownAnswer {
        algorithm: Algorithm::Rs256,
        keys: "{\"keys\":[{\"kty\":\"RSA\",\"n\":\"ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W2\
     6mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-\
     pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-\
     bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-\
     UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-\
     DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ\",\"e\":\"AQAB\"}]}",
        token: "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGx\
     lLmNvbS9pc19yb290Ijp0cnVlfQ.cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5R\
     Zmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--\
     f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--\
     xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLI\
     hWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw",
    },
    KnownAnswer {
        algorithm: Algorithm::Es256,
        keys: "{\"keys\":[{\"kty\":\"EC\",\"crv\":\"P-\
     256\",\"x\":\"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU\",\"y\":\"x_FEzRu9m36HLN_tue65\
     9LNpXW6pCyStikYjKIWI5a0\"}]}",
        token: "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGx\
     lLmNvbS9pc19yb290Ijp0cnVlfQ.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-\
     F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q",
    },
];
