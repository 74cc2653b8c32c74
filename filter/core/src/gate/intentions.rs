//! The Consul intentions of one worker: a layer beside the policies that only takes away.

use std::rc::Rc;
use std::sync::Arc;

use crate::arrival::Request;
use crate::feed::{Endpoint, Feed, Read, Site};
use crate::intentions::{Intentions, Question, Settings, Token};
use crate::limits::Limits;
use crate::peer::SpiffeId;
use crate::policy::authority::{Authority, Hosts};
use crate::policy::path;
use crate::quote::quote;
use crate::reject::{Code, Reject};
use crate::status::{Kind, Source};
use crate::time::UnixTime;

/// The intentions about one destination.
pub(super) struct Layer {
    pub(super) name: Arc<str>,
    settings: Rc<Settings>,
    /// The authorities that they are about; `None`: all.
    hosts: Option<Hosts>,
    pub(super) feed: Feed<Intentions>,
}

/// Who calls, as far as intentions ask.
#[derive(Clone, Copy)]
pub(super) struct Caller<'a> {
    pub(super) peer: Option<&'a SpiffeId>,
    pub(super) token: Option<Token<'a>>,
}

impl Layer {
    pub(super) fn new((settings, endpoint): (Settings, Endpoint), site: &Site) -> Self {
        // Instances that read the same documents otherwise must not share them.
        let salt = format!("intentions {settings:?}");
        let feed = Feed::remote(endpoint, site.limits.intentions_bytes, &salt, site);
        let name = settings.name.as_str().into();
        // Of a configuration that was read, all are hosts.
        let hosts = settings.read_hosts().unwrap_or_default();
        Self { name, settings: Rc::new(settings), hosts, feed }
    }

    /// What reads a document.
    pub(super) fn reader(
        &self,
        limits: Limits,
    ) -> impl Fn(&[u8], &str) -> Result<Read<Intentions>, String> + use<> {
        let settings = Rc::clone(&self.settings);
        move |body, _| {
            let document = Intentions::parse(body, &settings, &limits)?;
            let notes = document.unfit();
            let notes = notes.map(|(name, problem)| {
                format!("the intention {} {problem}, so it denies", quote(name))
            });
            let notes = notes.take(MOST_NOTES).collect();
            Ok(Read { document, notes, mark: String::new() })
        }
    }

    /// Whether the call is allowed; it is if the intentions are not about its authority.
    ///
    /// # Errors
    /// Why not.
    pub(super) fn judge(
        &self,
        caller: Caller<'_>,
        request: &Request<'_>,
        headers: &[(&[u8], &[u8])],
        limits: &Limits,
    ) -> Result<(), Reject> {
        if !self.is_about(request)? {
            return Ok(());
        }
        let Some(intentions) = self.feed.current() else {
            // INVARIANT: nothing is decided before all are here.
            let detail = format!("policy `{}` was not fetched yet", self.name);
            return Err(Reject::new(Code::PolicyUnavailable, detail));
        };
        let path =
            if intentions.ask_for_paths() && !request.is_tunnel() {
                Some(path::normalise(request.target, limits).map_err(|problem| {
                    Reject::new(Code::PathInvalid, format!("the path {problem}"))
                })?)
            } else {
                None
            };
        let question = Question {
            peer: caller.peer,
            method: request.method,
            path: path.as_deref(),
            headers,
            token: caller.token,
        };
        intentions.judge_call(&question).map(|_| ())
    }

    fn is_about(&self, request: &Request<'_>) -> Result<bool, Reject> {
        let Some(hosts) = &self.hosts else { return Ok(true) };
        let authority = if request.is_tunnel() {
            Authority::of_tunnel(request.authority)
        } else {
            Authority::parse(request.authority, request.scheme)
        };
        match authority {
            Ok(authority) => Ok(hosts.find(&authority).is_some()),
            Err(problem) => {
                let detail = format!("the authority {problem}");
                Err(Reject::new(Code::AuthorityInvalid, detail))
            }
        }
    }

    pub(super) fn status(&self, now: UnixTime) -> Source {
        let current = self.feed.current();
        Source {
            name: self.name.to_string(),
            kind: Kind::Intentions,
            revision: current.map(|intentions| intentions.index()),
            count: current.map_or(0, |intentions| intentions.len()),
            ..self.feed.status(now)
        }
    }
}

/// Log lines about the intentions of one document that are not understood.
const MOST_NOTES: usize = 20;
