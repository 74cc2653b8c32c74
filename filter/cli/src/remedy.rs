//! The smallest change of a policy that would allow a call: found, made, and tried.
//!
//! It is what the author of the policy would have to write, not advice to write it.

use airflow_envoy_core::facts::{Caller, Fact};
use airflow_envoy_core::limits::Limits;
use airflow_envoy_core::policy::Policy;
use airflow_envoy_core::policy::explain::{Asks, Inquiry};
use airflow_envoy_core::quote::quote;
use airflow_envoy_core::time::{Span, UnixTime};
use serde_json::{Value, json};

use crate::evaluate::{Evaluator, Request};
use crate::model::Model;

/// Rules for which a change is tried.
const MOST_RULES: usize = 8;

/// One step of a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Where in the document, with the rule's place in the whole list.
    pub path: String,
    /// What is done there, for people.
    pub told: String,
}

/// A change after which the call is permitted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remedy {
    /// What is changed.
    pub steps: Vec<Step>,
    /// The rule that then permits.
    pub permitted_by: String,
}

/// What a call asks and who asks it.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// Who.
    pub caller: &'a Caller,
    /// What.
    pub request: &'a Request,
    /// When.
    pub at: UnixTime,
}

/// The change with the fewest steps that makes the policy in `document` permit the call, if one is found.
pub fn remedy(
    document: &Value,
    model: &Model,
    inquiry: &Inquiry<'_>,
    asked: Asked<'_>,
) -> Option<Remedy> {
    // What denies has to go first, whatever allows.
    let mut changed = document.clone();
    let mut steps = Vec::new();
    for rule in inquiry.rules().filter(|rule| !rule.allows() && !rule.is_shadow() && rule.applies())
    {
        let index = place_of(document, rule.id())?;
        steps.push(Step {
            path: format!("rules[{index}]"),
            told: if asked.request.is_tunnel() {
                // By less methods and paths it would still be about some that a tunnel may carry.
                format!(
                    "remove the deny rule {}, or narrow it by `from` or `to`: a tunnel could carry what it denies",
                    quote(rule.id())
                )
            } else {
                format!(
                    "remove the deny rule {}, or narrow it so that it is not about this call",
                    quote(rule.id())
                )
            },
        });
        remove(&mut changed, rule.id())?;
    }
    if let Some(permitted_by) = permits(&changed, asked) {
        return (!steps.is_empty()).then_some(Remedy { steps, permitted_by });
    }
    let mut near: Vec<_> = inquiry
        .rules()
        .filter(|rule| rule.allows() && rule.is_for_destination())
        .map(|rule| (rule.failures(usize::MAX), rule))
        .collect();
    near.sort_by_key(|(failures, rule)| failures.len() + usize::from(rule.is_shadow()));
    let mut best: Option<Remedy> = None;
    for (failures, rule) in near.into_iter().take(MOST_RULES) {
        let (mut tried, mut all) = (changed.clone(), steps.clone());
        let index = place_of(document, rule.id())?;
        let made = failures
            .iter()
            .map(|failure| {
                Some((
                    failure,
                    mend(&mut tried, model, rule.id(), &failure.condition, inquiry, asked)?,
                ))
            })
            .collect::<Option<Vec<_>>>();
        let Some(made) = made else { continue };
        for (failure, told) in made {
            all.push(Step { path: format!("rules[{index}].{}", failure.condition), told });
        }
        if rule.is_shadow() {
            let mended = rule_of(&mut tried, rule.id())?;
            mended.as_object_mut()?.remove("mode");
            all.push(Step {
                path: format!("rules[{index}].mode"),
                told: format!("enforce the shadow rule {}", quote(rule.id())),
            });
        }
        if best.as_ref().is_some_and(|best| best.steps.len() <= all.len()) {
            continue;
        }
        if let Some(permitted_by) = permits(&tried, asked) {
            best = Some(Remedy { steps: all, permitted_by });
        }
    }
    best
}

/// The rule by which a changed policy permits the call.
fn permits(document: &Value, asked: Asked<'_>) -> Option<String> {
    let policy = Policy::from_value(document, &Limits::DEFAULT).ok()?;
    Evaluator::new(policy).decide(asked.caller, asked.request, asked.at).outcome.ok()
}

fn place_of(document: &Value, id: &str) -> Option<usize> {
    let rules = document.get("rules")?.as_array()?;
    rules.iter().position(|rule| rule.get("id").and_then(Value::as_str) == Some(id))
}

