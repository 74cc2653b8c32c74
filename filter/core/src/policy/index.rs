//! The index over rules: which of them can match a call at all.
//!
//! It only prunes. Whatever it finds is evaluated in full, so a fault here could hide a rule but
//! never make one match; the tests compare it with an evaluator that has no index.
//!
//! Destination, then a trie of path segments, then, where many rules share a path, the values of the
//! one condition of each rule that the fewest others have in common with it.

use rustc_hash::FxHashMap;

use super::glob::{Key, KeyMap};
use super::path::pattern_keys;
use super::rule::{Question, Rule};
use super::selector::{Condition, Subject, Who};

/// Groups up to this size are evaluated one by one: that is cheaper than looking up.
const SMALL: usize = 4;

/// Conditions about more subjects than this are not indexed within one group: each one of them
/// costs a look-up.
const MOST_SUBJECTS: usize = 24;

/// What to look for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Search {
    /// Rules that certainly match.
    Certain,
    /// Rules that match or perhaps match, because they ask for something unknown.
    Possible,
}

/// An index over some of a policy's rules.
#[derive(Debug, Default)]
pub(super) struct Index {
    nodes: Vec<Node<Group>>,
    /// The root of each destination's trie.
    roots: FxHashMap<u32, u32>,
    /// The root of the trie of rules for any destination.
    any: Option<u32>,
}

/// A place in a trie; `G` is a list while it grows.
#[derive(Debug, Default)]
struct Node<G> {
    children: KeyMap<u32>,
    /// Patterns that end here.
    end: G,
    /// Patterns that end here with `**`.
    rest: G,
}

impl Index {
    /// The index over `members`, numbers of rules in ascending order.
    pub(super) fn new(rules: &[Rule], members: impl IntoIterator<Item = u32>) -> Self {
        let mut growing = Growing::default();
        for member in members {
            if let Some(rule) = rules.get(member as usize) {
                growing.add(rule, member);
            }
        }
        let group = |list| {
            Group::new(list, |member| rules.get(member as usize).map_or(&[], |rule| &*rule.from))
        };
        let nodes = growing.nodes.into_iter().map(|node| Node {
            children: node.children,
            end: group(node.end),
            rest: group(node.rest),
        });
        Self { nodes: nodes.collect(), roots: growing.roots, any: growing.any }
    }

    /// Visits lists of rules, each ascending, that hold every rule which `search` looks for.
    pub(super) fn candidates(
        &self,
        question: &Question<'_>,
        search: Search,
        mut visit: impl FnMut(&[u32]),
    ) {
        for root in self.roots_of(question.destination) {
            self.walk(root, question.path.strip_prefix('/'), &mut |group| {
                group.candidates(&question.who, search, &mut visit);
            });
        }
    }

    /// Visits rules for the destination of a call until `visit` returns false: those for its path
    /// first, and among these those for its caller.
    pub(super) fn nearby(&self, question: &Question<'_>, mut visit: impl FnMut(u32) -> bool) {
        for root in self.roots_of(question.destination) {
            if !self.walk_nearby(root, question.path.strip_prefix('/'), &question.who, &mut visit) {
                return;
            }
        }
    }

    fn roots_of(&self, destination: u32) -> impl Iterator<Item = u32> {
        self.roots.get(&destination).copied().into_iter().chain(self.any)
    }

    fn node(&self, number: u32) -> Option<&Node<Group>> {
        self.nodes.get(number as usize)
    }

    fn walk<F: FnMut(&Group)>(&self, number: u32, path: Option<&str>, visit: &mut F) {
        let Some(node) = self.node(number) else { return };
        visit(&node.rest);
        let Some(path) = path else { return visit(&node.end) };
        let (segment, behind) = split_segment(path);
        for child in node.children.matching(segment) {
            self.walk(*child, behind, visit);
        }
    }

