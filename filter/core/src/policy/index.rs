//! The index over rules: which of them can match a call at all.
//!
//! It only prunes. Whatever it finds is evaluated in full, so a fault here could hide a rule but
//! never make one match; the tests compare it with an evaluator that has no index.
//!
//! Destination, then a trie of path segments, as deep as more than a few rules share a path, then,
//! where many do, the values of the one condition of each rule that the fewest others have in common
//! with it.

use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::glob::{Key, Table, distribute, hash, note_length};
use super::path::pattern_keys;
use super::rule::{Question, Rule};
use super::selector::{Condition, Subject, Who};
use crate::pace::{Pace, release};
use crate::segments::Segments;

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

/// What a visitor of ascending lists wants next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// The next rule of the list.
    Rule,
    /// The next list.
    List,
    /// Nothing more.
    Nothing,
}

/// An index over some of a policy's rules.
#[derive(Debug, Default)]
pub(super) struct Index {
    nodes: Box<[Node]>,
    /// From a node and a segment to the nodes below.
    edges: Table,
    /// The nodes below each node, one list behind another, and where the list of each begins and the last one ends.
    below: Box<[u32]>,
    below_starts: Box<[u32]>,
    /// The root of each destination's trie, by number.
    roots: Box<[Option<u32>]>,
    /// The root of the trie of rules for any destination.
    any: Option<u32>,
}

/// A place in a trie.
#[derive(Debug, Default)]
struct Node {
    /// Those of the prefixes and suffixes in its edges.
    lengths: Box<[u32]>,
    /// Patterns that end here.
    end: Group,
    /// Patterns that end here with `**`, or of which only a few lead further.
    rest: Group,
}

impl Index {
    /// The index over those of `rules` that are `wanted`.
    pub(super) async fn new(rules: &[Rule], wanted: fn(&Rule) -> bool, pace: &Pace) -> Self {
        let mut members: Vec<(u32, &Rule)> = Vec::new();
        let mut growing = Growing::default();
        for (number, rule) in (0_u32..).zip(rules) {
            if wanted(rule) {
                members.push((number, rule));
                growing.count(rule, pace).await;
            }
            pace.spend(1).await;
        }
        growing.children.reserve(members.len());
        for (member, rule) in &members {
            growing.add(rule, *member, pace).await;
            pace.spend(1).await;
        }
        let Growing { nodes: grown, children, roots, any, .. } = growing;
        let mut below = Vec::with_capacity(grown.len());
        for (number, node) in (0_u32..).zip(grown.iter()) {
            below.extend(node.above.map(|above| (above, number)));
        }
        let (below_starts, pairs) =
            distribute(&below, grown.len(), |above| above as usize, pace).await;
        let mut below = Vec::with_capacity(pairs.len());
        for some in pairs.chunks(256) {
            below.extend(some.iter().map(|(_, child)| *child));
            pace.spend(1).await;
        }
        let mut edges = Vec::with_capacity(children.len());
        for ((parent, key), child) in &children {
            edges.push((hash(*parent, *key), *child));
            if edges.len().is_multiple_of(8) {
                pace.spend(1).await;
            }
        }
        let edges = Table::new(edges, pace).await;
        let conditions = |member| rules.get(member as usize).map_or(&[][..], |rule| &*rule.from);
        let mut nodes = Vec::with_capacity(grown.len());
        for node in grown {
            nodes.push(Node {
                lengths: node.lengths.into(),
                end: Group::new(node.end, conditions, pace).await,
                rest: Group::new(node.rest, conditions, pace).await,
            });
            pace.spend(1).await;
        }
        Self {
            nodes: nodes.into(),
            edges,
            below: below.into(),
            below_starts,
            roots: roots.into(),
            any,
        }
    }

    /// Frees it a slice at a time.
    pub(super) async fn release(self, pace: &Pace) {
        release(self.nodes, 1, pace).await;
    }

