//! `airflow-envoy explain`: why is a call permitted or refused, and what would change that?

use std::path::{Path, PathBuf};

use airflow_envoy_core::arrival::CONNECT;
use airflow_envoy_core::facts::Caller;
use airflow_envoy_core::policy::explain::{Asks, Considered, Inquiry};
use airflow_envoy_core::quote::quote;
use airflow_envoy_core::reject::Code;
use airflow_envoy_core::time::UnixTime;
use clap::Args;
use serde_json::{Map, Value, json};

use super::recorded::{self, Recorded};
use super::{Exit, Failed, clock, time, usable_policy};
use crate::audit::Decision;
use crate::evaluate::{Answer, Evaluator, Peer, Request, Said, Token};
use crate::intentions::{IntentionOptions, Mesh};
use crate::model::Model;
use crate::output::{Style, plural, print};
use crate::remedy::{Asked, Remedy, remedy};
use crate::source::Node;
use crate::source::load::Found;
use crate::source::merge::Source;
use crate::source::print::yaml;
use crate::source::read_file;

/// Near rules that are shown.
const MOST_SHOWN: usize = 5;

const EXAMPLES: &str = "\
Examples:
  airflow-envoy explain policy/ --dag ds_churn --task load --team sales \\
      --url https://orders.internal/v1/orders/7
  airflow-envoy explain policy/ --dag etl --tag pii --method POST --host billing.internal --path /v1/x
  airflow-envoy explain policy/ --denial denial.json                       # the answer that a task got
  airflow-envoy explain policy/ --audit audit.ndjson --decision 00c0ffee000000000000000000000001
  … | airflow-envoy explain policy/ --denial - --dag ds_churn --url https://orders.internal/v1/orders/7

What is not given of an identity is unknown, as a claim is that it does not have.
An option given as an empty text says that there is none: --team ''.";

