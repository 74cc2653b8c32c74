//! `airflow-envoy replay`: yesterday's calls, decided by tomorrow's policy.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;

use airflow_envoy_core::quote::quote;
use airflow_envoy_core::time::UnixTime;
use clap::Args;
use serde_json::{Value, json};

use super::{Exit, Failed, clock, time, usable_policy};
use crate::audit::parallel::each_chunk;
use crate::audit::{Chunk, Decision, Found, Kind, Reader, Record};
use crate::output::{Style, print};
use crate::replay::{Judge, Undecidable, Verdict, decided_at, is_of_policy};

/// Groups of a kind that are shown as text; all are counted.
const MOST_SHOWN: usize = 50;

const EXAMPLES: &str = "\
Examples:
  airflow-envoy replay --policy policy/ audit.ndjson
  airflow-envoy replay --policy policy/ --at now envoy.log.1 envoy.log   # what would expire
  airflow-envoy replay --policy new/ --old old/ audit.ndjson             # two policies, whatever was decided
  airflow-envoy replay --policy policy/ --json audit.ndjson > replay.json

Calls that were refused for their credentials are left out: no policy changes that.";

/// Decides recorded calls again by another policy, and shows what changes.
///
/// The exit code is 1 if a call would be refused that was permitted.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Options {
    /// Files with records; `-` is standard input
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Files and folders of the new policy; repeatable
    #[arg(long, required = true, value_name = "POLICY")]
    policy: Vec<PathBuf>,
    /// What to compare with, instead of what was recorded; repeatable
    #[arg(long, value_name = "POLICY")]
    old: Vec<PathBuf>,
    /// The time of all calls (`now`, or as 2026-11-22T00:00:00Z), instead of their own
    #[arg(long, value_name = "TIME", value_parser = moment)]
    at: Option<Moment>,
    /// A claim that the filter records (`audit.claims`): a token without it in its record had none; repeatable
    #[arg(long, value_name = "CLAIM")]
    recorded_claim: Vec<String>,
    /// Prints the result for programs
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy)]
enum Moment {
    Now,
    At(UnixTime),
}

fn moment(text: &str) -> Result<Moment, String> {
    if text == "now" { Ok(Moment::Now) } else { time(text).map(Moment::At) }
}

/// What became of a decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Change {
    NewlyDenied,
    NewlyAllowed,
    OtherRule,
    OtherRefusal,
    ByGrant,
    Same,
}

impl Change {
    const ALL: [Self; 6] = [
        Self::NewlyDenied,
        Self::NewlyAllowed,
        Self::OtherRule,
        Self::OtherRefusal,
        Self::ByGrant,
        Self::Same,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::NewlyDenied => "newly_denied",
            Self::NewlyAllowed => "newly_allowed",
            Self::OtherRule => "other_rule",
            Self::OtherRefusal => "other_refusal",
            Self::ByGrant => "by_grant",
            Self::Same => "same",
        }
    }

    const fn told(self) -> &'static str {
        match self {
            Self::NewlyDenied => "newly denied",
            Self::NewlyAllowed => "newly allowed",
            Self::OtherRule => "allowed by another rule",
            Self::OtherRefusal => "refused for another reason",
            Self::ByGrant => "left to a temporary grant, as before",
            Self::Same => "the same",
        }
    }
}

/// A decision before or after, in short.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Short {
    /// `permit`, or the code.
    outcome: String,
    rule: Option<String>,
    grant: Option<String>,
}

impl std::fmt::Display for Short {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.outcome.as_str(), &self.grant, &self.rule) {
            ("permit", Some(grant), _) => write!(formatter, "permit by grant {}", quote(grant)),
            ("permit", None, Some(rule)) => write!(formatter, "permit by rule {}", quote(rule)),
            ("permit", None, None) => formatter.write_str("permit"),
            (code, _, Some(rule)) => write!(formatter, "reject {code} by rule {}", quote(rule)),
            (code, _, None) => write!(formatter, "reject {code}"),
        }
    }
}

impl Short {
    fn of(verdict: &Verdict) -> Self {
        let outcome = verdict.code.map_or("permit", |code| code.name()).to_owned();
        Self { outcome, rule: verdict.rule.clone(), grant: None }
    }

