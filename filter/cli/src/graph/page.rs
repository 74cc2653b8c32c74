//! A graph as a page for who reviews a policy.

use std::collections::BTreeMap;

use airflow_envoy_core::time::UnixTime;
use maud::{Markup, html};

use super::diagram::Look;
use super::{Edge, Effect, Graph, State};
use crate::model::Selector;
use crate::output::html::{Column, Section, clock, figures, page, short, table, visible};
use crate::output::plural;
use crate::output::svg::{Columns, Kind, Link, Node, columns, key};

/// Callers and destinations in the picture; the tables have all.
const PICTURED: usize = 40;

/// Rules up to which all lists are open.
const OPEN: usize = 200;

/// The page of a policy that was read from `sources`, as it stands at `now`.
pub fn policy_page(graph: &Graph, sources: &str, now: UnixTime) -> String {
    let of = |look: Look| -> Vec<(usize, &Edge)> {
        graph.edges.iter().enumerate().filter(|(_, edge)| edge.look() == look).collect()
    };
    let (deny, allow) = (of(Look::Deny), of(Look::Allow));
    let (shadow, grantable) = (of(Look::Shadow), of(Look::Grantable));
    let in_state = |state| graph.edges.iter().filter(|edge| edge.state == state).count();
    let (soon, over) = (in_state(State::Soon), in_state(State::Over));
    let mut counts = vec![
        ("Deny rules", deny.len().to_string()),
        ("Allow rules", allow.len().to_string()),
        ("Shadow rules", shadow.len().to_string()),
        ("Over soon", soon.to_string()),
        ("Expired", over.to_string()),
    ];
    if !grantable.is_empty() {
        counts.push(("May be granted", grantable.len().to_string()));
    }
    let revision = graph.revision.map_or_else(String::new, |number| format!(", revision {number}"));
    let lead = html! {
        p { "Policy of " code { (visible(sources)) } (revision) ", as it stands on "
            time datetime=(now) { (clock(now)) } "." }
        p.faint { "What no rule allows is denied. Any deny rule wins over every allow rule; the order of rules never matters." }
        (figures(&counts))
    };
    let mut sections =
        vec![Section { id: "picture", title: "Who may call what", body: picture(graph) }];
    let mut add = |id, title, caption: &str, edges: &[(usize, &Edge)]| {
        let rows: Vec<Markup> = edges.iter().map(|(at, edge)| row(graph, *at, edge)).collect();
        sections.push(Section { id, title, body: table(caption, &HEADS, &rows) });
    };
    add("deny", "What is denied", "Deny rules, which always win", &deny);
    add("allow", "What is allowed", "Allow rules", &allow);
    add("shadow", "What is only watched", "Shadow rules: reported, never enforced", &shadow);
    if !grantable.is_empty() {
        let caption = "What an approver may grant for a while; deny rules win over grants too";
        add("grantable", "What may be granted", caption, &grantable);
    }
    if let Some(agreement) = &graph.agreement {
        let rows = agreement.iter().map(|entry| {
            let some = |selector: &Selector, none: &'static str| html! {
                @if selector.is_empty() { span.faint { (none) } } @else { (conditions(selector)) }
            };
            html! { tr id={"agreement-" (entry.id)} {
                td.wide {
                    code { (visible(&entry.id)) }
                    div.small.faint { (visible(&entry.place.to_string())) }
                }
                td.wide { (some(&entry.from, "anybody")) }
                td.wide { (some(&entry.may_assert, "anything")) }
            } }
        });
        let heads = [
            Column::words("Agreement"),
            Column::words("Who presents it"),
            Column::words("May assert"),
        ];
        let caption = "An Airflow identity counts only if one of these holds";
        let body = table(caption, &heads, &rows.collect::<Vec<_>>());
        sections.push(Section { id: "agreement", title: "Who may present identities", body });
    }
    let open = graph.edges.len() <= OPEN;
    let roles = graph.callers.iter().enumerate().map(|(at, caller)| {
        let edges = graph.edges.iter().enumerate().filter(|(_, edge)| edge.callers.contains(&at));
        item(graph, &caller.name(), &caller.note(), &edges.collect::<Vec<_>>(), open)
    });
    sections.push(Section {
        id: "roles",
        title: "By caller",
        body: html! { @for one in roles { (one) } },
    });
    let destinations = graph.destinations.iter().enumerate().map(|(at, destination)| {
        let about = |(_, edge): &(usize, &Edge)| {
            edge.destinations.contains(&at)
                // A rule about every destination is about this one too.
                || graph.destinations_of(edge).any(|one| *one == super::Destination::Every)
        };
        let edges: Vec<_> = graph.edges.iter().enumerate().filter(about).collect();
        item(graph, destination.name(), &destination.note(), &edges, open)
    });
    let body = html! { @for one in destinations { (one) } };
    sections.push(Section { id: "destinations", title: "By destination", body });
    let made = format!("Made by airflow-envoy {} graph.", env!("CARGO_PKG_VERSION"));
    page("Who may call what", &lead, &sections, &made)
}