fn rule_of<'d>(document: &'d mut Value, id: &str) -> Option<&'d mut Value> {
    let rules = document.get_mut("rules")?.as_array_mut()?;
    rules.iter_mut().find(|rule| rule.get("id").and_then(Value::as_str) == Some(id))
}

fn remove(document: &mut Value, id: &str) -> Option<()> {
    let rules = document.get_mut("rules")?.as_array_mut()?;
    rules.retain(|rule| rule.get("id").and_then(Value::as_str) != Some(id));
    Some(())
}

/// Adds a text to a list within a value.
fn add(value: &mut Value, path: &[&str], text: &str) -> Option<()> {
    let mut place = value;
    for step in path {
        place = place.get_mut(*step)?;
    }
    place.as_array_mut()?.push(text.into());
    Some(())
}

/// Changes the rule so that the condition holds, and tells how.
fn mend(
    document: &mut Value,
    model: &Model,
    id: &str,
    condition: &Asks,
    inquiry: &Inquiry<'_>,
    Asked { caller, request, at }: Asked<'_>,
) -> Option<String> {
    let named = quote(id);
    if *condition == Asks::Roles {
        return mend_role(document, model, id, caller);
    }
    let rule = rule_of(document, id)?;
    match condition {
        Asks::Path => {
            // A rule about some paths cannot allow tunnels too.
            let path = inquiry.path()?;
            // What is each caller's own is not to be opened to all of them.
            if model.rule(id)?.is_of_another_subject(path) {
                return None;
            }
            add(rule, &["paths"], path)?;
            Some(format!("add {} to `paths` of rule {named}", quote(path)))
        }
        Asks::Method => {
            add(rule, &["methods"], &request.method)?;
            Some(format!("add {} to `methods` of rule {named}", quote(&request.method)))
        }
        Asks::NotBefore => {
            *rule.get_mut("valid")?.get_mut("not_before")? = at.to_string().into();
            Some(format!("let rule {named} begin at {at} or before"))
        }
        Asks::ExpiresAt => {
            let end = at.plus(Span::from_secs(3600));
            *rule.get_mut("valid")?.get_mut("expires_at")? = end.to_string().into();
            Some(format!("let rule {named} end later than {at}"))
        }
        Asks::Fact(field) => {
            let value = fact(caller, field)?;
            add(rule, &["from", field], &value)?;
            Some(format!("add {} to `from.{field}` of rule {named}", quote(&value)))
        }
        Asks::Claim(name) => {
            let value = caller.claims.get(name)?;
            let value = value.as_array().and_then(|elements| elements.first()).unwrap_or(value);
            let text = match value {
                Value::String(text) => text.clone(),
                Value::Bool(_) | Value::Number(_) => value.to_string(),
                _ => return None,
            };
            add(rule, &["from", "claims", name], &text)?;
            Some(format!("add {} to claim {} of rule {named}", quote(&text), quote(name)))
        }
        Asks::Roles => None,
    }
}

/// Lets the first role that the rule asks for be held by what is most like its selectors.
fn mend_role(document: &mut Value, model: &Model, id: &str, caller: &Caller) -> Option<String> {
    let role = model.rule(id)?.from.get("roles")?.first()?;
    let asked = model.roles.get(role)?.any.iter().flat_map(|selector| selector.keys());
    let asked = asked.map(String::as_str);
    let likely = ["teams", "dags"];
    let (field, value) =
        asked.chain(likely).find_map(|field| Some((field.to_owned(), fact(caller, field)?)))?;
    let any = document.get_mut("roles")?.get_mut(role)?.get_mut("any")?.as_array_mut()?;
    any.push(json!({ field.as_str(): [value] }));
    let shown = quote(&value);
    Some(format!("let the role {} be held by {field} {shown} too", quote(role)))
}

/// A value that the caller has.
fn fact(caller: &Caller, field: &str) -> Option<String> {
    let fact: &Fact = match field {
        "dags" => &caller.dags,
        "tasks" => &caller.tasks,
        "runs" => &caller.runs,
        "run_types" => &caller.run_types,
        "owners" => &caller.owners,
        "tags" => &caller.tags,
        "teams" => &caller.teams,
        "airflow_roles" => &caller.airflow_roles,
        "queues" => &caller.queues,
        "services" => &caller.services,
        "spiffe_ids" => &caller.spiffe_ids,
        "issuers" => &caller.issuers,
        "key_ids" => &caller.key_ids,
        "subjects" => &caller.subjects,
        "scopes" => &caller.scopes,
        _ => return None,
    };
    // A `*` would be taken for any text.
    fact.values()?.iter().find(|value| !value.contains('*') && !value.is_empty()).cloned()
}