/// Explains what a policy says about a call.
///
/// Shows the caller's roles, the rules that come near with the conditions that failed, and the smallest
/// change of the policy that would allow the call. The exit code is 1 if the call is refused.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Options {
    /// Files and folders of one policy; `-` is standard input
    #[arg(required = true, value_name = "POLICY")]
    policy: Vec<PathBuf>,
    #[command(flatten)]
    identity: Identity,
    #[command(flatten)]
    token: TokenOptions,
    #[command(flatten)]
    request: RequestOptions,
    #[command(flatten)]
    intentions: IntentionOptions,
    /// The time of the call, instead of now
    #[arg(long, value_name = "TIME", value_parser = time)]
    at: Option<UnixTime>,
    /// The JSON of a refusal (`application/problem+json`); `-` is standard input
    #[arg(long, value_name = "FILE")]
    denial: Option<PathBuf>,
    /// A file of the audit trail with the decision to explain; repeatable, `-` is standard input
    #[arg(long, value_name = "FILE", requires = "decision",
        conflicts_with_all = ["denial", "dag", "url", "host"])]
    audit: Vec<PathBuf>,
    /// The id of the decision in it
    #[arg(long, value_name = "ID", requires = "audit")]
    decision: Option<String>,
    /// Shows every rule about the destination, not only the nearest
    #[arg(long)]
    all: bool,
    /// Prints the reasoning for programs
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Airflow identity")]
struct Identity {
    /// The DAG
    #[arg(long, value_name = "DAG")]
    dag: Option<String>,
    /// The task
    #[arg(long, value_name = "TASK", default_value = "task", hide_default_value = true)]
    task: String,
    /// The run
    #[arg(long, value_name = "RUN", default_value = "run", hide_default_value = true)]
    run: String,
    /// scheduled, manual, backfill …
    #[arg(long, value_name = "TYPE")]
    run_type: Option<String>,
    /// The team of the DAG
    #[arg(long, value_name = "TEAM")]
    team: Option<String>,
    /// An owner of the DAG; repeatable
    #[arg(long, value_name = "OWNER")]
    owner: Vec<String>,
    /// A tag of the DAG; repeatable
    #[arg(long, value_name = "TAG")]
    tag: Vec<String>,
    /// An Airflow role that may act on the DAG; repeatable
    #[arg(long, value_name = "ROLE")]
    role: Vec<String>,
    /// The task's queue
    #[arg(long, value_name = "QUEUE")]
    queue: Option<String>,
    /// The configured name of the identity's issuer
    #[arg(long, value_name = "ISSUER", default_value = "airflow")]
    issuer: String,
    /// The key that signed it
    #[arg(long, value_name = "KID")]
    key_id: Option<String>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Access token and peer")]
struct TokenOptions {
    /// `sub` of the access token
    #[arg(long, value_name = "SUB")]
    subject: Option<String>,
    /// A scope of the access token; repeatable
    #[arg(long, value_name = "SCOPE")]
    scope: Vec<String>,
    /// A claim of the access token, its value JSON or a text; repeatable
    #[arg(long, value_name = "NAME=VALUE")]
    claim: Vec<String>,
    /// The configured name of the access token's issuer
    #[arg(long, value_name = "ISSUER", default_value = "idp")]
    token_issuer: String,
    /// The key that signed it
    #[arg(long, value_name = "KID")]
    token_key_id: Option<String>,
    /// The Consul service of the mesh peer
    #[arg(long, value_name = "SERVICE")]
    service: Option<String>,
    /// The SPIFFE ID of the mesh peer
    #[arg(long, value_name = "URI")]
    spiffe_id: Option<String>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Request")]
struct RequestOptions {
    /// The method
    #[arg(long, value_name = "METHOD", default_value = "GET")]
    method: String,
    /// Scheme, host and path in one; of a tunnel host and port
    #[arg(long, value_name = "URL", conflicts_with_all = ["host", "path", "scheme"])]
    url: Option<String>,
    /// The host, with its port if it is not the default one
    #[arg(long, value_name = "HOST")]
    host: Option<String>,
    /// The path [default: /]; a tunnel (--method CONNECT) has none
    #[arg(long, value_name = "PATH")]
    path: Option<String>,
    /// The scheme
    #[arg(long, value_name = "SCHEME", default_value = "http")]
    scheme: String,
}

impl Options {
    /// Who calls, as the options say.
    fn said(&self) -> Result<Said, Failed> {
        let Identity { dag, task, run, run_type, team, owner, tag, role, queue, issuer, key_id } =
            &self.identity;
        let identity = dag.as_ref().map(|dag| {
            let mut claims = Map::new();
            let mut put = |name: &str, value: Value| claims.insert(name.to_owned(), value);
            put("dag_id", dag.as_str().into());
            put("task_id", task.as_str().into());
            put("run_id", run.as_str().into());
            put("issuer", issuer.as_str().into());
            for (name, value) in
                [("run_type", run_type), ("team", team), ("queue", queue), ("key_id", key_id)]
            {
                match value.as_deref() {
                    None => {}
                    Some("") => _ = put(name, Value::Null),
                    Some(text) => _ = put(name, text.into()),
                }
            }
            for (name, values) in [("owners", owner), ("tags", tag), ("roles", role)] {
                if !values.is_empty() {
                    let values = values.iter().filter(|value| !value.is_empty());
                    put(name, values.map(String::as_str).collect());
                }
            }
            claims
        });
        let from_identity = run_type.is_some()
            || team.is_some()
            || queue.is_some()
            || !owner.is_empty()
            || !tag.is_empty()
            || !role.is_empty();
        if identity.is_none() && from_identity {
            return Err(Failed::usage("what is said about an identity needs --dag"));
        }
        let TokenOptions { subject, scope, claim, token_issuer, token_key_id, service, spiffe_id } =
            &self.token;
        let mut claims = Map::new();
        for text in claim {
            let (name, value) = text.split_once('=').ok_or_else(|| {
                Failed::usage(format!("--claim {}: expected NAME=VALUE", quote(text)))
            })?;
            let value = serde_json::from_str(value).unwrap_or_else(|_| value.into());
            claims.insert(name.to_owned(), value);
        }
        if let Some(subject) = subject {
            claims.insert("sub".to_owned(), subject.as_str().into());
        }
        if !scope.is_empty() {
            claims.insert("scope".to_owned(), scope.join(" ").into());
        }
        let token = (!claims.is_empty() || token_key_id.is_some()).then(|| Token {
            issuer: token_issuer.clone(),
            key_id: token_key_id.clone(),
            claims,
        });
        let peer = (service.is_some() || spiffe_id.is_some())
            .then(|| Peer { service: service.clone(), spiffe_id: spiffe_id.clone() });
        Ok(Said { identity, token, peer })
    }

