//! `airflow-envoy diff`: who gains and who loses access by a change of the policy?

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use airflow_envoy_core::quote::{quote, quote_list};
use airflow_envoy_core::time::UnixTime;
use clap::{Args, ValueEnum};
use serde_json::{Map, Value, json};

use super::{Exit, Failed, clock, time, usable_policy, write};
use crate::diff::{Comparison, Difference, Witness, compare};
use crate::evaluate::{Evaluator, Peer, Said};
use crate::model::Rule;
use crate::output::{Style, plural};
use crate::run::UnderTest;

const EXAMPLES: &str = "\
Examples:
  airflow-envoy diff old/ policy/
  airflow-envoy diff policy.json policy/ --format markdown >> \"$GITHUB_STEP_SUMMARY\"
  git worktree add ../main main && airflow-envoy diff ../main/policy policy/ --all

What is certain is said to be certain. What is found is found by calls that both policies decide, and is true;
what is not found is not proven absent.";

/// Says who gains and who loses access when a policy takes the place of another one.
///
/// Names, order, comments and formatting make no difference. The exit code is 1 if there is one.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Options {
    /// The policy as it was: a file, a folder, or `-`
    #[arg(value_name = "OLD")]
    old: PathBuf,
    /// The policy as it will be
    #[arg(value_name = "NEW")]
    new: PathBuf,
    /// How it is shown
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
    /// Short for --format json
    #[arg(long, conflicts_with = "format")]
    json: bool,
    /// Where it is written instead of standard output
    #[arg(long, short, value_name = "FILE", default_value = "-", hide_default_value = true)]
    output: PathBuf,
    /// Tells also what differs in the texts only: names, intents, shadow rules
    #[arg(long)]
    all: bool,
    /// The time from which calls count, instead of now
    #[arg(long, value_name = "TIME", value_parser = time)]
    at: Option<UnixTime>,
    /// Most calls that are tried
    #[arg(long, value_name = "NUMBER", default_value_t = 200_000)]
    calls: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people
    Text,
    /// For programs
    Json,
    /// For the comments of a code host
    Markdown,
}

pub(super) fn run(options: &Options, style: Style) -> Result<Exit, Failed> {
    if options.old == options.new && options.old.as_os_str() == "-" {
        return Err(Failed::usage("only one of the policies can be standard input"));
    }
    let (old, new) = (side(&options.old)?, side(&options.new)?);
    let now = options.at.unwrap_or_else(clock);
    let comparison = compare(&old, &new, now, options.calls);
    let format = if options.json { Format::Json } else { options.format };
    let report = Report { options, old: &old, new: &new, comparison: &comparison };
    let style = if options.output.as_os_str() == "-" { style } else { Style::PLAIN };
    let text = match format {
        Format::Text => report.text(style),
        Format::Json => format!("{:#}\n", report.json()),
        Format::Markdown => report.markdown(),
    };
    write(&options.output, &text)?;
    Ok(if comparison.is_empty() { Exit::Good } else { Exit::Findings })
}

fn side(path: &Path) -> Result<UnderTest, Failed> {
    let (source, policy, model) = usable_policy(&[path.to_owned()], Style::PLAIN)?;
    Ok(UnderTest { evaluator: Evaluator::new(policy), model, document: source.node.value() })
}

struct Report<'r> {
    options: &'r Options,
    old: &'r UnderTest,
    new: &'r UnderTest,
    comparison: &'r Comparison,
}

