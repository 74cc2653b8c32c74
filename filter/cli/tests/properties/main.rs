//! What must hold of every policy, tried on many: the order of rules never matters, a deny rule more never
//! allows, a rule that is over is as good as none, what is printed reads as the same.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]

mod agreement;
mod diff;
mod random;

use airflow_envoy_cli::evaluate::{Answer, Evaluator, Request, Said};
use airflow_envoy_cli::lint::{Given, Lint, lint};
use airflow_envoy_cli::model::Model;
use airflow_envoy_cli::source::load::read_bytes;
use airflow_envoy_cli::source::merge::merge;
use airflow_envoy_cli::source::print::yaml;
use airflow_envoy_core::limits::Limits;
use airflow_envoy_core::policy::Policy;
use airflow_envoy_core::policy::explain::Asks;
use airflow_envoy_core::time::{Span, UnixTime};
use serde_json::{Value, json};

use self::random::Random;

fn evaluator(document: &Value) -> Evaluator {
    Evaluator::new(Policy::from_value(document, &Limits::DEFAULT).unwrap())
}

fn decide(document: &Value, (said, request, at): &(Said, Request, UnixTime)) -> Answer {
    evaluator(document).decide(&said.caller().unwrap(), request, *at)
}

fn rules(document: &mut Value) -> &mut Vec<Value> {
    document["rules"].as_array_mut().unwrap()
}

#[test]
fn the_order_of_rules_never_matters() {
    let mut random = Random(1);
    let mut permitted = 0;
    for _ in 0..1_000 {
        let document = random.document();
        let mut shuffled = document.clone();
        for index in (1..rules(&mut shuffled).len()).rev() {
            let other = random.below(index + 1);
            rules(&mut shuffled).swap(index, other);
        }
        for _ in 0..8 {
            let call = random.call();
            let answer = decide(&document, &call);
            assert_eq!(answer, decide(&shuffled, &call), "{document}");
            permitted += usize::from(answer.outcome.is_ok());
        }
    }
    assert!((800..7_200).contains(&permitted), "{permitted}");
}

#[test]
fn a_deny_rule_more_never_allows() {
    let mut random = Random(2);
    let (mut kept, mut lost) = (0, 0);
    for _ in 0..1_500 {
        let document = random.document();
        let mut stricter = document.clone();
        let mut deny = random.rule("zz-deny".to_owned());
        deny["effect"] = "deny".into();
        rules(&mut stricter).push(deny);
        for _ in 0..8 {
            let call = random.call();
            let (before, after) = (decide(&document, &call), decide(&stricter, &call));
            assert!(before.outcome.is_ok() || after.outcome.is_err(), "{stricter} {call:?}");
            kept += usize::from(before.outcome.is_ok() && after.outcome.is_ok());
            lost += usize::from(before.outcome.is_ok() && after.outcome.is_err());
        }
    }
    assert!(kept > 300 && lost > 300, "{kept} {lost}");
}

#[test]
fn a_rule_that_is_over_is_as_good_as_none() {
    let mut random = Random(3);
    let mut changed = 0;
    for _ in 0..1_000 {
        let document = random.document();
        let mut over = document.clone();
        let which = random.below(rules(&mut over).len());
        rules(&mut over)[which]["valid"] = json!({"expires_at": "1969-12-31T00:00:00Z"});
        let mut absent = document.clone();
        rules(&mut absent).remove(which);
        for _ in 0..8 {
            let call = random.call();
            let (over, absent) = (decide(&over, &call), decide(&absent, &call));
            // A rule that is over may be the nearest, and is told as one that allowed this once.
            let verdict = |answer: &Answer| {
                answer.outcome.clone().map_err(|reject| (reject.code, reject.rule))
            };
            assert_eq!(verdict(&over), verdict(&absent), "{document} without {which}: {call:?}");
            assert_eq!(over.shadow, absent.shadow);
            changed += usize::from(verdict(&absent) != verdict(&decide(&document, &call)));
        }
    }
    assert!(changed > 200, "{changed}");
}

#[test]
fn what_is_printed_reads_as_the_same_policy() {
    let mut random = Random(4);
    for _ in 0..500 {
        let text = random.document().to_string();
        let node = read_bytes("p.json", text.as_bytes()).unwrap();
        let printed = yaml(&node);
        let again = read_bytes("p.yaml", printed.as_bytes()).unwrap();
        assert_eq!(again.value(), node.value(), "{printed}");
        assert_eq!(yaml(&again), printed);
    }
}

