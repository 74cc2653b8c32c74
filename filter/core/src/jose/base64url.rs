//! base64url without padding (RFC 7515 §2), one encoding for each octet sequence.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// The octets that `text` encodes, unless it has padding, characters outside the alphabet or
/// trailing bits that are not zero.
pub(crate) fn decode(text: &[u8]) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text).ok()
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

    #[test]
    fn only_the_one_canonical_text_is_decoded() {
        assert_eq!(decode(b"-_8"), Some(vec![0xfb, 0xff]));
        assert_eq!(encode(&[0xfb, 0xff]), "-_8");
        assert_eq!(decode(b""), Some(Vec::new()));
        for text in ["-_8=", "-_9", "+/8", "-_8 ", " -_8", "-_\n8", "-", "AAAAA", "-_8\0", "é"] {
            assert_eq!(decode(text.as_bytes()), None, "{text:?}");
        }
    }
}
