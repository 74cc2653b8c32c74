//! Mesh peers: SPIFFE IDs against a second reading of the standard, the header of proxies there and back, and what
//! nobody would write.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panicking")]

use airflow_envoy_core::configuration::Requirement;
use airflow_envoy_core::peer::{Settings, Source, SpiffeId, xfcc};
use airflow_envoy_core::reject::Code;
use airflow_envoy_core::time::UnixTime;

/// xorshift64: the same texts on every run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % u64::try_from(bound).unwrap()).unwrap()
    }

    fn one<'a, T: ?Sized>(&mut self, of: &[&'a T]) -> &'a T {
        of[self.below(of.len())]
    }

    /// A text of these pieces, now and then with an odd octet.
    fn text(&mut self, pieces: &[&[u8]], most: usize) -> Vec<u8> {
        let mut text = Vec::new();
        for _ in 0..self.below(most) {
            if self.below(20) == 0 {
                text.push(u8::try_from(self.below(256)).unwrap());
            } else {
                text.extend_from_slice(self.one(pieces));
            }
        }
        text
    }
}

const WORKER: &str = "spiffe://td.consul/ns/default/dc/dc1/svc/airflow-worker";

/// The standard once more, octet by octet: `"spiffe://" trust-domain 1*( "/" segment )`, at most 2048 octets.
fn is_id_of_a_workload(text: &[u8]) -> bool {
    let mut octets = text.iter().copied().peekable();
    if text.len() > 2048 || !b"spiffe://".iter().all(|octet| octets.next() == Some(*octet)) {
        return false;
    }
    let mut domain = 0;
    while octets
        .next_if(|octet| {
            octet.is_ascii_lowercase() || octet.is_ascii_digit() || b"._-".contains(octet)
        })
        .is_some()
    {
        domain += 1;
    }
    if domain == 0 || domain > 255 {
        return false;
    }
    let mut segments = 0;
    while octets.next_if_eq(&b'/').is_some() {
        let mut segment = Vec::new();
        while let Some(octet) =
            octets.next_if(|octet| octet.is_ascii_alphanumeric() || b"._-".contains(octet))
        {
            segment.push(octet);
        }
        if segment.iter().all(|octet| *octet == b'.') && segment.len() < 3 {
            return false;
        }
        segments += 1;
    }
    segments > 0 && octets.next().is_none()
}

#[test]
fn the_ids_that_are_read_are_those_of_the_standard() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let pieces: [&[u8]; 17] = [
        b"a",
        b"Z",
        b"0",
        b"-",
        b"_",
        b".",
        b"..",
        b"/",
        b"/",
        b"/ns/default",
        b"%2f",
        b"?",
        b":",
        b"@",
        b" ",
        b"\0",
        b"\xc3\xa9",
    ];
    let (mut fit, mut unfit) = (0, 0);
    for round in 0..200_000 {
        let begin: &[u8] = random.one(&[
            b"spiffe://td",
            b"spiffe://td",
            b"spiffe://td/a",
            b"spiffe://",
            b"spiffe:/",
            b"SPIFFE://td",
            b"",
        ]);
        let mut text = begin.to_vec();
        text.extend(random.text(&pieces, 8));
        if round % 1000 == 0 {
            text.extend(b"/a".repeat(random.below(1030)));
        }
        let expected = is_id_of_a_workload(&text);
        let read = SpiffeId::parse(&text);
        assert_eq!(read.is_ok(), expected, "{}", text.escape_ascii());
        *(if expected { &mut fit } else { &mut unfit }) += 1;
        if let Ok(id) = read {
            assert_eq!(id.as_str().as_bytes(), text);
            assert_eq!(format!("spiffe://{}{}", id.trust_domain(), id.path()), id.as_str());
        }
    }
    assert!(fit > 5_000 && unfit > 10_000, "{fit} {unfit}");
    for (bytes, expected) in [(255, true), (256, false)] {
        let id = format!("spiffe://{}/a", "t".repeat(bytes));
        assert_eq!(SpiffeId::parse(id.as_bytes()).is_ok(), expected);
    }
    for (bytes, expected) in [(2048, true), (2049, false)] {
        let id = format!("spiffe://t/{}", "a".repeat(bytes - 11));
        assert_eq!((id.len(), SpiffeId::parse(id.as_bytes()).is_ok()), (bytes, expected));
    }
}

/// As the grammar wants it, whatever is in the value.
fn quoted(value: &[u8]) -> Vec<u8> {
    let needs = value.iter().any(|octet| b",;=\"".contains(octet));
    if !needs {
        return value.to_vec();
    }
    let mut text = vec![b'"'];
    for octet in value {
        if *octet == b'"' {
            text.push(b'\\');
        }
        text.push(*octet);
    }
    text.push(b'"');
    text
}