    /// What is asked for, if the options say so.
    fn call(&self) -> Result<Option<Request>, Failed> {
        let RequestOptions { method, url, host, path, scheme } = &self.request;
        Ok(match (url, host) {
            (Some(url), _) => {
                Some(Request::parse(&format!("{method} {url}")).map_err(Failed::usage)?)
            }
            (None, Some(host)) => {
                let default = if method == CONNECT { "" } else { "/" };
                Some(Request {
                    method: method.clone(),
                    scheme: scheme.clone(),
                    host: host.clone(),
                    path: path.clone().unwrap_or_else(|| default.to_owned()),
                })
            }
            (None, None) => None,
        })
    }
}

/// A refusal as a caller got it.
#[derive(Debug)]
struct Denial {
    code: String,
    status: Option<u64>,
    detail: String,
    action: Option<String>,
    rule: Option<String>,
    nearest: Option<String>,
    decision_id: Option<String>,
}

fn read_denial(path: &Path) -> Result<Denial, Failed> {
    let found = match path.to_str() {
        Some("-") => Found::StandardInput,
        _ => Found::File(path.to_path_buf()),
    };
    let document = read_file(&found).map_err(|error| Failed::from(error.to_string()))?;
    let text = |name: &str| document.member(name)?.text().map(str::to_owned);
    let code = text("code").ok_or_else(|| {
        format!("{}: has no `code`: it is not a refusal of the filter", found.name())
    })?;
    Ok(Denial {
        code,
        status: document.member("status").and_then(|node| node.value().as_u64()),
        detail: text("detail").unwrap_or_default(),
        action: text("action"),
        rule: text("rule"),
        nearest: text("nearest"),
        decision_id: text("decision_id"),
    })
}

/// A policy and what it is read from.
struct Known {
    source: Source,
    model: Model,
    document: Value,
    evaluator: Evaluator,
}

impl Known {
    fn read(options: &Options, style: Style) -> Result<Self, Failed> {
        let (source, policy, model) = usable_policy(&options.policy, style)?;
        let document = source.node.value();
        let evaluator = Evaluator::new(policy).behind(Mesh::read(&options.intentions)?);
        Ok(Self { source, model, document, evaluator })
    }
}

/// Explains a decision of the audit trail, by the policy that is given and at the time of the call.
fn run_recorded(options: &Options, recorded: &Recorded, style: Style) -> Result<Exit, Failed> {
    let known = Known::read(options, style)?;
    let mut text = recorded.told(style);
    let mut told = Map::new();
    let denial = recorded.code.clone().map(|code| Denial {
        code,
        status: recorded.status,
        detail: recorded.detail.clone(),
        action: None,
        rule: recorded.rule.clone(),
        nearest: recorded.nearest.clone(),
        decision_id: Some(recorded.id.clone()),
    });
    if let Some(denial) = &denial {
        text.push_str(&format!("\n{}", denial_text(denial, &known, style)));
        told.insert("denial".to_owned(), denial_json(denial, &known));
    }
    told.insert("notes".to_owned(), json!(recorded.notes));
    let mut exit = if denial.is_some() { Exit::Findings } else { Exit::Good };
    if let Some(request) = recorded.request() {
        let at = options.at.unwrap_or(recorded.at);
        let reasons = Reasons::find(&known, &recorded.said, &recorded.caller, request, at);
        text.push_str(&format!("\n{}", reasons.text(&known, options.all, style)));
        if let Value::Object(members) = reasons.json(&known) {
            told.extend(members);
        }
        let differs = match (&denial, &reasons.answer.outcome) {
            (Some(denial), _) => reasons.differs_from(denial),
            (None, Err(reject)) if recorded.decision == Decision::Permit => Some(format!(
                "this policy refuses the call with {}, and it was permitted: the policy was another one, a grant \
                 permitted it, or a claim was not recorded",
                reject.code
            )),
            (None, _) => None,
        };
        if let Some(differs) = &differs {
            text.push_str(&format!("\n{}: {differs}\n", style.warn("note")));
        }
        told.insert("differs".to_owned(), json!(differs));
        exit = if reasons.answer.outcome.is_ok() { Exit::Good } else { Exit::Findings };
    }
    print(&if options.json { format!("{:#}\n", Value::Object(told)) } else { text });
    Ok(exit)
}

pub(super) fn run(options: &Options, style: Style) -> Result<Exit, Failed> {
    let stdin = |path: &Path| path.as_os_str() == "-";
    if options.denial.as_deref().is_some_and(stdin) && options.policy.iter().any(|path| stdin(path))
    {
        return Err(Failed::usage("standard input is either the policy or the denial"));
    }
    if let Some(id) = &options.decision {
        let inputs = [&options.audit, &options.policy];
        if inputs.iter().all(|paths| paths.iter().any(|path| stdin(path))) {
            return Err(Failed::usage("standard input is either the policy or the trail"));
        }
        let recorded = recorded::find(&options.audit, id)?;
        return run_recorded(options, &recorded, style);
    }
    let denial = options.denial.as_deref().map(read_denial).transpose()?;
    let known = Known::read(options, style)?;
    let request = options.call()?;
    if denial.is_none() && request.is_none() {
        return Err(Failed::usage(
            "say what is called: --url, or --host and --path; or what was answered: --denial",
        ));
    }
    let mut told = Map::new();
    let mut text = String::new();
    if let Some(denial) = &denial {
        text.push_str(&denial_text(denial, &known, style));
        told.insert("denial".to_owned(), denial_json(denial, &known));
    }
    let mut exit = if denial.is_some() { Exit::Findings } else { Exit::Good };
    if let Some(request) = &request {
        let said = options.said()?;
        let caller = said.caller().map_err(|problem| format!("the identity: {problem}"))?;
        let at = options.at.unwrap_or_else(clock);
        let reasons = Reasons::find(&known, &said, &caller, request, at);
        if denial.is_some() {
            text.push('\n');
        }
        text.push_str(&reasons.text(&known, options.all, style));
        if let Value::Object(members) = reasons.json(&known) {
            told.extend(members);
        }
        if let Some(denial) = &denial {
            let differs = reasons.differs_from(denial);
            if let Some(differs) = &differs {
                text.push_str(&format!("\n{}: {differs}\n", style.warn("note")));
            }
            told.insert("differs".to_owned(), json!(differs));
        }
        exit = if reasons.answer.outcome.is_ok() { Exit::Good } else { Exit::Findings };
    }
    print(&if options.json { format!("{:#}\n", Value::Object(told)) } else { text });
    Ok(exit)
}

/// The id of a rule in an answer: with several sources it has the name of its source before it.
fn own_id<'d>(name: &'d str, model: &Model) -> &'d str {
    if model.named(name).is_some() {
        return name;
    }
    name.rsplit_once('/').map_or(name, |(_, id)| id)
}

