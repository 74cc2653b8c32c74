//! What is compared: each variant is a listener of one Envoy, with other filters before the same answer.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use airflow_envoy_core::arrival::{DECISION_HEADER, IDENTITY_HEADER, PLAIN_HEADERS};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::error::Result;

use super::credentials::{Issuers, Shown, path, plain, request, with};
use super::drive::{Pool, Requests};
use super::settings::{
    Asks, Cache, ECHO, MADE_UP, configuration, document, ext_authz, header_mutation, inline,
    jwt_authn, rbac, wasm, wasm_that_reads,
};

/// A build of the filter.
#[derive(Debug, Clone)]
pub struct Module {
    /// What it is called in tables: letters, digits, `.`, `_` and `-`.
    pub label: String,
    /// The `.wasm`.
    pub path: PathBuf,
}

impl Module {
    /// Of `LABEL=PATH`.
    ///
    /// # Errors
    /// If it is something else.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (label, path) = text.split_once('=').ok_or("write LABEL=PATH")?;
        let fits = |letter: char| letter.is_ascii_alphanumeric() || "._-".contains(letter);
        if label.is_empty() || label.len() > 24 || !label.chars().all(fits) {
            return Err("a label has 1 to 24 letters, digits, `.`, `_` and `-`".to_owned());
        }
        let path = PathBuf::from(path);
        let whole = path.canonicalize().map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Self { label: label.to_owned(), path: whole })
    }

    /// SHA-256 of the file, in hexadecimal; empty if it cannot be read.
    pub fn sha256(&self) -> String {
        let Ok(bytes) = fs::read(&self.path) else { return String::new() };
        Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Its size; 0 if it cannot be read.
    pub fn bytes(&self) -> u64 {
        fs::metadata(&self.path).map_or(0, |metadata| metadata.len())
    }
}

/// Who sends requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Callers {
    /// One caller, again and again.
    One,
    /// A thousand callers in turn.
    Thousand,
    /// Each call has credentials of its own.
    Fresh,
}

/// Whose processor time counts besides Envoy's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Helper {
    /// The authorizer that speaks HTTP.
    Http,
    /// The authorizer that speaks gRPC.
    Grpc,
    /// OPA that allows everything.
    OpaAllow,
    /// OPA that verifies and decides.
    OpaRules,
    /// The collector of audit records.
    Collector,
}

/// What must be answered before anything is measured.
#[derive(Debug, Clone)]
pub struct Probe {
    /// What it shows, as in "a forged token".
    pub about: &'static str,
    /// The request; `None` for the variant's next one.
    pub request: Option<Vec<u8>>,
    /// The status.
    pub status: u16,
    /// What is in the answer, its head included.
    pub holds: Vec<String>,
    /// What is not.
    pub lacks: Vec<String>,
    /// Envoy's statistics of which names (a regular expression) grow in sum by how much at least; not at all if it is 0.
    pub counts: Option<(String, u64)>,
}

impl Probe {
    /// One of which only the status matters.
    pub fn new(about: &'static str, request: Option<Vec<u8>>, status: u16) -> Self {
        Self { about, request, status, holds: Vec::new(), lacks: Vec::new(), counts: None }
    }

    fn counting(self, names: impl Into<String>, growth: u64) -> Self {
        Self { counts: Some((names.into(), growth)), ..self }
    }
}

/// One of those that are compared.
#[derive(Debug, Clone)]
pub struct Variant {
    /// Its name in tables; that of a listener.
    pub id: String,
    /// What it is, as a phrase.
    pub about: String,
    /// The label of the module that it runs.
    pub module: Option<String>,
    /// The variant without a filter that it is compared with.
    pub floor: &'static str,
    /// The filters.
    pub filters: Vec<Value>,
    /// Routes before the one that matches.
    pub routes: usize,
    /// Its requests, of which there are none until all variants are known.
    pub requests: Requests,
    /// What they carry.
    pub shown: Shown,
    /// Their path.
    pub path: String,
    /// Who sends them.
    pub callers: Callers,
    /// What each must be answered.
    pub expected: u16,
    /// Who works for it besides Envoy.
    pub helper: Option<Helper>,
    /// Part of its work comes later than its answers.
    pub later: bool,
    /// What must be answered before anything is measured.
    pub probes: Vec<Probe>,
    /// Whether its latency is measured, too.
    pub paced: bool,
}

