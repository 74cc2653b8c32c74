//! The header `x-forwarded-client-cert`: what one proxy says about the certificate of its caller.
//!
//! Elements, one for each hop, are separated by `,`; the pairs of an element by `;`; a key and its value by the
//! first `=`. A value is quoted if it has one of these characters, with `\"` for a quote inside. Envoy writes URIs
//! as they are in the certificate, unquoted: whoever owns a URI with a `;` or a `,` writes pairs or
//! elements of its own. What is read here says so by repeating something, and is then refused.

use std::borrow::Cow;

/// What the header says about one hop. Of `Cert`, `Chain`, `Subject` and `DNS` only the form is checked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Element<'a> {
    /// `By`: every URI of the certificate of the proxy that wrote the element.
    pub by: Vec<Cow<'a, [u8]>>,
    /// `Hash`: the SHA-256 digest of the client's certificate, hexadecimal.
    pub hash: Option<Cow<'a, [u8]>>,
    /// `URI`: every URI of the client's certificate. Envoy writes one empty value if there is none.
    pub uris: Vec<Cow<'a, [u8]>>,
}

/// Pairs of one element: more than any proxy writes, and few enough to be read.
const MOST_PAIRS: usize = 64;
/// Elements of a header: hops.
const MOST_ELEMENTS: usize = 16;

/// Reads the header's elements, in the order in which proxies wrote them.
///
/// # Errors
/// What is wrong with it, to follow the name of the header in a sentence.
pub fn parse(value: &[u8]) -> Result<Vec<Element<'_>>, &'static str> {
    let mut elements = Vec::new();
    let mut element = Element::default();
    let mut pairs = 0_usize;
    let mut rest = value;
    loop {
        let (key, after) = key(rest)?;
        let (value, after) = self::value(after)?;
        pairs = pairs.saturating_add(1);
        element.take(key, value)?;
        let end = match after.split_first() {
            Some((b';', after)) => {
                rest = after;
                None
            }
            Some((b',', after)) => {
                // Proxies that join lines write a blank after the comma.
                rest = after.trim_ascii_start();
                Some(false)
            }
            _ => Some(true),
        };
        if pairs > MOST_PAIRS || elements.len() >= MOST_ELEMENTS {
            return Err("has too many elements or pairs");
        }
        if let Some(is_last) = end {
            elements.push(std::mem::take(&mut element));
            pairs = 0;
            if is_last {
                return Ok(elements);
            }
        }
    }
}

impl<'a> Element<'a> {
    fn take(&mut self, key: &[u8], value: Cow<'a, [u8]>) -> Result<(), &'static str> {
        if key.eq_ignore_ascii_case(b"by") {
            self.by.push(value);
        } else if key.eq_ignore_ascii_case(b"uri") {
            self.uris.push(value);
        } else if key.eq_ignore_ascii_case(b"hash") && self.hash.replace(value).is_some() {
            return Err("has an element with two digests");
        }
        Ok(())
    }

    /// The digest of the certificate in octets.
    pub fn digest(&self) -> Option<[u8; 32]> {
        super::digest(self.hash.as_deref()?)
    }
}

fn key(text: &[u8]) -> Result<(&[u8], &[u8]), &'static str> {
    let bytes = text.iter().position(|byte| *byte == b'=').ok_or("has a pair without `=`")?;
    let (key, rest) = text.split_at_checked(bytes).unwrap_or_default();
    if key.is_empty() || !key.iter().all(u8::is_ascii_alphabetic) {
        return Err("has a pair without a key");
    }
    Ok((key, rest.get(1..).unwrap_or_default()))
}

/// A value, and what follows it: nothing, `;` or `,`.
fn value(text: &[u8]) -> Result<(Cow<'_, [u8]>, &[u8]), &'static str> {
    let Some(quoted) = text.strip_prefix(b"\"") else {
        let is_end = |byte: &u8| matches!(byte, b';' | b',');
        let bytes = text.iter().position(is_end).unwrap_or(text.len());
        let (value, rest) = text.split_at_checked(bytes).unwrap_or((text, &[]));
        if value.contains(&b'"') {
            return Err("has a quote inside a value that does not begin with one");
        }
        return Ok((Cow::Borrowed(value), rest));
    };
    let mut unescaped = Vec::new();
    let mut octets = quoted.iter().enumerate();
    while let Some((at, octet)) = octets.next() {
        match octet {
            b'"' => {
                let rest = quoted.get(at.saturating_add(1)..).unwrap_or_default();
                return match rest.first() {
                    None | Some(b';' | b',') => Ok((Cow::Owned(unescaped), rest)),
                    Some(_) => Err("has something after a quoted value"),
                };
            }
            // A quote is all that is escaped; subjects have backslashes of their own (RFC 2253 §2.4).
            b'\\' if quoted.get(at.saturating_add(1)) == Some(&b'"') => {
                octets.next();
                unescaped.push(b'"');
            }
            _ => unescaped.push(*octet),
        }
    }
    Err("has a quoted value that does not end")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(values: &[Cow<'_, [u8]>]) -> Vec<String> {
        values.iter().map(|value| String::from_utf8_lossy(value).into_owned()).collect()
    }

    #[test]
    fn elements_pairs_and_quotes_are_told_apart() {
        let header = br#"By=spiffe://td/a;Hash=00;Subject="CN=x,O=\"y; z\"";URI=spiffe://td/b?c=d,by="spiffe://td/e";URI=;uri=u;DNS=f"#;
        let elements = parse(header).unwrap();
        assert_eq!(elements.len(), 2);
        assert_eq!(texts(&elements[0].by), ["spiffe://td/a"]);
        assert_eq!(texts(&elements[0].uris), ["spiffe://td/b?c=d"]);
        assert_eq!(elements[0].hash.as_deref(), Some(&b"00"[..]));
        assert_eq!(elements[0].digest(), None);
        assert_eq!(texts(&elements[1].by), ["spiffe://td/e"]);
        assert_eq!(texts(&elements[1].uris), ["", "u"]);
        assert_eq!(parse(b"URI=a, URI=b").unwrap().len(), 2);
    }

    #[test]
    fn what_has_two_readings_has_none() {
        for header in [
            &b""[..],
            b",",
            b";",
            b"URI",
            b"=a",
            b"URI=a;",
            b"URI=a,",
            b"URI=a;;Hash=0",
            b"URI=\"a",
            b"URI=\"a\"b",
            b"URI=\"a\\\"",
            b"URI=a\"b",
            b"URI=a;Hash=0;Hash=0",
            b"U RI=a",
            b" URI=a",
        ] {
            assert!(parse(header).is_err(), "{}", String::from_utf8_lossy(header));
        }
        assert!(parse(&b"URI=a;".repeat(1000)).is_err());
        assert!(parse(&b"URI=a,".repeat(1000)).is_err());
    }
}
