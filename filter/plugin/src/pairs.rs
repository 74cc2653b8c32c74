//! Header maps as hosts hand them over: read where they are, without a copy of any name or value, and written at once.

/// A name and its value.
pub(crate) type Pair<'a> = (&'a [u8], &'a [u8]);

/// The pairs of an encoded header map, in order, repeated ones repeated: the number of pairs, the lengths of each name
/// and value as 32-bit little-endian numbers, and then both with a NUL behind each. They end where the bytes do.
#[derive(Debug, Clone)]
pub(crate) struct Pairs<'a> {
    lengths: &'a [u8],
    rest: &'a [u8],
}

impl<'a> Pairs<'a> {
    /// The pairs of `encoded`; none if it is not the encoding of a map.
    pub(crate) fn new(encoded: &'a [u8]) -> Self {
        let parts = encoded.split_first_chunk::<4>().and_then(|(count, rest)| {
            let count = usize::try_from(u32::from_le_bytes(*count)).ok()?;
            rest.split_at_checked(count.checked_mul(8)?)
        });
        let (lengths, rest) = parts.unwrap_or_default();
        Self { lengths, rest }
    }
}

impl<'a> Iterator for Pairs<'a> {
    type Item = Pair<'a>;

    fn next(&mut self) -> Option<Pair<'a>> {
        let (name, lengths) = self.lengths.split_first_chunk::<4>()?;
        let (value, lengths) = lengths.split_first_chunk::<4>()?;
        self.lengths = lengths;
        let mut take = |length: [u8; 4]| {
            let length = usize::try_from(u32::from_le_bytes(length)).ok()?;
            let (text, rest) = self.rest.split_at_checked(length)?;
            (_, self.rest) = rest.split_first()?;
            Some(text)
        };
        let pair = (|| Some((take(*name)?, take(*value)?)))();
        if pair.is_none() {
            self.lengths = &[];
        }
        pair
    }
}

/// Room for the few headers of an answer, with the names and values that they have.
const ANSWER_BYTES: usize = 256;

/// The encoding of a header map that [`Pairs`] reads.
pub(crate) fn encode(pairs: impl Iterator<Item = (&'static str, impl AsRef<str>)>) -> Vec<u8> {
    let length = |text: &str| u32::try_from(text.len()).unwrap_or(u32::MAX).to_le_bytes();
    let mut encoded = Vec::with_capacity(ANSWER_BYTES);
    encoded.extend([0; 4]);
    let (mut count, mut texts) = (0_u32, Vec::with_capacity(ANSWER_BYTES));
    for (name, value) in pairs {
        let value = value.as_ref();
        count = count.saturating_add(1);
        encoded.extend(length(name));
        encoded.extend(length(value));
        for text in [name, value] {
            texts.extend(text.as_bytes());
            texts.push(0);
        }
    }
    if let Some(first) = encoded.first_chunk_mut() {
        *first = count.to_le_bytes();
    }
    encoded.append(&mut texts);
    encoded
}

/// Most requests have fewer headers than that; only those of the others are put into memory of their own.
const USUAL: usize = 40;

/// Where the pairs of a usual map are put: the caller's, for who returned them would copy them all.
pub(crate) type Places<'a> = [Pair<'a>; USUAL];

/// Places that nothing was put in yet.
pub(crate) const EMPTY: Places<'static> = [(&[], &[]); USUAL];

/// The pairs of a header map side by side.
pub(crate) enum Headers<'p, 'a> {
    Usual(&'p [Pair<'a>]),
    /// More than usual.
    Many(Vec<Pair<'a>>),
}

impl<'p, 'a> Headers<'p, 'a> {
    /// The pairs of `encoded`.
    pub(crate) fn read(encoded: &'a [u8], places: &'p mut Places<'a>) -> Self {
        let mut count = 0_usize;
        let mut pairs = Pairs::new(encoded);
        for (place, pair) in places.iter_mut().zip(&mut pairs) {
            *place = pair;
            count = count.saturating_add(1);
        }
        // A `zip` takes of its first part first, so nothing was lost when there was no more room.
        let mut pairs = pairs.peekable();
        if pairs.peek().is_some() {
            return Self::Many(places.iter().copied().chain(pairs).collect());
        }
        Self::Usual(places.get(..count).unwrap_or_default())
    }

    /// The pairs, in order.
    pub(crate) fn as_slice(&self) -> &[Pair<'a>] {
        match self {
            Self::Usual(pairs) => pairs,
            Self::Many(pairs) => pairs,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a host encodes may be any bytes.
    fn encoded(pairs: &[Pair<'_>]) -> Vec<u8> {
        let mut encoded = (pairs.len() as u32).to_le_bytes().to_vec();
        for (name, value) in pairs {
            encoded.extend((name.len() as u32).to_le_bytes());
            encoded.extend((value.len() as u32).to_le_bytes());
        }
        for (name, value) in pairs {
            encoded.extend([name, &b"\0"[..], value, b"\0"].concat());
        }
        encoded
    }

    #[test]
    fn maps_of_any_size_are_read_in_order() {
        let names: Vec<_> = (0..200).map(|number| format!("name-{number}")).collect();
        for count in [0, 1, 2, USUAL - 1, USUAL, USUAL + 1, 200] {
            let pairs: Vec<Pair<'_>> =
                names.iter().take(count).map(|name| (name.as_bytes(), &b"v\0\xff"[..])).collect();
            assert_eq!(
                Headers::read(&encoded(&pairs), &mut { EMPTY }).as_slice(),
                pairs,
                "{count}"
            );
        }
        let empty: [Pair<'_>; 2] = [(b"", b""), (b"a", b"")];
        assert_eq!(Headers::read(&encoded(&empty), &mut { EMPTY }).as_slice(), empty);
    }

    #[test]
    fn what_is_no_map_has_no_pair_beyond_its_bytes() {
        let pairs: [Pair<'_>; 3] = [(b"one", b"1"), (b"two", b"22"), (b"three", b"")];
        let encoded = encoded(&pairs);
        for length in 0..encoded.len() {
            let mut places = EMPTY;
            let cut = Headers::read(&encoded[..length], &mut places);
            assert!(cut.as_slice().len() < pairs.len(), "{length}");
            assert!(pairs.starts_with(cut.as_slice()), "{length}");
        }
        for place in 0..28 {
            let mut changed = encoded.clone();
            changed[place] = 0xff;
            assert!(
                Headers::read(&changed, &mut { EMPTY }).as_slice().len() <= pairs.len(),
                "{place}"
            );
        }
        assert_eq!(Headers::read(&[0xff; 64], &mut { EMPTY }).as_slice(), []);
    }

    #[test]
    fn what_is_written_is_what_is_read() {
        let pairs = [("content-type", "application/problem+json"), ("a", ""), ("", "é")];
        for count in 0..=pairs.len() {
            let pairs = &pairs[..count];
            let written = encode(pairs.iter().copied());
            let bytes: Vec<Pair<'_>> =
                pairs.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())).collect();
            assert_eq!(Headers::read(&written, &mut { EMPTY }).as_slice(), bytes);
            assert_eq!(written, encoded(&bytes));
        }
    }
}