    fn recorded(record: &Record<'_>) -> Self {
        let code = record.code.as_deref().filter(|_| record.decision != Some(Decision::Permit));
        // A permit by a grant is called by what was grantable, which is no rule.
        let text =
            |text: &Option<crate::audit::record::Text<'_>>| text.as_deref().map(str::to_owned);
        Self {
            outcome: code.unwrap_or("permit").to_owned(),
            rule: text(&record.rule),
            grant: text(&record.grant),
        }
    }

    fn permits(&self) -> bool {
        self.outcome == "permit"
    }

    /// With several sources a rule has the name of its source before it.
    fn own_rule(&self) -> Option<&str> {
        self.rule.as_deref().map(|rule| rule.rsplit_once('/').map_or(rule, |(_, id)| id))
    }

    fn becomes(&self, new: &Self, by_no_rule: bool) -> Change {
        match (self.permits(), new.permits()) {
            (true, false) if self.grant.is_some() && by_no_rule => Change::ByGrant,
            (true, false) => Change::NewlyDenied,
            (false, true) => Change::NewlyAllowed,
            (true, true) if self.own_rule() == new.own_rule() => Change::Same,
            (true, true) => Change::OtherRule,
            (false, false) if self.outcome == new.outcome && self.own_rule() == new.own_rule() => {
                Change::Same
            }
            (false, false) => Change::OtherRefusal,
        }
    }
}

/// What is told of decisions that change alike.
#[derive(Debug, Clone)]
struct Group {
    calls: u64,
    records: u64,
    /// Of the first one.
    decision_id: String,
    time: String,
    request: String,
    before: Short,
    after: Short,
    nearest: Option<String>,
    detail: String,
}

/// What is said of one record.
enum Said {
    /// No decision of a policy: its code, or why.
    Left(String),
    Undecidable(Undecidable),
    Decided(Change, Option<Box<(Key, Group)>>),
}

type Key = (Change, String, String);

/// One record: its id, the calls that it stands for, its time.
struct Replayed {
    id: String,
    calls: u64,
    time: Option<UnixTime>,
    said: Said,
}

struct Worker {
    new: Judge,
    old: Option<Judge>,
    at: Option<UnixTime>,
}

impl Worker {
    fn chunk(&mut self, chunk: &Chunk) -> Vec<Replayed> {
        let mut all = Vec::new();
        chunk.each(|_, found| {
            let Found::Record(head) = found else { return };
            if head.kind != Kind::Decision {
                return;
            }
            let Ok(record) = Record::parse(head.text) else { return };
            all.push(Replayed {
                id: record.decision_id.as_deref().unwrap_or_default().to_owned(),
                calls: record.weight(),
                time: record.at(),
                said: self.say(&record, head.caller),
            });
        });
        all
    }

    fn say(&mut self, record: &Record<'_>, caller: &str) -> Said {
        if !is_of_policy(record) {
            let code = record.code.as_deref();
            return Said::Left(code.unwrap_or("abandoned").to_owned());
        }
        let Some(at) = self.at.or_else(|| decided_at(record)) else {
            return Said::Undecidable(Undecidable::Request);
        };
        let new = match self.new.decide(record, caller, at) {
            Ok(verdict) => verdict,
            Err(why) => return Said::Undecidable(why),
        };
        let before = match &mut self.old {
            None => Short::recorded(record),
            Some(old) => match old.decide(record, caller, at) {
                Ok(verdict) => Short::of(&verdict),
                Err(why) => return Said::Undecidable(why),
            },
        };
        let after = Short::of(&new);
        let by_no_rule = new.code == Some(airflow_envoy_core::reject::Code::PolicyNoMatch);
        let change = before.becomes(&after, by_no_rule);
        if change == Change::Same {
            return Said::Decided(change, None);
        }
        let identity = record.caller.identity.as_ref();
        let dag = identity.map(|identity| identity.dag_id.to_string()).unwrap_or_default();
        let destination =
            new.destination.or_else(|| record.destination.as_deref().map(str::to_owned));
        let request = &record.request;
        let text = |text: &Option<crate::audit::record::Text<'_>>| {
            text.as_deref().unwrap_or_default().to_owned()
        };
        let group = Group {
            calls: 0,
            records: 0,
            decision_id: text(&record.decision_id),
            time: record.time.to_string(),
            request: format!(
                "{} {}{}",
                text(&request.method),
                text(&request.authority),
                text(&request.path)
            ),
            before,
            after,
            nearest: new.nearest,
            detail: new.detail,
        };
        let key = (change, dag, destination.unwrap_or_default());
        Said::Decided(change, Some(Box::new((key, group))))
    }
}

