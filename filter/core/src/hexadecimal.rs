//! Numbers and bytes in hexadecimal digits, in lower case.

/// The digits of a number, without a loop over them: each decision has a name of two such numbers.
pub(crate) fn digits(number: u64) -> [u8; 16] {
    let low = number & u64::from(u32::MAX);
    let mut digits = [0; 16];
    let (halves, _) = digits.as_chunks_mut();
    for (half, number) in halves.iter_mut().zip([number >> 32, low]) {
        *half = eight(number);
    }
    digits
}

/// The digits of a number of 32 bits.
fn eight(number: u64) -> [u8; 8] {
    let each = |byte: u8| u64::from_ne_bytes([byte; 8]);
    // A nibble for each byte.
    let number = (number | number << 16) & 0x0000_ffff_0000_ffff;
    let number = (number | number << 8) & 0x00ff_00ff_00ff_00ff;
    let nibbles = (number | number << 4) & each(0x0f);
    let letters = (nibbles.wrapping_add(each(6)) >> 4) & each(1);
    let to_letter = u64::from(b'a' - b'0' - 10);
    nibbles.wrapping_add(each(b'0')).wrapping_add(letters.wrapping_mul(to_letter)).to_be_bytes()
}

/// A number as 16 digits.
pub(crate) fn of_number(number: u64) -> String {
    digits(number).map(char::from).iter().collect()
}

/// Two digits for each byte.
pub(crate) fn of_bytes(bytes: &[u8]) -> String {
    let nibbles = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    nibbles.filter_map(|nibble| char::from_digit(nibble.into(), 16)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_those_of_the_formatter() {
        for number in [0, 1, 0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210, 1 << 32, u64::MAX] {
            assert_eq!(of_number(number), format!("{number:016x}"));
            assert_eq!(of_bytes(&number.to_be_bytes()), format!("{number:016x}"));
        }
        assert_eq!(of_bytes(&[]), "");
    }
}
