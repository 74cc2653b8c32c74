//! One policy out of several files: all their roles, destinations, approvers, agreements, grantables and rules.

use std::collections::HashMap;

use airflow_envoy_core::document::Fault;
use airflow_envoy_core::limits::Limits;
use airflow_envoy_core::policy::Policy;
use airflow_envoy_core::quote::quote;

use super::{Content, Member, Node, Place};

/// A policy document, put together from its files, and its faults.
#[derive(Debug)]
pub struct Source {
    /// The whole.
    pub node: Node,
    /// What is wrong with putting it together.
    pub faults: Vec<Problem>,
    /// The list, and the place in it from which on its elements are of one file more.
    begins: Vec<(&'static str, usize)>,
}

/// Lists of a policy of which each file may have a part.
const LISTS: [&str; 3] = ["rules", "grantable", "agreement"];

/// Something that is wrong with a policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where.
    pub place: Place,
    /// Where in the document, as its author counts: `rules[3].from`.
    pub path: String,
    /// What.
    pub problem: String,
}

/// Puts the documents together. A document that is not a map stays what it is, for the core to refuse.
pub fn merge(mut documents: Vec<Node>) -> Source {
    if documents.len() == 1 {
        let node = documents.remove(0);
        return Source { node, faults: Vec::new(), begins: Vec::new() };
    }
    let mut faults = Vec::new();
    let mut begins = Vec::new();
    let place = documents.first().map_or_else(|| Place::file("-"), |node| node.place.clone());
    let mut whole: Vec<Member> = Vec::new();
    for document in documents {
        let Content::Map(members) = document.content else {
            let problem = "expected an object".to_owned();
            faults.push(Problem { place: document.place, path: String::new(), problem });
            continue;
        };
        for member in members {
            let list = LISTS.into_iter().find(|list| *list == member.name);
            let Some(known) = whole.iter_mut().find(|known| known.name == member.name) else {
                begins.extend(list.map(|list| (list, 0)));
                whole.push(member);
                continue;
            };
            match (known.name.as_str(), &mut known.value.content, member.value.content) {
                (_, Content::List(rules), Content::List(more)) if list.is_some() => {
                    begins.extend(list.map(|list| (list, rules.len())));
                    rules.extend(more);
                }
                (
                    "roles" | "destinations" | "approvers",
                    Content::Map(known),
                    Content::Map(more),
                ) => {
                    add(known, more, &member.name, &mut faults);
                }
                ("version", one, other) if *one == other => {}
                _ => {
                    let shown = quote(&member.name);
                    let problem = format!("{shown} is given already: {}", known.place);
                    faults.push(Problem { place: member.place, path: member.name, problem });
                }
            }
        }
    }
    Source { node: Node { place, content: Content::Map(whole) }, faults, begins }
}

fn add(known: &mut Vec<Member>, more: Vec<Member>, of: &str, faults: &mut Vec<Problem>) {
    let places: HashMap<String, Place> =
        known.iter().map(|member| (member.name.clone(), member.place.clone())).collect();
    for member in more {
        if let Some(first) = places.get(&member.name) {
            let kind = of.strip_suffix('s').unwrap_or(of);
            let shown = quote(&member.name);
            let problem = format!("the {kind} {shown} is defined already: {first}");
            let path = format!("{of}.{}", member.name);
            faults.push(Problem { place: member.place, path, problem });
        } else {
            known.push(member);
        }
    }
}

impl Source {
    /// The policy, read by the core.
    ///
    /// # Errors
    /// All faults with their places.
    pub fn policy(&self) -> Result<Policy, Vec<Problem>> {
        let read = Policy::from_value(&self.node.value(), &Limits::DEFAULT);
        match read {
            Ok(policy) if self.faults.is_empty() => Ok(policy),
            read => {
                let mut faults = self.faults.clone();
                faults.extend(
                    read.err()
                        .into_iter()
                        .flat_map(|faults| faults.0)
                        .map(|fault| self.problem(&fault)),
                );
                Err(faults)
            }
        }
    }

    fn problem(&self, fault: &Fault) -> Problem {
        let place = self.node.locate(&fault.path, &fault.problem);
        let mut problem = fault.problem.clone();
        // The core tells the first of two rules of one name by its place in the list.
        if let Some((before, first)) = problem.split_once("is that of ")
            && let Some(first) = first.strip_suffix(" already")
            && element(first).is_some()
        {
            let place = self.node.locate(first, "");
            problem = format!("{before}is that of {} already: {place}", self.own_path(first));
        }
        Problem { place, path: self.own_path(&fault.path), problem }
    }

