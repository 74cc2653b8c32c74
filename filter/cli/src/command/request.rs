//! `airflow-envoy request`: what a DAG's owner asks an approver for.

use std::path::{Path, PathBuf};

use airflow_envoy_core::policy::Policy;
use airflow_envoy_core::quote::quote;
use airflow_envoy_core::reject::Code;
use airflow_envoy_core::time::UnixTime;
use clap::Args;
use serde_json::{Map, Value};

use super::grant::{PolicyOptions, ScopeOptions, TermOptions, describe, refused};
use super::{Exit, Failed, clock, usable_policy, write};
use crate::evaluate::{Answer, Evaluator, IDENTITY, Request as Call, Said};
use crate::granting::{find, offer};
use crate::output::{Style, complain};
use crate::source::load::{Found, read_bytes};
use crate::source::print::yaml;
use crate::source::{Node, read_file};

const EXAMPLES: &str = "\
Examples:
  airflow-envoy request --policy policy/ --denial denial.json --dag ds_repair --for 2h \\
      --reason INC-17 --requested-by bob > request.yaml       # the answer that a task got
  airflow-envoy request --policy policy/ --call 'POST http://orders.internal/v1/orders/7' \\
      --dag ds_repair --for 2h --reason INC-17 --requested-by bob
  airflow-envoy request --policy policy/ --grantable orders-write --dag ds_repair --for 2h \\
      --reason INC-17 --requested-by bob --output request.yaml

An approver makes a grant of it: airflow-envoy approve request.yaml …";

/// Writes a request for a grant: to hand to somebody who may grant it.
///
/// Finds out what is grantable that would allow the call. A denial is the JSON that a task got as its
/// answer, or the audit record of the decision, which also says who called what.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Options {
    #[command(flatten)]
    policy: PolicyOptions,
    /// A refusal (`application/problem+json`) or its audit record; `-` is standard input
    #[arg(long, value_name = "FILE")]
    denial: Option<PathBuf>,
    /// The call that is to be allowed: a method and a URL
    #[arg(long, value_name = "CALL", conflicts_with = "denial")]
    call: Option<String>,
    /// What is asked for, if it is known
    #[arg(long, value_name = "ID", conflicts_with_all = ["denial", "call"])]
    grantable: Option<String>,
    #[command(flatten)]
    scope: ScopeOptions,
    #[command(flatten)]
    terms: TermOptions,
    /// Who asks
    #[arg(long, value_name = "NAME")]
    requested_by: Option<String>,
    /// Where it is written instead of standard output
    #[arg(long, short, value_name = "FILE", default_value = "-", hide_default_value = true)]
    output: PathBuf,
    /// JSON instead of YAML
    #[arg(long)]
    json: bool,
}

pub(super) fn run(options: &Options, style: Style) -> Result<Exit, Failed> {
    let stdin = |path: &Path| path.as_os_str() == "-";
    let denial = options.denial.as_deref();
    if denial.is_some_and(stdin) && options.policy.files.iter().any(|path| stdin(path)) {
        return Err(Failed::usage("standard input is either the policy or the denial"));
    }
    let denial = denial.map(Denial::read).transpose()?;
    let (_, policy, _) = usable_policy(&options.policy.files, style)?;
    let now = clock();

    let mut scope = options.scope.clone();
    let mut call = options.call.as_deref().map(Call::parse).transpose().map_err(Failed::usage)?;
    let mut said = None;
    let mut grantable = options.grantable.clone();
    if let Some(denial) = &denial {
        (said, call) = (denial.said.clone(), denial.call.clone());
        if scope.dag.is_empty() && scope.from.is_empty() {
            scope.dag.extend(denial.dag());
        }
        if call.is_none() {
            grantable = Some(denial.grantable(&policy).map_err(refused)?);
        }
    }
    let evaluator = Evaluator::new(policy);
    let policy = evaluator.policy();
    if let Some(call) = &call {
        let said = match said {
            Some(said) => said,
            None => said_by(&scope)?,
        };
        let (found, answer) = wanted(&evaluator, &said, call, now)?;
        if scope.to.is_empty() {
            scope.to.extend(answer.destination);
        }
        if scope.method.is_empty() {
            scope.method.push(call.method.clone());
        }
        grantable = Some(found);
    }
    let grantable = grantable
        .ok_or_else(|| Failed::usage("say what is asked for: --denial, --call, or --grantable"))?;
    let request = scope.request(&grantable, &options.terms, options.requested_by.as_deref())?;
    let terms = request.check(policy, now).map_err(refused)?;

    let json = format!("{:#}\n", request.to_json());
    let text = if options.json {
        json
    } else {
        let node = read_bytes("request.json", json.as_bytes());
        yaml(&node.map_err(|error| error.to_string())?)
    };
    complain(&format!("{}\n{}", describe(&request, now).trim_end(), style.faint(&offer(&terms))));
    write(&options.output, &text)?;
    Ok(Exit::Good)
}

