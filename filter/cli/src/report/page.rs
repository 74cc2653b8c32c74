//! A report as a page: denials first.

use std::collections::{BTreeMap, BTreeSet};

use airflow_envoy_core::reject::Code;
use airflow_envoy_core::time::UnixTime;
use maud::{Markup, html};

use super::bounded::Histogram;
use super::{Cause, Refusals, Report, RuleUse, Target, Traffic, Weight as _, Who, micros};
use crate::graph::State;
use crate::output::html::{
    Column, Section, clock, figures, grouped, number, page, prose, table, time, visible,
};
use crate::output::plural;
use crate::output::svg::{Bars, Columns, Kind, Link, Node, bars, columns, key};

/// Rows of a table.
const ROWS: usize = 5_000;

/// Callers and targets in the picture.
const PICTURED: usize = 24;

/// Rows of bars.
const BARS: usize = 9;

impl Report {
    /// The page of these files.
    pub fn page(&self, files: &str, now: UnixTime) -> String {
        let all = &self.all;
        let calls = all.weight();
        let mut counts = vec![
            ("Calls", grouped(calls)),
            ("Permitted", grouped(all.permits)),
            ("Refused", grouped(all.rejects)),
            ("Abandoned", grouped(all.abandoned)),
            ("By a grant", grouped(all.granted)),
            ("Streams", grouped(self.streams.len() as u64)),
        ];
        if all.unenforced > 0 {
            counts.push(("Let through in shadow mode", grouped(all.unenforced)));
        }
        let (good, evidence) = self.evidence();
        let faulty = self.verified.as_ref().is_some_and(|verified| !verified.faults.is_empty());
        let class = match (good, faulty) {
            (true, _) => "notice good-notice",
            (false, true) => "notice bad-notice",
            (false, false) => "notice",
        };
        let lead = html! {
            p {
                "Audit records of " code { (visible(files)) }
                @if let (Some(first), Some(last)) = (self.first, self.last) {
                    ", from " time datetime=(first) { (clock(first)) } " to " time datetime=(last) { (clock(last)) }
                }
                "."
            }
            (figures(&counts))
            p class=(class) { (prose(&evidence)) }
        };
        let mut sections = vec![
            Section { id: "refused", title: "What was refused", body: self.refused() },
            Section { id: "traffic", title: "Who talks to whom", body: self.who_talks_to_whom() },
            Section { id: "time", title: "Over time", body: self.over_time() },
            Section { id: "temporary", title: "Temporary access", body: self.temporary() },
            Section { id: "slow", title: "How long calls took", body: self.slow() },
            Section { id: "rules", title: "Rules", body: self.rules_used() },
        ];
        sections.push(Section { id: "trail", title: "The trail itself", body: self.trail() });
        let made = format!(
            "Made by airflow-envoy {} report on {}. Times are in UTC. A permit that stands for several because \
             only a sample is recorded counts as so many.",
            env!("CARGO_PKG_VERSION"),
            clock(now)
        );
        page("Who called what", &lead, &sections, &made)
    }

    fn refused(&self) -> Markup {
        let sorted = self.refusals.sorted();
        let rows: Vec<Markup> =
            sorted.iter().take(ROWS).map(|(cause, refusals)| refusal(cause, refusals)).collect();
        let heads = [
            Column::numbers("Calls"),
            Column::words("Why"),
            Column::words("Caller"),
            Column::words("Last request"),
            Column::words("Rule"),
            Column::words("Last"),
        ];
        html! {
            (table("Refused calls by cause, the most frequent first", &heads, &rows))
            (rest(sorted.len().saturating_sub(ROWS), self.refusals.given_up()))
        }
    }