/// Which headers an upstream gets, and from whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    /// The verified names and the decision's, whether the caller sent them or not: the filter writes them.
    Written,
    /// Those names that the caller sent and the filter verified; nobody writes any.
    Said,
}

/// No filter: what everything is compared with.
pub const NONE: &str = "none";
/// No filter, and many routes.
pub const NONE_ROUTES: &str = "none/routes";
/// No filter again: what the method itself cannot tell from nothing.
pub const AGAIN: &str = "none/again";
/// A Wasm filter that decides nothing: Envoy's side of one.
pub const READS: &str = "wasm/reads";

/// How large everything is.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// Rules of the usual policy.
    pub rules: usize,
    /// Rules of a large one.
    pub many_rules: usize,
    /// Rules of one that only ours is asked to have.
    pub most_rules: usize,
    /// Routes before the one that matches.
    pub routes: usize,
    /// Callers in turn.
    pub callers: usize,
    /// Fresh callers for each variant that wants them.
    pub fresh: usize,
}

/// Makes variants.
pub struct Maker<'m> {
    issuers: &'m Issuers,
    sizes: Sizes,
    pools: HashMap<(Shown, Callers, String), Pool>,
    variants: Vec<Variant>,
    only: &'m [String],
}

impl<'m> Maker<'m> {
    /// One for those variants whose names contain one of `only`, or are what is behind its `=`; all if there are none.
    pub fn new(issuers: &'m Issuers, sizes: Sizes, only: &'m [String]) -> Self {
        Self { issuers, sizes, pools: HashMap::new(), variants: Vec::new(), only }
    }

    /// All of them. Those without a filter come first.
    ///
    /// # Errors
    /// If credentials cannot be minted.
    pub fn all(mut self, modules: &[Module], opa: bool) -> Result<Vec<Variant>> {
        self.none();
        self.native();
        self.external(opa);
        self.wasm_alone()?;
        for module in modules {
            self.ours(module);
        }
        // Only now: what nobody asks for is not minted.
        let mut variants = std::mem::take(&mut self.variants);
        for variant in &mut variants {
            variant.requests = self.requests(variant.shown, variant.callers, &variant.path)?;
        }
        Ok(variants)
    }

    fn none(&mut self) {
        self.add(NONE, "no filter", |variant| variant.paced = true);
        let routes = self.sizes.routes;
        let about = format!("no filter, {routes} routes before the one that matches");
        self.add(NONE_ROUTES, &about, |variant| variant.routes = routes);
        self.add(AGAIN, "no filter, a second time", |_| {});
    }

