//! A small HTTP server that keeps one document, as an object store does or as Consul does.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

/// What it does besides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mishap {
    /// Answers with this status, and does nothing.
    Status(u16),
    /// Does what is asked, and hangs up without an answer.
    HangUp,
    /// Answers without an entity tag.
    NoTag,
    /// Answers with a weak one.
    WeakTag,
}

#[derive(Debug, Default)]
pub struct Kept {
    pub document: Option<Vec<u8>>,
    version: u64,
    /// What happens to the next requests of a method.
    pub mishaps: Vec<(&'static str, Mishap)>,
    /// `METHOD target` of every request, and its headers.
    pub requests: Vec<(String, Vec<String>)>,
    /// PUTs that came too late.
    pub lost: usize,
}

#[derive(Clone)]
pub struct Server {
    pub address: SocketAddr,
    kept: Arc<Mutex<Kept>>,
}

impl Server {
    pub fn start(document: Option<&str>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let document = document.map(|document| document.as_bytes().to_vec());
        let kept = Arc::new(Mutex::new(Kept { document, version: 7, ..Kept::default() }));
        let server = Self { address, kept };
        let serving = server.clone();
        // It ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let server = serving.clone();
                std::thread::spawn(move || server.serve(&stream.unwrap()));
            }
        });
        server
    }

    pub fn http(&self) -> String {
        format!("http://{}/grants.json", self.address)
    }

    pub fn consul(&self) -> String {
        format!("consul://{}/envoy/grants", self.address)
    }

    pub fn kept<T>(&self, look: impl FnOnce(&mut Kept) -> T) -> T {
        look(&mut self.kept.lock().unwrap())
    }

    pub fn document(&self) -> Option<String> {
        self.kept(|kept| kept.document.clone().map(|document| String::from_utf8(document).unwrap()))
    }

    fn serve(&self, stream: &TcpStream) {
        let mut reader = BufReader::new(stream);
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            match line.trim() {
                "" => break,
                line => lines.push(line.to_ascii_lowercase()),
            }
        }
        let header = |name: &str| {
            let prefix = format!("{name}: ");
            lines.iter().find_map(|line| line.strip_prefix(&prefix)).map(str::to_owned)
        };
        let length = header("content-length").map_or(0, |length| length.parse().unwrap());
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        let words: Vec<_> = lines[0].split(' ').map(str::to_owned).collect();
        let (method, target) = (words[0].to_ascii_uppercase(), words[1].clone());

        let mut kept = self.kept.lock().unwrap();
        kept.requests.push((format!("{method} {target}"), lines[1..].to_vec()));
        let next = kept.mishaps.iter().position(|(of, _)| *of == method);
        let mishap = next.map(|next| kept.mishaps.remove(next).1);
        let tag = format!("\"{}\"", kept.version);
        let (status, headers, answer) = if let Some(Mishap::Status(status)) = mishap {
            (status, "location: /elsewhere\r\n".to_owned(), b"trouble".to_vec())
        } else if target.starts_with("/v1/kv/") {
            let (status, answer) = kept.consul(&method, &target, body);
            (status, String::new(), answer)
        } else {
            let (status, answer) = kept.object(&method, &tag, &header, body);
            let tag = match mishap {
                Some(Mishap::NoTag) => String::new(),
                Some(Mishap::WeakTag) => format!("etag: W/{tag}\r\n"),
                _ => format!("etag: {tag}\r\n"),
            };
            (status, tag, answer)
        };
        drop(kept);
        if mishap == Some(Mishap::HangUp) {
            return;
        }
        let length = answer.len();
        let head = format!(
            "HTTP/1.1 {status} X\r\ncontent-length: {length}\r\nconnection: close\r\n{headers}\r\n"
        );
        let mut stream = stream;
        let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&answer));
    }
}

impl Kept {
    fn replace(&mut self, document: Vec<u8>) {
        self.document = Some(document);
        self.version += 1;
    }

    fn object(
        &mut self,
        method: &str,
        tag: &str,
        header: &dyn Fn(&str) -> Option<String>,
        body: Vec<u8>,
    ) -> (u16, Vec<u8>) {
        if method == "GET" {
            return self.document.clone().map_or((404, Vec::new()), |document| (200, document));
        }
        let holds = match (header("if-match"), header("if-none-match")) {
            (Some(wanted), None) => self.document.is_some() && wanted == tag,
            (None, Some(wanted)) => wanted == "*" && self.document.is_none(),
            _ => return (428, Vec::new()),
        };
        if holds {
            self.replace(body);
            return (204, Vec::new());
        }
        self.lost += 1;
        (412, Vec::new())
    }

    fn consul(&mut self, method: &str, target: &str, body: Vec<u8>) -> (u16, Vec<u8>) {
        if method == "GET" {
            let Some(document) = &self.document else { return (404, Vec::new()) };
            let value = STANDARD.encode(document);
            let entry =
                json!([{ "Key": "envoy/grants", "ModifyIndex": self.version, "Value": value }]);
            return (200, entry.to_string().into_bytes());
        }
        let (_, index) = target.split_once("?cas=").unwrap();
        let known = self.document.as_ref().map_or(0, |_| self.version);
        if index.parse() == Ok(known) {
            self.replace(body);
            return (200, b"true\n".to_vec());
        }
        self.lost += 1;
        (200, b"false\n".to_vec())
    }
}