    fn who_talks_to_whom(&self) -> Markup {
        let sorted = self.traffic.sorted();
        let row = |((from, to), traffic): &(&(Who, Target), &Traffic)| {
            html! {
                tr {
                    td.wide { (who(from)) }
                    td.wide { (target(to)) }
                    (number(traffic.permits)) (number(traffic.granted)) (number(traffic.rejects))
                    (number(traffic.unenforced)) (number(traffic.abandoned))
                }
            }
        };
        let rows: Vec<Markup> = sorted.iter().take(ROWS).map(row).collect();
        let heads = [
            Column::words("Caller"),
            Column::words("Called"),
            Column::numbers("Permitted"),
            Column::numbers("By a grant"),
            Column::numbers("Refused"),
            Column::numbers("Shadow mode"),
            Column::numbers("Abandoned"),
        ];
        html! {
            @if !sorted.is_empty() { (picture(&sorted)) }
            (table("Calls by caller and destination", &heads, &rows))
            (rest(sorted.len().saturating_sub(ROWS), self.traffic.given_up()))
        }
    }

    fn over_time(&self) -> Markup {
        let names = self.timeline.names();
        let starts = self.timeline.starts();
        let (Some(first), Some(last)) = (starts.first(), starts.last()) else {
            return html! { p.faint { "None." } };
        };
        // What went well first, as a measure for the rest.
        let mut shown: Vec<&str> = names.iter().take(BARS).map(|(name, _)| &**name).collect();
        shown.sort_by_key(|name| *name != "permit");
        let width = self.timeline.width();
        let span = width.as_secs_ceil();
        let span = match span {
            0..60 => plural_span(span, 1, "second"),
            60..3600 => plural_span(span, 60, "minute"),
            3600..86_400 => plural_span(span, 3600, "hour"),
            _ => plural_span(span, 86_400, "day"),
        };
        let columns: Vec<Vec<u64>> = shown.iter().map(|name| self.timeline.counts(name)).collect();
        let picture = Bars {
            title: "Decisions over time".to_owned(),
            description: format!(
                "For {} one bar for each {span}, each row by its own measure. The table below has the numbers.",
                plural(shown.len(), "code")
            ),
            ends: [clock(*first), clock(last.plus(width))],
            rows: shown
                .iter()
                .zip(&columns)
                .map(|(name, counts)| {
                    let kind = match *name {
                        "permit" => Kind::Allow,
                        "abandoned" => Kind::Shadow,
                        _ => Kind::Deny,
                    };
                    ((*name).to_owned(), kind, counts.clone())
                })
                .collect(),
        };
        let rows: Vec<Markup> = starts
            .iter()
            .enumerate()
            .filter(|(at, _)| columns.iter().any(|counts| counts.get(*at).is_some_and(|count| *count > 0)))
            .map(|(at, start)| {
                html! {
                    tr {
                        (time(Some(*start)))
                        @for counts in &columns { (number(counts.get(at).copied().unwrap_or_default())) }
                    }
                }
            })
            .collect();
        html! {
            figure {
                div.scroll tabindex="0" role="region" aria-label="Picture of decisions over time" { (bars(&picture)) }
                figcaption { "One bar for each " (span) "; each row by its own measure, its sum at the end." }
            }
            details {
                summary { "The same in numbers" }
                div.scroll.tall tabindex="0" role="region" aria-label="Decisions over time" {
                    table {
                        thead { tr { th scope="col" { "From" } @for name in &shown { th.n scope="col" { (visible(name)) } } } }
                        tbody { @for row in &rows { (row) } }
                    }
                }
            }
            @if names.len() > BARS {
                p.faint.small { "Rarer: "
                    @for (index, (name, count)) in names.iter().skip(BARS).take(50).enumerate() {
                        @if index > 0 { ", " } (visible(name)) " " (grouped(*count))
                    }
                }
            }
        }
    }

    fn temporary(&self) -> Markup {
        let row = |(id, used): &(&String, &super::Use)| {
            html! {
                tr {
                    td { code { (visible(id)) } }
                    td { code { (visible(used.grantable.as_deref().unwrap_or_default())) } }
                    td.wide { @for who in &used.who { div { (visible(who.name())) } } }
                    (number(used.permits)) (time(used.first)) (time(used.last))
                }
            }
        };
        let sorted = self.grants.sorted();
        let rows: Vec<Markup> = sorted.iter().take(ROWS).map(row).collect();
        let heads = [
            Column::words("Grant"),
            Column::words("Of what may be granted"),
            Column::words("Used by"),
            Column::numbers("Calls"),
            Column::words("First"),
            Column::words("Last"),
        ];
        html! {
            h3 { "Grants in use" }
            (table("Calls that a temporary grant permitted", &heads, &rows))
            h3 { "Rules that end" }
            @if self.policy.is_some() {
                (rule_table("Rules that are over, or soon", self.ending()))
            } @else {
                (needs_policy())
            }
        }
    }