impl Report<'_> {
    /// The rule that permits, in the policy that does.
    fn rule(&self, difference: &Difference) -> Option<&Rule> {
        let side = if difference.is_gain { self.new } else { self.old };
        side.model.rule(&difference.rule)
    }

    fn text(&self, style: Style) -> String {
        let mut text = String::new();
        for difference in &self.comparison.differences {
            let Difference { is_gain, rule: id, calls, witness, .. } = difference;
            let (word, when) = if *is_gain {
                (style.warn("gain"), "will be permitted")
            } else {
                (style.bad("loss"), "was permitted")
            };
            let rule = self.rule(difference);
            let place = rule.map(|rule| style.strong(&format!("{}: ", rule.place)));
            let (id, place) = (quote(id), place.unwrap_or_default());
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{place}{word}: what {when} by rule {id}");
            let _ = writeln!(text, "  who     {}", rule.map_or_else(String::new, who));
            let _ = writeln!(text, "  where   {}", place_of(difference));
            let _ = writeln!(text, "  example {} at {}", witness.request, witness.at);
            let _ = writeln!(text, "  as      {}", witness.said.describe());
            let _ = writeln!(text, "  before  {}", witness.before);
            let _ = writeln!(text, "  after   {}", witness.after);
            let told = format!("{} differ so", plural(*calls, "tried call"));
            let _ = writeln!(
                text,
                "  {}",
                style.faint(&format!("{told}; {}", self.explain(difference)))
            );
        }
        for one in &self.comparison.grantable {
            let _ = writeln!(text, "{}: {one}", style.warn("grantable"));
        }
        if self.options.all {
            for one in &self.comparison.textual {
                let _ = writeln!(text, "{}: {one}", style.faint("text"));
            }
        }
        let _ = writeln!(text, "{}", self.summary(style));
        text
    }

    /// What is certain, what was found, and how it was looked for.
    fn summary(&self, style: Style) -> String {
        let comparison = self.comparison;
        let gains = comparison.gains();
        let losses = comparison.differences.len() - gains;
        let one = |count: usize, certain: bool, noun: &str| match (count, certain) {
            (0, true) => format!("no {noun}, which is certain"),
            (0, false) => format!("no {noun} found"),
            (1, _) => format!("1 {noun}"),
            (_, _) => format!(
                "{count} {}",
                if noun == "loss" { "losses".to_owned() } else { format!("{noun}s") }
            ),
        };
        let gains = one(gains, comparison.no_gain, "gain");
        let losses = one(losses, comparison.no_loss, "loss");
        let verdict = if comparison.differences.is_empty() {
            style.good("same access")
        } else {
            style.bad("different access")
        };
        let mut told = format!("{verdict}: {gains}; {losses}");
        match comparison.grantable.len() {
            0 => {}
            1 => told.push_str("; 1 grantable differs"),
            many => told.push_str(&format!("; {many} grantables differ")),
        }
        if comparison.calls > 0 {
            told.push_str(&format!("; {} tried", plural(comparison.calls, "call")));
        }
        if comparison.cut {
            let note = "there were more calls to try: raise --calls, or compare in smaller steps";
            told.push_str(&format!("\n{}: {note}", style.warn("not all was tried")));
        }
        told
    }

    /// The command that explains the witness by the policy that refuses it.
    fn explain(&self, difference: &Difference) -> String {
        let path = if difference.is_gain { &self.options.old } else { &self.options.new };
        explain_command(&path.display().to_string(), &difference.witness)
    }

    fn json(&self) -> Value {
        let difference = |difference: &Difference| {
            let rule = self.rule(difference);
            let mut value = json!({
                "kind": if difference.is_gain { "gain" } else { "loss" },
                "rule": difference.rule,
                "who": rule.map(who),
                "destinations": difference.destinations,
                "methods": difference.methods,
                "paths": difference.paths,
                "calls": difference.calls,
                "witness": case(&difference.witness),
                "before": difference.witness.before.to_string(),
                "after": difference.witness.after.to_string(),
                "explain": self.explain(difference),
            });
            if let (Some(rule), Some(members)) = (rule, value.as_object_mut()) {
                let place = &rule.place;
                members.insert("file".to_owned(), (*place.file).into());
                members.insert("line".to_owned(), place.line.into());
                members.insert("column".to_owned(), place.column.into());
            }
            value
        };
        let Comparison { differences, grantable, no_gain, no_loss, calls, cut, textual } =
            self.comparison;
        json!({
            "differences": differences.iter().map(difference).collect::<Vec<_>>(),
            "gains": self.comparison.gains(),
            "losses": differences.len() - self.comparison.gains(),
            "certain": {"no_gain": no_gain, "no_loss": no_loss},
            "grantable": grantable, "calls": calls, "cut": cut, "textual": textual,
        })
    }

    fn markdown(&self) -> String {
        let mut text = format!("### Access\n\n{}\n", self.summary(Style::PLAIN));
        if !self.comparison.differences.is_empty() {
            text.push_str("\n| | rule | who | where | example | before | after |\n|---|---|---|---|---|---|---|\n");
        }
        for difference in &self.comparison.differences {
            let Difference { is_gain, rule: id, witness, .. } = difference;
            let example =
                format!("{} as {}", quote(&witness.request.to_string()), witness.said.describe());
            let cells = [
                if *is_gain { "gain" } else { "loss" }.to_owned(),
                quote(id),
                self.rule(difference).map_or_else(String::new, who),
                place_of(difference),
                example,
                witness.before.to_string(),
                witness.after.to_string(),
            ];
            let cells = cells.map(|cell| cell.replace('|', "\\|"));
            let _ = writeln!(text, "| {} |", cells.join(" | "));
        }
        if !self.comparison.grantable.is_empty() {
            text.push('\n');
            for one in &self.comparison.grantable {
                let _ = writeln!(text, "- grantable {one}");
            }
        }
        if self.options.all && !self.comparison.textual.is_empty() {
            text.push('\n');
            for one in &self.comparison.textual {
                let _ = writeln!(text, "- {one}");
            }
        }
        text
    }
}

