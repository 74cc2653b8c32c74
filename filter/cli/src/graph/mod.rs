//! Who may call what, as a graph: callers, destinations, and the rules between them.
//!
//! It shows what a policy says. What it decides about a call, `explain` tells.

pub mod diagram;
pub mod page;

use airflow_envoy_core::policy::explain::glob;
use airflow_envoy_core::time::{Span, UnixTime};
use serde_json::{Map, Value, json};

use crate::model::{Agreement, Model, Selector, meet, selector};
use crate::source::{Node, Place};

/// A policy as a graph.
#[derive(Debug, Default)]
pub struct Graph {
    /// The document's own number for itself.
    pub revision: Option<u64>,
    /// Whom rules are about.
    pub callers: Vec<Caller>,
    /// What they are about.
    pub destinations: Vec<Destination>,
    /// What stands between them, deny rules first.
    pub edges: Vec<Edge>,
    /// Who may present identities, and which; `None` if the policy does not say.
    pub agreement: Option<Vec<Agreement>>,
}

/// Whom a rule is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// Everybody who was let in.
    Anybody,
    /// Who holds this role, by one of these selectors.
    Role(String, Vec<Selector>),
    /// Who matches this selector of a rule without roles.
    Matching(Selector),
}

/// What a rule is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// Every destination that there is.
    Every,
    /// The one of this name, with its hosts.
    Named(String, Vec<String>),
}

/// What a rule does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Effect {
    /// It denies, whatever allows.
    Deny,
    /// It allows.
    Allow,
    /// It is not a rule: so much may be granted for a while.
    Grantable,
}

/// What time makes of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It applies.
    Active,
    /// It applies later.
    NotYet,
    /// It applies, and is over soon.
    Soon,
    /// It is over.
    Over,
}

/// A rule, or what may be granted.
#[derive(Debug, Clone)]
pub struct Edge {
    /// Its id.
    pub id: String,
    /// Where it stands.
    pub place: Place,
    /// Why it is there.
    pub intent: Option<String>,
    /// What it does.
    pub effect: Effect,
    /// It is only reported.
    pub shadow: bool,
    /// Places in [`Graph::callers`], of which one must fit.
    pub callers: Vec<usize>,
    /// What it asks of the caller besides a role.
    pub further: Selector,
    /// Places in [`Graph::destinations`].
    pub destinations: Vec<usize>,
    /// `None` for any.
    pub methods: Option<Vec<String>>,
    /// `None` for any.
    pub paths: Option<Vec<String>>,
    /// When it begins to apply.
    pub not_before: Option<UnixTime>,
    /// When it ceases to apply.
    pub expires_at: Option<UnixTime>,
    /// How it stands in time.
    pub state: State,
    /// Of what may be granted: for how long at most, and by whom.
    pub grant: Option<(String, Vec<String>)>,
}

/// What of a policy is wanted; an empty list wants all. Globs.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Rules that may be about holders of these roles.
    pub roles: Vec<String>,
    /// Rules about these destinations.
    pub destinations: Vec<String>,
    /// Rules that may be about these DAGs.
    pub dags: Vec<String>,
}

impl Effect {
    /// For other programs, and as the policy calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Deny => "deny",
            Self::Allow => "allow",
            Self::Grantable => "grantable",
        }
    }
}

impl State {
    /// For other programs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::NotYet => "not_yet",
            Self::Soon => "expires_soon",
            Self::Over => "expired",
        }
    }

    /// How rules stand that begin and end at these times, if `expiring` before its end one is over soon.
    pub fn of(
        not_before: Option<UnixTime>,
        expires_at: Option<UnixTime>,
        now: UnixTime,
        expiring: Span,
    ) -> Self {
        match expires_at {
            Some(end) if end <= now => Self::Over,
            _ if not_before.is_some_and(|start| now < start) => Self::NotYet,
            Some(end) if end <= now.plus(expiring) => Self::Soon,
            _ => Self::Active,
        }
    }
}

impl Caller {
    /// Its name.
    pub fn name(&self) -> String {
        match self {
            Self::Anybody => "anybody who was let in".to_owned(),
            Self::Role(name, _) => name.clone(),
            Self::Matching(selector) => told(selector),
        }
    }

    /// What else there is to say of it; may be empty.
    pub fn note(&self) -> String {
        match self {
            Self::Role(_, any) => any.iter().map(told).collect::<Vec<_>>().join(" or "),
            Self::Anybody | Self::Matching(_) => String::new(),
        }
    }
}