    fn slow(&self) -> Markup {
        let percentiles = |histogram: &Histogram| {
            html! {
                @for percent in [50, 95, 99] {
                    @match histogram.percentile(percent) {
                        Some(value) => td.n data-v=(value) { (micros(value)) },
                        None => td.n data-v="0" {},
                    }
                }
            }
        };
        let slowest = self.slowest();
        let row = |(destination, durations): &(&String, &super::Durations)| {
            html! {
                tr {
                    td.wide { (visible(destination)) } (number(durations.total.count()))
                    (percentiles(&durations.total)) (percentiles(&durations.decided))
                }
            }
        };
        let rows: Vec<Markup> = slowest.iter().take(ROWS).map(row).collect();
        let heads = [
            Column::words("Destination"),
            Column::numbers("Permitted"),
            Column::numbers("p50"),
            Column::numbers("p95"),
            Column::numbers("p99"),
            Column::numbers("Decision p50"),
            Column::numbers("Decision p95"),
            Column::numbers("Decision p99"),
        ];
        html! {
            p { "The whole call as Envoy saw it, and the part that the decision took. Percentiles are right to a sixteenth." }
            (table("Durations by destination, the slowest first", &heads, &rows))
        }
    }

    fn rules_used(&self) -> Markup {
        html! {
            h3 { "Rules that decided nothing" }
            @if self.policy.is_some() {
                p { "Of the policy that was given, in the time of these records. A rule that nobody needs is one that nobody reviews." }
                (rule_table("Unused rules", self.unused()))
            } @else {
                (needs_policy())
            }
            h3 { "Rules that decided" }
            @let rows = self.rules.sorted().into_iter().take(ROWS).map(|(id, used)| html! {
                tr {
                    td.wide { code { (visible(id)) } }
                    (number(used.permits)) (number(used.rejects)) (number(used.watched)) (time(used.first)) (time(used.last))
                }
            }).collect::<Vec<_>>();
            (table("Decisions by rule", &[
                Column::words("Rule"), Column::numbers("Permitted"), Column::numbers("Refused"),
                Column::numbers("Watched"), Column::words("First"), Column::words("Last"),
            ], &rows))
        }
    }

    fn trail(&self) -> Markup {
        let rows: Vec<Markup> = self
            .streams
            .iter()
            .take(ROWS)
            .map(|(name, stream)| {
                html! {
                    tr {
                        td { code { (visible(name)) } div.small.faint { "process " (visible(&stream.process)) } }
                        td { (visible(&stream.version)) }
                        (number(stream.records)) (number(stream.missing())) (number(stream.lost))
                        (time(stream.first)) (time(stream.last))
                        td { @match &stream.ended {
                            Some(reason) => (visible(reason)),
                            None => span.faint { "no end recorded" }
                        } }
                        td { @if stream.key_id.is_empty() { span.faint { "not signed" } } @else { code { (visible(&stream.key_id)) } } }
                    }
                }
            })
            .collect();
        let heads = [
            Column::words("Stream"),
            Column::words("Version"),
            Column::numbers("Records"),
            Column::numbers("Missing"),
            Column::numbers("Lost"),
            Column::words("First"),
            Column::words("Last"),
            Column::words("End"),
            Column::words("Key"),
        ];
        let faults = self.verified.iter().flat_map(|verified| &verified.faults);
        html! {
            p { (prose(&self.evidence().1)) }
            @if self.verified.as_ref().is_some_and(|verified| !verified.faults.is_empty()) {
                ul.rules { @for fault in faults.take(ROWS) { li.bad { (prose(fault)) } } }
            }
            (figures(&[
                ("Records of decisions", grouped(self.recorded)),
                ("Outside of the time asked for", grouped(self.outside)),
                ("There twice", grouped(self.duplicates)),
                ("Not readable", grouped(self.unreadable)),
                ("Other lines", grouped(self.seen.foreign)),
            ]))
            (table("Streams: one for each worker since it was configured", &heads, &rows))
            @if self.other_streams > 0 {
                p.faint { (grouped(self.other_streams)) " records are of more streams than can be told one by one." }
            }
        }
    }
}

