//! What a policy says, as data: for looking at rules, not for deciding by them.
//!
//! It is read from a document that the core has accepted.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use airflow_envoy_core::arrival::CONNECT;
use airflow_envoy_core::limits::Limits;
use airflow_envoy_core::policy::explain::{self, SUBJECT, glob};
use airflow_envoy_core::policy::path;
use airflow_envoy_core::time::UnixTime;

use crate::source::{Node, Place};

/// Selector fields of which a caller has one value at most, as Airflow and the issuers of tokens write them.
const SINGLE: [&str; 7] = ["dags", "tasks", "runs", "run_types", "teams", "queues", "subjects"];

/// The conditions of a selector by field; a claim is `claims.<name>`. The values of one are ORed.
pub type Selector = BTreeMap<String, Vec<String>>;

/// A policy.
#[derive(Debug, Clone)]
pub struct Model {
    /// By name.
    pub roles: BTreeMap<String, Role>,
    /// By name.
    pub destinations: BTreeMap<String, Destination>,
    /// In the order of the document.
    pub rules: Vec<Rule>,
    /// What may be granted, in the order of the document.
    pub grantable: Vec<Grantable>,
    /// Who may grant something, by name, and where that stands.
    pub approvers: BTreeMap<String, Place>,
    /// Who may assert what, in the order of the document; `None` if the policy does not say.
    pub agreement: Option<Vec<Agreement>>,
}

/// Who may present identities, and which: an entry of `agreement`.
#[derive(Debug, Clone)]
pub struct Agreement {
    /// Where it begins.
    pub place: Place,
    /// Its name.
    pub id: String,
    /// Who presents an identity and who signed it.
    pub from: Selector,
    /// What it may say; empty for anything.
    pub may_assert: Selector,
}

impl Agreement {
    fn new(node: &Node) -> Self {
        let part = |name: &str| node.member(name).map(selector).unwrap_or_default();
        let id = node.member("id").and_then(Node::text).unwrap_or_default().to_owned();
        Self { place: node.place.clone(), id, from: part("from"), may_assert: part("may_assert") }
    }

    /// Whether it lets everybody assert whatever `narrow` lets somebody assert. It may say no too often.
    pub fn covers(&self, narrow: &Self) -> bool {
        let implied = |wide: &Selector, narrow: &Selector| {
            wide.iter().all(|(field, values)| {
                narrow.get(field).is_some_and(|narrow| covers_all(values, narrow))
            })
        };
        implied(&self.from, &narrow.from) && implied(&self.may_assert, &narrow.may_assert)
    }

    /// Whether it lets everybody assert everything.
    pub fn is_everything(&self) -> bool {
        let any = |values: &Vec<String>| values.iter().any(|value| value == "*");
        // What is unknown does not match even a `*`: whoever names the peer demands one.
        self.from.iter().all(|(field, values)| is_of_every_identity(field) && any(values))
            && self
                .may_assert
                .iter()
                .all(|(field, values)| is_of_every_identity(field) && any(values))
    }
}

/// Whether every identity has it, so that `*` matches whoever has one.
fn is_of_every_identity(field: &str) -> bool {
    ["issuers", "dags", "tasks"].contains(&field)
}

/// Something that may be granted.
#[derive(Debug, Clone)]
pub struct Grantable {
    /// What a grant of it allows at most.
    pub rule: Rule,
    /// Names of those who may grant it.
    pub approvers: Vec<String>,
}

/// A role.
#[derive(Debug, Clone)]
pub struct Role {
    /// Where its name stands.
    pub place: Place,
    /// Selectors of which one must match.
    pub any: Vec<Selector>,
}

/// A destination.
#[derive(Debug, Clone)]
pub struct Destination {
    /// Where its name stands.
    pub place: Place,
    /// As written.
    pub hosts: Vec<String>,
}

/// A rule.
#[derive(Debug, Clone)]
pub struct Rule {
    /// Where it begins.
    pub place: Place,
    /// Its name.
    pub id: String,
    /// What it is for.
    pub intent: Option<String>,
    /// It allows; otherwise it denies.
    pub allows: bool,
    /// It allows nothing before somebody grants it.
    pub granted: bool,
    /// It is only reported.
    pub shadow: bool,
    /// What it asks of the caller, `roles` among it.
    pub from: Selector,
    /// Names of destinations, sorted; `None` for every one.
    pub to: Option<Vec<String>>,
    /// `None` for any.
    pub methods: Option<Vec<String>>,
    /// `None` for any.
    pub paths: Option<Vec<String>>,
    /// The same in their normal form.
    patterns: Option<Vec<Pattern>>,
    /// When it begins to apply.
    pub not_before: Option<UnixTime>,
    /// When it ceases to apply.
    pub expires_at: Option<UnixTime>,
}

