//! Roles that a service may use, by Consul's catalog: it can only take roles away.
//!
//! A service says in its metadata which Airflow roles it is for. Whoever may register the service writes its
//! metadata, so that a role is never had because it stands there: what is not there is taken from callers whose
//! mesh peer is an instance of the service. A role that was taken away opens nothing, and is not known to be
//! absent either: a deny rule that asks for it denies.

use serde_json::Value;

use crate::facts::{Caller, Fact};
use crate::feed::Endpoint;
use crate::json;
use crate::limits::Limits;
use crate::quote::quote;

/// How roles are narrowed, by the configuration's `peer.narrow`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Narrow {
    /// The member of `ServiceMeta` that has the roles, separated by commas.
    pub meta: String,
    /// Each service whose callers lose roles, and where the catalog tells of it.
    pub services: Vec<(String, Endpoint)>,
}

/// The roles that every instance of a service is for, sorted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServiceRoles(Vec<String>);

impl ServiceRoles {
    /// Reads an answer of `/v1/catalog/service/<service>`: the roles that stand in `meta` of all instances.
    /// Without an instance there is none: a token that may not read the service sees no instance either.
    ///
    /// # Errors
    /// Why it is no such answer.
    pub fn read(body: &[u8], meta: &str, limits: &Limits) -> Result<Self, String> {
        let value = json::parse(body, limits.json_depth).map_err(|error| error.to_string())?;
        let Value::Array(instances) = value else {
            return Err("the answer is not a list of instances".to_owned());
        };
        let mut common: Option<Vec<String>> = None;
        for instance in &instances {
            let Some(instance) = instance.as_object() else {
                return Err("an instance is not a JSON object".to_owned());
            };
            let text = match instance.get("ServiceMeta") {
                None | Some(Value::Null) => None,
                Some(Value::Object(all)) => all.get(meta),
                Some(_) => return Err("`ServiceMeta` of an instance is not an object".to_owned()),
            };
            let text = match text {
                None => "",
                Some(Value::String(text)) => text,
                Some(_) => return Err(format!("`ServiceMeta` {} is not a string", quote(meta))),
            };
            let mut roles: Vec<String> = text
                .split(',')
                .map(str::trim)
                .filter(|role| !role.is_empty())
                .map(str::to_owned)
                .collect();
            match &mut common {
                Some(common) => common.retain(|role| roles.contains(role)),
                None => {
                    roles.sort_unstable();
                    roles.dedup();
                    common = Some(roles);
                }
            }
        }
        Ok(Self(common.unwrap_or_default()))
    }

    /// The roles, sorted.
    pub fn roles(&self) -> &[String] {
        &self.0
    }

    /// Takes the caller's Airflow roles away that are not among these.
    pub fn narrow(&self, caller: &mut Caller) {
        let Fact::Known(roles) = &mut caller.airflow_roles else { return };
        let (kept, taken) =
            std::mem::take(roles).into_iter().partition(|role| self.0.binary_search(role).is_ok());
        *roles = kept;
        caller.taken_roles = taken;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &str) -> Result<ServiceRoles, String> {
        ServiceRoles::read(body.as_bytes(), "airflow_role", &Limits::DEFAULT)
    }

    #[test]
    fn a_role_counts_that_all_instances_have() {
        for (body, expected) in [
            (r#"[{"ServiceMeta": {"airflow_role": "User"}}]"#, &["User"][..]),
            (r#"[{"ServiceMeta": {"airflow_role": " User,Op,, User"}}]"#, &["Op", "User"]),
            (
                r#"[{"ServiceMeta": {"airflow_role": "User,Op"}}, {"ServiceMeta": {"airflow_role": "Op,Viewer"}}]"#,
                &["Op"],
            ),
            (r#"[{"ServiceMeta": {"airflow_role": "User"}}, {"ServiceMeta": {}}]"#, &[]),
            (r#"[{"ServiceMeta": {"airflow_role": "User"}}, {"ServiceMeta": null}]"#, &[]),
            (r#"[{}]"#, &[]),
            (r#"[{"ServiceMeta": {"airflow_role": ""}}]"#, &[]),
            (r#"[{"ServiceMeta": {"Airflow_role": "User"}}]"#, &[]),
            ("[]", &[]),
        ] {
            assert_eq!(read(body).unwrap().roles(), expected, "{body}");
        }
    }

    #[test]
    fn what_is_no_answer_of_the_catalog_is_unfit() {
        for (body, words) in [
            ("{}", "not a list"),
            ("null", "not a list"),
            ("[7]", "not a JSON object"),
            (r#"[{"ServiceMeta": []}]"#, "not an object"),
            (r#"[{"ServiceMeta": {"airflow_role": ["User"]}}]"#, "is not a string"),
            ("[", ""),
        ] {
            let error = read(body).unwrap_err();
            assert!(error.contains(words), "{body}: {error}");
        }
    }

    #[test]
    fn metadata_takes_roles_and_gives_none() {
        let known =
            |roles: &[&str]| Fact::Known(roles.iter().map(|role| role.to_string()).collect());
        for (has, meta, kept, taken) in [
            (&["User", "Op"][..], "User", &["User"][..], &["Op"][..]),
            (&["User"], "User,Admin", &["User"], &[]),
            (&["User"], "", &[], &["User"]),
            (&[], "Admin", &[], &[]),
        ] {
            let body = format!(r#"[{{"ServiceMeta": {{"airflow_role": "{meta}"}}}}]"#);
            let mut caller = Caller { airflow_roles: known(has), ..Caller::default() };
            read(&body).unwrap().narrow(&mut caller);
            assert_eq!((caller.airflow_roles, caller.taken_roles), {
                (known(kept), taken.iter().map(|role| role.to_string()).collect())
            });
        }
        let mut caller = Caller::default();
        ServiceRoles::default().narrow(&mut caller);
        assert_eq!(caller, Caller::default());
    }
}