fn plural_span(seconds: i64, unit: i64, noun: &str) -> String {
    match seconds / unit {
        1 => noun.to_owned(),
        number => format!("{number} {noun}s"),
    }
}

/// A word on what a table leaves out.
fn rest(rows: usize, calls: u64) -> Markup {
    html! {
        @if rows > 0 { p.faint { (plural(rows, "rarer row")) " left out." } }
        @if calls > 0 {
            p.faint { (grouped(calls)) " calls are of so many others that they are not told one by one; rare ones above \
                may be more frequent than they seem." }
        }
    }
}

fn needs_policy() -> Markup {
    html! { p.faint { "Give the policy with " code { "--policy" } " to see them." } }
}

fn who(who: &Who) -> Markup {
    html! {
        (visible(who.name()))
        @if !matches!(who, Who::Dag(_) | Who::Unverified) { div.small.faint { (who.kind()) } }
    }
}

fn target(target: &Target) -> Markup {
    html! {
        (visible(target.name()))
        @if let Target::Host(_) = target { div.small.faint { (target.kind()) } }
    }
}

fn refusal(cause: &Cause, refusals: &Refusals) -> Markup {
    let code = Code::ALL.iter().find(|code| code.name() == cause.code);
    html! {
        tr {
            (number(refusals.count))
            td.wide {
                span.badge.bad { (visible(&cause.code)) }
                @if refusals.unenforced > 0 { " " span.badge.watch { "shadow mode" } }
                @if let Some(code) = code { div { (code.title()) } }
                @if !refusals.detail.is_empty() { div.small { (prose(&refusals.detail)) } }
                @if let Some(code) = code { div.small.faint { "What to do: " (prose(code.action())) "." } }
            }
            td {
                (who(&cause.who))
                @if let Some(task) = &cause.task { div.small.faint { "task " (visible(task)) } }
            }
            td.id {
                code { (visible(&refusals.request)) }
                @if let Target::Destination(name) = &cause.target { div.small.faint { "destination " (visible(name)) } }
                @if !refusals.decision_id.is_empty() {
                    div.small.faint { "decision " code { (visible(&refusals.decision_id)) } }
                }
            }
            td {
                @match (&cause.rule, &cause.nearest) {
                    (Some(rule), _) => { "by " code { (visible(rule)) } }
                    (None, Some(nearest)) => { "nearest " code { (visible(nearest)) } }
                    (None, None) => {}
                }
            }
            (time(refusals.last))
        }
    }
}

fn rule_table<'r>(caption: &str, rules: impl Iterator<Item = &'r RuleUse>) -> Markup {
    let row = |rule: &RuleUse| {
        html! {
            tr {
                td.wide {
                    code { (visible(&rule.id)) }
                    @if let Some(intent) = &rule.intent { div.small { (visible(intent)) } }
                    div.small.faint { (visible(&rule.place)) }
                }
                td { (rule.effect) }
                td { @match rule.state {
                    State::Over => span.badge.bad { "expired" },
                    State::Soon => span.badge.warn { "over soon" },
                    State::NotYet => span.badge.watch { "not yet" },
                    State::Active => {}
                } }
                (time(rule.expires_at)) (number(rule.used.weight())) (time(rule.used.last))
            }
        }
    };
    let rows: Vec<Markup> = rules.take(ROWS).map(row).collect();
    let heads = [
        Column::words("Rule"),
        Column::words("Effect"),
        Column::words("State"),
        Column::words("Ends"),
        Column::numbers("Decisions"),
        Column::words("Last"),
    ];
    table(caption, &heads, &rows)
}

