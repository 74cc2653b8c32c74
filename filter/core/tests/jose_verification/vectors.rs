//! The examples of the RFCs, and others' test cases, as data.

use airflow_envoy_core::jose::{Algorithm, Jws, KeySet, PublicKey, RustCrypto, SignatureVerifier};
use airflow_envoy_core::limits::Limits;
use airflow_envoy_core::pace::{Pace, at_once};
use serde_json::{Value, json};

use crate::signers;

fn cases(text: &str) -> Vec<Value> {
    let cases: Vec<Value> = serde_json::from_str(text).unwrap();
    assert!(!cases.is_empty(), "a runner that runs nothing proves nothing");
    cases
}

#[test]
fn the_signed_examples_of_the_rfcs_are_verified_or_refused_as_they_should_be() {
    for case in cases(include_str!("../vectors/jws.json")) {
        let section = case["section"].as_str().unwrap();
        let mut key = case["key"].clone();
        let text = case["compact"].as_str().unwrap();
        // Many examples name no key: with one key in the set none needs to be named.
        let keys = signers::key_set(&[key.take()]);
        let result = Jws::parse(text.as_bytes(), usize::MAX, &Limits::DEFAULT)
            .map_err(|error| error.to_string())
            .and_then(|jws| match jws.verify(Algorithm::ALL, &keys, &RustCrypto) {
                Ok((algorithm, _)) => Ok((algorithm, jws.payload().to_vec())),
                Err(error) => Err(error.to_string()),
            });
        match (result, case["refused"].as_str()) {
            (Ok((algorithm, payload)), None) => {
                assert_eq!(algorithm.name(), case["verified"]["algorithm"], "{section}");
                let expected = case["verified"]["payload"].as_str().unwrap();
                assert_eq!(String::from_utf8(payload).unwrap(), expected, "{section}");
            }
            (Err(error), Some(expected)) => {
                assert!(error.contains(expected), "{section}: {error}");
            }
            (result, _) => panic!("{section}: {result:?}"),
        }
    }
}

#[test]
fn the_keys_of_the_rfcs_are_used_skipped_and_named_as_they_should_be() {
    for case in cases(include_str!("../vectors/keys.json")) {
        let section = case["section"].as_str().unwrap();
        match (PublicKey::from_jwk(&case["key"], &Limits::DEFAULT), case["skipped"].as_str()) {
            (Ok(key), None) => {
                if let Some(thumbprint) = case["thumbprint"].as_str() {
                    assert_eq!(key.thumbprint(), thumbprint, "{section}");
                }
                let fits: Vec<_> = Algorithm::ALL
                    .iter()
                    .filter(|algorithm| key.fits(**algorithm).is_ok())
                    .collect();
                let fits: Vec<_> = fits.iter().map(|algorithm| algorithm.name()).collect();
                assert_eq!(json!(fits), case["fits"], "{section}");
                assert_eq!(key.id(), case["key"]["kid"].as_str(), "{section}");
            }
            (Err(fault), Some(expected)) => {
                assert!(fault.to_string().contains(expected), "{section}: {fault}");
                assert!(!format!("{fault} {fault:?}").contains("nWGxne"), "{section}");
            }
            (result, _) => panic!("{section}: {result:?}"),
        }
    }
}

#[test]
fn the_claims_of_rfc_7519_section_3_1_are_read() {
    let text = cases(include_str!("../vectors/jws.json"))[0]["compact"].clone();
    let jws = Jws::parse(text.as_str().unwrap().as_bytes(), usize::MAX, &Limits::DEFAULT).unwrap();
    let claims: Value = serde_json::from_slice(jws.payload()).unwrap();
    assert_eq!(
        claims,
        json!({"iss": "joe", "exp": 1_300_819_380, "http://example.com/is_root": true})
    );
}

