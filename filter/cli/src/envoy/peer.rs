//! The mesh peer: does Envoy tell the filter whose certificate a caller has, and does TLS vouch for it?

use airflow_envoy_core::quote::quote;
use serde_json::Value;

use super::connection::Downstream;
use super::{Report, Setting, at, is_true, place_of, text, trusts, typed};
use crate::source::Node;

/// The object of Envoy's filter state by which the filter learns of the certificate.
const OBJECT: &str = "airflow_envoy.peer";

/// What must stand in it.
const EVIDENCE: &str = "%CEL(connection.peer_certificate_valid)% %DOWNSTREAM_PEER_FINGERPRINT_256% \
                        %DOWNSTREAM_PEER_CERT_V_END(%s)% %DOWNSTREAM_PEER_URI_SAN%";

/// The filter's `peer`, as far as Envoy must fit it.
struct Wanted {
    is_required: bool,
    by_header: bool,
    trust_domains: Vec<String>,
}

impl Wanted {
    /// That of the filter's own configuration, unless it asks for no peer.
    fn read(configuration: &Value) -> Option<Self> {
        let peer = configuration.get("peer")?;
        let identity = peer.get("identity").and_then(Value::as_str).unwrap_or("required");
        let domains = peer.get("trust_domains").and_then(Value::as_array);
        let domains = domains.into_iter().flatten().filter_map(Value::as_str);
        (identity != "off").then(|| Self {
            is_required: identity == "required",
            by_header: peer.get("source").is_some_and(|source| source.get("xfcc").is_some()),
            trust_domains: domains.map(str::to_owned).collect(),
        })
    }
}

/// Whether the filter takes the peer from `x-forwarded-client-cert`.
pub(super) fn is_by_header(configuration: &Value) -> bool {
    Wanted::read(configuration).is_some_and(|wanted| wanted.by_header)
}

/// Checks the listener of a connection manager whose filter has this configuration.
pub(super) fn check(
    configuration: &Value,
    manager: &Node,
    downstream: &Downstream<'_>,
    report: &mut Report<'_>,
) {
    let Some(wanted) = Wanted::read(configuration) else { return };
    let Some(tls) = downstream.tls else {
        let message = "the filter asks for a mesh peer (`peer`), and this listener speaks no TLS: every call is \
                       `peer_missing`; give it a DownstreamTlsContext that requires a client certificate";
        let place = downstream.chain.map_or(&manager.place, |chain| &chain.place);
        report.add(Setting::PeerEvidence, place, message);
        return;
    };
    check_evidence(manager, downstream, report);
    check_tls(tls, &wanted, report);
    check_age(manager, report);
    let name = "forward_client_cert_details";
    let how = text(manager, &[name]).unwrap_or("SANITIZE");
    if wanted.by_header && matches!(how, "SANITIZE" | "SANITIZE_SET") {
        let message = format!(
            "`peer.source` is `xfcc`, and `{how}` removes what the hop wrote: set `{name}: FORWARD_ONLY`; the filter \
             believes it from the hops that it names only"
        );
        report.add(Setting::PeerEvidence, &place_of(manager, name), message);
    }
}

/// The network filter that tells of the certificate must stand before the connection manager.
fn check_evidence(manager: &Node, downstream: &Downstream<'_>, report: &mut Report<'_>) {
    let filters = downstream.chain.and_then(|chain| chain.member("filters"));
    let before = filters.map(Node::elements).unwrap_or_default().iter().take_while(|filter| {
        let value = filter.member("typed_config").map(|any| typed(any).1);
        !value.is_some_and(|value| std::ptr::eq(value, manager))
    });
    let states = before.filter_map(|filter| {
        let (kind, value) = typed(filter.member("typed_config")?);
        kind.ends_with("network.set_filter_state.v3.Config").then_some(value)
    });
    let list = "on_downstream_tls_handshake";
    let mut early = None;
    for state in states {
        let of = |name: &str| state.member(name).map(Node::elements).unwrap_or_default();
        let is_it = |object: &&Node| text(object, &["object_key"]) == Some(OBJECT);
        early = early.or_else(|| of("on_new_connection").iter().find(is_it));
        let Some(object) = of(list).iter().find(is_it) else { continue };
        let written = text(object, &["format_string", "text_format_source", "inline_string"]);
        if written != Some(EVIDENCE) || text(object, &["factory_key"]) != Some("envoy.string") {
            let message = format!(
                "the filter reads `{OBJECT}` as an `envoy.string` of `{EVIDENCE}`: write it letter for letter"
            );
            report.add(Setting::PeerEvidence, &place_of(object, "format_string"), message);
        }
        return;
    }
    let message = match early {
        Some(_) => format!(
            "`{OBJECT}` is set before the TLS handshake, when there is no certificate yet: set it in `{list}`"
        ),
        None => format!(
            "nothing tells the filter whose certificate a caller has, so that every call is `peer_missing`: before \
             this connection manager put envoy.filters.network.set_filter_state, which sets `{OBJECT}` in `{list}`"
        ),
    };
    let place = early.map_or(&manager.place, |object| &object.place);
    report.add(Setting::PeerEvidence, place, message);
}