    /// Whether it is over no rule.
    pub(super) fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Visits every rule which `search` looks for, in ascending lists, of which it leaves one as soon
    /// as `visit` returns false.
    pub(super) fn candidates(
        &self,
        question: &Question<'_>,
        search: Search,
        mut visit: impl FnMut(u32) -> bool,
    ) {
        for root in self.roots_of(question.destination) {
            let visit = &mut |group: &Group| group.candidates(&question.who, search, &mut visit);
            match (question.path, search) {
                (Some(path), _) => self.walk(root, path.strip_prefix('/'), visit),
                // A tunnel may carry every path, and is certainly meant only by rules without one.
                (None, Search::Possible) => self.walk_all(root, visit),
                (None, Search::Certain) => self.walk(root, None, visit),
            }
        }
    }

    /// The lowest number of a rule that applies, and of which `also` is true.
    pub(super) fn first(
        &self,
        rules: &[Rule],
        search: Search,
        question: &Question<'_>,
        also: &dyn Fn(u32) -> bool,
    ) -> Option<u32> {
        let mut first: Option<u32> = None;
        self.candidates(question, search, |number| {
            if first.is_some_and(|found| found <= number) {
                return false;
            }
            let rule = rules.get(number as usize);
            let found = rule.is_some_and(|rule| rule.applies(question)) && also(number);
            if found {
                first = Some(number);
            }
            !found
        });
        first
    }

    /// Visits rules for the destination of a call: those for its path and its caller; by `callers`, those of the same rules
    /// that are for its caller; the others for its path; then all. `visit` is told the number of a rule, and how many
    /// misses those have at least that it was not told of before.
    pub(super) fn nearby(
        &self,
        callers: &Callers,
        question: &Question<'_>,
        mut visit: impl FnMut(u32, usize) -> Next,
    ) {
        let path = question.path.and_then(|path| path.strip_prefix('/'));
        let mut for_path = Vec::new();
        for root in self.roots_of(question.destination) {
            self.walk(root, path, &mut |group| for_path.push(group));
        }
        let mut for_caller = for_path.iter().copied().chain(callers.groups(question.destination));
        // Without keys the candidates were all members.
        let mut others = for_path.iter().filter(|group| group.keyed.is_some());
        let visit_one = &mut |number| visit(number, 1);
        let more = for_caller.all(|group| group.visit_certain(&question.who, visit_one))
            && others.all(|group| visit_list(group.members.as_slice(), visit_one));
        if more {
            // Who was not met yet misses the path and the caller.
            self.roots_of(question.destination)
                .all(|root| self.walk_nearby(root, path, &mut |number| visit(number, 2)));
        }
    }

    fn roots_of(&self, destination: Option<u32>) -> impl Iterator<Item = u32> {
        let own = destination.and_then(|number| *self.roots.get(number as usize)?);
        own.into_iter().chain(self.any)
    }

    fn node(&self, number: u32) -> Option<&Node> {
        self.nodes.get(number as usize)
    }