fn denial_text(denial: &Denial, known: &Known, style: Style) -> String {
    let code = Code::ALL.iter().find(|code| code.name() == denial.code);
    let status = denial.status.or_else(|| code.map(|code| code.status().into()));
    let status = status.map(|status| format!(" {status}")).unwrap_or_default();
    let mut text = format!("{}{status} {}", style.strong("denied:"), style.bad(&denial.code));
    match code {
        Some(code) => text.push_str(&format!(": {}\n", code.title())),
        None => text.push_str(": a code that this version does not know\n"),
    }
    if !denial.detail.is_empty() {
        text.push_str(&format!("  {}\n", denial.detail));
    }
    if let Some(action) = denial.action.as_deref().or_else(|| code.map(|code| code.action())) {
        text.push_str(&format!("  what to do: {action}\n"));
    }
    if let Some(id) = &denial.decision_id {
        text.push_str(&style.faint(&format!("  decision {id}\n")));
    }
    for (what, name) in
        [("the rule that denied", &denial.rule), ("the nearest rule", &denial.nearest)]
    {
        let Some(name) = name else { continue };
        let id = own_id(name, &known.model);
        // An intention is none of the policy's.
        if code == Some(&Code::IntentionDenied) {
            continue;
        }
        let list = |list: &str| known.source.node.member(list).map(Node::elements);
        let mut all = ["rules", "agreement"].into_iter().filter_map(list).flatten();
        let named = |node: &&Node| node.member("id").and_then(Node::text) == Some(id);
        let Some(rule) = all.find(named) else {
            let problem = "is not in this policy: it was another one, or has changed since";
            text.push_str(&format!("\n{what} {} {problem}\n", quote(name)));
            continue;
        };
        text.push_str(&format!("\n{what} ({}):\n", rule.place));
        for line in yaml(rule).lines() {
            text.push_str(&format!("  {line}\n"));
        }
    }
    text
}

