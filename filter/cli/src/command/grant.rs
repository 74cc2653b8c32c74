//! `airflow-envoy grant`, and what `approve` and `request` share with it.

use std::path::PathBuf;

use airflow_envoy_core::policy::{Grantable, Policy};
use airflow_envoy_core::quote::{quote, quote_list};
use airflow_envoy_core::time::{Span, UnixTime};
use clap::Args;
use serde_json::{Map, Value, json};

use super::{Exit, Failed, clock, read_key, span, time, usable_policy};
use crate::granting::{Issued, Request, add, find, issue, new_id, span_text};
use crate::jwk::PrivateKey;
use crate::output::{Style, print};
use crate::store::Store;

const EXAMPLES: &str = "\
Examples:
  airflow-envoy grant orders-write --policy policy/ --dag ds_repair --for 2h --reason INC-17 \\
      --by ada --key ada.json --store consul://127.0.0.1:8500/airflow-envoy/grants
  airflow-envoy grant orders-write --policy policy/ --dag ds_repair --task load --method POST \\
      --path '/v1/orders/7' --for 30m --reason INC-17 --by ada --key ada.json --store grants.json
  airflow-envoy grant orders-write … --begins 2026-11-23T08:00:00Z > grant.jws    # kept nowhere

A store is a file, consul://host:port/key (consul+https://; CONSUL_HTTP_TOKEN, CONSUL_HTTP_ADDR,
CONSUL_CACERT), or http(s):// that answers with an ETag and honours If-Match; its bearer token is in
AIRFLOW_ENVOY_STORE_TOKEN. Trusted certificates: SSL_CERT_FILE, or those of the system.";

/// Grants some of what a policy declares grantable, for a while.
///
/// What the filter would not take is refused, with what could be granted instead (exit code 1). Grants that
/// have ended are taken out of the store on the way.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Options {
    /// The id of what the policy declares grantable
    #[arg(value_name = "GRANTABLE")]
    grantable: String,
    #[command(flatten)]
    policy: PolicyOptions,
    #[command(flatten)]
    scope: ScopeOptions,
    #[command(flatten)]
    terms: TermOptions,
    /// Who asked for it
    #[arg(long, value_name = "NAME")]
    requested_by: Option<String>,
    #[command(flatten)]
    signing: SigningOptions,
}

/// The policy that says what is grantable.
#[derive(Debug, Args)]
pub(super) struct PolicyOptions {
    /// A file or a folder of the policy; repeatable
    #[arg(long = "policy", required = true, value_name = "POLICY")]
    pub(super) files: Vec<PathBuf>,
}

/// Which calls.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "For which calls")]
pub(super) struct ScopeOptions {
    /// A DAG that receives it; repeatable
    #[arg(long, value_name = "DAG")]
    pub(super) dag: Vec<String>,
    /// Only this task; repeatable
    #[arg(long, value_name = "TASK")]
    pub(super) task: Vec<String>,
    /// Only this run; repeatable
    #[arg(long, value_name = "RUN")]
    pub(super) run: Vec<String>,
    /// Another field of a selector, such as teams=science or claims.department=sales; repeatable
    #[arg(long, value_name = "FIELD=VALUE")]
    pub(super) from: Vec<String>,
    /// Only this destination; repeatable
    #[arg(long, value_name = "DESTINATION")]
    pub(super) to: Vec<String>,
    /// Only this method; repeatable
    #[arg(long, value_name = "METHOD")]
    pub(super) method: Vec<String>,
    /// Only paths of this pattern; repeatable
    #[arg(long, value_name = "PATTERN")]
    pub(super) path: Vec<String>,
}

/// How long, and why.
#[derive(Debug, Args)]
#[command(next_help_heading = "How long and why")]
pub(super) struct TermOptions {
    /// How long, such as 30m or 2h
    #[arg(long = "for", value_name = "SPAN", value_parser = span)]
    pub(super) duration: Span,
    /// From when, instead of now
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub(super) begins: Option<UnixTime>,
    /// Why, in words
    #[arg(long, value_name = "TEXT")]
    pub(super) reason: String,
}

