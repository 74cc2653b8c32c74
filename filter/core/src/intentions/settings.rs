//! Where the intentions of a destination come from and what they are about.

use std::collections::BTreeSet;

use super::{ANY, DEFAULT};
use crate::configuration::{
    CONSUL_WAIT, Environment, POLICY_POLL, check_max_age, interval, read_consul_name, read_name,
    read_token, timeout, wait,
};
use crate::document::{Node, Report};
use crate::feed::{Endpoint, Protocol, Questions, Uri};
use crate::policy::authority::{HostFault, Hosts};
use crate::quote::{quote, quote_list};
use crate::time::Span;

/// What one source of intentions is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The name of the source.
    pub name: String,
    /// The Consul service whose intentions they are.
    pub destination: String,
    /// The authorities that it is reached by, as a destination of the policy has them; empty: every call is
    /// one to it.
    pub hosts: Vec<String>,
    /// What decides where no intention does.
    pub default: DefaultAction,
    /// The destination's namespace.
    pub namespace: String,
    /// The destination's partition.
    pub partition: String,
    /// That of the mesh: callers of others are denied.
    pub trust_domain: String,
    /// Consul's providers of tokens, each with the name of our issuer that stands for it.
    pub jwt_providers: Vec<(String, String)>,
    /// Configuration entries are read, not answers to `match`.
    pub entries: bool,
}

/// What decides where no intention does: Consul's default policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DefaultAction {
    /// Nothing is allowed that no intention allows.
    Deny,
    /// Everything is allowed that no intention denies.
    Allow,
}

const DEFAULT_ACTIONS: [(&str, DefaultAction); 2] =
    [("deny", DefaultAction::Deny), ("allow", DefaultAction::Allow)];

/// What the rest of the configuration says that a source of intentions depends on.
pub(crate) struct Surroundings<'c> {
    /// The names of the issuers of access tokens.
    pub(crate) issuers: Vec<&'c str>,
    /// The trust domains of the peers; `None`: peers are not looked at.
    pub(crate) trust_domains: Option<Vec<&'c str>>,
    pub(crate) environment: Environment<'c>,
    pub(crate) max_age: Option<Span>,
}

impl Settings {
    /// Reads a source of the policy that has `consul_intentions`.
    pub(crate) fn read(
        node: &Node<'_>,
        report: &mut Report,
        names: &mut BTreeSet<String>,
        surroundings: &Surroundings<'_>,
    ) -> Option<(Self, Endpoint)> {
        let mut object = node.object(report)?;
        let name = object.required(report, "name").and_then(|node| read_name(&node, report, names));
        let consul = object.required(report, "consul_intentions");
        object.finish(report);
        let node = consul?;
        let mut object = node.object(report)?;
        let cluster = object.required(report, "cluster").and_then(|node| node.string(report));
        let destination = object
            .required(report, "destination")
            .and_then(|node| read_consul_name(&node, report, "a service's name"));
        let hosts = object.optional("hosts").map_or(Some(Vec::new()), |node| node.strings(report));
        let default = object
            .optional("default")
            .map_or(Some(DefaultAction::Deny), |node| node.choice(report, &DEFAULT_ACTIONS));
        let mut consul_name = |member, what| match object.optional(member) {
            Some(node) => read_consul_name(&node, report, what).map(Some),
            None => Some(None),
        };
        let namespace = consul_name("namespace", "a namespace's name");
        let partition = consul_name("partition", "a partition's name");
        let datacenter = consul_name("datacenter", "a datacenter's name");
        let trust_domain = match object.optional("trust_domain") {
            Some(node) => node.string(report).map(Some),
            None => Some(None),
        };
        let trust_domain = trust_domain_of(&node, report, trust_domain?, surroundings);
        let jwt_providers = match object.optional("jwt_providers") {
            Some(node) => read_providers(&node, report, &surroundings.issuers),
            None => Some(Vec::new()),
        };
        let entries = object.optional("entries").map_or(Some(false), |node| node.boolean(report));
        let wait = object.optional("wait").map_or(Some(CONSUL_WAIT), |node| wait(&node, report));
        let interval = interval(&mut object, report, "poll", POLICY_POLL);
        let timeout = timeout(&mut object, report);
        let token = read_token(&mut object, report, surroundings.environment);
        object.finish(report);

        let settings = Self {
            name: name?.to_owned(),
            destination: destination?.to_owned(),
            hosts: hosts?.into_iter().map(str::to_owned).collect(),
            default: default?,
            namespace: namespace?.unwrap_or(DEFAULT).to_owned(),
            partition: partition?.unwrap_or(DEFAULT).to_owned(),
            trust_domain: trust_domain?,
            jwt_providers: jwt_providers?,
            entries: entries?,
        };
        if let Err((host, problem)) = settings.read_hosts() {
            node.fault(report, format!("the host {} {problem}", quote(&host)));
            return None;
        }
        let questions = settings.questions(datacenter?);
        let endpoint = Endpoint {
            name: settings.name.clone(),
            cluster: cluster?.to_owned(),
            uri: Uri {
                scheme: "http",
                authority: "consul".to_owned(),
                path: questions.parts.first()?.clone(),
            },
            interval: interval?,
            min_interval: interval?,
            timeout: timeout?,
            max_age: surroundings.max_age?,
            protocol: Protocol::ConsulIntentions {
                wait: wait?,
                token: token?,
                questions: Box::new(questions),
            },
        };
        check_max_age(&endpoint, &node, "poll", report);
        Some((settings, endpoint))
    }