    /// A path of the core as it is counted in the file in which it stands.
    pub fn own_path(&self, path: &str) -> String {
        let Some((list, index, rest)) = element(path) else { return path.to_owned() };
        let begins = self.begins.iter().filter(|(of, from)| *of == list && *from <= index);
        let from = begins.map(|(_, from)| *from).max().unwrap_or_default();
        format!("{list}[{}]{rest}", index - from)
    }
}

/// The list, the place in it and the rest of a path that leads to an element of one of [`LISTS`].
fn element(path: &str) -> Option<(&'static str, usize, &str)> {
    let (name, rest) = path.split_once('[')?;
    let list = LISTS.into_iter().find(|list| *list == name)?;
    let (index, rest) = rest.split_once(']')?;
    Some((list, index.parse().ok()?, rest))
}

#[cfg(test)]
mod tests {
    use super::super::load::read_bytes;
    use super::*;

    fn source(files: &[(&str, &str)]) -> Source {
        let read = |(name, text): &(&str, &str)| read_bytes(name, text.as_bytes()).unwrap();
        merge(files.iter().map(read).collect())
    }

    const ONE: &str = "version: 1\nrevision: 7\ndestinations:\n  orders: {hosts: [orders.internal]}\n\
        rules:\n  - {id: a, effect: allow, to: [orders]}\n  - {id: b, effect: allow, to: [billing]}\n";
    const TWO: &str = "version: 1\ndestinations:\n  billing: {hosts: [billing.internal]}\n\
        rules:\n  - {id: c, effect: allow, to: [orders, billing]}\n";

    #[test]
    fn files_make_one_policy_and_may_refer_to_each_other() {
        let policy = source(&[("one.yaml", ONE), ("two.yaml", TWO)]).policy().unwrap();
        assert_eq!((policy.revision(), policy.rule_count()), (Some(7), 3));
    }

    #[test]
    fn what_is_there_twice_is_told_with_both_places() {
        let three = "version: 1\nrevision: 8\ndestinations:\n  orders: {hosts: [x]}\n\
            rules:\n  - {id: d, effect: allow, to: [orders]}\n  - {id: c, effect: allow, dag: 1, to: [ordrs]}\n";
        let source = source(&[("one.yaml", ONE), ("two.yaml", TWO), ("three.yaml", three)]);
        let told: Vec<String> = source
            .policy()
            .unwrap_err()
            .iter()
            .map(|fault| format!("{} {}: {}", fault.place, fault.path, fault.problem))
            .collect();
        assert_eq!(
            told,
            [
                "three.yaml:2:1 revision: `revision` is given already: one.yaml:2:1",
                "three.yaml:4:3 destinations.orders: the destination `orders` is defined already: one.yaml:4:3",
                "three.yaml:7:41 rules[1].to: there is no destination `ordrs`, did you mean `orders`?",
                "three.yaml:7:28 rules[1]: unknown field `dag`",
                "three.yaml:7:5 rules[1]: the id `c` is that of rules[0] already: two.yaml:5:5",
            ]
        );
    }

    #[test]
    fn what_is_grantable_may_stand_in_several_files_too() {
        let keys =
            "{keys: [{kty: OKP, crv: Ed25519, x: 11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo}]}";
        let part = |approver: &str, id: &str| {
            format!(
                "approvers:\n  {approver}: {keys}\ngrantable:\n  \
                 - {{id: {id}, from: {{dags: [x]}}, to: [orders], max_duration: 1h, approvers: [a, b]}}\n"
            )
        };
        let (one, two, again) = (part("a", "g"), part("b", "h"), part("c", "a"));
        let files = [("one.yaml", ONE), ("two.yaml", TWO), ("g.yaml", &one), ("h.yaml", &two)];
        assert_eq!(source(&files).policy().unwrap().grantables().len(), 2);
        let files = [files[0], files[1], files[2], files[3], ("i.yaml", &again)];
        let faults = source(&files).policy().unwrap_err();
        assert_eq!(faults.len(), 1, "{faults:?}");
        assert_eq!(faults[0].problem, "the id `a` is that of rules[0] already: one.yaml:6:5");
        assert_eq!(
            (&*faults[0].place.to_string(), &*faults[0].path),
            ("i.yaml:4:5", "grantable[0]")
        );
    }

    #[test]
    fn two_rules_of_one_name_are_told_with_both_places() {
        let three = "rules:\n  - {id: a, effect: deny, to: ['*']}\n";
        let source = source(&[("one.yaml", ONE), ("two.yaml", TWO), ("three.yaml", three)]);
        let faults = source.policy().unwrap_err();
        assert_eq!(faults[0].problem, "the id `a` is that of rules[0] already: one.yaml:6:5");
        assert_eq!(
            (&*faults[0].place.to_string(), &*faults[0].path),
            ("three.yaml:2:5", "rules[0]")
        );
    }
}