#[test]
fn what_is_written_by_the_grammar_is_read_as_it_was_meant() {
    let mut random = Random(42);
    let pieces: [&[u8]; 8] = [b"spiffe://td/a", b",", b";", b"=", b"\"", b"URI=", b"x", b" "];
    for _ in 0..20_000 {
        let mut header = Vec::new();
        let mut meant = Vec::new();
        for element in 0..=random.below(3) {
            if element > 0 {
                header.extend(*random.one(&[b", ", b", "]));
            }
            let (mut by, mut uris) = (Vec::new(), Vec::new());
            for pair in 0..=random.below(4) {
                if pair > 0 {
                    header.push(b';');
                }
                // A backslash before a quote is how a quote is written, so none may stand there by itself.
                let value = random.text(&pieces, 5);
                let value: Vec<u8> = value.into_iter().filter(|octet| *octet != b'\\').collect();
                let key = random.one(&["By", "URI", "uri", "Subject", "DNS"]);
                header.extend([key.as_bytes(), b"=", &quoted(&value)].concat());
                match key {
                    "By" => by.push(value),
                    "URI" | "uri" => uris.push(value),
                    _ => {}
                }
            }
            meant.push((by, uris));
        }
        let read = xfcc::parse(&header)
            .unwrap_or_else(|problem| panic!("{problem}: {}", header.escape_ascii()));
        let read: Vec<_> = read
            .iter()
            .map(|element| {
                let owned = |values: &[std::borrow::Cow<'_, [u8]>]| {
                    values.iter().map(|value| value.to_vec()).collect::<Vec<_>>()
                };
                (owned(&element.by), owned(&element.uris))
            })
            .collect();
        assert_eq!(read, meant, "{}", header.escape_ascii());
    }
}

#[test]
fn no_octets_make_a_peer_but_those_of_the_one_certificate() {
    let mut random = Random(7);
    let digest = "11".repeat(32);
    let hop = SpiffeId::parse(b"spiffe://td.consul/ns/default/dc/dc1/svc/ingress").unwrap();
    let pieces: [&[u8]; 12] = [
        b"true",
        b"false",
        b" ",
        b" ",
        b"-",
        digest.as_bytes(),
        b"4102444800",
        WORKER.as_bytes(),
        b",",
        b"By=",
        b"URI=",
        b";",
    ];
    let now = UnixTime::from_secs(1_795_262_400);
    let mut peers = 0;
    for round in 0..100_000 {
        let source = match round % 2 {
            0 => Source::Tls,
            _ => Source::Xfcc(vec![hop.clone()]),
        };
        let settings = Settings {
            identity: Requirement::Required,
            trust_domains: vec!["td.consul".into()],
            source: source.clone(),
        };
        let whose = if source == Source::Tls { WORKER } else { hop.as_str() };
        let mut evidence = match round % 4 {
            0 => random.text(&pieces, 10),
            _ => format!("true {digest} 4102444800 {whose}").into_bytes(),
        };
        let mut header = match round % 3 {
            0 => random.text(&pieces, 10),
            _ => format!("By={hop};Hash={};URI={WORKER}", "22".repeat(32)).into_bytes(),
        };
        for text in [&mut evidence, &mut header] {
            if random.below(3) > 0 && !text.is_empty() {
                let at = random.below(text.len());
                text[at] = u8::try_from(random.below(256)).unwrap();
            }
        }
        let headers = [(&b"x-forwarded-client-cert"[..], header.as_slice())];
        let presented = settings.presented(Some(&evidence), &headers);
        match settings.verify(&presented, now) {
            Ok(Some(peer)) => {
                peers += 1;
                // A digit or a letter may have become another one, and nothing else.
                let text = if source == Source::Tls { &evidence } else { &header };
                assert!(text.ends_with(peer.id.as_str().as_bytes()), "{}", text.escape_ascii());
                assert_eq!(peer.id.trust_domain(), "td.consul");
                assert!(evidence.starts_with(b"true ") && !evidence.contains(&b','));
                assert!(settings.presented(Some(&evidence), &headers).keep().is(&presented));
            }
            Ok(None) => panic!("a peer is required"),
            Err(reject) => assert!(
                matches!(reject.code, Code::PeerMissing | Code::PeerInvalid | Code::PeerUntrusted),
                "{reject:?}"
            ),
        }
    }
    assert!(peers > 1000, "{peers}");
}