impl Model {
    /// The model of a document that is a policy.
    pub fn new(document: &Node) -> Self {
        let roles = document.member("roles").map(Node::members).unwrap_or_default().iter();
        let roles = roles.map(|member| {
            let any = member.value.member("any").map(Node::elements).unwrap_or_default();
            let any = any.iter().map(selector).collect();
            (member.name.clone(), Role { place: member.place.clone(), any })
        });
        let destinations = document.member("destinations").map(Node::members);
        let destinations = destinations.unwrap_or_default().iter().map(|member| {
            let hosts = texts(&member.value, "hosts").unwrap_or_default();
            (member.name.clone(), Destination { place: member.place.clone(), hosts })
        });
        let rules = document.member("rules").map(Node::elements).unwrap_or_default();
        let grantable = document.member("grantable").map(Node::elements).unwrap_or_default();
        let grantable = grantable.iter().map(|node| Grantable {
            rule: Rule { allows: true, granted: true, ..Rule::new(node) },
            approvers: texts(node, "approvers").unwrap_or_default(),
        });
        let approvers = document.member("approvers").map(Node::members).unwrap_or_default().iter();
        let agreement = document.member("agreement").map(Node::elements);
        Self {
            agreement: agreement.map(|entries| entries.iter().map(Agreement::new).collect()),
            roles: roles.collect(),
            destinations: destinations.collect(),
            rules: rules.iter().map(Rule::new).collect(),
            grantable: grantable.collect(),
            approvers: approvers.map(|one| (one.name.clone(), one.place.clone())).collect(),
        }
    }

    /// The rule of this id.
    pub fn rule(&self, id: &str) -> Option<&Rule> {
        self.rules.iter().find(|rule| rule.id == id)
    }

    /// Where the rule or the agreement of this id stands, and which of both it is.
    pub fn named(&self, id: &str) -> Option<(&'static str, &Place)> {
        let agreement = self.agreement.iter().flatten().find(|entry| entry.id == id);
        let agreement = agreement.map(|entry| ("agreement", &entry.place));
        self.rule(id).map(|rule| ("rule", &rule.place)).or(agreement)
    }

    /// Everything that a caller may be to meet `from`: its roles written out as their selectors. With
    /// too many of them, roles stay what they are, which says less but nothing wrong.
    pub fn ways(&self, from: &Selector) -> Vec<Selector> {
        const MOST: usize = 64;
        let Some(roles) = from.get("roles") else { return vec![from.clone()] };
        let mut ways = Vec::new();
        for name in roles {
            for selector in self.roles.get(name).map(|role| role.any.as_slice()).unwrap_or_default()
            {
                let mut way = from.clone();
                way.insert("roles".to_owned(), vec![name.clone()]);
                for (field, values) in selector {
                    match way.get(field) {
                        // Both must hold. Of one value only, what is in both is what is in the narrower.
                        Some(known) if !covers_all(values, known) => {
                            way.insert(format!("{field} of role {name}"), values.clone());
                        }
                        Some(_) => {}
                        None => {
                            way.insert(field.clone(), values.clone());
                        }
                    }
                }
                ways.push(way);
            }
        }
        if ways.len() > MOST { vec![from.clone()] } else { ways }
    }

    /// Whether every caller that meets `narrow` certainly meets `wide`.
    pub fn implies(&self, narrow: &Selector, wide: &Selector) -> bool {
        if wide.is_empty() {
            return true;
        }
        self.ways(narrow).iter().all(|way| self.way_implies(way, wide))
    }

    fn way_implies(&self, way: &Selector, wide: &Selector) -> bool {
        wide.iter().all(|(field, values)| {
            let direct = way.get(field).is_some_and(|narrow| covers_all(values, narrow));
            direct
                || field == "roles"
                    && values
                        .iter()
                        .filter_map(|name| self.roles.get(name))
                        .any(|role| role.any.iter().any(|selector| self.way_implies(way, selector)))
        })
    }

