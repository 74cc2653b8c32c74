//! A JSON document that is polled over HTTP, such as a policy or a key set, and the ways in which fetching it goes wrong.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hyper::body::Bytes;
use hyper::header::{CACHE_CONTROL, ETAG, HeaderValue, IF_NONE_MATCH};
use hyper::{Request, Response};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::error::{Context as _, Result};
use crate::identity::now;
use crate::server::reply;

/// A served document.
#[derive(Debug)]
pub struct Document {
    state: Mutex<State>,
    fetches: AtomicU64,
}

#[derive(Debug)]
struct State {
    source: Source,
    fault: Option<Fault>,
    cache_control: Option<HeaderValue>,
    log: Option<File>,
}

/// Where a document's text comes from.
#[derive(Debug, Clone)]
pub enum Source {
    /// Memory.
    Text(String),
    /// A file, read anew for every fetch, so that an edit acts at once.
    File(PathBuf),
}

/// What can go wrong with a fetch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Answer with this status and an empty body.
    Status(u16),
    /// Answer 200 with this body instead.
    Body(String),
    /// Answer 200 with a JSON string of this many bytes.
    Huge(usize),
    /// Answer 200 with an HTML page, as a captive portal or a misrouted host does.
    Html,
    /// Never answer.
    Hang,
    /// Close the connection without an answer.
    Close,
}

impl Document {
    /// A document that is served as it should be.
    pub fn new(source: Source) -> Self {
        let state = State { source, fault: None, cache_control: None, log: None };
        Self { state: Mutex::new(state), fetches: AtomicU64::new(0) }
    }

    /// Serves `content` from now on.
    pub fn set(&self, content: &Value) {
        self.state().source = Source::Text(content.to_string());
    }

    /// Serves `text` from now on, whatever it is.
    pub fn set_text(&self, text: impl Into<String>) {
        self.state().source = Source::Text(text.into());
    }

    /// Fails every fetch in this way, until [`Document::heal`].
    pub fn fault(&self, fault: Fault) {
        self.state().fault = Some(fault);
    }

    /// Ends a fault.
    pub fn heal(&self) {
        self.state().fault = None;
    }

    /// Sends this `cache-control` with every answer; `None` for no such header.
    pub fn cache_control(&self, value: Option<&'static str>) {
        self.state().cache_control = value.map(HeaderValue::from_static);
    }

    /// Writes a line per fetch to the file at `path` from now on.
    ///
    /// # Errors
    /// If the file cannot be made.
    pub fn log_to(&self, path: &Path) -> Result<()> {
        self.state().log = Some(File::create(path).context(path.display())?);
        Ok(())
    }

    /// How often it was asked for, failed fetches included.
    pub fn fetches(&self) -> u64 {
        self.fetches.load(Ordering::Relaxed)
    }

    /// The answer to a fetch; `None` to close the connection.
    pub async fn answer(&self, request: &Request<Bytes>) -> Option<Response<Bytes>> {
        self.fetches.fetch_add(1, Ordering::Relaxed);
        let response = self.respond(request).await;
        if let Some(log) = &mut self.state().log {
            let status = response.as_ref().map_or(0, |response| response.status().as_u16());
            // A log that cannot be written is no reason to stop serving.
            let _: Result<(), _> = writeln!(log, "{} GET {} {status}", now(), request.uri().path());
        }
        response
    }