fn denial_json(denial: &Denial, known: &Known) -> Value {
    let rule = |name: &Option<String>| {
        let id = own_id(name.as_deref()?, &known.model);
        let (_, place) = known.model.named(id)?;
        Some(json!({"id": id, "place": place.to_string()}))
    };
    json!({
        "code": denial.code, "status": denial.status, "detail": denial.detail, "action": denial.action,
        "rule": rule(&denial.rule), "nearest": rule(&denial.nearest), "decision_id": denial.decision_id,
    })
}

/// Why a call is decided as it is.
struct Reasons<'a> {
    evaluator: &'a Evaluator,
    said: &'a Said,
    caller: &'a Caller,
    request: &'a Request,
    at: UnixTime,
    answer: Answer,
    /// `None` if the request cannot be read.
    inquiry: Option<Inquiry<'a>>,
    remedy: Option<Remedy>,
}

impl<'a> Reasons<'a> {
    fn find(
        known: &'a Known,
        said: &'a Said,
        caller: &'a Caller,
        request: &'a Request,
        at: UnixTime,
    ) -> Self {
        let answer = known.evaluator.decide(caller, request, at);
        let inquiry = known.evaluator.inquire(caller, request, at);
        let policy_decided =
            answer.outcome.as_ref().err().is_some_and(|reject| {
                matches!(reject.code, Code::PolicyDenied | Code::PolicyNoMatch)
            });
        let remedy = inquiry.as_ref().filter(|_| policy_decided).and_then(|inquiry| {
            remedy(&known.document, &known.model, inquiry, Asked { caller, request, at })
        });
        let evaluator = &known.evaluator;
        Self { evaluator, said, caller, request, at, answer, inquiry, remedy }
    }