    fn walk_nearby<F: FnMut(u32) -> bool>(
        &self,
        number: u32,
        path: Option<&str>,
        who: &Who<'_>,
        visit: &mut F,
    ) -> bool {
        let Some(node) = self.node(number) else { return true };
        let (segment, behind) = path.map(split_segment).unzip();
        let matching: Vec<u32> = segment
            .map(|segment| node.children.matching(segment).copied().collect())
            .unwrap_or_default();
        matching.iter().all(|child| self.walk_nearby(*child, behind.flatten(), who, visit))
            && node.end.nearby(who, visit)
            && node.rest.nearby(who, visit)
            && node
                .children
                .values()
                .filter(|child| !matching.contains(child))
                .all(|child| self.walk_nearby(*child, None, who, visit))
    }
}

/// The first segment of a path without its leading `/`, and the path behind the next `/`.
fn split_segment(path: &str) -> (&str, Option<&str>) {
    path.split_once('/').map_or((path, None), |(segment, behind)| (segment, Some(behind)))
}

#[derive(Default)]
struct Growing {
    nodes: Vec<Node<Vec<u32>>>,
    roots: FxHashMap<u32, u32>,
    any: Option<u32>,
}

impl Growing {
    fn add(&mut self, rule: &Rule, number: u32) {
        match &rule.to {
            None => {
                let root = self.any.unwrap_or_else(|| push(&mut self.nodes));
                self.any = Some(root);
                self.add_below(root, rule, number);
            }
            Some(destinations) => {
                for destination in destinations {
                    let nodes = &mut self.nodes;
                    let root = *self.roots.entry(*destination).or_insert_with(|| push(nodes));
                    self.add_below(root, rule, number);
                }
            }
        }
    }

    fn add_below(&mut self, root: u32, rule: &Rule, number: u32) {
        if rule.paths.is_empty() {
            self.note(root, true, number);
        }
        for text in rule.paths.texts() {
            let (keys, rest) = pattern_keys(text);
            let place = keys.fold(root, |place, key| self.child(place, key));
            self.note(place, rest, number);
        }
    }

    fn child(&mut self, parent: u32, key: Key<'_>) -> u32 {
        let next = next_number(&self.nodes);
        let Some(parent) = self.nodes.get_mut(parent as usize) else { return next };
        let child = *parent.children.entry(key, || next);
        if child == next {
            push(&mut self.nodes);
        }
        child
    }

    fn note(&mut self, place: u32, rest: bool, number: u32) {
        let Some(node) = self.nodes.get_mut(place as usize) else { return };
        let list = if rest { &mut node.rest } else { &mut node.end };
        if list.last() != Some(&number) {
            list.push(number);
        }
    }
}

fn next_number(nodes: &[Node<Vec<u32>>]) -> u32 {
    // INVARIANT: the limit on the places of a policy keeps numbers far below `u32::MAX`.
    u32::try_from(nodes.len()).unwrap_or(u32::MAX)
}

fn push(nodes: &mut Vec<Node<Vec<u32>>>) -> u32 {
    let number = next_number(nodes);
    nodes.push(Node::default());
    number
}

/// Things with conditions about the caller (rules, or the selectors of roles), found by caller.
#[derive(Debug, Default)]
pub(super) struct Group {
    /// Ascending.
    members: Box<[u32]>,
    /// Absent from small groups.
    keyed: Option<Box<Keyed>>,
}

#[derive(Debug)]
struct Keyed {
    /// Members that no condition narrows down.
    others: Box<[u32]>,
    pivots: Box<[Pivot]>,
}

/// The members of a group whose rarest condition is about the same subject.
#[derive(Debug)]
struct Pivot {
    subject: Subject,
    members: Box<[u32]>,
    by_value: KeyMap<Box<[u32]>>,
}