/// Who grants, and where it is kept.
#[derive(Debug, Args)]
#[command(next_help_heading = "Who grants, and where it is kept")]
pub(super) struct SigningOptions {
    /// The private key of an approver: a JWK
    #[arg(long, value_name = "FILE")]
    pub(super) key: PathBuf,
    /// Who grants, in words
    #[arg(long, value_name = "NAME")]
    by: String,
    /// The store that the filter reads; without one the signed grant is printed
    #[arg(long, value_name = "URL")]
    store: Option<String>,
    /// The id of the grant, instead of one that is made
    #[arg(long, value_name = "ID")]
    id: Option<String>,
    /// For programs
    #[arg(long)]
    json: bool,
}

impl ScopeOptions {
    /// The selector.
    pub(super) fn selector(&self) -> Result<Map<String, Value>, Failed> {
        let mut from = Map::new();
        for (name, values) in [("dags", &self.dag), ("tasks", &self.task), ("runs", &self.run)] {
            if !values.is_empty() {
                from.insert(name.to_owned(), values.as_slice().into());
            }
        }
        for text in &self.from {
            let (field, value) = text.split_once('=').ok_or_else(|| {
                Failed::usage(format!("--from {}: expected FIELD=VALUE", quote(text)))
            })?;
            let (members, name) = match field.strip_prefix("claims.") {
                Some(claim) => match from.entry("claims").or_insert_with(|| json!({})) {
                    Value::Object(claims) => (claims, claim),
                    _ => return Err(Failed::usage("--from claims: expected claims.NAME=VALUE")),
                },
                None => (&mut from, field),
            };
            match members.entry(name).or_insert_with(|| json!([])) {
                Value::Array(values) => values.push(value.into()),
                _ => return Err(Failed::usage("--from claims: expected claims.NAME=VALUE")),
            }
        }
        if from.is_empty() {
            return Err(Failed::usage("say who receives it: --dag, or --from FIELD=VALUE"));
        }
        Ok(from)
    }

    /// What is asked for.
    pub(super) fn request(
        &self,
        grantable: &str,
        terms: &TermOptions,
        requested_by: Option<&str>,
    ) -> Result<Request, Failed> {
        let list = |values: &Vec<String>| (!values.is_empty()).then(|| values.clone());
        Ok(Request {
            grantable: grantable.to_owned(),
            from: self.selector()?,
            to: list(&self.to),
            methods: list(&self.method),
            paths: list(&self.path),
            duration: terms.duration,
            begins: terms.begins,
            reason: terms.reason.clone(),
            requested_by: requested_by.map(str::to_owned),
        })
    }
}

pub(super) fn run(options: &Options, style: Style) -> Result<Exit, Failed> {
    let by = options.requested_by.as_deref();
    let request = options.scope.request(&options.grantable, &options.terms, by)?;
    let key = read_key(&options.signing.key, &options.policy.files, style)?;
    let (_, policy, _) = usable_policy(&options.policy.files, style)?;
    carry_out(&policy, &request, &key, &options.signing, style)
}

/// Something that the policy does not allow to be granted.
pub(super) fn refused(problem: impl Into<String>) -> Failed {
    Failed { problem: problem.into(), exit: Exit::Findings }
}