    /// Why no caller can meet `from`, if none can: a role and the rule ask for different values of
    /// something that a caller has once.
    pub fn contradiction(&self, from: &Selector) -> Option<String> {
        let roles = from.get("roles")?;
        let mut why = None;
        for name in roles {
            for selector in &self.roles.get(name)?.any {
                let clash = SINGLE.iter().find(|field| {
                    let both = selector.get(**field).zip(from.get(**field));
                    both.is_some_and(|(one, other)| {
                        !one.iter().any(|one| other.iter().any(|other| meet(one, other)))
                    })
                });
                why = Some(format!("whoever holds the role `{name}` has other {}", clash?));
            }
        }
        why
    }
}

impl Rule {
    fn new(node: &Node) -> Self {
        let text = |name: &str| node.member(name).and_then(Node::text);
        let valid = |name: &str| {
            let time = node.member("valid")?.member(name)?.text()?;
            UnixTime::from_rfc3339(time)
        };
        let mut to = texts(node, "to").unwrap_or_default();
        to.sort_unstable();
        Self {
            place: node.place.clone(),
            id: text("id").unwrap_or_default().to_owned(),
            intent: text("intent").map(str::to_owned),
            allows: text("effect") == Some("allow"),
            granted: false,
            shadow: text("mode") == Some("shadow"),
            from: node.member("from").map(selector).unwrap_or_default(),
            to: (to != ["*"]).then_some(to),
            methods: texts(node, "methods"),
            patterns: texts(node, "paths")
                .map(|paths| paths.iter().map(|path| Pattern::new(path)).collect()),
            paths: texts(node, "paths"),
            not_before: valid("not_before"),
            expires_at: valid("expires_at"),
        }
    }

    /// Whether it is about this destination.
    pub fn is_for(&self, destination: &str) -> bool {
        let named = |to: &Vec<String>| to.iter().any(|name| name == destination);
        self.to.as_ref().is_none_or(named)
    }

    /// Whether it is over at this time.
    pub fn is_over(&self, now: UnixTime) -> bool {
        self.expires_at.is_some_and(|end| end <= now)
    }

    /// Whether this deny rule denies every request that `other` allows, whoever calls, at all times. Any deny
    /// rule denies tunnels: one could carry what it is about.
    pub fn denies_requests_of(&self, other: &Self) -> bool {
        let to = match (&self.to, &other.to) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(wide), Some(narrow)) => narrow.iter().all(|name| wide.contains(name)),
        };
        let methods = match (&self.methods, &other.methods) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(wide), Some(narrow)) => {
                narrow.iter().all(|method| method == CONNECT || wide.contains(method))
            }
        };
        let paths = match (&self.patterns, &other.patterns) {
            _ if other.allows_only_tunnels() => true,
            (None, _) => true,
            (Some(wide), None) => wide.iter().any(Pattern::is_everything),
            (Some(wide), Some(narrow)) => {
                narrow.iter().all(|narrow| wide.iter().any(|wide| wide.covers(narrow)))
            }
        };
        to && methods
            && paths
            && self.not_before.is_none_or(|start| other.not_before.is_some_and(|at| start <= at))
            && self.expires_at.is_none_or(|end| other.expires_at.is_some_and(|at| at <= end))
    }

    /// Whether it names the method by which tunnels are asked for: without doing so none is allowed.
    pub fn names_tunnels(&self) -> bool {
        self.methods.iter().flatten().any(|method| method == CONNECT)
    }

    /// Whether it allows tunnels and nothing else.
    pub fn allows_only_tunnels(&self) -> bool {
        let methods = self.methods.as_ref();
        self.allows && methods.is_some_and(|methods| methods.iter().all(|one| one == CONNECT))
    }

    /// Whether the path, in its normal form, is one that a pattern of the rule has for some other `sub`.
    pub fn is_of_another_subject(&self, path: &str) -> bool {
        let mut patterns = self.patterns.iter().flatten();
        patterns.any(|pattern| pattern.names_subject() && pattern.of_subject("*").matches(path))
    }

    /// The patterns of its paths.
    pub fn patterns(&self) -> &[Pattern] {
        self.patterns.as_deref().unwrap_or_default()
    }
}

fn texts(node: &Node, name: &str) -> Option<Vec<String>> {
    let elements = node.member(name)?.elements().iter();
    Some(elements.filter_map(Node::text).map(str::to_owned).collect())
}