/// The cases of "Taming the many EdDSAs" (Chalkias, Garillot, Nikolaenko, SSR 2020).
#[test]
fn ed25519_is_verified_strictly() {
    for case in cases(include_str!("../vectors/ed25519-speccheck.json")) {
        let name = case["case"].as_str().unwrap();
        let octets = |member: &str| unhex(case[member].as_str().unwrap());
        let key = json!({"kty": "OKP", "crv": "Ed25519", "x": signers::encode(octets("key"))});
        let found = match PublicKey::from_jwk(&key, &Limits::DEFAULT) {
            Err(_) => "key skipped",
            Ok(key) => {
                let (message, signature) = (octets("message"), octets("signature"));
                let verified = RustCrypto.verify(&key, Algorithm::EdDsa, &message, &signature);
                let pace = Pace::unhurried();
                let at_a_pace =
                    RustCrypto.verify_at(&key, Algorithm::EdDsa, &message, &signature, &pace);
                assert_eq!(at_once(at_a_pace), verified, "{name}");
                match verified {
                    true => "verified",
                    false => "refused",
                }
            }
        };
        assert_eq!(found, case["expected"], "{name}");
    }
}

#[test]
fn every_encoding_of_a_small_order_point_is_skipped() {
    let f = |first: &str, last: &str| format!("{first}{}{last}", "ff".repeat(30));
    let o = |first: &str, last: &str| format!("{first}{}{last}", "00".repeat(30));
    let points = [
        o("00", "00"),
        o("00", "80"),
        o("01", "00"),
        o("01", "80"),
        f("ec", "7f"),
        f("ec", "ff"),
        f("ed", "7f"),
        f("ed", "ff"),
        f("ee", "7f"),
        f("ee", "ff"),
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05".to_owned(),
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85".to_owned(),
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a".to_owned(),
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa".to_owned(),
    ];
    for point in points {
        let key = json!({"kty": "OKP", "crv": "Ed25519", "x": signers::encode(unhex(&point))});
        let (keys, skipped) =
            KeySet::from_value(&json!({"keys": [key]}), &Limits::DEFAULT).unwrap();
        assert!(keys.is_empty(), "{point}");
        assert_eq!(skipped.len(), 1, "{point}");
    }
}

/// Read back by another implementation.
#[test]
fn keys_are_written_as_subject_public_key_info() {
    use rsa::pkcs8::der::{Decode as _, asn1::UintRef};
    use rsa::pkcs8::{DecodePublicKey as _, SubjectPublicKeyInfoRef};
    for algorithm in Algorithm::ALL.iter().copied() {
        let jwk = signers::jwk(algorithm);
        let key = PublicKey::from_jwk(&jwk, &Limits::DEFAULT).unwrap();
        let der = key.subject_public_key_info();
        let info = SubjectPublicKeyInfoRef::try_from(der).unwrap();
        let bits = info.subject_public_key.as_bytes().unwrap();
        let parameter = || info.algorithm.parameters_oid().unwrap().to_string();
        let coordinate = |name: &str| signers::decode(jwk[name].as_str().unwrap());
        match info.algorithm.oid.to_string().as_str() {
            "1.2.840.113549.1.1.1" => {
                let read = rsa::RsaPublicKey::from_public_key_der(der).unwrap();
                assert_eq!(read, signers::rsa_key().to_public_key());
            }
            "1.2.840.10045.2.1" => {
                let curve = match algorithm {
                    Algorithm::Es256 => "1.2.840.10045.3.1.7",
                    Algorithm::Es384 => "1.3.132.0.34",
                    _ => "1.3.132.0.35",
                };
                assert_eq!(parameter(), curve, "{algorithm}");
                assert_eq!(bits, [&[4], &coordinate("x")[..], &coordinate("y")[..]].concat());
                let signature = signers::sign(algorithm, b"message");
                let (r, s) = signature.split_at(signature.len() / 2);
                let der = airflow_envoy_core::jose::ecdsa_signature_der(&signature);
                let read = <[UintRef<'_>; 2]>::from_der(&der).unwrap();
                for (read, written) in read.iter().zip([r, s]) {
                    let zeros = written.iter().take_while(|octet| **octet == 0).count();
                    assert_eq!(read.as_bytes(), &written[zeros..], "{algorithm}");
                }
            }
            "1.3.101.112" => assert_eq!(bits, coordinate("x")),
            other => panic!("{algorithm}: {other}"),
        }
    }
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<_> = text.chars().map(|digit| digit.to_digit(16).unwrap() as u8).collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}
