//! Keys and signatures in ASN.1 DER, as hosts that verify natively want them.
//!
//! What it is not: it reads no DER.

use super::key::{Curve, Material, PublicKey};

const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OBJECT_IDENTIFIER: u8 = 0x06;
const NULL: u8 = 0x05;
const SEQUENCE: u8 = 0x30;

impl PublicKey {
    /// The key as `SubjectPublicKeyInfo` (RFC 5280 §4.1.2.7): RSA by RFC 3279 §2.3.1, elliptic
    /// curves by RFC 5480 §2, Ed25519 by RFC 8410 §4.
    pub fn subject_public_key_info(&self) -> Vec<u8> {
        let identifier = |octets: &[u8]| element(OBJECT_IDENTIFIER, &[octets]);
        let (algorithm, key) = match self.material() {
            Material::Rsa { modulus, exponent } => (
                [
                    identifier(&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01]),
                    element(NULL, &[]),
                ]
                .concat(),
                element(SEQUENCE, &[&integer(modulus), &integer(exponent)]),
            ),
            Material::Ec { curve, x, y } => {
                let curve: &[u8] = match curve {
                    Curve::P256 => &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07],
                    Curve::P384 => &[0x2b, 0x81, 0x04, 0x00, 0x22],
                    Curve::P521 => &[0x2b, 0x81, 0x04, 0x00, 0x23],
                };
                let ec = identifier(&[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01]);
                ([ec, identifier(curve)].concat(), [&[0x04], x.as_slice(), y].concat())
            }
            Material::Ed25519 { x } => (identifier(&[0x2b, 0x65, 0x70]), x.to_vec()),
        };
        let no_unused_bits = [0];
        element(
            SEQUENCE,
            &[&element(SEQUENCE, &[&algorithm]), &element(BIT_STRING, &[&no_unused_bits, &key])],
        )
    }
}

/// The ECDSA signature `r || s` of RFC 7518 §3.4 as `ECDSA-Sig-Value` (RFC 3279 §2.2.3).
pub fn ecdsa_signature_der(signature: &[u8]) -> Vec<u8> {
    let (r, s) = signature.split_at_checked(signature.len() / 2).unwrap_or_default();
    element(SEQUENCE, &[&integer(r), &integer(s)])
}

/// An unsigned big-endian number: as short as can be, with a zero in front where it would be
/// negative otherwise.
fn integer(octets: &[u8]) -> Vec<u8> {
    let zeros = octets.iter().take_while(|octet| **octet == 0).count();
    let (_, digits) = octets.split_at_checked(zeros).unwrap_or_default();
    match digits.first() {
        Some(first) if *first < 0x80 => element(INTEGER, &[digits]),
        _ => element(INTEGER, &[&[0], digits]),
    }
}

fn element(tag: u8, contents: &[&[u8]]) -> Vec<u8> {
    let contents = contents.concat();
    let mut encoded = vec![tag];
    match u8::try_from(contents.len()) {
        Ok(short) if short < 0x80 => encoded.push(short),
        _ => {
            let length = contents.len().to_be_bytes();
            let digits: Vec<u8> = length.into_iter().skip_while(|octet| *octet == 0).collect();
            encoded.extend(u8::try_from(digits.len()).map(|count| 0x80 | count));
            encoded.extend(digits);
        }
    }
    encoded.extend(contents);
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_positive() {
        for (octets, expected) in [
            (&[][..], &[2, 1, 0][..]),
            (&[0, 0], &[2, 1, 0]),
            (&[0, 0x7f], &[2, 1, 0x7f]),
            (&[0x80], &[2, 2, 0, 0x80]),
            (&[0, 1, 0], &[2, 2, 1, 0]),
        ] {
            assert_eq!(integer(octets), expected, "{octets:?}");
        }
    }

    #[test]
    fn lengths_are_short_up_to_127() {
        for (length, expected) in [
            (0, &[4, 0][..]),
            (127, &[4, 127]),
            (128, &[4, 0x81, 128]),
            (255, &[4, 0x81, 255]),
            (256, &[4, 0x82, 1, 0]),
            (65536, &[4, 0x83, 1, 0, 0]),
        ] {
            let encoded = element(4, &[&vec![7; length]]);
            assert_eq!(encoded.len(), expected.len() + length);
            assert!(encoded.starts_with(expected), "{length}");
        }
    }
}