    fn native(&mut self) {
        let Sizes { rules, many_rules, routes, callers, .. } = self.sizes;
        let off = Cache::Off;
        let jwt = |maker: &Self, cache| jwt_authn(maker.issuers, cache, false);
        let both =
            |maker: &Self, cache, rules| vec![jwt_authn(maker.issuers, cache, false), rbac(rules)];

        let filters = vec![jwt(self, off)];
        self.jwt("jwt", "jwt_authn, RS256, no cache (its default)", filters, |_| {});
        let filters = vec![jwt(self, off)];
        let about = "jwt_authn, ES256, no cache";
        self.verified("jwt/es256", about, filters, Shown::Es256, |_| {});
        let filters = vec![jwt(self, Cache::Default)];
        self.jwt("jwt/cache", "jwt_authn, RS256, cache", filters, |variant| {
            let known = Probe::new("a token that is known", None, 200);
            variant.probes.push(known.counting(r"jwt_cache_hit$", 1));
        });
        let filters = vec![jwt_authn(self.issuers, off, true)];
        let about = "jwt_authn, two providers (RS256 and ES256), no cache";
        self.jwt("jwt/both", about, filters, |_| {});
        let filters = both(self, off, rules);
        let about = format!("jwt_authn, no cache, and RBAC, {rules} rules");
        self.ruled("jwt+rbac/no-cache", &about, filters, Shown::Both, |_| {});
        let filters = both(self, Cache::Default, rules);
        let about = format!("jwt_authn, cache, and RBAC, {rules} rules");
        self.ruled("jwt+rbac", &about, filters, Shown::Both, |variant| variant.paced = true);
        let filters = both(self, Cache::Default, rules);
        let about = format!("the same, {routes} routes before the one that matches");
        self.ruled("jwt+rbac/routes", &about, filters, Shown::Both, |variant| {
            variant.routes = routes;
            variant.floor = NONE_ROUTES;
        });
        let filters = both(self, Cache::Default, many_rules);
        let about = format!("jwt_authn, cache, and RBAC, {many_rules} rules");
        let last = path(many_rules.saturating_sub(1));
        self.at("jwt+rbac/many-rules", &about, filters, Shown::Both, &last, |_| {});
        for (id, cache, words) in [
            ("jwt+rbac/tokens", Cache::Default, "cache of 100 (default)"),
            ("jwt+rbac/tokens-large-cache", Cache::Size(4096), "cache of 4096"),
        ] {
            let filters = both(self, cache, rules);
            let about = format!("{callers} callers: jwt_authn, {words}, and RBAC");
            self.ruled(id, &about, filters, Shown::Both, |variant| {
                variant.callers = Callers::Thousand;
            });
        }
    }

    fn external(&mut self, opa: bool) {
        let counts = |status| {
            Probe::new("the authorizer is asked", None, status).counting(r"ext_authz\.ok$", 1)
        };
        let http = ext_authz(&json!({ "http_service": {
            "server_uri": { "uri": "http://authz", "cluster": "authz-http", "timeout": "1s" },
        } }));
        self.add("ext_authz/http", "ext_authz by HTTP to a server that allows all", |variant| {
            variant.filters = vec![http];
            variant.helper = Some(Helper::Http);
            variant.probes.push(counts(200));
            variant.paced = true;
        });
        let grpc = |cluster| {
            ext_authz(&json!({ "grpc_service": {
                "envoy_grpc": { "cluster_name": cluster }, "timeout": "1s",
            } }))
        };
        self.add("ext_authz/grpc", "ext_authz by gRPC to a server that allows all", |variant| {
            variant.filters = vec![grpc("authz-grpc")];
            variant.helper = Some(Helper::Grpc);
            variant.probes.push(counts(200));
            variant.paced = true;
        });
        if opa {
            self.add("opa", "OPA by gRPC, `allow := true`", |variant| {
                variant.filters = vec![grpc("opa-allow")];
                variant.helper = Some(Helper::OpaAllow);
                variant.probes.push(counts(200));
                variant.paced = true;
            });
            let (denied, forged) = (self.elsewhere(Shown::Both), self.forged(Shown::Both));
            let about = format!("OPA by gRPC, JWT and {} rules", self.sizes.rules);
            self.add("opa/rules", &about, |variant| {
                variant.filters = vec![grpc("opa-rules")];
                variant.helper = Some(Helper::OpaRules);
                variant.probes.extend([counts(200), denied, Probe { status: 403, ..forged }]);
            });
        }
    }

    fn wasm_alone(&mut self) -> Result<()> {
        let filters = vec![wasm_that_reads(READS)?];
        let about = "a Wasm filter that only reads all headers and the clock";
        self.add(READS, about, |variant| variant.filters = filters);
        Ok(())
    }

