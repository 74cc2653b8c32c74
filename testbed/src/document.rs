//! A JSON document that is polled over HTTP, such as a policy or a key set, and the ways in which fetching it goes wrong.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hyper::body::Bytes;
use hyper::header::{CACHE_CONTROL, ETAG, HeaderValue, IF_NONE_MATCH};
use hyper::{Request, Response, StatusCode};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::error::{Context as _, Result};
use crate::identity::now;
use crate::server::reply;

/// How often a held fetch looks whether the file was edited.
const LOOK: Duration = Duration::from_millis(50);

/// A served document.
///
/// A fetch that prefers to wait (RFC 7240 §4.3) and knows the document already is held until there is another, or a
/// fault, or the time is over.
#[derive(Debug)]
pub struct Document {
    state: Mutex<State>,
    changes: watch::Sender<()>,
    connections: AtomicU64,
    fetches: AtomicU64,
    held: AtomicU64,
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
        Self {
            state: Mutex::new(state),
            changes: watch::Sender::new(()),
            connections: AtomicU64::new(0),
            fetches: AtomicU64::new(0),
            held: AtomicU64::new(0),
        }
    }

    /// Serves `content` from now on.
    pub fn set(&self, content: &Value) {
        self.set_text(content.to_string());
    }

    /// Serves `text` from now on, whatever it is.
    pub fn set_text(&self, text: impl Into<String>) {
        let text = text.into();
        self.change(|state| state.source = Source::Text(text));
    }

    /// Fails every fetch in this way, until [`Document::heal`].
    pub fn fault(&self, fault: Fault) {
        self.change(|state| state.fault = Some(fault));
    }

    /// Ends a fault.
    pub fn heal(&self) {
        self.change(|state| state.fault = None);
    }

    /// Sends this `cache-control` with every answer; `None` for no such header.
    pub fn cache_control(&self, value: Option<&'static str>) {
        self.change(|state| state.cache_control = value.map(HeaderValue::from_static));
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

    /// The connections that were made to the server of this document.
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }

    /// How many fetches are being held now.
    pub fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    /// The answer to a fetch; `None` to close the connection.
    pub async fn answer(&self, request: &Request<Bytes>) -> Option<Response<Bytes>> {
        self.fetches.fetch_add(1, Ordering::Relaxed);
        let response = match patience(request) {
            None => self.respond(request).await,
            Some(seconds) => self.hold(request, seconds).await,
        };
        if let Some(log) = &mut self.state().log {
            let status = response.as_ref().map_or(0, |response| response.status().as_u16());
            // A log that cannot be written is no reason to stop serving.
            let _: Result<(), _> = writeln!(log, "{} GET {} {status}", now(), request.uri().path());
        }
        response
    }

    /// The answer as soon as it is more than that nothing changed, at the latest after `seconds`.
    async fn hold(&self, request: &Request<Bytes>, seconds: u64) -> Option<Response<Bytes>> {
        let deadline = Instant::now() + Duration::from_secs(seconds);
        let mut changes = self.changes.subscribe();
        let _held = Held::new(&self.held);
        loop {
            changes.mark_unchanged();
            let mut response = self.respond(request).await?;
            let left = deadline.saturating_duration_since(Instant::now());
            if response.status() == StatusCode::NOT_MODIFIED && !left.is_zero() {
                // Whether it was a change or time to look at the file: the next answer says it.
                let _: Result<_, _> = timeout(left.min(LOOK), changes.changed()).await;
                continue;
            }
            let applied = HeaderValue::from_str(&format!("wait={seconds}")).ok()?;
            response.headers_mut().insert("preference-applied", applied);
            return Some(response);
        }
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

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.changes.send_replace(());
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

    fn connected(&self) {
        self.connections.fetch_add(1, Ordering::Relaxed);
    }
}

/// A fetch that is being held; whoever hangs up is no longer.
struct Held<'d>(&'d AtomicU64);

impl<'d> Held<'d> {
    fn new(count: &'d AtomicU64) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// For how many seconds the caller would wait for another document than the one that it knows.
fn patience(request: &Request<Bytes>) -> Option<u64> {
    request.headers().get(IF_NONE_MATCH)?;
    let preferences = request.headers().get("prefer")?.to_str().ok()?;
    preferences.split([',', ';']).find_map(|one| one.trim().strip_prefix("wait=")?.parse().ok())
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
    async fn a_fetch_that_prefers_to_wait_is_held_until_there_is_something_new() {
        let document = Document::new(Source::Text("1".to_owned()));
        let known = tag(&fetch(&document, None).await);
        let asked = |wait: &str, known: &str| {
            let request = Request::get("/").header("prefer", wait).header(IF_NONE_MATCH, known);
            request.body(Bytes::new()).unwrap()
        };
        // Who knows nothing is not held, and nobody longer than asked for.
        let first = asked("wait=30", "\"another\"");
        assert_eq!(document.answer(&first).await.unwrap().body().as_ref(), b"1");
        let brief = document.answer(&asked("respond-async, wait=0", &known)).await.unwrap();
        assert_eq!(
            (brief.status(), brief.headers()["preference-applied"].as_bytes()),
            (StatusCode::NOT_MODIFIED, &b"wait=0"[..])
        );

        let held = asked("wait=30", &known);
        let (answer, ()) = tokio::join!(document.answer(&held), async {
            assert_eq!(document.held(), 1);
            document.set_text("2");
        });
        let answer = answer.unwrap();
        assert_eq!(answer.body().as_ref(), b"2");
        assert_eq!(answer.headers()["preference-applied"], "wait=30");
        assert_eq!(document.held(), 0);

        let held = asked("wait=30", &tag(&answer));
        let (answer, ()) = tokio::join!(document.answer(&held), async {
            document.fault(Fault::Close);
        });
        assert!(answer.is_none());
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
        let hanging = timeout(Duration::from_millis(20), document.answer(&request));
        assert!(hanging.await.is_err());
        document.heal();
        assert_eq!(fetch(&document, None).await.body().as_ref(), b"{}");
    }
}
