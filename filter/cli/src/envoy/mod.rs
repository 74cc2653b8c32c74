//! Envoy's configuration around the filter: is it loaded, does every request meet it, and is what it relies on
//! set?
//!
//! The filter's own configuration is judged by the core. The rest is looked for where it matters to the filter;
//! whether Envoy accepts the file, `envoy --mode validate` says.

mod clusters;
mod connection;
mod embedded;
mod peer;
mod plugin;
mod setting;

pub use self::setting::Setting;
use crate::lint::Finding;
use crate::source::{Node, Place};

/// Checks one file of Envoy's configuration: its text and the document in it.
pub fn check(source: &str, document: &Node) -> Vec<Finding<Setting>> {
    let mut report = Report { source, document, findings: Vec::new() };
    let mut trail = Vec::new();
    let mut ours = 0_usize;
    walk(document, &mut trail, &mut |node, trail| {
        if is_our_plugin(node, trail) {
            ours += 1;
            plugin::check(node, trail, &mut report);
        }
        let (kind, value) = typed(node);
        if kind.ends_with(".HttpConnectionManager") {
            connection::check(value, trail, &mut report);
        }
    });
    if ours == 0 {
        let message = "no Wasm filter has `airflow_envoy` as its `root_id`, its name or its file: add it to \
                       `http_filters` before the router";
        report.add(Setting::NoFilter, &document.place, message);
    }
    check_admin(&mut report);
    report.findings.sort_by(|one, other| one.place.cmp(&other.place));
    report.findings.dedup();
    report.findings
}

/// What is found, and what it is found in.
struct Report<'d> {
    source: &'d str,
    document: &'d Node,
    findings: Vec<Finding<Setting>>,
}

impl Report<'_> {
    fn add(&mut self, lint: Setting, place: &Place, message: impl Into<String>) {
        let (place, message) = (place.clone(), message.into());
        self.findings.push(Finding { lint, place, path: String::new(), message, related: None });
    }
}

/// Calls `visit` with every value and the values that it stands in, the outermost first.
fn walk<'d>(
    node: &'d Node,
    trail: &mut Vec<&'d Node>,
    visit: &mut dyn FnMut(&'d Node, &[&'d Node]),
) {
    visit(node, trail);
    trail.push(node);
    // The nesting of a document is bounded.
    for child in node.members().iter().map(|member| &member.value).chain(node.elements()) {
        walk(child, trail, visit);
    }
    trail.pop();
}

/// The type of an `Any` and its value; of one that is wrapped in a `TypedStruct` that inside.
fn typed(node: &Node) -> (&str, &Node) {
    let kind = node.member("@type").and_then(Node::text).unwrap_or_default();
    if kind.ends_with(".TypedStruct") {
        let inner = node.member("type_url").and_then(Node::text);
        return (inner.unwrap_or_default(), node.member("value").unwrap_or(node));
    }
    (kind, node)
}

/// Follows names through maps.
fn at<'d>(node: &'d Node, path: &[&str]) -> Option<&'d Node> {
    path.iter().try_fold(node, |node, name| node.member(name))
}

fn text<'d>(node: &'d Node, path: &[&str]) -> Option<&'d str> {
    at(node, path)?.text()
}

/// Whether a flag is set; the protobuf wrapper may be written out.
fn is_true(node: Option<&Node>) -> bool {
    let value = node.map(|node| node.member("value").unwrap_or(node).value());
    value == Some(serde_json::Value::Bool(true))
}

/// Where a member of this name stands, or else the node itself.
fn place_of(node: &Node, name: &str) -> Place {
    let member = node.members().iter().find(|member| member.name == name);
    member.map_or_else(|| node.place.clone(), |member| member.place.clone())
}

/// Whether a `typed_config` is that of a Wasm HTTP filter, and which is its plugin configuration.
fn plugin_of(typed_config: &Node) -> Option<&Node> {
    let (kind, value) = typed(typed_config);
    if kind.ends_with("filters.http.wasm.v3.Wasm") { value.member("config") } else { None }
}

/// Whether a plugin configuration is one of this filter, by what it is called.
fn is_ours(plugin: &Node) -> bool {
    let names = [
        text(plugin, &["root_id"]),
        text(plugin, &["name"]),
        text(plugin, &["vm_config", "code", "local", "filename"]),
        text(plugin, &["vm_config", "code", "remote", "http_uri", "uri"]),
    ];
    let called = |name: &&str| name.contains("airflow_envoy") || name.contains("airflow-envoy");
    names.iter().flatten().any(called)
}

fn is_our_plugin(node: &Node, trail: &[&Node]) -> bool {
    let parent = trail.last().and_then(|parent| match parent.member("@type") {
        Some(_) => plugin_of(parent),
        // Inside of a `TypedStruct`.
        None => trail.get(trail.len().checked_sub(2)?).and_then(|typed| plugin_of(typed)),
    });
    parent.is_some_and(|plugin| std::ptr::eq(plugin, node)) && is_ours(node)
}

/// The configuration of an entry of `http_filters` that is this filter, if it is JSON.
fn own_configuration(filter: &Node) -> Option<serde_json::Value> {
    let any = filter.member("typed_config")?;
    let value = at(typed(any).1, &["config", "configuration", "value"])?;
    serde_json::from_str(value.text()?).ok()
}

/// Whether a validation context says whom it believes.
fn trusts(context: &Node) -> bool {
    let names = [
        "trusted_ca",
        "system_root_certs",
        "ca_certificate_provider_instance",
        "verify_certificate_hash",
        "verify_certificate_spki",
        "custom_validator_config",
    ];
    names.iter().any(|name| context.member(name).is_some())
}

/// Whether an entry of `http_filters` is this filter.
fn is_our_filter(filter: &Node) -> bool {
    filter.member("typed_config").and_then(plugin_of).is_some_and(is_ours)
}

/// Whether what listens at this address is reached from this host only.
fn is_local(address: Option<&Node>) -> bool {
    let Some(address) = address else { return false };
    let host = text(address, &["socket_address", "address"]).unwrap_or_default();
    at(address, &["pipe"]).is_some()
        || at(address, &["envoy_internal_address"]).is_some()
        || at(address, &["internal_listener"]).is_some()
        || host.starts_with("127.")
        || host == "::1"
        || host == "localhost"
}

fn check_admin(report: &mut Report<'_>) {
    let document = report.document;
    let Some(admin) = document.member("admin") else { return };
    let place = place_of(document, "admin");
    if admin.member("allow_paths").is_none() && admin.member("address").is_some() {
        let message = "`admin` answers everything: whoever reaches it stops Envoy and reads its configuration, and a \
                       task beside Envoy reaches loopback, too; name what is read in `allow_paths`";
        report.add(Setting::AdminOpen, &place, message);
    }
    if !is_local(admin.member("address")) && admin.member("address").is_some() {
        let message = "`admin` listens for other hosts: let its `address` be 127.0.0.1";
        report.add(Setting::AdminOpen, &place_of(admin, "address"), message);
    }
}