    fn ours(&mut self, module: &Module) {
        let Sizes { rules, many_rules, most_rules, routes, callers, .. } = self.sizes;
        let label = &module.label;
        let whole = |policy: Value| configuration(self.issuers, &policy);
        let usual = whole(inline(&document(rules, Asks::Airflow)));
        let with = |more: Value| {
            let members = usual.as_object().into_iter().chain(more.as_object()).flatten();
            Value::Object(members.map(|(name, value)| (name.clone(), value.clone())).collect())
        };
        let alone = {
            let mut configuration = whole(inline(&document(rules, Asks::Token)));
            if let Some(members) = configuration.as_object_mut() {
                members.insert("airflow".to_owned(), json!({ "identity": "off" }));
            }
            configuration
        };
        let many = whole(inline(&document(many_rules, Asks::Airflow)));
        let most = whole(json!({ "http": {
            "cluster": "policy", "uri": "http://policy/policy.json", "poll": "1h", "timeout": "30s",
        } }));
        let (audit, shadow) = (with(json!({ "audit": {} })), with(json!({ "mode": "shadow" })));
        let sinks = json!([{ "http": { "cluster": "audit", "uri": "http://audit/v1/records" } }]);
        let collector = with(json!({ "audit": { "sinks": sinks } }));
        let verified = |about, count| {
            let signatures = r"airflow_envoy\.verifications\..*\.valid$";
            Probe::new(about, None, 200).counting(signatures, count)
        };
        let known = || verified("credentials that are known", 0);
        let fresh = |count| verified("credentials that nobody has seen", count);

        let id = |suffix: &str| {
            if suffix.is_empty() { label.clone() } else { format!("{label}/{suffix}") }
        };
        let about = |text: &str| format!("this filter, {text}");
        let filter = |id: &str, configuration: &Value| vec![wasm(id, module, configuration)];
        let mark = |variant: &mut Variant| variant.module = Some(label.clone());
        // As Airflow's side calls.
        let named = Shown::Named;

        let permit = format!("both credentials known, {rules} rules");
        let bare = "both credentials known, no plain headers".to_owned();
        let by_envoy = "both known, `identity_headers: filter_state`".to_owned();
        // Callers name themselves, Envoy takes their credentials away, and the filter tells nothing.
        let untold = with(json!({ "identity_headers": "filter_state", "filter_state": [] }));
        let untold = |id: &str| [filter(id, &untold), vec![header_mutation()]].concat();
        for (suffix, filters, shown, text, seen) in [
            ("", filter(&id(""), &usual), named, permit, Seen::Written),
            ("bare", filter(&id("bare"), &usual), Shown::Both, bare, Seen::Written),
            ("filter-state", untold(&id("filter-state")), named, by_envoy, Seen::Said),
        ] {
            let upstream = self.upstream(seen);
            self.ruled(&id(suffix), &about(&text), filters, shown, |variant| {
                mark(variant);
                variant.probes.push(known());
                variant.probes.extend(upstream);
                variant.paced = suffix.is_empty();
            });
        }
        let text = format!("{callers} callers, {rules} rules");
        let filters = filter(&id("tokens"), &usual);
        self.ruled(&id("tokens"), &about(&text), filters, named, |variant| {
            mark(variant);
            variant.callers = Callers::Thousand;
        });
        // Whoever has a token alone has no name that an identity would prove.
        for (suffix, configuration, shown, signatures, text) in [
            ("cold-rs256", &alone, Shown::Both, 1, "fresh token (RS256) alone"),
            ("cold-es256", &alone, Shown::Es256, 1, "fresh token (ES256) alone"),
            ("cold", &usual, named, 2, "fresh token (RS256) and identity (ES256)"),
        ] {
            let filters = filter(&id(suffix), configuration);
            self.verified(&id(suffix), &about(text), filters, shown, |variant| {
                mark(variant);
                variant.callers = Callers::Fresh;
                variant.probes.push(fresh(signatures));
            });
        }
        let filters = filter(&id("denied"), &usual);
        let text = "a denial that says which rule came nearest";
        self.verified(&id("denied"), &about(text), filters, named, |variant| {
            mark(variant);
            ELSEWHERE.clone_into(&mut variant.path);
            variant.expected = 403;
            variant.probes.push(Probe {
                holds: vec![
                    "\r\ncontent-type: application/problem+json\r\n".to_owned(),
                    "\"code\":\"policy_no_match\"".to_owned(),
                    "\"nearest\":\"rule-".to_owned(),
                ],
                ..Probe::new("a denial that explains itself", None, 403)
            });
        });
        for (suffix, configuration, rules) in
            [("many-rules", &many, many_rules), ("most-rules", &most, most_rules)]
        {
            let text = format!("both credentials known, {rules} rules");
            let filters = filter(&id(suffix), configuration);
            let last = path(rules.saturating_sub(1));
            self.at(&id(suffix), &about(&text), filters, named, &last, mark);
        }
        let untold = untold(&id("routes-filter-state"));
        for (suffix, filters, mode, seen) in [
            ("routes", filter(&id("routes"), &usual), "edit", Seen::Written),
            ("routes-filter-state", untold, "filter_state", Seen::Said),
        ] {
            let text = format!("{routes} routes, `identity_headers: {mode}`");
            let upstream = self.upstream(seen);
            self.ruled(&id(suffix), &about(&text), filters, named, |variant| {
                mark(variant);
                variant.routes = routes;
                variant.floor = NONE_ROUTES;
                variant.probes.extend(upstream);
            });
        }
        let recorded = || {
            Probe::new("an audit record", None, 200).counting(r"airflow_envoy\.audit\.records$", 1)
        };
        let filters = filter(&id("audit-log"), &audit);
        self.ruled(
            &id("audit-log"),
            &about("a record of each call in the log"),
            filters,
            named,
            |variant| {
                mark(variant);
                variant.later = true;
                variant.probes.push(recorded());
            },
        );
        let filters = filter(&id("audit-collector"), &collector);
        let text = about("a record of each call to a collector");
        self.ruled(&id("audit-collector"), &text, filters, named, |variant| {
            mark(variant);
            variant.later = true;
            variant.helper = Some(Helper::Collector);
            variant.probes.push(recorded());
        });
        let filters = filter(&id("shadow"), &shadow);
        let forged = self.issuers.forged(named, &self.path());
        self.add(&id("shadow"), &about("mode `shadow`"), |variant| {
            mark(variant);
            variant.filters = filters;
            variant.shown = named;
            variant.probes.extend([
                known(),
                Probe::new("a forged token in shadow mode", Some(forged), 200)
                    .counting(r"airflow_envoy\.shadow_decisions", 1),
            ]);
        });
    }

