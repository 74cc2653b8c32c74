//! What one worker knows of the roles that services may use, and whether it may still rely on it.
//!
//! No request waits for it. What is not known, or not any more, is that a service may use no role.

use crate::catalog::{Narrow, ServiceRoles};
use crate::facts::{Caller, Fact};
use crate::feed::{Feed, Site};
use crate::status::{Kind, Source};
use crate::time::UnixTime;

/// The services whose callers lose roles.
pub(super) struct Narrowing {
    pub(super) meta: String,
    pub(super) services: Vec<Service>,
}

/// One service.
pub(super) struct Service {
    name: String,
    pub(super) feed: Feed<ServiceRoles>,
    /// Whether sessions were opened by the document, or without one.
    relied: bool,
}

impl Narrowing {
    pub(super) fn new(narrow: Narrow, site: &Site) -> Self {
        let Narrow { meta, services } = narrow;
        let services = services.into_iter().map(|(name, endpoint)| {
            let salt = format!("catalog {meta}");
            let feed = Feed::remote(endpoint, site.limits.catalog_bytes, &salt, site);
            Service { name, feed, relied: false }
        });
        Self { services: services.collect(), meta }
    }

    /// Takes from a caller of one of the services the roles that it may not use. Of a caller without a
    /// certificate nobody knows the service: it loses every role, or a service kept its roles by leaving its
    /// certificate at home.
    pub(super) fn narrow(&self, caller: &mut Caller, now: UnixTime) {
        let roles = match (&caller.services, self.service_of(caller)) {
            (Fact::Known(_), None) => return,
            (Fact::Known(_), Some(known)) => known.feed.usable(now),
            (Fact::Unknown, _) => None,
        };
        match roles {
            Some(roles) => roles.narrow(caller),
            None => ServiceRoles::default().narrow(caller),
        }
    }

    /// Whether it is one of the services that calls.
    pub(super) fn is_about(&self, caller: &Caller) -> bool {
        self.service_of(caller).is_some()
    }

    fn service_of(&self, caller: &Caller) -> Option<&Service> {
        let services = caller.services.values()?;
        self.services.iter().find(|known| services.contains(&known.name))
    }

    /// Whether a document has become too old since the last look, or is usable again: what callers were found
    /// to be does not hold any longer.
    pub(super) fn is_outdated(&mut self, now: UnixTime) -> bool {
        let mut outdated = false;
        for service in &mut self.services {
            let relies = service.feed.usable(now).is_some();
            outdated |= relies != service.relied;
            service.relied = relies;
        }
        outdated
    }

    pub(super) fn status(&self, now: UnixTime) -> impl Iterator<Item = Source> {
        self.services.iter().map(move |service| Source {
            kind: Kind::Catalog,
            count: service.feed.usable(now).map_or(0, |roles| roles.roles().len()),
            ..service.feed.status(now)
        })
    }
}