impl Group {
    /// The group of `members`, ascending, with the conditions of each.
    pub(super) fn new<'r>(members: Vec<u32>, conditions: impl Fn(u32) -> &'r [Condition]) -> Self {
        let keyed = (members.len() > SMALL).then(|| Box::new(Keyed::new(&members, conditions)));
        Self { members: members.into(), keyed }
    }

    /// Visits lists of members, each ascending, that hold every member which `search` looks for.
    pub(super) fn candidates(&self, who: &Who<'_>, search: Search, visit: &mut impl FnMut(&[u32])) {
        let Some(keyed) = &self.keyed else { return visit(&self.members) };
        visit(&keyed.others);
        for pivot in &keyed.pivots {
            if search == Search::Possible {
                match pivot.subject {
                    Subject::Roles => {
                        who.perhaps_held.iter().for_each(|role| pivot.visit(role, visit))
                    }
                    _ if pivot.subject.visit_values(who, |_| ()) => {}
                    _ => {
                        visit(&pivot.members);
                        continue;
                    }
                }
            }
            pivot.subject.visit_values(who, |value| pivot.visit(value, visit));
        }
    }

    fn nearby<F: FnMut(u32) -> bool>(&self, who: &Who<'_>, visit: &mut F) -> bool {
        let mut more = true;
        self.candidates(who, Search::Certain, &mut |list| {
            more = more && list.iter().all(|member| visit(*member));
        });
        more && self.members.iter().all(|member| visit(*member))
    }
}

impl Pivot {
    fn visit(&self, value: &str, visit: &mut impl FnMut(&[u32])) {
        self.by_value.matching(value).for_each(|list| visit(list));
    }
}

impl Keyed {
    fn new<'r>(members: &[u32], conditions: impl Fn(u32) -> &'r [Condition]) -> Self {
        let mut subjects: FxHashMap<(u8, &str), (usize, &Subject)> = FxHashMap::default();
        let mut frequency: FxHashMap<(usize, Key<'_>), u64> = FxHashMap::default();
        for condition in members.iter().flat_map(|member| conditions(*member)) {
            let next = subjects.len();
            let identity = condition.subject.identity();
            if next >= MOST_SUBJECTS && !subjects.contains_key(&identity) {
                continue;
            }
            let (pivot, _) = subjects.entry(identity).or_insert((next, &condition.subject));
            for key in condition.values.keys() {
                *frequency.entry((*pivot, key)).or_default() += 1;
            }
        }
        let mut ordered: Vec<_> = subjects.values().copied().collect();
        ordered.sort_unstable_by_key(|(pivot, _)| *pivot);
        let mut growing: Vec<(Vec<u32>, KeyMap<Vec<u32>>)> = Vec::new();
        growing.resize_with(ordered.len(), Default::default);
        let mut others = Vec::new();
        for member in members {
            let rarest = conditions(*member)
                .iter()
                .filter_map(|condition| {
                    let (pivot, _) = *subjects.get(&condition.subject.identity())?;
                    let mut total = 0_u64;
                    for key in condition.values.keys() {
                        if key == Key::Prefix("") {
                            return None;
                        }
                        total = total.saturating_add(*frequency.get(&(pivot, key))?);
                    }
                    Some((total, pivot, condition))
                })
                .min_by_key(|(total, pivot, _)| (*total, *pivot));
            let place =
                rarest.and_then(|(_, pivot, condition)| Some((growing.get_mut(pivot)?, condition)));
            let Some(((all, by_value), condition)) = place else {
                others.push(*member);
                continue;
            };
            all.push(*member);
            for key in condition.values.keys() {
                let list = by_value.entry(key, Vec::new);
                if list.last() != Some(member) {
                    list.push(*member);
                }
            }
        }
        let pivots = ordered.into_iter().zip(growing).filter(|(_, (all, _))| !all.is_empty()).map(
            |((_, subject), (all, by_value))| Pivot {
                subject: subject.clone(),
                members: all.into(),
                by_value: by_value.map(Vec::into_boxed_slice),
            },
        );
        Self { others: others.into(), pivots: pivots.collect() }
    }
}