/// The busiest callers and targets; the others are drawn as one.
fn picture(sorted: &[(&(Who, Target), &Traffic)]) -> Markup {
    // Who refuses or is refused must be seen, however much else there is.
    let weight =
        |traffic: &Traffic| traffic.weight().saturating_add(traffic.rejects.saturating_mul(4));
    let mut callers: BTreeMap<&Who, u64> = BTreeMap::new();
    let mut targets: BTreeMap<&Target, u64> = BTreeMap::new();
    for ((from, to), traffic) in sorted {
        for sum in [callers.entry(from).or_default(), targets.entry(to).or_default()] {
            *sum = sum.saturating_add(weight(traffic));
        }
    }
    let (all_callers, all_targets) = (callers.len(), targets.len());
    let callers: Vec<&Who> = busiest(callers).into_iter().collect();
    let targets: Vec<&Target> = busiest(targets).into_iter().collect();
    let mut left: Vec<Node> = callers
        .iter()
        .map(|who| Node { name: who.name().to_owned(), note: who.kind().to_owned() })
        .collect();
    let mut right: Vec<Node> = targets
        .iter()
        .map(|target| Node { name: target.name().to_owned(), note: target.kind().to_owned() })
        .collect();
    for (nodes, all, noun) in
        [(&mut left, all_callers, "caller"), (&mut right, all_targets, "target")]
    {
        if nodes.len() < all {
            let others = plural(all - nodes.len(), noun);
            nodes.push(Node { name: format!("{others} more"), note: "see the table".to_owned() });
        }
    }
    let mut sums: BTreeMap<(usize, usize, Kind), u64> = BTreeMap::new();
    for ((from, to), traffic) in sorted {
        let from = callers.binary_search(&from).unwrap_or(callers.len());
        let to = targets.binary_search(&to).unwrap_or(targets.len());
        for (kind, count) in [
            (Kind::Allow, traffic.permits.saturating_sub(traffic.granted)),
            (Kind::Grant, traffic.granted),
            (Kind::Deny, traffic.rejects),
            (Kind::Shadow, traffic.unenforced),
        ] {
            if count > 0 {
                let sum = sums.entry((from, to, kind)).or_default();
                *sum = sum.saturating_add(count);
            }
        }
    }
    let most = sums.values().copied().max().unwrap_or_default().max(1);
    let name =
        |nodes: &[Node], at: usize| nodes.get(at).map(|node| node.name.clone()).unwrap_or_default();
    let links = sums.iter().map(|((from, to, kind), count)| {
        let what = match kind {
            Kind::Allow => "permitted",
            Kind::Grant => "permitted by a grant",
            Kind::Deny => "refused",
            Kind::Shadow => "refused in shadow mode, let through",
        };
        Link {
            left: *from,
            right: *to,
            kind: *kind,
            // By how many digits the count has: one busy pair must not make all others the same.
            weight: f64::from(count.ilog2()) / f64::from(most.ilog2().max(1)),
            title: format!(
                "{} → {}: {} {what}",
                name(&left, *from),
                name(&right, *to),
                grouped(*count)
            ),
        }
    });
    let picture = Columns {
        title: "Callers and what they called".to_owned(),
        description: format!(
            "{} on the left called {} on the right. The table below has the numbers.",
            plural(all_callers, "caller"),
            plural(all_targets, "target")
        ),
        heads: ["Caller", "Called"],
        links: links.collect(),
        left,
        right,
    };
    html! {
        figure {
            (key(&[
                (Kind::Allow, "permitted"), (Kind::Deny, "refused"),
                (Kind::Grant, "by a grant"), (Kind::Shadow, "refused in shadow mode"),
            ]))
            div.scroll tabindex="0" role="region" aria-label="Picture of who talks to whom" { (columns(&picture)) }
            figcaption { "The broader a line, the more calls. Point at it for the number; the table has all." }
        }
    }
}

/// The ones that count most, sorted by themselves.
fn busiest<T: Ord + Copy>(sums: BTreeMap<T, u64>) -> BTreeSet<T> {
    let mut all: Vec<(T, u64)> = sums.into_iter().collect();
    all.sort_by_key(|(_, sum)| std::cmp::Reverse(*sum));
    all.into_iter().take(PICTURED).map(|(one, _)| one).collect()
}