    fn walk<'i, F: FnMut(&'i Group)>(&'i self, number: u32, path: Option<&str>, visit: &mut F) {
        let Some(node) = self.node(number) else { return };
        match path.map(split_segment) {
            None => visit(&node.end),
            // What leads further comes first.
            Some((segment, behind)) => {
                for child in self.edges.matching(number, &node.lengths, segment).flatten() {
                    self.walk(child, behind, visit);
                }
            }
        }
        visit(&node.rest);
    }

    fn walk_all(&self, number: u32, visit: &mut dyn FnMut(&Group)) {
        let Some(node) = self.node(number) else { return };
        visit(&node.rest);
        visit(&node.end);
        for child in self.below(number) {
            self.walk_all(*child, visit);
        }
    }

    /// The nodes directly below one.
    fn below(&self, number: u32) -> &[u32] {
        let starts = self.below_starts.get(number as usize..).and_then(<[u32]>::first_chunk::<2>);
        let list = starts.and_then(|[start, end]| self.below.get(*start as usize..*end as usize));
        list.unwrap_or_default()
    }

    /// Visits all rules at a node and below it, those below what matches the path first; false if it must not go on.
    fn walk_nearby<F: FnMut(u32) -> Next>(
        &self,
        number: u32,
        path: Option<&str>,
        visit: &mut F,
    ) -> bool {
        let Some(node) = self.node(number) else { return true };
        let visit_here = |visit: &mut F| {
            visit_list(node.end.members.as_slice(), visit)
                && visit_list(node.rest.members.as_slice(), visit)
        };
        let below = self.below(number);
        // Most nodes are the last ones of their paths.
        if below.is_empty() {
            return visit_here(visit);
        }
        let (segment, behind) = path.map(split_segment).unzip();
        let matching = segment.map(|segment| self.edges.matching(number, &node.lengths, segment));
        let matching: Vec<_> = matching.into_iter().flatten().flatten().collect();
        let mut others = below.iter().filter(|child| !matching.contains(child));
        matching.iter().all(|child| self.walk_nearby(*child, behind.flatten(), visit))
            && visit_here(visit)
            && others.all(|child| self.walk_nearby(*child, None, visit))
    }
}

/// Visits a list as far as is wanted; false if nothing more is.
fn visit_list(list: &[u32], visit: &mut impl FnMut(u32) -> Next) -> bool {
    let left = list.iter().map(|member| visit(*member)).find(|next| *next != Next::Rule);
    left != Some(Next::Nothing)
}

/// The first segment of a path without its leading `/`, and the path behind the next `/`.
fn split_segment(path: &str) -> (&str, Option<&str>) {
    path.split_once('/').map_or((path, None), |(segment, behind)| (segment, Some(behind)))
}

#[derive(Default)]
struct Growing<'r> {
    /// How many patterns lead through a place, by its [`hash`] and those above it.
    crowds: FxHashMap<u32, u32>,
    nodes: Segments<GrowingNode>,
    children: FxHashMap<(u32, Key<'r>), u32>,
    roots: Vec<Option<u32>>,
    any: Option<u32>,
}

#[derive(Default)]
struct GrowingNode {
    above: Option<u32>,
    lengths: Vec<u32>,
    end: Vec<u32>,
    rest: Vec<u32>,
}

impl<'r> Growing<'r> {
    async fn count(&mut self, rule: &Rule, pace: &Pace) {
        for destination in destinations(rule) {
            let root = crowd_of(destination);
            for text in rule.paths.iter().flat_map(|paths| paths.texts()) {
                let mut crowd = root;
                *self.crowds.entry(crowd).or_default() += 1;
                for key in pattern_keys(text).0 {
                    crowd = hash(crowd, key);
                    *self.crowds.entry(crowd).or_default() += 1;
                }
                pace.spend(1).await;
            }
        }
    }

    async fn add(&mut self, rule: &'r Rule, number: u32, pace: &Pace) {
        for destination in destinations(rule) {
            let root = self.root(destination);
            let Some(paths) = &rule.paths else {
                self.note(root, true, number);
                continue;
            };
            for text in paths.texts() {
                self.add_below(root, crowd_of(destination), text, number);
                pace.spend(1).await;
            }
        }
    }

    fn root(&mut self, destination: Option<u32>) -> u32 {
        let nodes = &mut self.nodes;
        let Some(destination) = destination else {
            return *self.any.get_or_insert_with(|| push(nodes, None));
        };
        let place = destination as usize;
        if self.roots.len() <= place {
            self.roots.resize(place + 1, None);
        }
        let root = self.roots.get_mut(place);
        root.map_or(0, |root| *root.get_or_insert_with(|| push(nodes, None)))
    }

    fn add_below(&mut self, root: u32, mut crowd: u32, text: &'r str, number: u32) {
        let (keys, rest) = pattern_keys(text);
        let mut place = root;
        for key in keys {
            if self.crowds.get(&crowd).is_none_or(|crowd| *crowd as usize <= SMALL) {
                return self.note(place, true, number);
            }
            place = self.child(place, key);
            crowd = hash(crowd, key);
        }
        self.note(place, rest, number);
    }