/// Who calls, as far as the options say so.
fn said_by(scope: &ScopeOptions) -> Result<Said, Failed> {
    let first = |values: &[String]| values.first().map(|value| Value::from(value.as_str()));
    let mut identity = Map::new();
    for (name, value) in [
        ("dag_id", first(&scope.dag)),
        ("task_id", first(&scope.task)),
        ("run_id", first(&scope.run)),
    ] {
        identity.extend(value.map(|value| (name.to_owned(), value)));
    }
    if !identity.contains_key("dag_id") {
        return Err(Failed::usage("with --call say which DAG calls: --dag"));
    }
    for text in &scope.from {
        let (name, list) = match text.split_once('=') {
            Some(("teams", value)) => ("team", Value::from(value)),
            Some(("queues", value)) => ("queue", value.into()),
            Some(("run_types", value)) => ("run_type", value.into()),
            Some(("owners", value)) => ("owners", vec![value].into()),
            Some(("tags", value)) => ("tags", vec![value].into()),
            Some(("airflow_roles", value)) => ("roles", vec![value].into()),
            _ => continue,
        };
        identity.insert(name.to_owned(), list);
    }
    Ok(Said { identity: Some(identity), ..Said::default() })
}

/// What is grantable that would allow the call.
fn wanted(
    evaluator: &Evaluator,
    said: &Said,
    call: &Call,
    now: UnixTime,
) -> Result<(String, Answer), Failed> {
    let caller = said.caller().map_err(|problem| format!("the identity: {problem}"))?;
    let answer = evaluator.decide(&caller, call, now);
    let reject = match &answer.outcome {
        Ok(rule) => {
            let rule = quote(rule);
            return Err(refused(format!("no grant is needed: rule {rule} allows {call}")));
        }
        Err(reject) => reject,
    };
    match named(evaluator.policy(), &reject.detail) {
        Some(id) if reject.code == Code::PolicyNoMatch => Ok((id, answer)),
        _ => Err(refused(unhelped(reject.code.name(), &reject.detail))),
    }
}

fn unhelped(code: &str, detail: &str) -> String {
    let detail = quote(detail);
    if code == Code::PolicyNoMatch.name() {
        return format!("nothing is grantable that would allow this: {detail}");
    }
    format!("no grant helps against {}: {detail}", quote(code))
}

/// What a refusal's detail says to be grantable, if this policy has it.
fn named(policy: &Policy, detail: &str) -> Option<String> {
    let would = |id: &str| {
        let plain = detail.contains(&format!("{} would allow it", quote(id)));
        plain || detail.contains(&format!("/{id}` would allow it"))
    };
    policy.grantables().map(|grantable| grantable.id()).find(|id| would(id)).map(str::to_owned)
}

/// A refusal: the answer to the call, or its audit record.
struct Denial {
    name: String,
    code: String,
    detail: String,
    said: Option<Said>,
    call: Option<Call>,
}

impl Denial {
    fn read(path: &Path) -> Result<Self, Failed> {
        let found = match path.to_str() {
            Some("-") => Found::StandardInput,
            _ => Found::File(path.to_path_buf()),
        };
        let document = read_file(&found).map_err(|error| Failed::from(error.to_string()))?;
        let text = |node: &Node, name: &str| node.member(name)?.text().map(str::to_owned);
        let name = found.name();
        let code = text(&document, "code")
            .ok_or_else(|| format!("{name}: has no `code`: it is not a refusal of the filter"))?;
        let request = document.member("request");
        let call = request.and_then(|request| {
            Some(Call {
                method: text(request, "method")?,
                scheme: text(request, "scheme").unwrap_or_else(|| "http".to_owned()),
                host: text(request, "authority")?,
                path: text(request, "path").unwrap_or_default(),
            })
        });
        // What a record has besides is not what a policy asks for.
        let identity = document.member("caller").and_then(|caller| caller.member("identity"));
        let said = identity.map(|identity| {
            let known =
                identity.members().iter().filter(|member| IDENTITY.contains(&member.name.as_str()));
            let known = known.map(|member| (member.name.clone(), member.value.value()));
            Said { identity: Some(known.collect()), ..Said::default() }
        });
        // Without a caller nothing can be decided again.
        let call = call.filter(|_| said.is_some());
        let detail = text(&document, "detail").unwrap_or_default();
        Ok(Self { name, code, detail, said, call })
    }

    fn dag(&self) -> Option<String> {
        self.said.as_ref()?.identity.as_ref()?.get("dag_id")?.as_str().map(str::to_owned)
    }

    fn grantable(&self, policy: &Policy) -> Result<String, String> {
        let found = named(policy, &self.detail);
        if let Some(id) = found.filter(|_| self.code == Code::PolicyNoMatch.name()) {
            return find(policy, &id).map(|grantable| grantable.id().to_owned());
        }
        Err(format!("{}: {}", self.name, unhelped(&self.code, &self.detail)))
    }
}
