//! `envoy.yaml` on this machine: what the testbed changes in it, and nothing else.
//!
//! | value | why |
//! |---|---|
//! | port of the admin interface and of the listener | several testbeds at once |
//! | address and port of each cluster's endpoint | the servers are here, on free ports |
//! | `trusted_ca` of each cluster | a certificate authority made for this run |
//! | path of the partner's credential | made for this run |
//! | path of the filter | so that Envoy may be started from anywhere |
//!
//! Names, issuers, routes, limits and the filter's configuration stay as they are in the file, unless a test asks for
//! another configuration, a second listener, one more cluster, a variable of the environment, or listeners that change
//! while Envoy runs.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use serde_json::{Value, json};

use crate::error::{Context as _, Error, Result};

/// Envoy's configuration, as a tree.
#[derive(Debug, Clone, PartialEq)]
pub struct Bootstrap(pub Value);

impl Bootstrap {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// If it is not there or not YAML.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).context(path.display())?;
        serde_saphyr::from_str(&text).map(Self).context(path.display())
    }

    /// The text that Envoy reads: JSON, which is YAML.
    pub fn text(&self) -> String {
        format!("{:#}\n", self.0)
    }

    /// Sets the port of the admin interface; 0 for any.
    ///
    /// # Errors
    /// If there is no admin interface.
    pub fn set_admin_port(&mut self, port: u16) -> Result<()> {
        *self.at("/admin/address/socket_address/port_value")? = port.into();
        Ok(())
    }

    /// Sets the port of the listener; 0 for any.
    ///
    /// # Errors
    /// If there is no listener.
    pub fn set_listener_port(&mut self, port: u16) -> Result<()> {
        *self.at("/static_resources/listeners/0/address/socket_address/port_value")? = port.into();
        Ok(())
    }

    /// Sends what goes to `cluster` to `address`.
    ///
    /// # Errors
    /// If there is no such cluster with one endpoint.
    pub fn set_endpoint(&mut self, cluster: &str, address: SocketAddr) -> Result<()> {
        let path = "/load_assignment/endpoints/0/lb_endpoints/0/endpoint/address/socket_address";
        let socket = at(self.cluster(cluster)?, path)?;
        *at(socket, "/address")? = address.ip().to_string().into();
        *at(socket, "/port_value")? = address.port().into();
        Ok(())
    }

    /// Trusts only the authority whose certificate is at `path`, wherever an authority is trusted.
    ///
    /// # Errors
    /// If there are no clusters.
    pub fn set_trusted_authority(&mut self, path: &Path) -> Result<()> {
        let trusted = "/transport_socket/typed_config/common_tls_context/validation_context/trusted_ca/filename";
        for cluster in self.clusters()? {
            if let Some(filename) = cluster.pointer_mut(trusted) {
                *filename = path.display().to_string().into();
            }
        }
        Ok(())
    }

    /// Takes the partner's credential from the file at `path`.
    ///
    /// # Errors
    /// If no credential is injected on the way to the partner.
    pub fn set_partner_credential(&mut self, path: &Path) -> Result<()> {
        let options = "/typed_extension_protocol_options/envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
        let source = "/http_filters/0/typed_config/credential/typed_config/credential/sds_config/path_config_source/path";
        let place = format!("{options}{source}");
        *at(self.cluster("partner")?, &place)? = path.display().to_string().into();
        Ok(())
    }

    /// Runs the filter at `path`.
    ///
    /// # Errors
    /// If there is no filter.
    pub fn set_filter(&mut self, path: &Path) -> Result<()> {
        let place = "/config/vm_config/code/local/filename";
        *at(self.filter()?, place)? = path.display().to_string().into();
        Ok(())
    }

    /// Takes the filter out: what is left is what Envoy does anyway.
    ///
    /// # Errors
    /// If there is no filter.
    pub fn remove_filter(&mut self) -> Result<()> {
        let filters = at(self.manager()?, "/http_filters")?;
        let filters = filters.as_array_mut().context("a list of filters")?;
        let before = filters.len();
        filters.retain(|filter| filter.pointer("/typed_config/config/vm_config").is_none());
        (filters.len() < before).then_some(()).context("a filter")
    }

    /// Changes the filter's own configuration.
    ///
    /// # Errors
    /// If there is no filter or its configuration is not JSON.
    pub fn configure_filter(&mut self, change: impl FnOnce(&mut Value)) -> Result<()> {
        let text = at(self.filter()?, "/config/configuration/value")?;
        let mut configuration = serde_json::from_str(text.as_str().unwrap_or_default())
            .context("the filter's configuration")?;
        change(&mut configuration);
        *text = configuration.to_string().into();
        Ok(())
    }

    /// Adds a listener that is as the first, but for its name, any free port, and the filter's own configuration.
    ///
    /// # Errors
    /// If there is no listener with the filter, or its configuration is not JSON.
    pub fn add_listener(&mut self, name: &str, change: impl FnOnce(&mut Value)) -> Result<()> {
        let mut other = self.clone();
        other.configure_filter(change)?;
        other.set_listener_port(0)?;
        let mut listener = other.at("/static_resources/listeners/0")?.take();
        *at(&mut listener, "/name")? = name.into();
        *at(manager_of(&mut listener)?, "/stat_prefix")? = name.into();
        let listeners = self.at("/static_resources/listeners")?.as_array_mut();
        listeners.context("a list of listeners")?.push(listener);
        Ok(())
    }

    /// Adds a cluster that is as `cluster`, but for its name.
    ///
    /// # Errors
    /// If there is no such cluster.
    pub fn copy_cluster(&mut self, cluster: &str, name: &str) -> Result<()> {
        let mut copy = self.cluster(cluster)?.clone();
        *at(&mut copy, "/name")? = name.into();
        *at(&mut copy, "/load_assignment/cluster_name")? = name.into();
        self.clusters()?.push(copy);
        Ok(())
    }

    /// Lets the filter see the variable `name` of Envoy's environment, too.
    ///
    /// # Errors
    /// If there is no filter that sees one.
    pub fn expose_variable(&mut self, name: &str) -> Result<()> {
        let names = at(self.filter()?, "/config/vm_config/environment_variables/host_env_keys")?;
        names.as_array_mut().context("a list of variables")?.push(name.into());
        Ok(())
    }

    /// Gives the filter's VMs another configuration, which they do not read: they are not the same ones then, and
    /// Envoy replaces them. The shared data is that of the same `vm_id` and stays.
    ///
    /// # Errors
    /// If there is no filter.
    pub fn renew_machines(&mut self, generation: u64) -> Result<()> {
        let value = format!("generation {generation}");
        let value =
            json!({ "@type": "type.googleapis.com/google.protobuf.StringValue", "value": value });
        let listeners = self.at("/static_resources/listeners")?.as_array_mut();
        for listener in listeners.context("a list of listeners")? {
            let machine = at(filter_of(listener)?, "/config/vm_config")?.as_object_mut();
            machine.context("an object")?.insert("configuration".to_owned(), value.clone());
        }
        Ok(())
    }

    /// Takes the listeners from the file at `path` instead, which may be replaced while Envoy runs; that file's text.
    ///
    /// # Errors
    /// If there are no listeners.
    pub fn move_listeners(&mut self, path: &Path) -> Result<String> {
        let mut listeners = self.at("/static_resources/listeners")?.take();
        for listener in listeners.as_array_mut().into_iter().flatten() {
            if let Some(members) = listener.as_object_mut() {
                let kind = "type.googleapis.com/envoy.config.listener.v3.Listener";
                members.insert("@type".to_owned(), kind.into());
            }
        }
        let root = self.0.as_object_mut().context("an object")?;
        root.insert(
            "dynamic_resources".to_owned(),
            json!({ "lds_config": {
                "path_config_source": { "path": path.display().to_string() },
                "resource_api_version": "V3",
            } }),
        );
        *self.at("/static_resources/listeners")? = json!([]);
        Ok(json!({ "resources": listeners }).to_string())
    }

    /// The filter's `typed_config`.
    ///
    /// # Errors
    /// If there is no filter.
    pub fn filter(&mut self) -> Result<&mut Value> {
        filter_of(self.at("/static_resources/listeners/0")?)
    }

    /// The HTTP connection manager of the first listener: its `typed_config`.
    ///
    /// # Errors
    /// If there is none.
    pub fn manager(&mut self) -> Result<&mut Value> {
        manager_of(self.at("/static_resources/listeners/0")?)
    }

    /// The cluster `name`.
    ///
    /// # Errors
    /// If there is none.
    pub fn cluster(&mut self, name: &str) -> Result<&mut Value> {
        named(self.at("/static_resources/clusters")?, name)
    }

    fn clusters(&mut self) -> Result<&mut Vec<Value>> {
        self.at("/static_resources/clusters")?.as_array_mut().context("a list of clusters")
    }

    fn at(&mut self, pointer: &str) -> Result<&mut Value> {
        at(&mut self.0, pointer)
    }
}