impl Destination {
    /// Its name.
    pub fn name(&self) -> &str {
        match self {
            Self::Every => "every destination",
            Self::Named(name, _) => name,
        }
    }

    /// Its hosts.
    pub fn note(&self) -> String {
        match self {
            Self::Every => String::new(),
            Self::Named(_, hosts) => hosts.join(", "),
        }
    }
}

impl Agreement {
    /// What it says: `services airflow-worker may assert dags ds_*`.
    pub fn told(&self) -> String {
        let who = if self.from.is_empty() { "anybody".to_owned() } else { told(&self.from) };
        let what = match self.may_assert.is_empty() {
            true => "anything".to_owned(),
            false => told(&self.may_assert),
        };
        format!("{who} may assert {what}")
    }
}

/// A selector in words: `dags ds_*; teams a or b`.
pub fn told(selector: &Selector) -> String {
    let field = |(name, values): (&String, &Vec<String>)| format!("{name} {}", values.join(" or "));
    selector.iter().map(field).collect::<Vec<_>>().join("; ")
}

impl Graph {
    /// The graph of the policy in `document`, of which `model` is the model.
    pub fn new(
        document: &Node,
        model: &Model,
        filter: &Filter,
        now: UnixTime,
        expiring: Span,
    ) -> Self {
        let mut graph = Self {
            revision: document.value().get("revision").and_then(Value::as_u64),
            agreement: model.agreement.clone(),
            ..Self::default()
        };
        for rule in &model.rules {
            graph.add(
                model,
                filter,
                &rule.from,
                rule.to.as_deref(),
                Edge {
                    id: rule.id.clone(),
                    place: rule.place.clone(),
                    intent: rule.intent.clone(),
                    effect: if rule.allows { Effect::Allow } else { Effect::Deny },
                    shadow: rule.shadow,
                    callers: Vec::new(),
                    further: Selector::new(),
                    destinations: Vec::new(),
                    methods: rule.methods.clone(),
                    paths: rule.paths.clone(),
                    not_before: rule.not_before,
                    expires_at: rule.expires_at,
                    state: State::of(rule.not_before, rule.expires_at, now, expiring),
                    grant: None,
                },
            );
        }
        for node in document.member("grantable").map(Node::elements).unwrap_or_default() {
            let text = |name: &str| node.member(name).and_then(Node::text).map(str::to_owned);
            let texts = |name: &str| {
                let elements = node.member(name)?.elements().iter();
                Some(elements.filter_map(Node::text).map(str::to_owned).collect::<Vec<_>>())
            };
            let from = node.member("from").map(selector).unwrap_or_default();
            let to = texts("to").filter(|to| *to != ["*"]);
            let edge = Edge {
                id: text("id").unwrap_or_default(),
                place: node.place.clone(),
                intent: text("intent"),
                effect: Effect::Grantable,
                shadow: false,
                callers: Vec::new(),
                further: Selector::new(),
                destinations: Vec::new(),
                methods: texts("methods"),
                paths: texts("paths"),
                not_before: None,
                expires_at: None,
                state: State::Active,
                grant: Some((
                    text("max_duration").unwrap_or_default(),
                    texts("approvers").unwrap_or_default(),
                )),
            };
            graph.add(model, filter, &from, to.as_deref(), edge);
        }
        graph.edges.sort_by_key(|edge| edge.effect);
        graph
    }

    /// Adds a rule if it is wanted.
    fn add(
        &mut self,
        model: &Model,
        filter: &Filter,
        from: &Selector,
        to: Option<&[String]>,
        mut edge: Edge,
    ) {
        let wanted = |globs: &[String], name: &str| {
            globs.is_empty() || globs.iter().any(|wanted| glob(wanted, name))
        };
        if !may_be_about(model, from, &filter.dags) {
            return;
        }
        match from.get("roles") {
            Some(roles) => {
                for name in roles.iter().filter(|name| wanted(&filter.roles, name)) {
                    let any = model.roles.get(name).map(|role| role.any.clone());
                    let caller = Caller::Role(name.clone(), any.unwrap_or_default());
                    edge.callers.push(place(&mut self.callers, caller));
                }
                edge.further = from.clone();
                edge.further.remove("roles");
            }
            // Whatever role a caller holds, such a rule may be about it.
            None if from.is_empty() => {
                edge.callers.push(place(&mut self.callers, Caller::Anybody));
            }
            None => {
                edge.callers.push(place(&mut self.callers, Caller::Matching(from.clone())));
            }
        }
        match to {
            None => edge.destinations.push(place(&mut self.destinations, Destination::Every)),
            Some(names) => {
                for name in names.iter().filter(|name| wanted(&filter.destinations, name)) {
                    let hosts = model.destinations.get(name).map(|one| one.hosts.clone());
                    let destination = Destination::Named(name.clone(), hosts.unwrap_or_default());
                    edge.destinations.push(place(&mut self.destinations, destination));
                }
            }
        }
        if !edge.callers.is_empty() && !edge.destinations.is_empty() {
            self.edges.push(edge);
        }
    }

