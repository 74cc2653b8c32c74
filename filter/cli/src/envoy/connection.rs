//! The HTTP connection manager that has the filter: what it makes of a request before the filter sees it, what
//! stands before and behind, and which routes it has.

use airflow_envoy_core::quote::quote;
use serde_json::Value;

use super::{
    Report, Setting, at, is_local, is_our_filter, is_true, own_configuration, peer, place_of, text,
    typed, walk,
};
use crate::source::Node;

/// Filters that answer by themselves what another caller was allowed to see.
const ANSWERING: [&str; 2] = [".CacheConfig", ".CacheV2Config"];

/// Filters that can change method, path, host or headers of a request.
const CHANGING: [&str; 8] = [
    ".Lua",
    ".ExternalProcessor",
    ".Wasm",
    ".DynamicModuleFilter",
    "golang.v3alpha.Config",
    ".HeaderMutation",
    ".GrpcJsonTranscoder",
    "grpc_http1_reverse_bridge.v3.FilterConfig",
];

/// Checks a connection manager that has the filter; others are not our business.
pub(super) fn check(manager: &Node, trail: &[&Node], report: &mut Report<'_>) {
    let filters = manager.member("http_filters").map(Node::elements).unwrap_or_default();
    let Some(place) = filters.iter().position(is_our_filter) else { return };
    let own = filters.get(place).and_then(own_configuration).unwrap_or_default();
    check_order(filters, place, report);
    check_reading(manager, report);
    check_caller(manager, &own, report);
    check_upgrades(manager, &own, report);
    let downstream = Downstream::of(trail);
    check_listener(manager, &downstream, report);
    peer::check(&own, manager, &downstream, report);
    let name = filters.get(place).and_then(|filter| text(filter, &["name"])).unwrap_or_default();
    check_routes(manager, name, report);
}

/// What stands around a connection manager.
pub(super) struct Downstream<'d> {
    /// The filter chain.
    pub(super) chain: Option<&'d Node>,
    listener: Option<&'d Node>,
    /// Its DownstreamTlsContext.
    pub(super) tls: Option<&'d Node>,
}