    fn child(&mut self, parent: u32, key: Key<'r>) -> u32 {
        let nodes = &mut self.nodes;
        *self.children.entry((parent, key)).or_insert_with(|| {
            if let Some(above) = nodes.get_mut(parent as usize) {
                note_length(&mut above.lengths, key);
            }
            push(nodes, Some(parent))
        })
    }

    fn note(&mut self, place: u32, rest: bool, number: u32) {
        let Some(node) = self.nodes.get_mut(place as usize) else { return };
        let list = if rest { &mut node.rest } else { &mut node.end };
        if list.last() != Some(&number) {
            list.push(number);
        }
    }
}

/// The destinations of a rule, or `None` for any.
fn destinations(rule: &Rule) -> impl Iterator<Item = Option<u32>> {
    let any = rule.to.is_none().then_some(None);
    any.into_iter().chain(rule.to.iter().flat_map(|to| to.iter().copied().map(Some)))
}

fn crowd_of(destination: Option<u32>) -> u32 {
    destination.map_or(u32::MAX, |destination| hash(destination, Key::Exact("")))
}

fn push(nodes: &mut Segments<GrowingNode>, above: Option<u32>) -> u32 {
    // INVARIANT: the limit on the places of a policy keeps numbers far below `u32::MAX`.
    let number = u32::try_from(nodes.len()).unwrap_or(u32::MAX);
    nodes.push(GrowingNode { above, ..GrowingNode::default() });
    number
}

/// Entries of the tables of [`Callers`], at most: a rule has one for each of its values at each of its destinations.
const MOST_ENTRIES: usize = 1_000_000;

/// Rules by their destinations and callers, whatever their paths.
#[derive(Debug, Default)]
pub(super) struct Callers {
    /// Of each destination, by number.
    own: Box<[Group]>,
    /// Of those for any destination.
    any: Group,
}

impl Callers {
    /// Those of `rules` that are `wanted`.
    pub(super) async fn new(rules: &[Rule], wanted: fn(&Rule) -> bool, pace: &Pace) -> Self {
        let (mut own, mut any): (Vec<Vec<u32>>, _) = (Vec::new(), Vec::new());
        let (mut entries, mut beyond) = (0_usize, None);
        for (number, rule) in (0_u32..).zip(rules) {
            pace.spend(1).await;
            if !wanted(rule) {
                continue;
            }
            let values: usize =
                rule.from.iter().map(|condition| condition.values.texts().count()).sum();
            pace.spend(values / 64).await;
            for destination in destinations(rule) {
                entries = entries.saturating_add(values);
                let Some(destination) = destination else {
                    any.push(number);
                    continue;
                };
                let place = destination as usize;
                if own.len() <= place {
                    own.resize_with(place + 1, Vec::new);
                }
                own.get_mut(place).into_iter().for_each(|list| list.push(number));
                pace.spend(1).await;
            }
            if entries > MOST_ENTRIES {
                beyond.get_or_insert(number);
            }
        }
        // As a rule without conditions, each of the rest is looked at for every caller.
        let beyond = beyond.unwrap_or(u32::MAX);
        let conditions = |member| {
            let rule = rules.get(member as usize).filter(|_| member < beyond);
            rule.map_or(&[][..], |rule| &*rule.from)
        };
        let mut groups = Vec::with_capacity(own.len());
        for members in own {
            groups.push(Group::new(members, conditions, pace).await);
            pace.spend(1).await;
        }
        Self { own: groups.into(), any: Group::new(any, conditions, pace).await }
    }

    /// Frees it a slice at a time.
    pub(super) async fn release(self, pace: &Pace) {
        release(self.own, 1, pace).await;
    }