    /// Rules about the destination: those that apply, then those with the fewest failures.
    fn near(&self) -> Vec<Considered<'_>> {
        let rules = self.inquiry.iter().flat_map(Inquiry::rules);
        let mut rules: Vec<_> = rules
            .filter(Considered::is_for_destination)
            .filter(|rule| rule.allows() || rule.applies() || rule.failures(2).len() < 2)
            .map(|rule| (!rule.applies(), rule.failures(usize::MAX).len(), rule))
            .collect();
        rules.sort_by_key(|(applies, failures, rule)| (*applies, *failures, rule.id().to_owned()));
        rules.into_iter().map(|(_, _, rule)| rule).collect()
    }

    fn text(&self, known: &Known, all: bool, style: Style) -> String {
        let mut text = format!("{}\n", style.strong(&self.request.to_string()));
        text.push_str(&format!("as {} at {}\n\n", self.said.describe(), self.at));
        match &self.answer.outcome {
            Ok(_) => text.push_str(&format!("{}\n", style.good(&self.answer.to_string()))),
            Err(reject) => {
                let told = style.bad(&self.answer.to_string());
                text.push_str(&format!("{told}: {}\n  {}\n", reject.code.title(), reject.detail));
            }
        }
        for verdict in &self.answer.shadow {
            let what = if verdict.permits { "permitted" } else { "refused" };
            text.push_str(&format!(
                "  shadow rule {} would have {what} it\n",
                quote(&verdict.rule)
            ));
        }
        if let Some(name) = &self.answer.destination {
            let place = known.model.destinations.get(name);
            let place = place.map(|one| format!(" ({})", one.place)).unwrap_or_default();
            text.push_str(&format!("\ndestination {}{}\n", quote(name), style.faint(&place)));
        }
        if let Some(path) = self.inquiry.as_ref().and_then(Inquiry::path)
            && path != self.request.path.split('?').next().unwrap_or_default()
        {
            text.push_str(&format!("path in its normal form: {}\n", quote(path)));
        }
        text.push_str(&self.agreement_text(known, style));
        text.push_str(&self.roles_text(known, style));
        text.push_str(&self.rules_text(known, all, style));
        text.push_str(&self.remedy_text(known, style));
        text
    }

    /// Which entries of the agreement cover the identity, and why the others do not.
    fn agreement_text(&self, known: &Known, style: Style) -> String {
        let Some(entries) = known.evaluator.policy().agreed(self.caller) else {
            return String::new();
        };
        let mut text = "\nagreement\n".to_owned();
        for entry in entries {
            let place = known.model.named(&entry.id).map(|(_, place)| place.to_string());
            let place = style.faint(&format!("({})", place.unwrap_or_default()));
            let holds = entry.holds();
            let mark = if holds { style.good("holds") } else { style.faint("does not hold") };
            let why = entry.from.iter().chain(&entry.may_assert);
            let why = why.filter(|(_, _, one)| holds || !one);
            let why: Vec<&str> = why.map(|(_, told, _)| told.as_str()).collect();
            text.push_str(&format!(
                "  {} {mark} {place}: {}\n",
                quote(&entry.id),
                why.join("; and ")
            ));
        }
        text
    }

    fn roles_text(&self, known: &Known, style: Style) -> String {
        let selectors = known.evaluator.policy().roles(self.caller);
        let mut text = String::new();
        for (name, role) in &known.model.roles {
            let mine = || selectors.iter().filter(|selector| selector.role == *name);
            let holding = mine().find(|selector| selector.holds() == Some(true));
            let unknown = mine().find(|selector| selector.holds().is_none());
            let place = style.faint(&format!("({})", role.place));
            let (mark, why) = match (holding, unknown) {
                (Some(selector), _) => (style.good("held"), selector),
                (None, Some(selector)) => (style.warn("unknown"), selector),
                (None, None) => {
                    let Some(selector) = mine().next() else { continue };
                    (style.faint("not held"), selector)
                }
            };
            let why = why.conditions.iter();
            let why = why.filter(|(.., holds)| holding.is_some() || *holds != Some(true));
            let why: Vec<&str> = why.map(|(_, told, _)| told.as_str()).collect();
            text.push_str(&format!("  {} {mark} {place}: {}\n", quote(name), why.join("; and ")));
        }
        if text.is_empty() { text } else { format!("\nroles\n{text}") }
    }

    fn rules_text(&self, known: &Known, all: bool, style: Style) -> String {
        let near = self.near();
        if near.is_empty() {
            return String::new();
        }
        let shown = if all { near.len() } else { MOST_SHOWN };
        let mut text = "\nrules about this destination, nearest first\n".to_owned();
        for rule in near.iter().take(shown) {
            let effect = if rule.allows() { "allow" } else { "deny" };
            let shadow = if rule.is_shadow() { ", shadow" } else { "" };
            let place = known.model.rule(rule.id()).map(|rule| rule.place.to_string());
            let place = style.faint(&format!("({})", place.unwrap_or_default()));
            let applies =
                if rule.applies() { style.warn("applies") } else { style.faint("does not apply") };
            text.push_str(&format!("  {} {effect}{shadow} {place}: {applies}\n", quote(rule.id())));
            for failure in rule.failures(usize::MAX) {
                let told = failure.explanation;
                // The sentence begins with the rule, which stands above already.
                let told = told.split_once(", but ").map_or(told.as_str(), |(_, told)| told);
                let unknown = if failure.unknown { " (unknown)" } else { "" };
                let condition = style.strong(&failure.condition.to_string());
                text.push_str(&format!("    {condition}{unknown}: {told}\n"));
            }
        }
        if let Some(more) = near.len().checked_sub(shown).filter(|more| *more > 0) {
            text.push_str(&format!("  and {} more, see --all\n", plural(more, "rule")));
        }
        text
    }

    fn remedy_text(&self, known: &Known, style: Style) -> String {
        let Err(reject) = &self.answer.outcome else { return String::new() };
        let heading = style.strong("\nthe smallest change that would allow it\n");
        let tunnel = if self.request.is_tunnel() {
            ", with `CONNECT` in `methods` and without `paths`"
        } else {
            ""
        };
        let ask = reject.grantable.as_ref();
        let ask = ask.map(|ask| format!("{}\n  {ask}\n", style.strong("\nfor a while")));
        let ask = ask.unwrap_or_default();
        let change = match (&self.remedy, reject.code) {
            (Some(Remedy { steps, permitted_by }), _) => {
                let mut text = heading;
                for step in steps {
                    let place = known.source.node.locate(&step.path, "");
                    let place = style.faint(&format!("({place})"));
                    text.push_str(&format!("  {} {place}\n", step.told));
                }
                let rule = quote(permitted_by);
                text.push_str(
                    &style.faint(&format!("  tried: the call is then permitted by {rule}\n")),
                );
                text
            }
            (None, Code::DestinationUnknown) => {
                let host = quote(&self.request.host);
                format!(
                    "{heading}  a destination with {host} in its `hosts`, and a rule that allows it{tunnel}\n"
                )
            }
            (None, Code::PolicyDenied | Code::PolicyNoMatch) => {
                format!(
                    "{heading}  a new rule{tunnel}: no change of a single rule was found that does it\n"
                )
            }
            (None, Code::PeerNotAllowed | Code::AssertionNotAllowed) => {
                format!(
                    "{heading}  an entry of `agreement` that covers this peer and this identity\n"
                )
            }
            (None, Code::IntentionDenied) => {
                "\nno policy would allow it: Consul's intentions have to\n".to_owned()
            }
            (None, _) => {
                "\nno policy would allow it: the request itself has to be another one\n".to_owned()
            }
        };
        ask + &change
    }

    fn json(&self, known: &Known) -> Value {
        let grantable =
            self.answer.outcome.as_ref().err().and_then(|reject| reject.grantable.as_deref());
        let (decision, code, rule, nearest, detail) = match &self.answer.outcome {
            Ok(rule) => ("permit", None, Some(rule.clone()), None, None),
            Err(reject) => (
                "reject",
                Some(reject.code.name()),
                reject.rule.clone(),
                reject.nearest.clone(),
                Some(reject.detail.clone()),
            ),
        };
        let roles: Vec<Value> = known
            .evaluator
            .policy()
            .roles(self.caller)
            .into_iter()
            .map(|selector| {
                let holds = selector.holds();
                let conditions = selector.conditions.iter();
                let conditions = conditions.map(|(condition, told, holds)| {
                    let field = condition.to_string();
                    let field = field.strip_prefix("from.").unwrap_or(&field).to_owned();
                    json!({"field": field, "holds": holds, "told": told})
                });
                json!({
                    "role": selector.role, "selector": selector.index, "holds": holds,
                    "conditions": conditions.collect::<Vec<_>>(),
                })
            })
            .collect();
        let rules: Vec<Value> = self
            .near()
            .into_iter()
            .map(|rule| {
                let failures = rule.failures(usize::MAX).into_iter().map(|failure| {
                    json!({
                        "condition": failure.condition.to_string(), "unknown": failure.unknown,
                        "told": failure.explanation,
                    })
                });
                let place = known.model.rule(rule.id()).map(|rule| rule.place.to_string());
                json!({
                    "id": rule.id(), "effect": if rule.allows() { "allow" } else { "deny" },
                    "shadow": rule.is_shadow(), "place": place, "applies": rule.applies(),
                    "failures": failures.collect::<Vec<_>>(),
                })
            })
            .collect();
        let remedy = self.remedy.as_ref().map(|remedy| {
            let steps = remedy.steps.iter().map(|step| {
                let place = known.source.node.locate(&step.path, "").to_string();
                json!({"path": step.path, "place": place, "told": step.told})
            });
            json!({"steps": steps.collect::<Vec<_>>(), "permitted_by": remedy.permitted_by})
        });
        let told = |asked: &[(Asks, String, bool)]| {
            let told = asked.iter().map(|(condition, told, holds)| {
                let field = condition.to_string();
                let field = field.strip_prefix("from.").unwrap_or(&field).to_owned();
                json!({"field": field, "holds": holds, "told": told})
            });
            told.collect::<Vec<_>>()
        };
        let agreement = known.evaluator.policy().agreed(self.caller).map(|entries| {
            let entries = entries.iter().map(|entry| {
                json!({
                    "id": entry.id, "holds": entry.holds(), "from": told(&entry.from),
                    "may_assert": told(&entry.may_assert),
                })
            });
            entries.collect::<Vec<_>>()
        });
        let shadow = self.answer.shadow.iter();
        let shadow = shadow.map(|one| json!({"rule": &*one.rule, "permits": one.permits}));
        json!({
            "request": self.request.to_string(), "caller": self.said.describe(), "at": self.at.to_string(),
            "decision": decision, "code": code, "rule": rule, "nearest": nearest, "detail": detail, "grantable": grantable,
            "destination": self.answer.destination, "path": self.inquiry.as_ref().and_then(Inquiry::path),
            "shadow": shadow.collect::<Vec<_>>(), "agreement": agreement, "roles": roles, "rules": rules, "remedy": remedy,
        })
    }

    /// What this policy says otherwise than the denial.
    fn differs_from(&self, denial: &Denial) -> Option<String> {
        let by_mesh = denial.code == Code::IntentionDenied.name();
        if by_mesh && !self.evaluator.has_intentions() {
            let problem = "Consul's intentions refused the call, and are not asked here: give them with --intentions";
            return Some(problem.to_owned());
        }
        match &self.answer.outcome {
            Ok(rule) => Some(format!(
                "this policy permits the call by rule {}: the policy, the caller or the time was another one",
                quote(rule)
            )),
            Err(reject) if reject.code.name() != denial.code => Some(format!(
                "this policy refuses the call with {}, the denial was {}: the policy, the caller or the time was another one",
                reject.code, denial.code
            )),
            Err(_) => None,
        }
    }
}