/// All that is told.
#[derive(Default)]
struct Summary {
    decided: u64,
    calls: BTreeMap<Change, u64>,
    groups: BTreeMap<Key, Group>,
    left: BTreeMap<String, u64>,
    undecidable: BTreeMap<Undecidable, u64>,
    undecidable_ids: BTreeMap<Undecidable, String>,
    repeated: u64,
    period: Option<(UnixTime, UnixTime)>,
    ids: HashSet<String>,
}

impl Summary {
    fn take(&mut self, Replayed { id, calls, time, said }: Replayed) {
        if !id.is_empty() && !self.ids.insert(id.clone()) {
            self.repeated += 1;
            return;
        }
        if let Some(time) = time {
            let (from, to) = self.period.unwrap_or((time, time));
            self.period = Some((from.min(time), to.max(time)));
        }
        match said {
            Said::Left(why) => add(self.left.entry(why).or_default(), calls),
            Said::Undecidable(why) => {
                add(self.undecidable.entry(why).or_default(), calls);
                self.undecidable_ids.entry(why).or_insert(id);
            }
            Said::Decided(change, group) => {
                self.decided += 1;
                add(self.calls.entry(change).or_default(), calls);
                if let Some(group) = group {
                    let (key, group) = *group;
                    let group = self.groups.entry(key).or_insert(group);
                    add(&mut group.calls, calls);
                    group.records += 1;
                }
            }
        }
    }

    fn count(&self, change: Change) -> u64 {
        self.calls.get(&change).copied().unwrap_or_default()
    }
}

pub(super) fn run(options: &Options, style: Style) -> Result<Exit, Failed> {
    let stdin = |paths: &[PathBuf]| paths.iter().any(|path| path.as_os_str() == "-");
    let inputs = [&options.files, &options.policy, &options.old];
    if inputs.iter().filter(|paths| stdin(paths)).count() > 1 {
        return Err(Failed::usage("standard input is either a policy or the records"));
    }
    let document = |names: &[PathBuf]| -> Result<Value, Failed> {
        Ok(usable_policy(names, style)?.0.node.value())
    };
    let new = document(&options.policy)?;
    let old = if options.old.is_empty() { None } else { Some(document(&options.old)?) };
    let recorded = options.recorded_claim.as_slice();
    // Once here for its faults, and then once for each thread.
    for policy in [Some(&new), old.as_ref()].into_iter().flatten() {
        Judge::new(policy, recorded)?;
    }
    let at = options.at.map(|moment| match moment {
        Moment::Now => clock(),
        Moment::At(time) => time,
    });
    let mut reader = Reader::new(&options.files)?;
    let mut result = Summary::default();
    let worker = || {
        let judge = |policy: &Value| Judge::new(policy, recorded).ok();
        let mut worker =
            judge(&new).map(|new| Worker { new, old: old.as_ref().and_then(judge), at });
        move |chunk: &Chunk| worker.as_mut().map(|worker| worker.chunk(chunk)).unwrap_or_default()
    };
    each_chunk(&mut reader, worker, |replayed: Vec<Replayed>| {
        replayed.into_iter().for_each(|one| result.take(one));
    })?;
    if result.decided == 0 && result.undecidable.is_empty() {
        return Err("no decision of a policy in it: nothing was replayed".into());
    }
    if options.json {
        print(&format!("{:#}\n", result.json()));
    } else {
        print(&result.text(style));
    }
    Ok(if result.count(Change::NewlyDenied) > 0 { Exit::Findings } else { Exit::Good })
}

