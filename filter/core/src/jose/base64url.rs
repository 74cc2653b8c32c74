//! base64url without padding (RFC 7515 §2), one encoding for each octet sequence.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::pace::Pace;

/// Characters that are decoded at once: whole groups of four.
const DECODED_AT_ONCE: usize = 16 * 1024;

/// Characters that are decoded in about one unit.
const DECODED_PER_UNIT: usize = 500;

/// The octets that `text` encodes, unless it has padding, characters outside the alphabet or
/// trailing bits that are not zero.
pub(crate) fn decode(text: &[u8]) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text).ok()
}

/// As [`decode`], at a pace.
pub(crate) async fn decode_at(text: &[u8], pace: &Pace) -> Option<Vec<u8>> {
    // What decodes asks for some more than it needs in the end.
    let mut octets = Vec::with_capacity(text.len().div_ceil(4).saturating_mul(3));
    for part in text.chunks(DECODED_AT_ONCE) {
        URL_SAFE_NO_PAD.decode_vec(part, &mut octets).ok()?;
        pace.spend(1 + part.len() / DECODED_PER_UNIT).await;
    }
    Some(octets)
}

/// `octets`, encoded.
pub(crate) fn encode(octets: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(octets)
}

/// As [`encode`], at the end of `text`.
pub(crate) fn encode_onto(octets: &[u8], text: &mut String) {
    URL_SAFE_NO_PAD.encode_string(octets, text);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pace::at_once;

    #[test]
    fn only_the_one_canonical_text_is_decoded() {
        assert_eq!(decode(b"-_8"), Some(vec![0xfb, 0xff]));
        assert_eq!(encode(&[0xfb, 0xff]), "-_8");
        assert_eq!(decode(b""), Some(Vec::new()));
        for text in ["-_8=", "-_9", "+/8", "-_8 ", " -_8", "-_\n8", "-", "AAAAA", "-_8\0", "é"] {
            assert_eq!(decode(text.as_bytes()), None, "{text:?}");
        }
    }

    #[test]
    fn what_is_decoded_at_a_pace_is_what_is_decoded_at_once() {
        let pace = Pace::unhurried();
        for length in (0..9).chain(DECODED_AT_ONCE - 5..DECODED_AT_ONCE + 9).chain([50_000]) {
            let mut text = vec![b'A'; length];
            for last in [b'A', b'B', b'=', b'+'] {
                if let Some(place) = text.last_mut() {
                    *place = last;
                }
                let decoded = at_once(decode_at(&text, &pace));
                assert_eq!(decoded, decode(&text), "{length} {last}");
                let mut early = text.clone();
                early.insert(length / 2, b'.');
                assert_eq!(at_once(decode_at(&early, &pace)), None, "{length}");
            }
        }
    }
}