/// Whom a rule is about.
fn who(rule: &Rule) -> String {
    let conditions = rule.from.iter().map(|(field, values)| {
        let values = quote_list(values.iter().map(String::as_str));
        format!("{} {values}", field.replacen("claims.", "claim ", 1))
    });
    let told = conditions.collect::<Vec<_>>().join("; ");
    if told.is_empty() { "anybody".to_owned() } else { told }
}

/// Where a difference was found.
fn place_of(difference: &Difference) -> String {
    let Difference { destinations, methods, paths, .. } = difference;
    let methods: Vec<&str> = methods.iter().map(String::as_str).collect();
    let destinations = quote_list(destinations.iter().map(String::as_str));
    let paths = match paths.as_slice() {
        [] => String::new(),
        paths => format!(" {}", quote_list(paths.iter().map(String::as_str))),
    };
    format!("{destinations}: {}{paths}", methods.join(", "))
}

/// A witness as a case of a policy test, without what is expected.
fn case(witness: &Witness) -> Value {
    let Said { identity, token, peer } = &witness.said;
    let mut case = Map::new();
    if let Some(identity) = identity {
        case.insert("identity".to_owned(), Value::Object(identity.clone()));
    }
    if let Some(token) = token {
        let mut said = json!({"issuer": token.issuer, "claims": token.claims});
        if let (Some(key_id), Some(members)) = (&token.key_id, said.as_object_mut()) {
            members.insert("key_id".to_owned(), key_id.as_str().into());
        }
        case.insert("token".to_owned(), said);
    }
    if let Some(Peer { service, spiffe_id }) = peer {
        let members = [("service", service), ("spiffe_id", spiffe_id)];
        let members = members
            .into_iter()
            .filter_map(|(name, text)| Some((name.to_owned(), Value::from(text.as_deref()?))));
        case.insert("peer".to_owned(), Value::Object(members.collect()));
    }
    case.insert("request".to_owned(), witness.request.to_string().into());
    case.insert("at".to_owned(), witness.at.to_string().into());
    Value::Object(case)
}

/// `airflow-envoy explain …` for a witness.
fn explain_command(policy: &str, witness: &Witness) -> String {
    let mut words = vec!["airflow-envoy".to_owned(), "explain".to_owned(), policy.to_owned()];
    let mut option = |name: &str, value: &str| {
        words.push(format!("--{name}"));
        words.push(value.to_owned());
    };
    let Said { identity, token, peer } = &witness.said;
    if let Some(Peer { service, spiffe_id }) = peer {
        for (name, text) in [("service", service), ("spiffe-id", spiffe_id)] {
            text.iter().for_each(|text| option(name, text));
        }
    }
    let names = [
        ("dag_id", "dag"),
        ("task_id", "task"),
        ("run_id", "run"),
        ("run_type", "run-type"),
        ("team", "team"),
        ("queue", "queue"),
        ("owners", "owner"),
        ("tags", "tag"),
        ("roles", "role"),
        ("issuer", "issuer"),
        ("key_id", "key-id"),
    ];
    for (claim, name) in names {
        match identity.as_ref().and_then(|identity| identity.get(claim)) {
            Some(Value::Null) => option(name, ""),
            Some(Value::String(text)) => option(name, text),
            Some(Value::Array(texts)) if texts.is_empty() => option(name, ""),
            Some(Value::Array(texts)) => {
                texts.iter().filter_map(Value::as_str).for_each(|text| option(name, text));
            }
            _ => {}
        }
    }
    if let Some(token) = token {
        option("token-issuer", &token.issuer);
        if let Some(key_id) = &token.key_id {
            option("token-key-id", key_id);
        }
        for (name, value) in &token.claims {
            option("claim", &format!("{name}={value}"));
        }
    }
    let request = &witness.request;
    option("method", &request.method);
    if request.is_tunnel() {
        option("url", &request.host);
    } else {
        option("url", &format!("{}://{}{}", request.scheme, request.host, request.path));
    }
    option("at", &witness.at.to_string());
    words.iter().map(|word| shell_word(word)).collect::<Vec<_>>().join(" ")
}

/// A word as a POSIX shell reads it back.
fn shell_word(word: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./:=@%+,".contains(&byte);
    if !word.is_empty() && word.bytes().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}