impl<'d> Downstream<'d> {
    fn of(trail: &[&'d Node]) -> Self {
        let is_chain = |node: &&Node| {
            node.member("filters").is_some() && node.member("filter_chains").is_none()
        };
        let chain = trail.iter().rev().copied().find(is_chain);
        let listener = trail.iter().rev().find(|node| node.member("filter_chains").is_some());
        let socket = chain.and_then(|chain| chain.member("transport_socket"));
        let tls = socket.and_then(|socket| socket.member("typed_config")).map(typed);
        let tls = tls.map(|(kind, value)| match value.member("downstream_tls_context") {
            Some(inner) if kind.ends_with("QuicDownstreamTransport") => inner,
            _ => value,
        });
        Self { chain, listener: listener.copied(), tls }
    }
}

fn kind_of(filter: &Node) -> &str {
    filter.member("typed_config").map_or("", |any| typed(any).0)
}

fn check_order(filters: &[Node], ours: usize, report: &mut Report<'_>) {
    for (index, filter) in filters.iter().enumerate() {
        let kind = kind_of(filter);
        let name = quote(text(filter, &["name"]).unwrap_or("?"));
        let is = |kinds: &[&str]| kinds.iter().any(|ending| kind.ends_with(ending));
        if index < ours && kind.ends_with("router.v3.Router") {
            let message = format!(
                "{name} stands before the filter, which is never asked: let the router be the last one"
            );
            report.add(Setting::FilterOrder, &filter.place, message);
        } else if index < ours && is(&ANSWERING) {
            let message = format!(
                "{name} answers before the filter is asked: put it behind, and let it vary by caller"
            );
            report.add(Setting::FilterOrder, &filter.place, message);
        } else if index > ours && is(&CHANGING) && !is_our_filter(filter) {
            let message =
                format!("{name} may change what the filter judged: put it before the filter");
            report.add(Setting::ChangedAfterwards, &filter.place, message);
        }
    }
}

/// What the policy judges must be what the upstream gets.
fn check_reading(manager: &Node, report: &mut Report<'_>) {
    for name in ["normalize_path", "merge_slashes"] {
        if !is_true(manager.member(name)) {
            let message = format!(
                "the router may read another path than the policy judges: set `{name}: true`"
            );
            report.add(Setting::PathNotNormalised, &place_of(manager, name), message);
        }
    }
    let name = "path_with_escaped_slashes_action";
    if text(manager, &[name]) != Some("REJECT_REQUEST") {
        let message = format!(
            "an escaped slash is one for some servers and none for others: set `{name}: REJECT_REQUEST`"
        );
        report.add(Setting::PathNotNormalised, &place_of(manager, name), message);
    }
    let options = manager.member("common_http_protocol_options");
    let name = "headers_with_underscores_action";
    let action = options.and_then(|options| text(options, &[name]));
    if !matches!(action, Some("REJECT_REQUEST" | "DROP_HEADER")) {
        let place =
            options.map_or_else(|| manager.place.clone(), |options| place_of(options, name));
        let message = format!(
            "servers that read `x_airflow_dag_id` as `x-airflow-dag-id` believe the caller: set \
             `common_http_protocol_options.{name}: REJECT_REQUEST`"
        );
        report.add(Setting::UnderscoreHeaders, &place, message);
    }
}

/// What the caller says of itself must not be believed.
fn check_caller(manager: &Node, own: &Value, report: &mut Report<'_>) {
    if !is_true(manager.member("use_remote_address")) {
        let message = "the caller writes its address (`x-forwarded-for`), and may send `x-envoy-…` headers: set \
                       `use_remote_address: true`";
        report.add(Setting::AddressOfCaller, &place_of(manager, "use_remote_address"), message);
    }
    let name = "forward_client_cert_details";
    // The filter believes it from whom it may, and refuses everybody else.
    let is_judged = peer::is_by_header(own);
    if let Some(how @ ("FORWARD_ONLY" | "APPEND_FORWARD" | "ALWAYS_FORWARD_ONLY")) =
        text(manager, &[name])
        && !is_judged
    {
        let message = format!(
            "`{how}` lets the caller write `x-forwarded-client-cert`: set `{name}: SANITIZE_SET`"
        );
        report.add(Setting::CertificateOfCaller, &place_of(manager, name), message);
    }
}

fn check_upgrades(manager: &Node, own: &Value, report: &mut Report<'_>) {
    let upgrades = manager.member("upgrade_configs").map(Node::elements).unwrap_or_default();
    for upgrade in upgrades {
        let kind = text(upgrade, &["upgrade_type"]).unwrap_or_default();
        if let Some(filters) = upgrade.member("filters")
            && !filters.elements().iter().any(is_our_filter)
        {
            let shown = quote(kind);
            let message = format!(
                "upgrades to {shown} have a chain of their own without the filter: leave `filters` out"
            );
            report.add(Setting::FilterOff, &place_of(upgrade, "filters"), message);
        }
        let is_proxy = own.get("proxy_authorization") == Some(&Value::Bool(true));
        if kind.eq_ignore_ascii_case("CONNECT") && !is_proxy {
            let message = "tunnels hide method and path, and are judged by host only; without `proxy_authorization` \
                           few clients can open one";
            report.add(Setting::Tunnels, &upgrade.place, message);
        }
    }
}

fn check_listener(manager: &Node, downstream: &Downstream<'_>, report: &mut Report<'_>) {
    let Downstream { listener, tls, .. } = *downstream;
    if let (Some(listener), None) = (listener, tls)
        && listener.member("address").is_some()
        && !is_local(listener.member("address"))
    {
        let message = "other hosts reach this listener, and it speaks no TLS: whoever listens gets their tokens; give it a \
                       DownstreamTlsContext, or let it listen on 127.0.0.1";
        report.add(Setting::Plain, &place_of(listener, "address"), message);
    }
    let scheme = at(manager, &["scheme_header_transformation"]);
    let wanted = if tls.is_some() { "https" } else { "http" };
    let written = scheme.and_then(|scheme| text(scheme, &["scheme_to_overwrite"]));
    if written != Some(wanted)
        && !scheme.is_some_and(|scheme| is_true(scheme.member("match_upstream")))
    {
        let place = place_of(manager, "scheme_header_transformation");
        let message = format!(
            "over HTTP/2 the caller writes the scheme, which says what port a host without one means: set \
             `scheme_header_transformation: {{ scheme_to_overwrite: {wanted} }}`"
        );
        report.add(Setting::SchemeOfCaller, &place, message);
    }
    let Some(tls) = tls else { return };
    let common = tls.member("common_tls_context");
    let names = [
        "validation_context",
        "validation_context_sds_secret_config",
        "combined_validation_context",
    ];
    let validates =
        common.is_some_and(|common| names.iter().any(|name| common.member(name).is_some()));
    if validates || is_true(tls.member("require_client_certificate")) {
        for name in ["disable_stateless_session_resumption", "disable_stateful_session_resumption"]
        {
            if !is_true(tls.member(name)) {
                let message = format!(
                    "a session that is resumed is as good as the certificate that it began with, also when that is \
                     over or revoked: set `{name}: true`"
                );
                report.add(Setting::SessionResumption, &place_of(tls, name), message);
            }
        }
    }
}

fn check_routes(manager: &Node, filter_name: &str, report: &mut Report<'_>) {
    let Some(routes) = manager.member("route_config") else {
        let name = ["rds", "scoped_routes"].into_iter().find(|name| manager.member(name).is_some());
        let place = name.map_or_else(|| manager.place.clone(), |name| place_of(manager, name));
        let message =
            "the routes are not in this file: whether they switch the filter off cannot be checked";
        report.add(Setting::NotInFile, &place, message);
        return;
    };
    walk(routes, &mut Vec::new(), &mut |node, trail| {
        let overridden =
            node.member("typed_per_filter_config").and_then(|all| all.member(filter_name));
        if overridden.is_some_and(|any| is_true(typed(any).1.member("disabled"))) {
            check_switched_off(node, report);
        }
        if let Some(member) = node.members().iter().find(|member| member.name == "cluster_header") {
            let message = "`cluster_header` lets a header choose where the request goes, whatever host was judged: name \
                           the `cluster`";
            report.add(Setting::ClusterOfCaller, &member.place, message);
        }
        let is_host = trail.last().is_some_and(|_| node.member("domains").is_some());
        let domains = node.member("domains").map(Node::elements).unwrap_or_default();
        if let Some(all) = domains.iter().find(|domain| is_host && domain.text() == Some("*")) {
            let message = "`*` routes hosts that are no destination of the policy, which in mode `shadow` go there: name \
                           the destinations' hosts";
            report.add(Setting::CatchAll, &all.place, message);
        }
    });
}

/// The filter is off for `node`: a route, a virtual host or all of them.
fn check_switched_off(node: &Node, report: &mut Report<'_>) {
    let place = place_of(node, "typed_per_filter_config");
    let prefix = node.member("match").filter(|matched| matched.members().len() == 1);
    let is_all = node.member("match").is_none()
        || prefix.and_then(|all| text(all, &["prefix"])) == Some("/");
    if is_all {
        let message = "the filter is off here for every path: switch it off only for the routes that are open to all";
        report.add(Setting::FilterOff, &place, message);
    } else {
        let message = "the filter is off for this route: whoever reaches Envoy may use it";
        report.add(Setting::FilterOffForRoute, &place, message);
    }
}
