//! Policies, changes of them, and calls, by chance.

use airflow_envoy_cli::evaluate::{Request, Said, Token};
use airflow_envoy_core::time::UnixTime;
use serde_json::{Map, Value, json};

/// A small generator of the same numbers on every machine (splitmix64).
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % bound as u64) as usize
    }

    pub fn one_in(&mut self, bound: usize) -> bool {
        self.below(bound) == 0
    }

    pub fn pick<'t>(&mut self, texts: &[&'t str]) -> &'t str {
        texts[self.below(texts.len())]
    }

    pub fn picks(&mut self, texts: &[&str]) -> Value {
        let count = 1 + self.below(2);
        let mut picked: Vec<&str> = (0..count).map(|_| self.pick(texts)).collect();
        picked.sort_unstable();
        picked.dedup();
        json!(picked)
    }

    pub fn selector(&mut self) -> Map<String, Value> {
        let mut selector = Map::new();
        for _ in 0..=self.below(2) {
            match self.below(5) {
                0 => selector.insert("dags".into(), self.picks(&["a", "a*", "*b", "ab"])),
                1 => selector.insert("teams".into(), self.picks(&["t1", "t2", "t*"])),
                2 => selector.insert("tags".into(), self.picks(&["x", "y", "*"])),
                3 => selector.insert("claims".into(), json!({"c": self.picks(&["1", "2"])})),
                _ => selector.insert("run_types".into(), self.picks(&["manual", "scheduled"])),
            };
        }
        selector
    }

    pub fn rule(&mut self, id: String) -> Value {
        let effect = if self.one_in(4) { "deny" } else { "allow" };
        let mut rule = json!({"id": id, "effect": effect});
        rule["to"] = if self.one_in(4) { json!(["*"]) } else { self.picks(&["one", "two"]) };
        if !self.one_in(4) {
            let mut from = self.selector();
            if self.one_in(3) {
                from.insert("roles".into(), self.picks(&["r0", "r1"]));
            }
            rule["from"] = from.into();
        }
        if self.one_in(3) {
            rule["methods"] = self.picks(&["GET", "POST", "CONNECT"]);
        }
        let tunnels = rule["methods"].as_array().is_some_and(|all| all.contains(&json!("CONNECT")));
        if !(self.one_in(3) || effect == "allow" && tunnels) {
            let paths =
                ["/", "/a/**", "/a/*", "/*/b", "/**", "/a", "/{sub}/**", "/a/{sub}", "/a/s*"];
            rule["paths"] = self.picks(&paths);
        }
        if self.one_in(5) {
            rule["mode"] = "shadow".into();
        }
        match self.below(6) {
            0 => rule["valid"] = json!({"not_before": "1970-01-01T00:01:00Z"}),
            1 => rule["valid"] = json!({"expires_at": "1970-01-01T00:03:00Z"}),
            _ => {}
        }
        rule
    }

    pub fn document(&mut self) -> Value {
        let rules: Vec<Value> =
            (0..=self.below(12)).map(|n| self.rule(format!("rule-{n}"))).collect();
        json!({
            "version": 1,
            "roles": {"r0": {"any": [self.selector(), self.selector()]}, "r1": {"any": [self.selector()]}},
            "destinations": {"one": {"hosts": ["one"]}, "two": {"hosts": ["*.two", "two:8"]}},
            "rules": rules,
        })
    }

    pub fn call(&mut self) -> (Said, Request, UnixTime) {
        let mut identity = Map::new();
        identity.insert("dag_id".into(), self.pick(&["a", "ab", "b", "c"]).into());
        if !self.one_in(4) {
            identity.insert("team".into(), self.pick(&["t1", "t2", "z"]).into());
        }
        if !self.one_in(4) {
            identity.insert("tags".into(), self.picks(&["x", "y", "z"]));
        }
        if !self.one_in(4) {
            identity.insert("run_type".into(), self.pick(&["manual", "scheduled"]).into());
        }
        let mut claims = Map::new();
        claims.insert("c".into(), json!(self.below(3)));
        if !self.one_in(3) {
            claims.insert("sub".into(), self.pick(&["a", "b", "s", "s*"]).into());
        }
        let token = Token { issuer: "idp".into(), key_id: None, claims };
        let token = (!self.one_in(4)).then_some(token);
        let paths =
            ["/", "/a", "/a/", "/a/b", "/a/b/c", "/a;x/b", "/%61/b", "/a/s", "/a/%73%2A", "/.."];
        let request = match self.below(6) {
            0 => Request::tunnel(self.pick(&["one:443", "x.two:443", "two:8", "one:80", "none:1"])),
            _ => Request {
                method: self.pick(&["GET", "POST"]).into(),
                scheme: "http".into(),
                host: self.pick(&["one", "x.two", "two:8", "none"]).into(),
                path: self.pick(&paths).into(),
            },
        };
        let at = UnixTime::from_secs(60 * self.below(5) as i64);
        (Said { identity: Some(identity), token, peer: None }, request, at)
    }
}
