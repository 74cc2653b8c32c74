//! A report in a terminal: the figures, and what needs somebody's eyes.

use std::fmt::Write as _;

use airflow_envoy_core::quote::quote;

use super::{Report, Use, Weight as _, micros};
use crate::output::html::{clock, visible};
use crate::output::{Style, plural};

/// Lines of each part.
const MOST: usize = 8;

impl Report {
    /// The summary.
    pub fn text(&self, style: Style) -> String {
        let mut text = String::new();
        let all = &self.all;
        // Writing to a string cannot fail.
        let period = match (self.first, self.last) {
            (Some(first), Some(last)) => format!(", {} to {}", clock(first), clock(last)),
            _ => String::new(),
        };
        let calls = plural(usize::try_from(all.weight()).unwrap_or(usize::MAX), "call");
        let _ = writeln!(text, "{}{period}", style.strong(&calls));
        let _ = writeln!(
            text,
            "  {} permitted ({} by a grant), {} refused, {} abandoned{}",
            all.permits,
            all.granted,
            all.rejects,
            all.abandoned,
            if all.unenforced > 0 {
                format!(", {} refused in shadow mode and let through", all.unenforced)
            } else {
                String::new()
            }
        );
        let (good, evidence) = self.evidence();
        let _ = writeln!(
            text,
            "  {}",
            if good { style.good(&evidence) } else { style.warn(&evidence) }
        );
        let mut part = |title: &str, lines: Vec<String>| {
            if lines.is_empty() {
                return;
            }
            let _ = writeln!(text, "\n{}", style.strong(title));
            for line in lines.iter().take(MOST) {
                let _ = writeln!(text, "  {line}");
            }
            if lines.len() > MOST {
                let _ = writeln!(
                    text,
                    "  {}",
                    style.faint(&format!("and {} more", lines.len() - MOST))
                );
            }
        };
        let faults = self.verified.iter().flat_map(|verified| &verified.faults);
        part("Faults of the trail", faults.map(|fault| style.bad(&visible(fault))).collect());
        let refusals = self.refusals.sorted();
        part(
            "Refused",
            refusals
                .iter()
                .map(|(cause, refusals)| {
                    let by = match (&cause.rule, &cause.nearest) {
                        (Some(rule), _) => format!(", rule {}", quote(rule)),
                        (None, Some(nearest)) => format!(", nearest {}", quote(nearest)),
                        (None, None) => String::new(),
                    };
                    format!(
                        "{:>8} {} {} → {}{by}, last {} as {}",
                        refusals.count,
                        style.bad(&visible(&cause.code)),
                        visible(cause.who.name()),
                        visible(cause.target.name()),
                        quote(&refusals.request),
                        visible(&refusals.decision_id)
                    )
                })
                .collect(),
        );
        let traffic = self.traffic.sorted();
        part(
            "Who talks to whom",
            traffic
                .iter()
                .map(|((from, to), traffic)| {
                    let refused = traffic.rejects + traffic.unenforced;
                    let refused =
                        if refused > 0 { format!(", {refused} refused") } else { String::new() };
                    format!(
                        "{:>8} {} → {}{refused}",
                        traffic.weight(),
                        visible(from.name()),
                        visible(to.name())
                    )
                })
                .collect(),
        );
        part(
            "Grants in use",
            self.grants
                .sorted()
                .iter()
                .map(|(id, used)| {
                    let grantable = used.grantable.as_deref().unwrap_or_default();
                    format!("{:>8} {} of {}", used.permits, visible(id), quote(grantable))
                })
                .collect(),
        );
        part(
            "Slowest destinations (p50, p95, p99)",
            self.slowest()
                .iter()
                .map(|(destination, durations)| {
                    let [half, most, nearly] = [50, 95, 99].map(|percent| {
                        micros(durations.total.percentile(percent).unwrap_or_default())
                    });
                    format!("{half:>10} {most:>10} {nearly:>10} {}", visible(destination))
                })
                .collect(),
        );
        part(
            "Rules that end",
            self.ending()
                .map(|rule| {
                    let end = rule.expires_at.map(clock).unwrap_or_default();
                    format!("{} {end}, {}", visible(&rule.id), used(&rule.used))
                })
                .collect(),
        );
        part(
            "Rules that decided nothing",
            self.unused()
                .map(|rule| format!("{} {}", visible(&rule.id), style.faint(&rule.place)))
                .collect(),
        );
        text
    }
}

fn used(used: &Use) -> String {
    match used.last {
        Some(last) => format!("used {} times, last {}", used.weight(), clock(last)),
        None => "not used".to_owned(),
    }
}