/// Signs what is asked for, keeps it, and tells about it.
pub(super) fn carry_out(
    policy: &Policy,
    request: &Request,
    key: &PrivateKey,
    options: &SigningOptions,
    style: Style,
) -> Result<Exit, Failed> {
    let now = clock();
    let store = options.store.as_deref().map(Store::at).transpose().map_err(Failed::usage)?;
    let id = options.id.clone().map_or_else(|| new_id(&request.grantable), Ok)?;
    let issued = issue(policy, request, &id, &options.by, key, now).map_err(refused)?;
    if let Some(store) = &store {
        store.update(|found| {
            add(found, &id, &issued.jws, now)
                .map_err(|problem| format!("{}: {problem}", store.name()))
        })?;
    }
    let Issued { jws, approval } = &issued;
    let grant = &approval.grant;
    if options.json {
        let told = json!({
            "id": id, "grantable": &*grant.grantable, "approver": &*approval.approver,
            "key_id": approval.signer.key_id, "not_before": grant.not_before.to_string(),
            "expires_at": grant.expires_at.to_string(),
            "store": store.as_ref().map(Store::name), "grant": jws,
        });
        print(&format!("{told:#}\n"));
        return Ok(Exit::Good);
    }
    let shown = describe(request, &find(policy, &request.grantable)?, now);
    let by = format!("{} ({})", quote(&options.by), quote(&approval.approver));
    let heading = format!("{} {}, by {by}\n{shown}", style.good("granted:"), style.strong(&id));
    match &store {
        Some(store) => print(&format!("{heading}  kept in  {}\n", store.name())),
        None => {
            crate::output::complain(heading.trim_end());
            print(&format!("{jws}\n"));
        }
    }
    Ok(Exit::Good)
}

/// What is granted, for people: all of it, and nothing in it is taken for more than a text.
pub(super) fn describe(request: &Request, grantable: &Grantable<'_>, now: UnixTime) -> String {
    // What the request leaves open is all of the grantable.
    let list = |own: &Option<Vec<String>>, all: Option<Vec<&str>>, any: &str| match (own, all) {
        (Some(own), _) => whole_list(own),
        (None, Some(all)) => quote_list(all),
        (None, None) => any.to_owned(),
    };
    let mut text = format!("  what     {}\n", whole(&request.grantable));
    for (field, values) in &request.from {
        let values = match values {
            Value::Object(claims) => claims
                .iter()
                .map(|(name, values)| format!("{} {}", whole(name), whole_values(values)))
                .collect::<Vec<_>>()
                .join("; "),
            values => whole_values(values),
        };
        text.push_str(&format!("  whom     {}: {values}\n", whole(field)));
    }
    text.push_str(&format!(
        "  where    {}, {}, {}\n",
        list(&request.to, grantable.destinations(), "any destination"),
        list(&request.methods, grantable.methods(), "any method"),
        list(&request.paths, grantable.paths(), "any path"),
    ));
    let begins = request.begins.unwrap_or(now);
    let until = begins.plus(request.duration);
    text.push_str(&format!("  when     {begins} to {until} ({})\n", span_text(request.duration)));
    text.push_str(&format!("  why      {}\n", whole(&request.reason)));
    if let Some(name) = &request.requested_by {
        text.push_str(&format!("  asked by {}\n", whole(name)));
    }
    text
}

/// `text` as [`quote`] shows it, but nothing is left out: who signs must see all of it.
fn whole(text: &str) -> String {
    let escaped = |character: char| match character {
        '`' => r"\u{60}".to_owned(),
        '"' | '\'' => character.to_string(),
        _ => character.escape_debug().to_string(),
    };
    format!("`{}`", text.chars().map(escaped).collect::<String>())
}

/// Each of `texts`, and all of each.
fn whole_list(texts: &[String]) -> String {
    texts.iter().map(|text| whole(text)).collect::<Vec<_>>().join(", ")
}

/// The values of a field of a selector, and all of each.
fn whole_values(values: &Value) -> String {
    let one = |value: &Value| value.as_str().map_or_else(|| whole(&value.to_string()), whole);
    match values {
        Value::Array(values) => values.iter().map(one).collect::<Vec<_>>().join(", "),
        value => one(value),
    }
}

/// A value of a selector: its texts, or as JSON.
pub(super) fn compact(value: &Value) -> String {
    let texts: Option<Vec<&str>> =
        value.as_array().map(|values| values.iter().filter_map(Value::as_str).collect());
    match texts {
        Some(texts) if !texts.is_empty() => texts.join(" "),
        _ => value.to_string(),
    }
}