    async fn respond(&self, request: &Request<Bytes>) -> Option<Response<Bytes>> {
        let (source, fault, cache_control) = {
            let state = self.state();
            (state.source.clone(), state.fault.clone(), state.cache_control.clone())
        };
        match fault {
            None => {}
            Some(Fault::Close) => return None,
            Some(Fault::Hang) => std::future::pending().await,
            Some(Fault::Status(status)) => return Some(reply(status, "text/plain", "")),
            Some(Fault::Body(body)) => return Some(reply(200, "application/json", body)),
            Some(Fault::Huge(bytes)) => {
                let text = format!("\"{}\"", "x".repeat(bytes.saturating_sub(2)));
                return Some(reply(200, "application/json", text));
            }
            Some(Fault::Html) => {
                return Some(reply(200, "text/html", "<html><body>Please log in</body></html>"));
            }
        }
        let text = match source {
            Source::Text(text) => text,
            Source::File(path) => match std::fs::read_to_string(&path) {
                Ok(text) => text,
                Err(error) => return Some(reply(500, "text/plain", format!("{error}\n"))),
            },
        };
        let tag = format!("\"{}\"", URL_SAFE_NO_PAD.encode(Sha256::digest(&text)));
        let unchanged = request
            .headers()
            .get(IF_NONE_MATCH)
            .is_some_and(|known| known.as_bytes() == tag.as_bytes());
        let mut response = if unchanged {
            reply(304, "application/json", "")
        } else {
            reply(200, "application/json", text)
        };
        if let Ok(tag) = HeaderValue::from_str(&tag) {
            response.headers_mut().insert(ETAG, tag);
        }
        if let Some(value) = cache_control {
            response.headers_mut().insert(CACHE_CONTROL, value);
        }
        Some(response)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // The state is never left half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl crate::server::Service for Document {
    async fn answer(&self, request: Request<Bytes>) -> Option<Response<Bytes>> {
        Self::answer(self, &request).await
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;

    async fn fetch(document: &Document, known: Option<&str>) -> Response<Bytes> {
        let mut request = Request::get("/policy.json");
        if let Some(known) = known {
            request = request.header(IF_NONE_MATCH, known);
        }
        document.answer(&request.body(Bytes::new()).unwrap()).await.unwrap()
    }

    fn tag(response: &Response<Bytes>) -> String {
        response.headers()[ETAG].to_str().unwrap().to_owned()
    }

    #[tokio::test]
    async fn what_has_not_changed_is_not_sent_again() {
        let document = Document::new(Source::Text("{}".to_owned()));
        let first = fetch(&document, None).await;
        assert_eq!((first.status().as_u16(), first.body().as_ref()), (200, &b"{}"[..]));
        let second = fetch(&document, Some(&tag(&first))).await;
        assert_eq!((second.status().as_u16(), second.body().len()), (304, 0));

        document.set(&json!({"revision": 2}));
        let third = fetch(&document, Some(&tag(&first))).await;
        assert_eq!(
            (third.status().as_u16(), third.body().as_ref()),
            (200, &br#"{"revision":2}"#[..])
        );
        assert_ne!(tag(&first), tag(&third));
        assert_eq!(document.fetches(), 3);
    }

    #[tokio::test]
    async fn an_edited_file_is_served_at_once() {
        let path = std::env::temp_dir().join(format!("edited-{}.json", std::process::id()));
        std::fs::write(&path, "1").unwrap();
        let document = Document::new(Source::File(path.clone()));
        assert_eq!(fetch(&document, None).await.body().as_ref(), b"1");
        std::fs::write(&path, "2").unwrap();
        assert_eq!(fetch(&document, None).await.body().as_ref(), b"2");
        std::fs::remove_file(&path).unwrap();
        assert_eq!(fetch(&document, None).await.status(), 500);
    }

    #[tokio::test]
    async fn every_fault_shows_and_ends_when_it_is_healed() {
        let document = Document::new(Source::Text("{}".to_owned()));
        for (fault, status, body) in [
            (Fault::Status(429), 429, ""),
            (Fault::Body("{".to_owned()), 200, "{"),
            (Fault::Huge(5), 200, "\"xxx\""),
            (Fault::Html, 200, "<html><body>Please log in</body></html>"),
        ] {
            document.fault(fault.clone());
            let response = fetch(&document, None).await;
            let seen = (response.status().as_u16(), response.body().as_ref());
            assert_eq!(seen, (status, body.as_bytes()), "{fault:?}");
        }
        let request = Request::get("/").body(Bytes::new()).unwrap();
        document.fault(Fault::Close);
        assert_eq!(document.answer(&request).await.map(|_| ()), None);
        document.fault(Fault::Hang);
        let hanging = tokio::time::timeout(Duration::from_millis(20), document.answer(&request));
        assert!(hanging.await.is_err());
        document.heal();
        assert_eq!(fetch(&document, None).await.body().as_ref(), b"{}");
    }
}