/// A selector as it is written.
pub fn selector(node: &Node) -> Selector {
    let mut selector = Selector::new();
    let list = |node: &Node| {
        node.elements().iter().filter_map(Node::text).map(str::to_owned).collect::<Vec<_>>()
    };
    for member in node.members() {
        if member.name == "claims" {
            for claim in member.value.members() {
                selector.insert(format!("claims.{}", claim.name), list(&claim.value));
            }
        } else {
            selector.insert(member.name.clone(), list(&member.value));
        }
    }
    selector
}

/// Whether each of `narrow` is covered by one of `wide`.
pub fn covers_all(wide: &[String], narrow: &[String]) -> bool {
    narrow.iter().all(|narrow| wide.iter().any(|wide| covers(wide, narrow)))
}

/// Whether everything that `narrow` matches is matched by `wide`. Exact but for globs with several `*`
/// on both sides, where it may say no too often.
pub fn covers(wide: &str, narrow: &str) -> bool {
    if wide == narrow || wide == "*" {
        return true;
    }
    if !narrow.contains('*') {
        return glob(wide, narrow);
    }
    // A character that no text of a policy has stands for the run that `*` may be: only a `*` of the
    // wide one matches it.
    glob(wide, &narrow.replace('*', "\u{0}"))
}

/// Whether some text matches both globs. It may say yes where there is none, if both have a `*`.
pub fn meet(one: &str, other: &str) -> bool {
    if !one.contains('*') {
        return glob(other, one);
    }
    if !other.contains('*') {
        return glob(one, other);
    }
    let head = |text: &str| text.split('*').next().unwrap_or_default().to_owned();
    let tail = |text: &str| text.rsplit('*').next().unwrap_or_default().to_owned();
    let (head_one, head_other) = (head(one), head(other));
    let (tail_one, tail_other) = (tail(one), tail(other));
    (head_one.starts_with(&head_other) || head_other.starts_with(&head_one))
        && (tail_one.ends_with(&tail_other) || tail_other.ends_with(&tail_one))
}

/// A short text that matches both globs, if there is one: not empty unless it must be.
pub fn common_text(one: &str, other: &str) -> Option<String> {
    let (left, right): (Vec<char>, Vec<char>) = (one.chars().collect(), other.chars().collect());
    // Each place in both globs is reached once, by the shortest text that leads there.
    let mut seen = BTreeSet::from([(0, 0)]);
    let mut queue = VecDeque::from([(0_usize, 0_usize, String::new())]);
    while let Some((at_left, at_right, text)) = queue.pop_front() {
        let mut go = |left: usize, right: usize, text: String| {
            if seen.insert((left, right)) {
                queue.push_back((left, right, text));
            }
        };
        let longer = |next: char| {
            let mut text = text.clone();
            text.push(next);
            text
        };
        match (left.get(at_left), right.get(at_right)) {
            (None, None) => {
                let both_are_open = one.contains('*') && other.contains('*');
                return Some(if text.is_empty() && both_are_open { "x".to_owned() } else { text });
            }
            (Some('*'), other) => {
                go(at_left + 1, at_right, text.clone());
                match other {
                    Some('*') => go(at_left, at_right + 1, text.clone()),
                    Some(next) => go(at_left, at_right + 1, longer(*next)),
                    None => {}
                }
            }
            (next, Some('*')) => {
                go(at_left, at_right + 1, text.clone());
                if let Some(next) = next {
                    go(at_left + 1, at_right, longer(*next));
                }
            }
            (Some(one), Some(other)) if one == other => {
                go(at_left + 1, at_right + 1, longer(*one));
            }
            _ => {}
        }
    }
    None
}

/// A path pattern in its normal form.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pattern {
    /// What stands before `/**`, or all of it.
    stem: String,
    /// It ends with `/**`.
    rest: bool,
}

impl Pattern {
    /// The pattern of a rule's `paths`.
    pub fn new(text: &str) -> Self {
        let normal = explain::pattern(text, &Limits::DEFAULT);
        let normal = normal.unwrap_or_else(|_| text.to_owned());
        match normal.strip_suffix("/**") {
            Some(stem) => Self { stem: stem.to_owned(), rest: true },
            None => Self { stem: normal, rest: false },
        }
    }