const HEADS: [Column; 6] = [
    Column::words("Rule"),
    Column::words("Caller"),
    Column::words("Destination"),
    Column::words("Methods"),
    Column::words("Paths"),
    Column::words("Valid"),
];

fn row(graph: &Graph, at: usize, edge: &Edge) -> Markup {
    html! {
        tr id={"rule-" (at)} {
            td.wide {
                (badge(edge)) " " code { (visible(&edge.id)) }
                @if let Some(intent) = &edge.intent { div.small { (visible(intent)) } }
                div.small.faint { (visible(&edge.place.to_string())) }
            }
            td.wide {
                @for caller in graph.callers_of(edge) {
                    div title=[Some(caller.note()).filter(|note| !note.is_empty())] { (visible(&caller.name())) }
                }
                @if !edge.further.is_empty() { div.small { "if " (conditions(&edge.further)) } }
            }
            td { @for destination in graph.destinations_of(edge) { div { (visible(destination.name())) } } }
            td { @match &edge.methods { Some(methods) => (visible(&methods.join(", "))), None => span.faint { "every" } } }
            td.wide { @match &edge.paths {
                Some(paths) => { @for path in paths { div { code { (visible(path)) } } } }
                None => span.faint { "every" }
            } }
            td { (validity(edge)) }
        }
    }
}

fn badge(edge: &Edge) -> Markup {
    match (edge.look(), edge.effect) {
        (Look::Shadow, effect) => html! { span.badge.watch { "shadow " (effect.name()) } },
        (_, Effect::Deny) => html! { span.badge.bad { "deny" } },
        (_, Effect::Allow) => html! { span.badge.good { "allow" } },
        (_, Effect::Grantable) => html! { span.badge.grant { "grantable" } },
    }
}

fn conditions(selector: &Selector) -> Markup {
    html! {
        @for (index, (field, values)) in selector.iter().enumerate() {
            @if index > 0 { " and " }
            (visible(field)) " "
            @for (index, value) in values.iter().enumerate() {
                @if index > 0 { " or " }
                code { (visible(value)) }
            }
        }
    }
}

fn validity(edge: &Edge) -> Markup {
    html! {
        @match edge.state {
            State::Soon => span.badge.warn { "over soon" },
            State::Over => span.badge.bad { "expired" },
            State::NotYet => span.badge.watch { "not yet" },
            State::Active => {}
        }
        @if let Some(start) = edge.not_before { div.small { "from " time datetime=(start) { (clock(start)) } } }
        @if let Some(end) = edge.expires_at { div.small { "until " time datetime=(end) { (clock(end)) } } }
        @if let Some((most, approvers)) = &edge.grant {
            div.small { "for " (visible(most)) " at most, by " (visible(&approvers.join(" or "))) }
        }
        @if edge.not_before.is_none() && edge.expires_at.is_none() && edge.grant.is_none() { span.faint { "always" } }
    }
}

/// What concerns one caller or one destination.
fn item(graph: &Graph, name: &str, note: &str, edges: &[(usize, &Edge)], open: bool) -> Markup {
    let denied = edges.iter().filter(|(_, edge)| edge.look() == Look::Deny).count();
    html! {
        details.item open[open] data-name=(name) {
            summary {
                (visible(name)) " "
                span.faint.small { (plural(edges.len(), "rule")) @if denied > 0 { ", " (denied) " deny" } }
            }
            @if !note.is_empty() { p.faint.small { (visible(note)) } }
            ul.rules {
                @for (at, edge) in edges {
                    li {
                        (badge(edge)) " " a href={"#rule-" (at)} { code { (visible(&edge.id)) } } " "
                        @for (index, caller) in graph.callers_of(edge).enumerate() {
                            @if index > 0 { ", " } (visible(&caller.name()))
                        }
                        " → "
                        @for (index, destination) in graph.destinations_of(edge).enumerate() {
                            @if index > 0 { ", " } (visible(destination.name()))
                        }
                        " "
                        @if let Some(methods) = &edge.methods { code { (visible(&methods.join(" "))) } " " }
                        @if let Some(paths) = &edge.paths { code { (visible(&paths.join(" "))) } }
                        @if !edge.further.is_empty() { " if " (conditions(&edge.further)) }
                    }
                }
            }
        }
    }
}