/// A record may say that it stands for any number of calls.
fn add(sum: &mut u64, calls: u64) {
    *sum = sum.saturating_add(calls);
}

fn calls(number: u64) -> String {
    format!("{number} call{}", if number == 1 { "" } else { "s" })
}

impl Summary {
    fn text(&self, style: Style) -> String {
        let mut text = String::new();
        for change in Change::ALL {
            let groups: Vec<_> = self.groups.iter().filter(|((of, ..), _)| *of == change).collect();
            if groups.is_empty() {
                continue;
            }
            let told = match change {
                Change::NewlyDenied => style.bad(change.told()),
                Change::NewlyAllowed => style.warn(change.told()),
                _ => style.strong(change.told()),
            };
            text.push_str(&format!("{told}: {}\n", calls(self.count(change))));
            for ((_, dag, destination), group) in groups.iter().take(MOST_SHOWN) {
                let who = if dag.is_empty() {
                    "no DAG".to_owned()
                } else {
                    format!("DAG {}", quote(dag))
                };
                let to = match destination.as_str() {
                    "" => "no destination of the policy".to_owned(),
                    name => quote(name),
                };
                text.push_str(&format!(
                    "  {who} to {to}: {}\n    first {} at {}: {}\n    was {}, is {}\n",
                    calls(group.calls),
                    group.decision_id,
                    group.time,
                    quote(&group.request),
                    group.before,
                    group.after,
                ));
                if let Some(nearest) = &group.nearest {
                    text.push_str(&format!(
                        "    nearest rule {}: {}\n",
                        quote(nearest),
                        group.detail
                    ));
                } else if !group.detail.is_empty() {
                    text.push_str(&format!("    {}\n", group.detail));
                }
            }
            if let Some(more) = groups.len().checked_sub(MOST_SHOWN).filter(|more| *more > 0) {
                text.push_str(&format!("  and {more} more, see --json\n"));
            }
        }
        for (why, number) in &self.undecidable {
            let id = self.undecidable_ids.get(why).map(String::as_str).unwrap_or_default();
            let told = format!("UNDECIDED: {}: {}", calls(*number), why.told());
            text.push_str(&format!("{}; the first is {id}\n", style.warn(&told)));
        }
        if !self.left.is_empty() {
            let left: Vec<String> =
                self.left.iter().map(|(why, number)| format!("{why} {number}")).collect();
            text.push_str(
                &style.faint(&format!("left out, no decision of a policy: {}\n", left.join(", "))),
            );
        }
        let counts: Vec<String> = Change::ALL
            .into_iter()
            .filter(|change| self.count(*change) > 0)
            .map(|change| format!("{} {}", self.count(change), change.told()))
            .collect();
        let period =
            self.period.map(|(from, to)| format!(" from {from} to {to}")).unwrap_or_default();
        text.push_str(&format!("{} records{period}: {}\n", self.decided, counts.join(", ")));
        text
    }

    fn json(&self) -> Value {
        let short = |short: &Short| json!({"outcome": short.outcome, "rule": short.rule, "grant": short.grant});
        let groups = self.groups.iter().map(|((change, dag, destination), group)| {
            json!({
                "change": change.name(), "dag_id": dag, "destination": destination, "calls": group.calls,
                "records": group.records, "nearest": group.nearest, "detail": group.detail,
                "before": short(&group.before), "after": short(&group.after),
                "first": {"decision_id": group.decision_id, "time": group.time, "request": group.request},
            })
        });
        let counts: serde_json::Map<String, Value> = Change::ALL
            .into_iter()
            .map(|change| (change.name().to_owned(), self.count(change).into()))
            .collect();
        let undecidable = self.undecidable.iter().map(|(why, number)| (why.name(), *number));
        let period =
            self.period.map(|(from, to)| json!({"from": from.to_string(), "to": to.to_string()}));
        json!({
            "records": self.decided, "calls": counts, "groups": groups.collect::<Vec<_>>(),
            "undecidable": undecidable.collect::<BTreeMap<_, _>>(), "left_out": self.left,
            "repeated": self.repeated, "period": period,
        })
    }
}