    /// Whether it matches what is below its last segment, too.
    pub fn matches_below(&self) -> bool {
        self.rest
    }

    fn is_everything(&self) -> bool {
        self.rest && self.stem.is_empty()
    }

    /// Whether every path that `narrow` matches is matched by this one, whoever calls. It may say no too
    /// often: of one that depends on the caller only the same is covered.
    pub fn covers(&self, narrow: &Self) -> bool {
        if self.names_subject() {
            return self == narrow;
        }
        let mut given = narrow.stem.split('/').skip(1);
        for wanted in self.stem.split('/').skip(1) {
            let Some(given) = given.next() else { return false };
            // A wildcard stands for no segment that is empty. The caller's `sub` may be any other.
            let fits = match given {
                SUBJECT => wanted == "*",
                given => wanted == given || !given.is_empty() && covers(wanted, given),
            };
            if !fits {
                return false;
            }
        }
        self.rest || !narrow.rest && given.next().is_none()
    }

    /// A path that both match, for callers whose `sub` is this segment, if one is found.
    pub fn common(&self, other: &Self, subject: &str) -> Option<String> {
        let (one, other) = (self.of_subject(subject), other.of_subject(subject));
        let (mut left, mut right) = (one.stem.split('/').skip(1), other.stem.split('/').skip(1));
        let mut path = String::new();
        loop {
            let segment = match (left.next(), right.next()) {
                (Some(left), Some(right)) => common_text(left, right)?,
                (Some(left), None) if other.rest => left.replace('*', "x"),
                (None, Some(right)) if one.rest => right.replace('*', "x"),
                (None, None) => return Some(path),
                _ => return None,
            };
            path.push('/');
            path.push_str(&segment);
        }
    }

    /// Whether what it matches depends on the caller.
    pub fn names_subject(&self) -> bool {
        self.stem.split('/').any(|segment| segment == SUBJECT)
    }

    /// The pattern for callers whose `sub` is this segment, which may have wildcards.
    pub fn of_subject(&self, subject: &str) -> Self {
        let segments = self.stem.split('/');
        let segments = segments.map(|one| if one == SUBJECT { subject } else { one });
        Self { stem: segments.collect::<Vec<_>>().join("/"), rest: self.rest }
    }

    /// Whether it matches this path, which is in its normal form.
    pub fn matches(&self, path: &str) -> bool {
        self.covers(&Self { stem: path.to_owned(), rest: false })
    }

    /// A path that it matches for callers whose `sub` is this segment.
    pub fn example(&self, subject: &str) -> String {
        let segments = self.stem.split('/').map(|segment| match segment {
            SUBJECT => subject.to_owned(),
            segment => segment.replace('*', "x"),
        });
        let stem = segments.collect::<Vec<_>>().join("/");
        if self.rest { format!("{stem}/x") } else { stem }
    }
}