/// The picture of the busiest callers and destinations.
fn picture(graph: &Graph) -> Markup {
    let lines = graph.lines();
    let mut degree = [BTreeMap::<usize, usize>::new(), BTreeMap::new()];
    for ((caller, destination, _), edges) in &lines {
        let [callers, destinations] = &mut degree;
        *callers.entry(*caller).or_default() += edges.len();
        *destinations.entry(*destination).or_default() += edges.len();
    }
    let [callers, destinations] = degree.map(|degree| busiest(&degree));
    let rest = |kept: &BTreeMap<usize, usize>, all: usize, nodes: &mut Vec<Node>, what: &str| {
        if kept.len() < all {
            nodes.push(Node {
                name: format!("{} more", plural(all - kept.len(), what)),
                note: "see the tables".to_owned(),
            });
        }
    };
    let mut left = vec![Node::default(); callers.len()];
    for (at, place) in &callers {
        if let (Some(node), Some(caller)) = (left.get_mut(*place), graph.callers.get(*at)) {
            *node = Node { name: caller.name(), note: caller.note() };
        }
    }
    let mut right = vec![Node::default(); destinations.len()];
    for (at, place) in &destinations {
        if let (Some(node), Some(one)) = (right.get_mut(*place), graph.destinations.get(*at)) {
            *node = Node { name: one.name().to_owned(), note: one.note() };
        }
    }
    rest(&callers, graph.callers.len(), &mut left, "caller");
    rest(&destinations, graph.destinations.len(), &mut right, "destination");
    let mut drawn: BTreeMap<(usize, usize, Kind), Vec<String>> = BTreeMap::new();
    for ((caller, destination, look), edges) in &lines {
        let from = callers.get(caller).copied().unwrap_or(callers.len());
        let to = destinations.get(destination).copied().unwrap_or(destinations.len());
        let kind = match look {
            Look::Deny => Kind::Deny,
            Look::Allow => Kind::Allow,
            Look::Shadow => Kind::Shadow,
            Look::Grantable => Kind::Grant,
        };
        let titles = drawn.entry((from, to, kind)).or_default();
        titles.extend(edges.iter().map(|edge| short(&edge.told(), 160)));
    }
    let links = drawn.into_iter().map(|((left, right, kind), told)| Link {
        left,
        right,
        kind,
        weight: 0.0,
        title: match told.get(..12) {
            Some(first) if told.len() > 12 => {
                format!("{} and {} more", first.join(" | "), told.len() - 12)
            }
            _ => told.join(" | "),
        },
    });
    let picture = Columns {
        title: "Callers, destinations and the rules between them".to_owned(),
        description: format!(
            "{} on the left are connected with {} on the right by {}. The tables below say the same in words.",
            plural(graph.callers.len(), "caller"),
            plural(graph.destinations.len(), "destination"),
            plural(graph.edges.len(), "rule")
        ),
        heads: ["Caller", "Destination"],
        left,
        right,
        links: links.collect(),
    };
    html! {
        figure {
            (key(&[
                (Kind::Deny, "denied"), (Kind::Allow, "allowed"),
                (Kind::Shadow, "only watched"), (Kind::Grant, "may be granted"),
            ]))
            div.scroll tabindex="0" role="region" aria-label="Picture of who may call what" { (columns(&picture)) }
            figcaption { "Point at a line to see its rules. The tables below say the same in words." }
        }
    }
}

/// The places of the busiest ones, in the order of the policy, as places in the picture.
fn busiest(degree: &BTreeMap<usize, usize>) -> BTreeMap<usize, usize> {
    let mut all: Vec<(&usize, &usize)> = degree.iter().collect();
    all.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    let mut kept: Vec<usize> = all.into_iter().take(PICTURED).map(|(at, _)| *at).collect();
    kept.sort_unstable();
    kept.into_iter().enumerate().map(|(place, at)| (at, place)).collect()
}