    /// The callers, the destinations and the rules without those that stand alone.
    pub fn tidy(mut self) -> Self {
        let (mut callers, mut destinations) = (Vec::new(), Vec::new());
        for edge in &mut self.edges {
            for at in &mut edge.callers {
                if let Some(caller) = self.callers.get(*at) {
                    *at = place(&mut callers, caller.clone());
                }
            }
            for at in &mut edge.destinations {
                if let Some(destination) = self.destinations.get(*at) {
                    *at = place(&mut destinations, destination.clone());
                }
            }
        }
        (self.callers, self.destinations) = (callers, destinations);
        self
    }

    /// The callers of a rule.
    pub fn callers_of<'g>(&'g self, edge: &'g Edge) -> impl Iterator<Item = &'g Caller> {
        edge.callers.iter().filter_map(|at| self.callers.get(*at))
    }

    /// The destinations of a rule.
    pub fn destinations_of<'g>(&'g self, edge: &'g Edge) -> impl Iterator<Item = &'g Destination> {
        edge.destinations.iter().filter_map(|at| self.destinations.get(*at))
    }

    /// The graph for other programs.
    pub fn json(&self) -> Value {
        let claims = |selector: &Selector| {
            selector
                .iter()
                .map(|(name, values)| (name.clone(), json!(values)))
                .collect::<Map<_, _>>()
        };
        let caller = |caller: &Caller| match caller {
            Caller::Anybody => json!({"kind": "anybody"}),
            Caller::Role(name, any) => {
                json!({"kind": "role", "role": name, "any": any.iter().map(claims).collect::<Vec<_>>()})
            }
            Caller::Matching(selector) => json!({"kind": "selector", "selector": claims(selector)}),
        };
        let destination = |destination: &Destination| match destination {
            Destination::Every => json!({"kind": "every"}),
            Destination::Named(name, hosts) => {
                json!({"kind": "destination", "destination": name, "hosts": hosts})
            }
        };
        let edge = |edge: &Edge| {
            let mut value = json!({
                "id": edge.id, "effect": edge.effect.name(), "mode": if edge.shadow { "shadow" } else { "enforce" },
                "state": edge.state.name(), "callers": edge.callers, "destinations": edge.destinations,
                "file": &*edge.place.file, "line": edge.place.line,
            });
            let members = [
                ("intent", edge.intent.as_ref().map(|intent| json!(intent))),
                ("from", (!edge.further.is_empty()).then(|| Value::Object(claims(&edge.further)))),
                ("methods", edge.methods.as_ref().map(|methods| json!(methods))),
                ("paths", edge.paths.as_ref().map(|paths| json!(paths))),
                ("not_before", edge.not_before.map(|at| json!(at.to_string()))),
                ("expires_at", edge.expires_at.map(|at| json!(at.to_string()))),
                ("max_duration", edge.grant.as_ref().map(|(most, _)| json!(most))),
                ("approvers", edge.grant.as_ref().map(|(_, approvers)| json!(approvers))),
            ];
            if let Some(object) = value.as_object_mut() {
                let given = members.into_iter().filter_map(|(name, value)| Some((name, value?)));
                object.extend(given.map(|(name, value)| (name.to_owned(), value)));
            }
            value
        };
        let agreement = self.agreement.as_ref().map(|entries| {
            let entry = |entry: &Agreement| {
                json!({
                    "id": entry.id, "from": claims(&entry.from), "may_assert": claims(&entry.may_assert),
                    "file": &*entry.place.file, "line": entry.place.line,
                })
            };
            entries.iter().map(entry).collect::<Vec<_>>()
        });
        json!({
            "revision": self.revision,
            "agreement": agreement,
            "callers": self.callers.iter().map(caller).collect::<Vec<_>>(),
            "destinations": self.destinations.iter().map(destination).collect::<Vec<_>>(),
            "rules": self.edges.iter().map(edge).collect::<Vec<_>>(),
        })
    }
}