fn filter_of(listener: &mut Value) -> Result<&mut Value> {
    at(named(at(manager_of(listener)?, "/http_filters")?, "airflow-envoy")?, "/typed_config")
}

fn manager_of(listener: &mut Value) -> Result<&mut Value> {
    let filters = at(listener, "/filter_chains/0/filters")?;
    at(named(filters, "envoy.filters.network.http_connection_manager")?, "/typed_config")
}

fn at<'v>(value: &'v mut Value, pointer: &str) -> Result<&'v mut Value> {
    value.pointer_mut(pointer).ok_or_else(|| Error::new(format!("envoy.yaml has no `{pointer}`")))
}

fn named<'v>(list: &'v mut Value, name: &str) -> Result<&'v mut Value> {
    list.as_array_mut()
        .into_iter()
        .flatten()
        .find(|element| element.get("name").is_some_and(|known| known == name))
        .ok_or_else(|| Error::new(format!("envoy.yaml has nothing named `{name}` where it should")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shipped() -> Bootstrap {
        Bootstrap::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../envoy.yaml")).unwrap()
    }

    /// The JSON pointers at which two trees differ.
    fn differences(left: &Value, right: &Value, place: &str, found: &mut Vec<String>) {
        match (left, right) {
            (Value::Object(left), Value::Object(right)) if left.keys().eq(right.keys()) => {
                for (name, value) in left {
                    differences(value, &right[name], &format!("{place}/{name}"), found);
                }
            }
            (Value::Array(left), Value::Array(right)) if left.len() == right.len() => {
                for (index, (left, right)) in left.iter().zip(right).enumerate() {
                    let name = left.get("name").and_then(Value::as_str).unwrap_or_default();
                    differences(left, right, &format!("{place}/{index}{name}"), found);
                }
            }
            _ if left == right => {}
            _ => found.push(place.to_owned()),
        }
    }

    #[test]
    fn only_the_listed_values_are_changed() {
        let mut bootstrap = shipped();
        let elsewhere = Path::new("/elsewhere");
        bootstrap.set_admin_port(1).unwrap();
        bootstrap.set_listener_port(2).unwrap();
        for cluster in ["orders", "partner", "idp", "airflow-jwks", "policy", "consul", "audit"] {
            bootstrap.set_endpoint(cluster, "127.0.0.1:3".parse().unwrap()).unwrap();
        }
        bootstrap.set_trusted_authority(elsewhere).unwrap();
        bootstrap.set_partner_credential(elsewhere).unwrap();
        bootstrap.set_filter(elsewhere).unwrap();

        let mut found = Vec::new();
        differences(&shipped().0, &bootstrap.0, "", &mut found);
        let last: Vec<_> = found
            .iter()
            .map(|place| {
                let cluster = place.split('/').nth(3).unwrap_or_default();
                let cluster = cluster.trim_start_matches(|letter: char| letter.is_ascii_digit());
                format!("{cluster} {}", place.rsplit('/').next().unwrap())
            })
            .collect();
        assert_eq!(
            last,
            [
                "socket_address port_value",
                "orders address",
                "orders port_value",
                "partner address",
                "partner port_value",
                "partner filename",
                "partner path",
                "idp address",
                "idp port_value",
                "idp filename",
                "airflow-jwks address",
                "airflow-jwks port_value",
                "airflow-jwks filename",
                "policy address",
                "policy port_value",
                "policy filename",
                "consul address",
                "consul port_value",
                "audit address",
                "audit port_value",
                "airflow-egress port_value",
                "airflow-egress filename",
            ],
            "{found:#?}"
        );
    }

    #[test]
    fn the_filter_s_configuration_is_json_and_can_be_changed() {
        let mut bootstrap = shipped();
        bootstrap.configure_filter(|configuration| configuration["token"] = json!("off")).unwrap();
        let mut seen = Value::Null;
        bootstrap.configure_filter(|configuration| seen = configuration.clone()).unwrap();
        assert_eq!(seen["token"], "off");
        assert_eq!(seen["issuers"][0]["name"], "idp");
    }

    #[test]
    fn a_value_that_is_not_there_is_an_error_and_not_added() {
        let mut bootstrap = Bootstrap(json!({"static_resources": {"clusters": []}}));
        let before = bootstrap.clone();
        assert_eq!(
            bootstrap
                .set_endpoint("orders", "127.0.0.1:3".parse().unwrap())
                .unwrap_err()
                .to_string(),
            "envoy.yaml has nothing named `orders` where it should"
        );
        assert_eq!(
            bootstrap.set_admin_port(1).unwrap_err().to_string(),
            "envoy.yaml has no `/admin/address/socket_address/port_value`"
        );
        assert_eq!(bootstrap, before);
    }
}