/// The segment that is this `sub`, if there is one.
pub fn subject_segment(subject: &str) -> Option<String> {
    let escaped: String = subject.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let path = format!("/{escaped}");
    let limits = Limits { path_bytes: usize::MAX, ..Limits::DEFAULT };
    let normal = path::normalise(&path, &limits).ok()?;
    normal.strip_prefix('/').filter(|segment| !segment.is_empty()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::load::read_bytes;

    #[test]
    fn a_wider_glob_covers_a_narrower_one() {
        for (wide, narrow) in [
            ("*", "a"),
            ("*", "*"),
            ("ds_*", "ds_x"),
            ("ds_*", "ds_x*"),
            ("ds_*", "ds_*_daily"),
            ("*_daily", "ds_*_daily"),
            ("a*b*c", "a*b*c"),
        ] {
            assert!(covers(wide, narrow), "{wide} {narrow}");
        }
        for (wide, narrow) in
            [("a", "*"), ("ds_x", "ds_*"), ("ds_*", "*"), ("ds_*", "d*"), ("*_daily", "ds_*")]
        {
            assert!(!covers(wide, narrow), "{wide} {narrow}");
        }
    }

    #[test]
    fn a_wider_path_covers_a_narrower_one() {
        for (wide, narrow) in [
            ("/**", "/"),
            ("/**", "/a/*/b/**"),
            ("/a/**", "/a"),
            ("/a/**", "/a/"),
            ("/a/*", "/a/b"),
            ("/a/*/c", "/a/b*/c"),
            ("/a:b", "/a%3Ab"),
            ("/a/{sub}/**", "/a/{sub}/**"),
            ("/a/*", "/a/{sub}"),
            ("/a/**", "/a/{sub}/b"),
            ("/a/%7bsub%7d", "/a/%7Bsub%7D"),
        ] {
            assert!(Pattern::new(wide).covers(&Pattern::new(narrow)), "{wide} {narrow}");
        }
        for (wide, narrow) in [
            ("/a/*", "/a"),
            ("/a/*", "/a/"),
            ("/a/*", "/a/**"),
            ("/a/b", "/a/*"),
            ("/a/**", "/**"),
            ("/a/**", "/ab"),
            ("/a/{sub}", "/a/b"),
            ("/a/{sub}", "/a/*"),
            ("/a/{sub}/**", "/a/{sub}/b"),
            ("/a/*sub*", "/a/{sub}"),
            ("/a/{sub}", "/a/%7Bsub%7D"),
            ("/a/%7Bsub%7D", "/a/{sub}"),
        ] {
            assert!(!Pattern::new(wide).covers(&Pattern::new(narrow)), "{wide} {narrow}");
        }
    }

    #[test]
    fn what_two_globs_have_in_common_matches_both() {
        let texts = ["a", "a*", "*", "*b", "a*b", "ab", "a*b*", "*a*", "b", "", "**", "*aa*b"];
        for (one, other) in texts.iter().flat_map(|one| texts.map(|other| (one, other))) {
            let common = common_text(one, other);
            assert_eq!(common.is_some(), meet(one, other), "{one} {other}");
            if let Some(common) = common {
                assert!(glob(one, &common) && glob(other, &common), "{one} {other} {common}");
            }
        }
        for (one, other, expected) in [
            ("/a/*/c", "/a/b*/**", Some("/a/b/c")),
            ("/a/**", "/*/b", Some("/a/b")),
            ("/a/**", "/**", Some("/a")),
            ("/a/{sub}", "/a/s*", Some("/a/sub")),
            ("/a", "/b", None),
            ("/a/b", "/a", None),
        ] {
            let common = Pattern::new(one).common(&Pattern::new(other), "sub");
            assert_eq!(common.as_deref(), expected, "{one} {other}");
        }
    }

    #[test]
    fn a_subject_is_one_segment_or_none() {
        for (subject, segment) in [
            ("a", Some("a")),
            ("urn:a b", Some("urn:a%20b")),
            ("\u{fc}", Some("%C3%BC")),
            ("a;b", Some("a;b")),
            ("", None),
            (".", None),
            ("..", None),
            ("a/b", None),
            ("a\nb", None),
        ] {
            assert_eq!(subject_segment(subject).as_deref(), segment, "{subject}");
        }
        assert_eq!(Pattern::new("/a*/{sub}/**").example("b*"), "/ax/b*/x");
    }

    #[test]
    fn what_is_implied_may_go_through_roles() {
        let document = "version: 1\nroles:\n  ds: {any: [{teams: [ds], dags: ['ds_*']}]}\n  \
            all: {any: [{teams: ['*']}]}\nrules: []\n";
        let model = Model::new(&read_bytes("p.yaml", document.as_bytes()).unwrap());
        let from = |text: &str| selector(&read_bytes("p.yaml", text.as_bytes()).unwrap());
        for (narrow, wide, expected) in [
            ("{roles: [ds]}", "{teams: [ds]}", true),
            ("{roles: [ds]}", "{dags: ['*'], teams: ['d*']}", true),
            ("{roles: [ds]}", "{roles: [all]}", true),
            ("{teams: [x]}", "{roles: [all]}", true),
            ("{dags: [x]}", "{roles: [all]}", false),
            ("{roles: [all]}", "{teams: [ds]}", false),
            ("{roles: [ds, all]}", "{teams: [ds]}", false),
            ("{dags: [ds_x]}", "{}", true),
        ] {
            assert_eq!(model.implies(&from(narrow), &from(wide)), expected, "{narrow} {wide}");
        }
        assert!(model.contradiction(&from("{roles: [ds], teams: [sales]}")).is_some());
        assert!(model.contradiction(&from("{roles: [ds, all], dags: [sales]}")).is_none());
        assert!(model.contradiction(&from("{roles: [ds], dags: ['*_x']}")).is_none());
    }
}
