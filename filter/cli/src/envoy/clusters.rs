//! The clusters that the filter asks for keys, policy and whatever else it names a cluster for.

use airflow_envoy_core::quote::quote;

use super::{Report, Setting, at, place_of, text, trusts, typed, walk};
use crate::source::{Node, Place};

/// Checks every cluster that the filter's configuration names: with `cluster` or `keys_cluster`, beside a `uri` or
/// the like.
pub(super) fn check(configuration: &Node, report: &mut Report<'_>) {
    let mut named: Vec<(String, Place, bool)> = Vec::new();
    walk(configuration, &mut Vec::new(), &mut |node, trail| {
        // What stands in a policy or in keys is not for the filter to ask.
        let is_inline = trail.iter().any(|outer| {
            let inline = outer.member("inline");
            inline.is_some_and(|inline| {
                std::ptr::eq(inline, node) || trail.iter().any(|one| std::ptr::eq(*one, inline))
            })
        });
        if is_inline {
            return;
        }
        let uris = ["uri", "discovery"].iter().filter_map(|name| text(node, &[name]));
        let is_https = uris.into_iter().any(|uri| uri.starts_with("https://"));
        for member in node.members() {
            if let ("cluster" | "keys_cluster", Some(cluster)) =
                (member.name.as_str(), member.value.text())
            {
                named.push((cluster.to_owned(), member.place.clone(), is_https));
            }
        }
    });
    let document = report.document;
    let clusters = at(document, &["static_resources", "clusters"]).map(Node::elements);
    let clusters = clusters.unwrap_or_default();
    for (name, place, is_https) in named {
        let shown = quote(&name);
        match clusters.iter().find(|cluster| text(cluster, &["name"]) == Some(name.as_str())) {
            Some(cluster) => check_cluster(cluster, &shown, is_https, report),
            None if at(document, &["dynamic_resources", "cds_config"]).is_some() => {
                let message = format!(
                    "whether there is a cluster {shown} only Envoy knows: it fetches its clusters"
                );
                report.add(Setting::NotInFile, &place, message);
            }
            None => {
                let message = format!(
                    "`static_resources.clusters` has no cluster {shown}: the filter would never get an answer"
                );
                report.add(Setting::ClusterUnknown, &place, message);
            }
        }
    }
}

fn check_cluster(cluster: &Node, shown: &str, is_https: bool, report: &mut Report<'_>) {
    if cluster.member("connect_timeout").is_none() {
        let message = format!(
            "cluster {shown} has no `connect_timeout`: Envoy waits 5 s for a connection; set 1s"
        );
        report.add(Setting::ConnectTimeout, &cluster.place, message);
    }
    if !is_https {
        return;
    }
    let tls = cluster.member("transport_socket").and_then(|socket| socket.member("typed_config"));
    let tls = tls.map(typed).filter(|(kind, _)| kind.ends_with(".UpstreamTlsContext"));
    let Some((_, tls)) = tls else {
        let message = format!(
            "cluster {shown} is asked by https and speaks no TLS: the `uri` does not make it; give it a \
             `transport_socket` with an UpstreamTlsContext"
        );
        report.add(Setting::ClusterNotVerified, &place_of(cluster, "transport_socket"), message);
        return;
    };
    let place = place_of(cluster, "transport_socket");
    let common = tls.member("common_tls_context");
    let context = |path: &[&str]| common.and_then(|common| at(common, path));
    let plain = context(&["validation_context"])
        .or_else(|| context(&["combined_validation_context", "default_validation_context"]));
    let by_name = context(&["validation_context_sds_secret_config"])
        .or_else(|| {
            context(&["combined_validation_context", "validation_context_sds_secret_config"])
        })
        .or_else(|| context(&["custom_validator_config"]));
    if !plain.is_some_and(trusts) && by_name.is_none() {
        let message = format!(
            "cluster {shown} takes any certificate: say in `validation_context` which authority is trusted (`trusted_ca`)"
        );
        report.add(Setting::ClusterNotVerified, &place, message);
        return;
    }
    let pinned = |context: &Node| {
        ["match_typed_subject_alt_names", "verify_certificate_hash", "verify_certificate_spki"]
            .iter()
            .any(|name| context.member(name).is_some())
    };
    if by_name.is_none()
        && !plain.is_some_and(pinned)
        && !super::is_true(tls.member("auto_sni_san_validation"))
    {
        let message = format!(
            "cluster {shown} takes a certificate of any name that the authority signs: name the server's in \
             `match_typed_subject_alt_names`"
        );
        report.add(Setting::ClusterNotVerified, &place, message);
    }
    let sni = text(tls, &["sni"]).unwrap_or_default();
    if sni.is_empty() && !super::is_true(tls.member("auto_host_sni")) {
        let message = format!("cluster {shown} does not say which server it wants: set `sni`");
        report.add(Setting::ClusterNotVerified, &place, message);
    }
}
