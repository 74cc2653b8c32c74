//! Keys and signatures in ASN.1 DER, as hosts that verify natively want them.
//!
//! What it is not: it reads no DER.

use super::key::{Curve, Material};

const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OBJECT_IDENTIFIER: u8 = 0x06;
const NULL: u8 = 0x05;
const SEQUENCE: u8 = 0x30;

impl Material {
    /// As [`PublicKey::subject_public_key_info`](super::key::PublicKey::subject_public_key_info).
    pub(super) fn subject_public_key_info(&self) -> Vec<u8> {
        let identifier = |octets: &[u8]| element(OBJECT_IDENTIFIER, &[octets]);
        let (algorithm, key) = match self {
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
    let (r, s) = (Unsigned::of(r), Unsigned::of(s));
    let mut numbers = Vec::with_capacity(signature.len().saturating_add(8));
    r.write(&mut numbers);
    s.write(&mut numbers);
    let mut encoded = Vec::with_capacity(numbers.len().saturating_add(4));
    head(&mut encoded, SEQUENCE, numbers.len());
    encoded.extend_from_slice(&numbers);
    encoded
}

/// An unsigned big-endian number: as short as can be, with a zero in front where it would be
/// negative otherwise.
struct Unsigned<'o> {
    digits: &'o [u8],
    zero: bool,
}

impl<'o> Unsigned<'o> {
    fn of(octets: &'o [u8]) -> Self {
        let zeros = octets.iter().take_while(|octet| **octet == 0).count();
        let (_, digits) = octets.split_at_checked(zeros).unwrap_or_default();
        Self { digits, zero: digits.first().is_none_or(|first| *first >= 0x80) }
    }

    fn length(&self) -> usize {
        self.digits.len().saturating_add(self.zero.into())
    }

    fn write(&self, to: &mut Vec<u8>) {
        head(to, INTEGER, self.length());
        if self.zero {
            to.push(0);
        }
        to.extend_from_slice(self.digits);
    }
}

fn integer(octets: &[u8]) -> Vec<u8> {
    let mut encoded = Vec::new();
    Unsigned::of(octets).write(&mut encoded);
    encoded
}

/// What is in front of so many bytes of contents.
fn head(to: &mut Vec<u8>, tag: u8, length: usize) {
    to.push(tag);
    match u8::try_from(length) {
        Ok(short) if short < 0x80 => to.push(short),
        _ => {
            let length = length.to_be_bytes();
            let zeros = length.iter().take_while(|octet| **octet == 0).count();
            to.extend(u8::try_from(length.len().saturating_sub(zeros)).map(|count| 0x80 | count));
            to.extend(length.iter().skip(zeros));
        }
    }
}

fn element(tag: u8, contents: &[&[u8]]) -> Vec<u8> {
    let contents = contents.concat();
    let mut encoded = Vec::with_capacity(contents.len().saturating_add(8));
    head(&mut encoded, tag, contents.len());
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