    /// What to ask Consul: the documents, and a list whose index moves when any intention changes.
    fn questions(&self, datacenter: Option<&str>) -> Questions {
        let Self { destination, namespace, partition, .. } = self;
        let mut place = String::new();
        for (name, value) in
            [("dc", datacenter), ("ns", Some(namespace)), ("partition", Some(partition))]
        {
            // A Consul without Enterprise refuses to be told a namespace.
            let said = value.filter(|value| name == "dc" || *value != DEFAULT);
            place.extend(said.iter().flat_map(|value| ["&", name, "=", value]));
        }
        let parts = if self.entries {
            let query = place.replacen('&', "?", 1);
            let entry = |name| format!("/v1/config/service-intentions/{name}{query}");
            vec![entry(&**destination), entry(ANY)]
        } else {
            vec![format!("/v1/connect/intentions/match?by=destination&name={destination}{place}")]
        };
        let filter = format!(
            "DestinationName%20==%20%22{destination}%22%20or%20DestinationName%20==%20%22%2A%22"
        );
        Questions { parts, list: format!("/v1/connect/intentions?filter={filter}{place}") }
    }
}

fn trust_domain_of(
    node: &Node<'_>,
    report: &mut Report,
    said: Option<&str>,
    surroundings: &Surroundings<'_>,
) -> Option<String> {
    let Some(known) = &surroundings.trust_domains else {
        node.fault(report, "needs `peer`: intentions are about the services that call");
        return None;
    };
    match (said, known.as_slice()) {
        (Some(said), known) if known.contains(&said) => Some(said.to_owned()),
        (Some(said), known) => {
            let known = quote_list(known.iter().copied());
            let problem =
                format!("`trust_domain` {} is none of `peer.trust_domains`: {known}", quote(said));
            node.fault(report, problem);
            None
        }
        (None, [only]) => Some((*only).to_owned()),
        (None, _) => {
            node.fault(
                report,
                "needs `trust_domain`, because `peer` has several: that of this Consul",
            );
            None
        }
    }
}

fn read_providers(
    node: &Node<'_>,
    report: &mut Report,
    issuers: &[&str],
) -> Option<Vec<(String, String)>> {
    let mut providers = Vec::new();
    for (provider, node) in node.entries(report)? {
        let issuer = node.string(report)?;
        if !issuers.contains(&issuer) {
            let known = quote_list(issuers.iter().copied());
            let problem =
                format!("{} is none of the issuers of access tokens: {known}", quote(issuer));
            node.fault(report, problem);
        }
        providers.push((provider.to_owned(), issuer.to_owned()));
    }
    Some(providers)
}

impl Settings {
    /// The authorities that the intentions are about; `None`: all.
    ///
    /// # Errors
    /// The first host that is none, and what is wrong with it.
    pub(crate) fn read_hosts(&self) -> Result<Option<Hosts>, (String, String)> {
        let mut hosts = Hosts::default();
        for host in &self.hosts {
            hosts.add(host, 0).map_err(|fault| {
                let problem = match fault {
                    HostFault::Invalid(problem) => problem,
                    HostFault::Taken(_) => "is listed twice",
                };
                (host.clone(), problem.to_owned())
            })?;
        }
        Ok((!self.hosts.is_empty()).then_some(hosts))
    }
}