#[test]
fn what_is_said_to_have_no_effect_has_none() {
    let mut random = Random(5);
    let mut told = 0;
    for _ in 0..700 {
        let text = random.document().to_string();
        let source = merge(vec![read_bytes("p.json", text.as_bytes()).unwrap()]);
        let document = source.node.value();
        let model = Model::new(&source.node);
        let given = Given { now: UnixTime::default(), expiring: Span::ZERO };
        for finding in lint(&model, given, &|index| index.to_string()) {
            if !matches!(finding.lint, Lint::Shadowed | Lint::NeverMatches) {
                continue;
            }
            told += 1;
            let mut without = document.clone();
            rules(&mut without).remove(finding.path.parse().unwrap());
            for _ in 0..30 {
                let call = random.call();
                let verdict = |document| {
                    let answer = decide(document, &call);
                    answer.outcome.map_err(|reject| (reject.code, reject.rule))
                };
                assert_eq!(
                    verdict(&document),
                    verdict(&without),
                    "{finding:?} in {document}: {call:?}"
                );
            }
        }
    }
    assert!(told > 60, "{told}");
}

#[test]
fn what_is_told_of_a_rule_is_what_it_does() {
    let mut random = Random(6);
    let (mut applying, mut tunnels, mut perhaps, mut alone) = (0, 0, 0, 0);
    for _ in 0..1_000 {
        let document = random.document();
        let evaluator = evaluator(&document);
        for _ in 0..8 {
            let (said, request, at) = random.call();
            let caller = said.caller().unwrap();
            let answer = evaluator.decide(&caller, &request, at);
            let Some(inquiry) = evaluator.inquire(&caller, &request, at) else {
                assert!(answer.destination.is_none() || request.path == "/..", "{request}");
                continue;
            };
            // Where only other destinations are known no rule is asked.
            if answer.destination.is_none() {
                continue;
            }
            let enforced = || inquiry.rules().filter(|rule| !rule.is_shadow() && rule.applies());
            let denied = enforced().find(|rule| !rule.allows());
            let decider = denied.or_else(|| enforced().find(|rule| rule.allows()));
            let allowed = decider.is_some_and(|rule| rule.allows());
            assert_eq!(answer.outcome.is_ok(), allowed, "{document} {request}");
            // Rules that deny only the path without its parameters come after the others.
            if !request.path.contains(';') {
                assert_eq!(answer.decider(), decider.map(|rule| rule.id()), "{document} {request}");
            }
            for rule in inquiry.rules().filter(|rule| rule.is_for_destination()) {
                let failures = rule.failures(usize::MAX);
                let told = format!("{document} {request} {} {failures:?}", rule.id());
                if rule.allows() {
                    assert_eq!(rule.applies(), failures.is_empty(), "{told}");
                } else if failures.iter().all(|failure| failure.unknown) {
                    assert!(rule.applies(), "{told}");
                    perhaps += usize::from(!failures.is_empty());
                } else if !request.path.contains(';') {
                    assert!(!rule.applies(), "{told}");
                }
                let asked = rule.conditions();
                let is_asked = failures.iter().all(|failure| asked.contains(&failure.condition));
                // An allow rule is asked of tunnels what it does not say.
                assert!(is_asked || rule.allows() && request.is_tunnel(), "{told}");
                let member = match rule.only_failure() {
                    Some(Asks::Path) => "paths",
                    Some(Asks::Method) => "methods",
                    _ => "",
                };
                if !(member.is_empty() || request.path.contains(';')) {
                    assert!(!rule.applies(), "{told}");
                    let mut without = document.clone();
                    let changed = rules(&mut without).iter_mut().find(|one| one["id"] == rule.id());
                    changed.unwrap().as_object_mut().unwrap().remove(member).unwrap();
                    let without = self::evaluator(&without);
                    let inquiry = without.inquire(&caller, &request, at).unwrap();
                    assert!(inquiry.rule(rule.id()).unwrap().applies(), "{member} {told}");
                    alone += 1;
                }
                applying += usize::from(rule.applies());
                tunnels += usize::from(rule.applies() && request.is_tunnel());
            }
        }
    }
    let seen = [applying, tunnels, perhaps, alone];
    assert!(seen.iter().all(|count| *count > 100), "{seen:?}");
}