    /// The lowest number of a rule for this destination.
    pub(super) fn lowest(&self, destination: Option<u32>) -> u32 {
        let groups = self.groups(destination);
        groups.filter_map(|group| group.members.as_slice().first().copied()).min().unwrap_or(0)
    }

    fn groups(&self, destination: Option<u32>) -> impl Iterator<Item = &Group> {
        let own = destination.and_then(|number| self.own.get(number as usize));
        own.into_iter().chain([&self.any])
    }
}

/// Things with conditions about the caller (rules, or the selectors of roles), found by caller.
#[derive(Debug, Default)]
pub(super) struct Group {
    members: Members,
    /// Absent from small groups.
    keyed: Option<Box<Keyed>>,
}

/// Members of a group, ascending.
#[derive(Debug)]
enum Members {
    /// In place: where each rule has its own path, every group is this.
    One(u32),
    Many(Box<[u32]>),
}

#[derive(Debug)]
struct Keyed {
    /// Members that no condition narrows down.
    others: Box<[u32]>,
    pivots: Box<[Pivot]>,
    /// From a pivot and a value to its members.
    by_value: Table,
}

/// The members of a group whose rarest condition is about the same subject.
#[derive(Debug)]
struct Pivot {
    subject: Subject,
    /// Its place in the table.
    place: u32,
    /// Those of its prefixes and suffixes.
    lengths: Box<[u32]>,
    members: Box<[u32]>,
}

impl Default for Members {
    fn default() -> Self {
        Self::Many(Box::default())
    }
}

impl Members {
    fn as_slice(&self) -> &[u32] {
        match self {
            Self::One(member) => std::slice::from_ref(member),
            Self::Many(members) => members,
        }
    }
}

impl Group {
    /// The group of `members`, ascending, with the conditions of each.
    pub(super) async fn new<'r>(
        members: Vec<u32>,
        conditions: impl Fn(u32) -> &'r [Arc<Condition>],
        pace: &Pace,
    ) -> Self {
        let keyed = if members.len() > SMALL {
            Some(Box::new(Keyed::new(&members, conditions, pace).await))
        } else {
            None
        };
        let members = match *members {
            [member] => Members::One(member),
            _ => Members::Many(members.into()),
        };
        Self { members, keyed }
    }

    /// Visits every member which `search` looks for, in ascending lists, of which it leaves one as
    /// soon as `visit` returns false.
    pub(super) fn candidates(
        &self,
        who: &Who<'_>,
        search: Search,
        visit: &mut impl FnMut(u32) -> bool,
    ) {
        let mut visit_list = |list: &[u32]| {
            list.iter().all(|member| visit(*member));
        };
        let Some(keyed) = &self.keyed else { return visit_list(self.members.as_slice()) };
        visit_list(&keyed.others);
        for pivot in &keyed.pivots {
            let perhaps_held = match (search, &pivot.subject) {
                (Search::Possible, Subject::Roles) => who.perhaps_held,
                (Search::Possible, subject) if !subject.visit_values(who, |_| ()) => {
                    pivot.members.iter().all(|member| visit(*member));
                    continue;
                }
                _ => &[],
            };
            let mut visit_value = |value: &str| {
                for mut list in keyed.by_value.matching(pivot.place, &pivot.lengths, value) {
                    list.all(&mut *visit);
                }
            };
            perhaps_held.iter().for_each(|role| visit_value(role));
            pivot.subject.visit_values(who, visit_value);
        }
    }

    /// Visits the members that can certainly match; false if nothing more is wanted.
    fn visit_certain(&self, who: &Who<'_>, visit: &mut impl FnMut(u32) -> Next) -> bool {
        let mut more = true;
        self.candidates(who, Search::Certain, &mut |member| {
            let next = if more { visit(member) } else { Next::Nothing };
            more = next != Next::Nothing;
            next == Next::Rule
        });
        more
    }
}