fn check_tls(tls: &Node, wanted: &Wanted, report: &mut Report<'_>) {
    let name = "require_client_certificate";
    if wanted.is_required && !is_true(tls.member(name)) {
        let message =
            format!("callers without a certificate get as far as the filter: set `{name}: true`");
        report.add(Setting::CertificateOptional, &place_of(tls, name), message);
    }
    let common = tls.member("common_tls_context");
    let context = |path: &[&str]| common.and_then(|common| at(common, path));
    let combined = "combined_validation_context";
    let plain = context(&["validation_context"])
        .or_else(|| context(&[combined, "default_validation_context"]));
    let by_name = context(&["validation_context_sds_secret_config"])
        .or_else(|| context(&[combined, "validation_context_sds_secret_config"]));
    if !plain.is_some_and(trusts) && by_name.is_none() {
        let message = "no authority is named that vouches for client certificates: say it in `validation_context` \
                       (`trusted_ca`), or have it fetched";
        let place = place_of(tls, "common_tls_context");
        report.add(Setting::CertificateUnverified, &place, message);
        return;
    }
    let name = "trust_chain_verification";
    if let Some(plain) = plain
        && text(plain, &[name]) == Some("ACCEPT_UNTRUSTED")
    {
        let message = "`ACCEPT_UNTRUSTED` takes certificates that nobody vouches for, which the filter refuses: leave \
                       it out";
        report.add(Setting::CertificateUnverified, &place_of(plain, name), message);
    }
    let name = "match_typed_subject_alt_names";
    match plain.and_then(|plain| Some((plain, plain.member(name)?))) {
        Some((plain, matchers)) => {
            let stray = matchers.elements().iter().find(|one| !is_confined(one, wanted));
            if let Some(stray) = stray {
                let message = format!(
                    "this lets in certificates of other trust domains than {}: use a `matcher` with `prefix: \
                     spiffe://<trust domain>/` and `san_type: URI`",
                    domains(wanted)
                );
                report.add(Setting::TrustDomain, &stray.place, message);
            } else if matchers.elements().is_empty() {
                report.add(Setting::TrustDomain, &place_of(plain, name), any_domain(wanted));
            }
        }
        None if by_name.is_some() && plain.is_none() => {
            let message =
                "of which trust domains client certificates are let in is not in this file";
            report.add(Setting::NotInFile, &place_of(tls, "common_tls_context"), message);
        }
        None => {
            let place = plain.map_or(&tls.place, |plain| &plain.place);
            report.add(Setting::TrustDomain, place, any_domain(wanted));
        }
    }
}

fn any_domain(wanted: &Wanted) -> String {
    format!(
        "TLS lets in certificates of every trust domain, and the filter only of {}: demand it in \
         `match_typed_subject_alt_names`",
        domains(wanted)
    )
}

fn domains(wanted: &Wanted) -> String {
    wanted.trust_domains.iter().map(|domain| quote(domain)).collect::<Vec<_>>().join(", ")
}

/// Whether what it matches is of a trust domain that the filter believes. What a regular expression matches is
/// not looked at.
fn is_confined(matcher: &Node, wanted: &Wanted) -> bool {
    if text(matcher, &["san_type"]) != Some("URI") {
        return false;
    }
    let begins = ["prefix", "exact"].iter().find_map(|name| text(matcher, &["matcher", name]));
    match begins {
        Some(begins) => wanted.trust_domains.iter().any(|domain| {
            let rest =
                begins.strip_prefix("spiffe://").and_then(|rest| rest.strip_prefix(&**domain));
            rest.is_some_and(|rest| rest.starts_with('/'))
        }),
        None => at(matcher, &["matcher", "safe_regex"]).is_some(),
    }
}

/// A certificate is asked for when a connection begins.
fn check_age(manager: &Node, report: &mut Report<'_>) {
    let name = "max_connection_duration";
    let options = manager.member("common_http_protocol_options");
    if options.is_some_and(|options| options.member(name).is_some()) {
        return;
    }
    let place = options.map_or(&manager.place, |options| &options.place);
    let message = format!(
        "a connection goes on when the certificate that it began with is revoked: bound it with \
         `common_http_protocol_options.{name}`"
    );
    report.add(Setting::ConnectionAge, place, message);
}
