//! Where the document of grants is kept: a file, a key of Consul's store, or something that speaks HTTP with
//! entity tags.
//!
//! Several people grant at once, and none of their grants may get lost: every change is made to what is
//! there at that moment, and made again if somebody else was faster. What it is not: it knows nothing of
//! grants; what is read may be anything, and whoever changes it says whether it can be changed.

mod client;
mod consul;
mod file;
mod http;

use std::fmt;
use std::time::{Duration, Instant};

use airflow_envoy_core::limits::Limits;
use airflow_envoy_core::quote::quote;

/// How long a change is tried.
const PATIENCE: Duration = Duration::from_secs(30);

/// Tries after a fault that may be over soon.
const MOST_FAULTS: u32 = 3;

/// Bytes of a document: as many as the filter takes.
const MOST_BYTES: usize = Limits::DEFAULT.grants_bytes;

/// A place for one document.
#[derive(Debug)]
pub struct Store {
    name: String,
    backend: Box<dyn Backend>,
}

/// What is to become of a document.
#[derive(Debug)]
pub enum Change<T> {
    /// It becomes this.
    Write(Vec<u8>, T),
    /// It stays as it is.
    Keep(T),
}

/// What a store can do.
trait Backend: fmt::Debug {
    /// Keeps others out of a change, where that can be done.
    fn lock(&self) -> Result<Box<dyn std::any::Any>, Fault> {
        Ok(Box::new(()))
    }

    /// The document as it is.
    fn read(&self) -> Result<Held, Fault>;

    /// Replaces the document by `document`, if it is still what was read as `version`; otherwise says
    /// `false`.
    fn replace(&self, version: &Version, document: &[u8]) -> Result<bool, Fault>;
}

/// A document that was read.
#[derive(Debug)]
struct Held {
    /// `None` if there is none.
    document: Option<Vec<u8>>,
    version: Version,
}

/// By what a store knows whether a document is still the same.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Version {
    /// There is none.
    Absent,
    /// The entity tag (RFC 9110 §8.8.3).
    Tag(String),
    /// Consul's `ModifyIndex`.
    Index(u64),
    /// The document itself.
    Whole(Vec<u8>),
    /// It can be read, and not be replaced safely; why not.
    Unknown(String),
}

/// Why a store did not do what was asked.
#[derive(Debug)]
struct Fault {
    problem: String,
    /// It may be over soon.
    passing: bool,
}

impl Fault {
    fn lasting(problem: impl Into<String>) -> Self {
        Self { problem: problem.into(), passing: false }
    }

    fn passing(problem: impl Into<String>) -> Self {
        Self { problem: problem.into(), passing: true }
    }
}

impl Store {
    /// The store at `url`: a path or `file://`, `consul://host:port/key` (`consul+https://`; without a host
    /// that of `CONSUL_HTTP_ADDR`), `http://` or `https://`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn at(url: &str) -> Result<Self, String> {
        // What follows a `?` may be a secret.
        let name = url.split('?').next().unwrap_or_default().to_owned();
        let backend: Box<dyn Backend> = match url.split_once("://") {
            None if url.is_empty() => return Err("the store has no name".to_owned()),
            None => Box::new(file::FileStore::new(url)),
            Some(("file", path)) => Box::new(file::FileStore::new(path)),
            Some(("http" | "https", rest)) => {
                check_authority(rest)?;
                Box::new(http::HttpStore::new(url).map_err(|problem| format!("{name}: {problem}"))?)
            }
            Some((scheme @ ("consul" | "consul+https"), rest)) => {
                check_authority(rest)?;
                let tls = scheme == "consul+https";
                let store = consul::ConsulStore::new(rest, tls);
                Box::new(store.map_err(|problem| format!("{name}: {problem}"))?)
            }
            Some((scheme, _)) => {
                let scheme = quote(scheme);
                return Err(format!(
                    "a store of the kind {scheme} is not known; known are a path, `consul://`, \
                     `http://` and `https://`"
                ));
            }
        };
        Ok(Self { name, backend })
    }

    /// Its name, without secrets.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The document; `None` if there is none.
    ///
    /// # Errors
    /// If that cannot be found out.
    pub fn read(&self) -> Result<Option<Vec<u8>>, String> {
        let mut faults = 0;
        loop {
            match self.backend.read() {
                Ok(held) => return Ok(held.document),
                Err(fault) => self.pass_over(fault, &mut faults, false)?,
            }
        }
    }

    /// Changes the document to what `change` makes of it. It is asked again when somebody else was
    /// faster, or if it is not known whether a change was made: it must find its own change, and keep it.
    ///
    /// # Errors
    /// What `change` says, or why the document could not be changed.
    pub fn update<T, E: From<String>>(
        &self,
        mut change: impl FnMut(Option<&[u8]>) -> Result<Change<T>, E>,
    ) -> Result<T, E> {
        let (begin, mut faults, mut lost) = (Instant::now(), 0, 0_u32);
        loop {
            // INVARIANT: the lock is held until the document is replaced.
            let attempt = self.backend.lock().and_then(|lock| Ok((lock, self.backend.read()?)));
            let (lock, held) = match attempt {
                Ok(locked) => locked,
                Err(fault) => {
                    self.pass_over(fault, &mut faults, false)?;
                    continue;
                }
            };
            let (document, outcome) = match change(held.document.as_deref())? {
                Change::Keep(outcome) => return Ok(outcome),
                Change::Write(document, outcome) => (document, outcome),
            };
            if let Version::Unknown(problem) = &held.version {
                return Err(format!("{}: {problem}", self.name).into());
            }
            if document.len() > MOST_BYTES {
                let bytes = document.len();
                let problem =
                    format!("{bytes} bytes are more than the {MOST_BYTES} that filters take");
                return Err(format!("{}: {problem}", self.name).into());
            }
            let replaced = self.backend.replace(&held.version, &document);
            drop(lock);
            match replaced {
                Ok(true) => return Ok(outcome),
                Ok(false) if begin.elapsed() > PATIENCE => {
                    let problem = "others change the document all the time: nothing was changed";
                    return Err(format!("{}: {problem}", self.name).into());
                }
                Ok(false) => {
                    lost = lost.saturating_add(1);
                    pause(lost);
                }
                Err(fault) => self.pass_over(fault, &mut faults, true)?,
            }
        }
    }

    /// Waits after a fault, if it may be over soon and this was not the last try.
    fn pass_over(&self, fault: Fault, faults: &mut u32, changing: bool) -> Result<(), String> {
        *faults = faults.saturating_add(1);
        if fault.passing && *faults <= MOST_FAULTS {
            pause(faults.saturating_mul(4));
            return Ok(());
        }
        let unknown =
            if fault.passing && changing { "; whether it was changed is not known" } else { "" };
        Err(format!("{}: {}{unknown}", self.name, fault.problem))
    }
}

/// A URL has no password: it is shown, and stays in the shell's history.
fn check_authority(rest: &str) -> Result<(), String> {
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    if authority.contains('@') {
        return Err(
            "the store's URL has a user or a password: they belong into the environment".to_owned()
        );
    }
    Ok(())
}

/// Waits a random time of about `weight` × 25 ms, so that those who met once do not meet again.
fn pause(weight: u32) {
    let mut random = [128_u8; 1];
    let _ = getrandom::fill(&mut random);
    let millis = u64::from(random.first().copied().unwrap_or(128)).saturating_add(16);
    let millis = millis.saturating_mul(u64::from(weight.min(16))) / 5;
    std::thread::sleep(Duration::from_millis(millis));
}
