//! One generic check for every algorithm: what was changed in any way is refused.

use std::sync::LazyLock;

use airflow_envoy_core::jose::{
    Algorithm, Jws, KeySet, PublicKey, RustCrypto, SignatureVerifier, VerifyError,
};
use airflow_envoy_core::limits::Limits;
use airflow_envoy_core::pace::{Pace, at_once};
use jwt_compact::AlgorithmSignature as _;
use rsa::traits::PublicKeyParts as _;
use serde_json::json;
use sha2::Sha256;

use crate::signers::{self, Seeded, decode, encode, jwk, key_set, sign, signed};

const PAYLOAD: &str = r#"{"iss":"https://idp.example","sub":"airflow:etl/load","aud":"orders"}"#;

/// Whether the text is a message signed by the key of `signers` for `algorithm`.
fn verifies(text: impl AsRef<[u8]>, algorithm: Algorithm) -> bool {
    static KEYS: LazyLock<Vec<KeySet>> = LazyLock::new(|| {
        Algorithm::ALL.iter().map(|algorithm| key_set(&[jwk(*algorithm)])).collect()
    });
    let keys = &KEYS[algorithm as usize];
    let verified = Jws::parse(text.as_ref(), usize::MAX, &Limits::DEFAULT)
        .is_ok_and(|jws| jws.verify(Algorithm::ALL, keys, &RustCrypto).is_ok());
    let pace = Pace::unhurried();
    let at_a_pace = at_once(async {
        let jws = Jws::parse_at(text.as_ref(), usize::MAX, &Limits::DEFAULT, &pace).await;
        match jws {
            Ok(jws) => jws.verify_at(Algorithm::ALL, keys, &pace).await.is_ok(),
            Err(_) => false,
        }
    });
    assert_eq!(at_a_pace, verified, "{}", String::from_utf8_lossy(text.as_ref()));
    verified
}

fn message(algorithm: Algorithm) -> String {
    let header = json!({"alg": algorithm.name(), "kid": "key", "typ": "at+jwt"});
    let text = signed(algorithm, &header, PAYLOAD);
    assert!(verifies(&text, algorithm), "{algorithm}");
    text
}

/// `text` with its signature replaced.
fn with_signature(text: &str, signature: &[u8]) -> String {
    let (input, _) = text.rsplit_once('.').unwrap();
    format!("{input}.{}", encode(signature))
}

fn signature(text: &str) -> Vec<u8> {
    decode(text.rsplit_once('.').unwrap().1)
}

#[test]
fn a_changed_bit_anywhere_is_refused() {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    for algorithm in Algorithm::ALL.iter().copied() {
        let text = message(algorithm);
        let mut tried = 0;
        for (part, start, end) in parts(&text) {
            // Every sextet near the ends of a part, where lengths and trailing bits are, and a
            // sample of the rest.
            let sample = (start..end).filter(|at| at - start < 4 || end - at <= 3 || at % 11 == 0);
            for at in sample {
                let value = ALPHABET.iter().position(|c| *c == text.as_bytes()[at]).unwrap();
                for bit in 0..6 {
                    let mut changed = text.clone().into_bytes();
                    changed[at] = ALPHABET[value ^ 1 << bit];
                    assert!(!verifies(&changed, algorithm), "{algorithm} {part} at {at} bit {bit}");
                    tried += 1;
                }
            }
        }
        assert!(tried > 150, "{algorithm}");
    }
}

#[test]
fn a_text_that_is_longer_shorter_or_spelt_otherwise_is_refused() {
    for algorithm in Algorithm::ALL.iter().copied() {
        let text = message(algorithm);
        let mut changed: Vec<Vec<u8>> = Vec::new();
        for more in ["=", ".", " ", "\n", "\0", "A", "AA", "AAA", "AAAA", ".AAAA"] {
            changed.push(format!("{text}{more}").into());
            changed.push(format!("{more}{text}").into());
        }
        let octets = text.as_bytes();
        for (_, start, end) in parts(&text) {
            changed.push([&octets[..start], &octets[end..]].concat());
            changed.push([&octets[..end - 1], &octets[end..]].concat());
            changed.push([&octets[..start], &octets[start + 1..]].concat());
            changed.push([&octets[..end], b"=", &octets[end..]].concat());
            changed.push([&octets[..start + 2], b"\n", &octets[start + 2..]].concat());
        }
        changed.push(text.replace('.', ":").into());
        for changed in changed {
            let told = changed.escape_ascii().to_string();
            assert!(!verifies(changed, algorithm), "{algorithm} {told}");
        }
        let other_alphabet = text.replace('-', "+").replace('_', "/");
        assert_eq!(verifies(&other_alphabet, algorithm), other_alphabet == text, "{algorithm}");
    }
}