    /// A variant that lets nobody in without a sound token.
    fn verified(
        &mut self,
        id: &str,
        about: &str,
        filters: Vec<Value>,
        shown: Shown,
        change: impl FnOnce(&mut Variant),
    ) {
        let forged = self.forged(shown);
        let none = Some(request(&self.path(), None, None));
        let none = Probe::new("a request without credentials", none, 401);
        self.add(id, about, |variant| {
            variant.filters = filters;
            variant.shown = shown;
            variant.probes.extend([none, forged]);
            change(variant);
        });
    }

    /// The same with tokens by RS256.
    fn jwt(
        &mut self,
        id: &str,
        about: &str,
        filters: Vec<Value>,
        change: impl FnOnce(&mut Variant),
    ) {
        self.verified(id, about, filters, Shown::Both, change);
    }

    /// A variant that lets nobody in without a sound token, and nobody where no rule lets them.
    fn ruled(
        &mut self,
        id: &str,
        about: &str,
        filters: Vec<Value>,
        shown: Shown,
        change: impl FnOnce(&mut Variant),
    ) {
        let denied = self.elsewhere(shown);
        self.verified(id, about, filters, shown, |variant| {
            variant.probes.push(denied);
            change(variant);
        });
    }

    /// The same at `path`.
    fn at(
        &mut self,
        id: &str,
        about: &str,
        filters: Vec<Value>,
        shown: Shown,
        path: &str,
        change: impl FnOnce(&mut Variant),
    ) {
        self.ruled(id, about, filters, shown, |variant| {
            path.clone_into(&mut variant.path);
            change(variant);
        });
    }

    fn is_asked_for(&self, id: &str) -> bool {
        let fits = |part: &String| match part.strip_prefix('=') {
            Some(name) => id == name,
            None => id.contains(part),
        };
        let floors = [NONE, NONE_ROUTES, AGAIN];
        floors.contains(&id) || self.only.is_empty() || self.only.iter().any(fits)
    }