/// Whether some caller that meets `from` may be of one of these DAGs.
fn may_be_about(model: &Model, from: &Selector, dags: &[String]) -> bool {
    let fits = |values: &[String]| {
        values.iter().any(|value| dags.iter().any(|wanted| meet(value, wanted)))
    };
    let about = |way: &Selector| {
        // The second stands for what a role asks for besides the rule.
        let mut asked =
            way.iter().filter(|(field, _)| *field == "dags" || field.starts_with("dags of role "));
        asked.all(|(_, values)| fits(values))
    };
    dags.is_empty() || model.ways(from).iter().any(about)
}

/// The place of `wanted` in the list, to which it is added if it is not there.
fn place<T: PartialEq>(list: &mut Vec<T>, wanted: T) -> usize {
    list.iter().position(|known| *known == wanted).unwrap_or_else(|| {
        list.push(wanted);
        list.len() - 1
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::load::read_bytes;

    const POLICY: &str = "version: 1\nrevision: 7\nroles:\n  ds: {any: [{teams: [ds], dags: ['ds_*']}]}\n  \
        ops: {any: [{teams: [ops]}]}\ndestinations:\n  orders: {hosts: [orders]}\n  bills: {hosts: [bills]}\n\
        rules:\n  \
        - {id: reads, effect: allow, from: {roles: [ds, ops]}, to: [orders], methods: [GET], paths: ['/v1/**']}\n  \
        - {id: none, effect: deny, from: {run_types: [manual]}, to: ['*']}\n  \
        - {id: trial, effect: allow, from: {roles: [ops], dags: ['x_*']}, to: [bills, orders], methods: [PUT], \
           valid: {expires_at: 2026-12-01T00:00:00Z}}\n\
        grantable:\n  \
        - {id: more, from: {dags: ['ds_*']}, to: [bills], methods: [POST], max_duration: 4h, approvers: [on-call]}\n";

    fn graph(filter: &Filter) -> Graph {
        let node = read_bytes("p.yaml", POLICY.as_bytes()).unwrap();
        let now = UnixTime::from_rfc3339("2026-11-22T00:00:00Z").unwrap();
        let span = Span::parse("14d").unwrap();
        Graph::new(&node, &Model::new(&node), filter, now, span).tidy()
    }

    fn ids(filter: &Filter) -> Vec<String> {
        graph(filter).edges.into_iter().map(|edge| edge.id).collect()
    }

    #[test]
    fn a_graph_has_callers_destinations_and_rules_deny_first() {
        let graph = graph(&Filter::default());
        let ids: Vec<&str> = graph.edges.iter().map(|edge| &*edge.id).collect();
        assert_eq!(ids, ["none", "reads", "trial", "more"]);
        let names: Vec<String> = graph.callers.iter().map(Caller::name).collect();
        assert_eq!(names, ["run_types manual", "ds", "ops", "dags ds_*"]);
        assert_eq!(graph.callers[1].note(), "dags ds_*; teams ds");
        let states: Vec<State> = graph.edges.iter().map(|edge| edge.state).collect();
        assert_eq!(states, [State::Active, State::Active, State::Soon, State::Active]);
        assert_eq!(graph.edges[3].grant, Some(("4h".to_owned(), vec!["on-call".to_owned()])));
        assert_eq!(graph.json()["rules"][2]["expires_at"], "2026-12-01T00:00:00Z");
        assert_eq!(graph.json()["revision"], 7);
    }

    #[test]
    fn a_filter_leaves_what_may_concern() {
        let only = |list: &[&str]| list.iter().map(|one| (*one).to_owned()).collect::<Vec<_>>();
        let filter = Filter { roles: only(&["d*"]), ..Filter::default() };
        assert_eq!(ids(&filter), ["none", "reads", "more"]);
        let filter = Filter { destinations: only(&["bills"]), ..Filter::default() };
        assert_eq!(ids(&filter), ["none", "trial", "more"]);
        let filter = Filter { dags: only(&["x_1"]), ..Filter::default() };
        // The role `ds` is for other DAGs, `ops` for all.
        assert_eq!(ids(&filter), ["none", "reads", "trial"]);
        let filter = Filter { dags: only(&["ds_*"]), ..Filter::default() };
        assert_eq!(ids(&filter), ["none", "reads", "more"]);
    }

    #[test]
    fn time_makes_of_a_rule_what_it_is() {
        let at = UnixTime::from_secs;
        let day = Span::from_secs(10);
        for (begin, end, state) in [
            (None, None, State::Active),
            (Some(101), None, State::NotYet),
            (Some(100), Some(111), State::Active),
            (None, Some(110), State::Soon),
            (None, Some(100), State::Over),
        ] {
            assert_eq!(State::of(begin.map(at), end.map(at), at(100), day), state);
        }
    }
}