#[test]
fn a_signature_of_another_shape_is_refused() {
    for algorithm in Algorithm::ALL.iter().copied() {
        let text = message(algorithm);
        let genuine = signature(&text);
        let half = genuine.len() / 2;
        let (r, s) = genuine.split_at(half);
        let zeros = vec![0; half];
        for (what, forged) in [
            ("shorter at the end", genuine[..genuine.len() - 1].to_vec()),
            ("shorter at the front", genuine[1..].to_vec()),
            ("half", r.to_vec()),
            ("longer at the end", [&genuine[..], &[0]].concat()),
            ("longer at the front", [&[0], &genuine[..]].concat()),
            ("both halves longer, as one who splits in the middle reads it", {
                [&[0], r, &[0], s].concat()
            }),
            ("halves swapped", [s, r].concat()),
            ("first half zero", [&zeros, s].concat()),
            ("second half zero", [r, &zeros].concat()),
            ("all zero", vec![0; genuine.len()]),
            ("one", [&vec![0; genuine.len() - 1][..], &[1]].concat()),
            ("all ones", vec![0xff; genuine.len()]),
            ("twice", genuine.repeat(2)),
            ("of another message", sign(algorithm, b"another message")),
            ("ASN.1 DER", [&[0x30, 0x44, 0x02, 0x20][..], r, &[0x02, 0x20], s].concat()),
        ] {
            assert!(!verifies(with_signature(&text, &forged), algorithm), "{algorithm}: {what}");
        }
    }
}

#[test]
fn a_key_verifies_its_own_algorithm_only() {
    for of_key in Algorithm::ALL.iter().copied() {
        for of_header in Algorithm::ALL.iter().copied() {
            // Signed by the key's algorithm; the header names another one.
            let header = json!({"alg": of_header.name(), "kid": "key"});
            let text = signed(of_key, &header, PAYLOAD);
            assert_eq!(verifies(&text, of_key), of_key == of_header, "{of_key} as {of_header}");
            // And past the header: the verifier itself, asked wrongly.
            let key = PublicKey::from_jwk(&jwk(of_key), &Limits::DEFAULT).unwrap();
            let signature = sign(of_key, b"message");
            let verified = RustCrypto.verify(&key, of_header, b"message", &signature);
            assert_eq!(verified, of_key == of_header, "{of_key} as {of_header}");
        }
    }
}

/// RFC 8725 §2.1: a verifier that lets the message choose takes the public key for a secret.
#[test]
fn a_public_key_is_never_taken_for_a_secret() {
    for algorithm in Algorithm::ALL.iter().copied() {
        let jwk = jwk(algorithm);
        let modulus = decode(jwk["n"].as_str().or(jwk["x"].as_str()).unwrap());
        for secret in [modulus, jwk.to_string().into_bytes(), Vec::new()] {
            for name in ["HS256", algorithm.name()] {
                let header = json!({"alg": name, "kid": "key"});
                let text = signers::hmac_signed(&header, PAYLOAD, &secret);
                assert!(!verifies(&text, algorithm), "{algorithm} {name}");
            }
        }
    }
}

#[test]
fn none_is_refused_in_any_spelling_with_any_signature() {
    for name in ["none", "None", "NONE", "noNE", "nOnE", "", "null"] {
        let header = json!({"alg": name, "kid": "key"});
        let text = signed(Algorithm::Es256, &header, PAYLOAD);
        let keys = key_set(&[jwk(Algorithm::Es256)]);
        let jws = Jws::parse(text.as_bytes(), usize::MAX, &Limits::DEFAULT).unwrap();
        let error = jws.verify(Algorithm::ALL, &keys, &RustCrypto).unwrap_err();
        assert!(matches!(error, VerifyError::AlgorithmNotAllowed { .. }), "{name}: {error}");
        assert!(!verifies(format!("{}.", text.rsplit_once('.').unwrap().0), Algorithm::Es256));
    }
}