impl Keyed {
    async fn new<'r>(
        members: &[u32],
        conditions: impl Fn(u32) -> &'r [Arc<Condition>],
        pace: &Pace,
    ) -> Self {
        let mut subjects: FxHashMap<(u8, &str), (u32, &Subject)> = FxHashMap::default();
        let mut frequency: FxHashMap<u32, u32> = FxHashMap::default();
        for member in members {
            for condition in conditions(*member) {
                let next = subjects.len();
                let identity = condition.subject.identity();
                if next >= MOST_SUBJECTS && !subjects.contains_key(&identity) {
                    continue;
                }
                let next = (u32::try_from(next).unwrap_or(u32::MAX), &condition.subject);
                let (place, _) = *subjects.entry(identity).or_insert(next);
                let mut count = 0_usize;
                for key in condition.values.keys() {
                    *frequency.entry(hash(place, key)).or_default() += 1;
                    count += 1;
                }
                pace.spend(1 + count / 8).await;
            }
        }
        let mut ordered: Vec<_> = subjects.values().copied().collect();
        ordered.sort_unstable_by_key(|(place, _)| *place);
        let mut growing: Vec<(Vec<u32>, Vec<u32>)> = Vec::new();
        growing.resize_with(ordered.len(), Default::default);
        let (mut others, mut entries) = (Vec::new(), Vec::new());
        for member in members {
            let values = |condition: &Arc<Condition>| condition.values.texts().count();
            let count: usize = conditions(*member).iter().map(values).sum();
            pace.spend(1 + count / 8).await;
            let rarest = conditions(*member)
                .iter()
                .filter_map(|condition| {
                    let (place, _) = *subjects.get(&condition.subject.identity())?;
                    let mut total = 0_u32;
                    for key in condition.values.keys() {
                        if key == Key::Prefix("") {
                            return None;
                        }
                        total = total.saturating_add(*frequency.get(&hash(place, key))?);
                    }
                    Some((total, place, condition))
                })
                .min_by_key(|(total, place, _)| (*total, *place));
            let pivot = rarest.and_then(|(_, place, condition)| {
                Some((place, growing.get_mut(place as usize)?, condition))
            });
            let Some((place, (all, lengths), condition)) = pivot else {
                others.push(*member);
                continue;
            };
            all.push(*member);
            for key in condition.values.keys() {
                note_length(lengths, key);
                entries.push((hash(place, key), *member));
            }
        }
        let pivots = ordered.into_iter().zip(growing).filter(|(_, (all, _))| !all.is_empty()).map(
            |((place, subject), (all, lengths))| Pivot {
                subject: subject.clone(),
                place,
                lengths: lengths.into(),
                members: all.into(),
            },
        );
        let pivots = pivots.collect();
        Self { others: others.into(), pivots, by_value: Table::new(entries, pace).await }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::Policy;
    use crate::limits::Limits;

    #[test]
    fn rules_of_many_destinations_and_values_do_not_multiply_without_end() {
        let names = |prefix: &str, count| -> Vec<_> {
            (0..count).map(|number| format!("{prefix}-{number}")).collect()
        };
        let destinations = names("to", 300);
        let hosts = destinations.iter().map(|name| (name.clone(), json!({"hosts": [name]})));
        let rules = (0..40).map(|number| {
            let from = json!({"dags": names(&format!("dag-{number}"), 100)});
            json!({
                "id": format!("r{number:02}"), "effect": "allow", "to": destinations, "from": from,
                "paths": [format!("/v{number}/**")],
            })
        });
        let document = json!({
            "version": 1, "destinations": hosts.collect::<serde_json::Map<_, _>>(),
            "rules": rules.collect::<Vec<_>>(),
        });
        let policy = Policy::from_value(&document, &Limits::DEFAULT).unwrap();
        // 300 destinations by 100 values: 33 rules have less than a million entries.
        for group in &policy.callers.own {
            let keyed = group.keyed.as_ref().unwrap();
            assert_eq!((keyed.others.len(), group.members.as_slice().len()), (7, 40));
        }
    }
}