    fn add(&mut self, id: &str, about: &str, change: impl FnOnce(&mut Variant)) {
        if !self.is_asked_for(id) {
            return;
        }
        let mut variant = Variant {
            id: id.to_owned(),
            about: about.to_owned(),
            module: None,
            floor: NONE,
            filters: Vec::new(),
            routes: 0,
            requests: Requests::default(),
            shown: Shown::Both,
            path: self.path(),
            callers: Callers::One,
            expected: 200,
            helper: None,
            later: false,
            probes: Vec::new(),
            paced: false,
        };
        change(&mut variant);
        self.variants.push(variant);
    }

    /// The path of the last rule of the usual policy.
    fn path(&self) -> String {
        path(self.sizes.rules.saturating_sub(1))
    }

    fn forged(&self, shown: Shown) -> Probe {
        let request = Some(self.issuers.forged(shown, &self.path()));
        Probe::new("a forged token", request, 401)
    }

    fn elsewhere(&self, shown: Shown) -> Probe {
        let request = Some(self.issuers.request(shown, ELSEWHERE));
        Probe::new("a path that no rule allows", request, 403)
    }

    /// What an upstream would get of callers that name themselves, of those that do not, and of those that lie. Of no one
    /// does it get credentials, or what a caller made up in Airflow's name.
    fn upstream(&self, seen: Seen) -> [Probe; 3] {
        let asking = |shown, more: &[(&str, String)]| {
            let request = self.issuers.request(shown, &self.path());
            Some(with(&with(&request, &[(ECHO, "1")]), more))
        };
        let made_up = [DECISION_HEADER, MADE_UP].map(|header| (header, "mine".to_owned()));
        let echo = |header: &str| format!("\r\necho-{header}: ");
        let names: Vec<String> =
            plain().iter().map(|(header, value)| format!("{}{value}\r\n", echo(header))).collect();
        let decision = echo(DECISION_HEADER);
        let of = |about, shown| {
            let mut lacks = vec!["mine".to_owned(), echo("authorization"), echo(IDENTITY_HEADER)];
            let holds = match (seen, shown) {
                (Seen::Written, _) => names.iter().cloned().chain([decision.clone()]).collect(),
                (Seen::Said, Shown::Named) => {
                    lacks.push(decision.clone());
                    names.clone()
                }
                // Not one header of the family.
                (Seen::Said, _) => {
                    lacks.push(echo("x-airflow-").trim_end_matches(": ").to_owned());
                    Vec::new()
                }
            };
            Probe { holds, lacks, ..Probe::new(about, asking(shown, &made_up), 200) }
        };
        let [dag, ..] = PLAIN_HEADERS;
        let another = [(dag, "ds_other".to_owned())];
        let lie = Probe {
            holds: vec!["\"code\":\"identity_header_mismatch\"".to_owned()],
            ..Probe::new("a caller that says it is another", asking(Shown::Both, &another), 401)
        };
        [
            of("what an upstream gets of a caller that names itself", Shown::Named),
            of("what an upstream gets of a caller that does not", Shown::Both),
            lie,
        ]
    }

    fn requests(&mut self, shown: Shown, callers: Callers, path: &str) -> Result<Requests> {
        let pool = self.pool(shown, callers, path)?;
        Ok(match callers {
            Callers::Fresh => Requests::fresh(pool),
            _ => Requests::repeated(pool),
        })
    }

    fn pool(&mut self, shown: Shown, callers: Callers, path: &str) -> Result<Pool> {
        let key = (shown, callers, path.to_owned());
        if let Some(pool) = self.pools.get(&key) {
            return Ok(Arc::clone(pool));
        }
        let number = match callers {
            Callers::One => 1,
            Callers::Thousand => self.sizes.callers,
            Callers::Fresh => self.sizes.fresh,
        };
        let pool = match shown {
            // Of the same callers: each variant remembers its own, and to sign takes long.
            Shown::Named => {
                let (bare, names) = (self.pool(Shown::Both, callers, path)?, plain());
                Arc::new(bare.iter().map(|request| with(request, &names)).collect())
            }
            Shown::Both | Shown::Es256 => self.issuers.requests(number, shown, path)?,
        };
        self.pools.insert(key, Arc::clone(&pool));
        Ok(pool)
    }
}

/// A path that no rule is about.
const ELSEWHERE: &str = "/api/v1/other/item/123";