/// RFC 7518 §3.5: the salt is as long as the hash.
#[test]
fn a_pss_salt_of_another_length_is_refused() {
    use sha2::Digest as _;
    let keys = key_set(&[jwk(Algorithm::Ps256)]);
    let input = format!("{}.{}", encode(r#"{"alg":"PS256","kid":"key"}"#), encode(PAYLOAD));
    for (salt, expected) in [(32, true), (0, false), (20, false), (31, false), (64, false)] {
        let padding = rsa::Pss::new_with_salt::<Sha256>(salt);
        let digest = Sha256::digest(&input);
        let signature =
            signers::rsa_key().sign_with_rng(&mut Seeded::new("salt"), padding, &digest).unwrap();
        let text = format!("{input}.{}", encode(signature));
        let jws = Jws::parse(text.as_bytes(), usize::MAX, &Limits::DEFAULT).unwrap();
        let verified = jws.verify(Algorithm::ALL, &keys, &RustCrypto).is_ok();
        assert_eq!(verified, expected, "salt of {salt} octets");
    }
}

/// A known divergence from "one message, one signature": with (r, s) also (r, n - s) is a signature
/// (FIPS 186-5 asks for neither, RFC 7518 §3.4 allows both). Nothing may take the text of a
/// credential for its identity where it matters that there is only one, as in a replay store.
#[test]
fn the_twin_of_an_ecdsa_signature_is_one_too() {
    let text = message(Algorithm::Es256);
    let genuine = p256::ecdsa::Signature::try_from_slice(&signature(&text)).unwrap();
    let (r, s) = genuine.split_scalars();
    let twin = p256::ecdsa::Signature::from_scalars(r, -s).unwrap();
    assert_ne!(genuine, twin);
    assert!(verifies(with_signature(&text, &twin.to_bytes()), Algorithm::Es256));
    let padded = [&[0], &twin.to_bytes()[..32], &[0], &twin.to_bytes()[32..]].concat();
    assert!(!verifies(with_signature(&text, &padded), Algorithm::Es256));
}

#[test]
fn an_rsa_key_may_have_any_length_from_2048_bits_on() {
    for bits in [2048, 2056, 2100] {
        let key = rsa::RsaPrivateKey::new(&mut Seeded::new(bits.to_string()), bits).unwrap();
        let (n, e) = (key.n().to_bytes_be(), key.e().to_bytes_be());
        let jwk = json!({"kty": "RSA", "n": encode(&n), "e": encode(&e)});
        // Leading zeros, which some libraries write, change neither the key nor its name.
        let padded =
            json!({"kty": "RSA", "n": encode([&[0], &n[..]].concat()), "e": encode([0, 1, 0, 1])});
        let jwk = PublicKey::from_jwk(&jwk, &Limits::DEFAULT).unwrap();
        let padded = PublicKey::from_jwk(&padded, &Limits::DEFAULT).unwrap();
        assert_eq!(jwk.thumbprint(), padded.thumbprint());
        assert_eq!(jwk.signature_length(), bits.div_ceil(8));
        use jwt_compact::Algorithm as _;
        for (algorithm, scheme) in [
            (Algorithm::Rs256, jwt_compact::alg::Rsa::rs256()),
            (Algorithm::Ps512, jwt_compact::alg::Rsa::ps512()),
        ] {
            let signature = scheme.sign(&key, b"message").as_bytes().into_owned();
            for key in [&jwk, &padded] {
                assert!(RustCrypto.verify(key, algorithm, b"message", &signature), "{bits}");
                assert!(!RustCrypto.verify(key, algorithm, b"massage", &signature), "{bits}");
            }
        }
    }
}

/// The parts of a compact serialization: name, start, end.
fn parts(text: &str) -> [(&'static str, usize, usize); 3] {
    let first = text.find('.').unwrap();
    let second = text.rfind('.').unwrap();
    [("header", 0, first), ("payload", first + 1, second), ("signature", second + 1, text.len())]
}
