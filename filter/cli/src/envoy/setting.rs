//! What can be wrong with the deployment of the filter.

use crate::lint::{Kind, Severity};

/// A kind of finding about Envoy's configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Setting {
    /// The text is not YAML or JSON.
    Syntax,
    /// The filter would refuse its configuration.
    Invalid,
    /// There is no filter of ours.
    NoFilter,
    /// Something else than JSON.
    NotJson,
    /// Open when it fails.
    FailsOpen,
    /// Closed for good when it fails.
    NoReload,
    /// Pausing does not hold bodies.
    StopsHeadersOnly,
    /// Too late in the chain.
    FilterOrder,
    /// Not in the way at all.
    FilterOff,
    /// Not in the way of some routes.
    FilterOffForRoute,
    /// What was judged is changed behind it.
    ChangedAfterwards,
    /// Two readings of a path.
    PathNotNormalised,
    /// Two readings of a header.
    UnderscoreHeaders,
    /// The caller writes the scheme.
    SchemeOfCaller,
    /// The caller writes its address.
    AddressOfCaller,
    /// The caller chooses the upstream.
    ClusterOfCaller,
    /// Any host goes somewhere.
    CatchAll,
    /// The caller writes who its certificate says it is.
    CertificateOfCaller,
    /// A certificate is not asked for again.
    SessionResumption,
    /// Nobody tells the filter of it.
    PeerEvidence,
    /// None is needed.
    CertificateOptional,
    /// Any counts.
    CertificateUnverified,
    /// Those of strangers count for TLS.
    TrustDomain,
    /// A connection has no end.
    ConnectionAge,
    /// Tokens in the clear.
    Plain,
    /// Tunnels that nobody judges as such.
    Tunnels,
    /// The VM.
    Vm,
    /// The code.
    CodeNotPinned,
    /// A variable.
    VariableMissing,
    /// A cluster that is not there.
    ClusterUnknown,
    /// A cluster that anybody can stand in for.
    ClusterNotVerified,
    /// A cluster without its own time-out.
    ConnectTimeout,
    /// The admin interface.
    AdminOpen,
    /// Envoy is to take credentials away, and does not.
    CredentialsGoOn,
    /// Something is read from filter state that is not there.
    FilterStateUntold,
    /// Nothing is refused.
    ShadowMode,
    /// What is not in the file.
    NotInFile,
}

impl Setting {
    const fn row(self) -> (&'static str, Severity, &'static str) {
        use Severity::{Error, Note, Warning};
        match self {
            Self::Syntax => ("syntax", Error, "The text is not YAML or JSON"),
            Self::Invalid => ("invalid", Error, "The filter would refuse its configuration"),
            Self::NoFilter => ("no-filter", Error, "No HTTP filter in the file is Airflow Envoy"),
            Self::NotJson => ("not-json", Error, "Envoy would not hand the filter its JSON"),
            Self::FailsOpen => ("fails-open", Error, "Requests pass when the filter fails"),
            Self::NoReload => {
                ("no-reload", Warning, "A worker whose VM died refuses everything from then on")
            }
            Self::StopsHeadersOnly => (
                "stops-headers-only",
                Error,
                "A body lets a request go on that waits for its decision",
            ),
            Self::FilterOrder => {
                ("filter-order", Error, "Requests are answered or routed before they are judged")
            }
            Self::FilterOff => ("filter-off", Error, "Requests pass by the filter"),
            Self::FilterOffForRoute => {
                ("filter-off-for-route", Note, "Requests of a route pass by the filter")
            }
            Self::ChangedAfterwards => {
                ("changed-afterwards", Warning, "A filter behind may change what was judged")
            }
            Self::PathNotNormalised => {
                ("path-not-normalised", Error, "Router and policy may read different paths")
            }
            Self::UnderscoreHeaders => (
                "underscore-headers",
                Error,
                "A server may take a caller's header for a verified one",
            ),
            Self::SchemeOfCaller => (
                "scheme-of-caller",
                Warning,
                "The caller chooses the scheme, and with it the default port",
            ),
            Self::AddressOfCaller => {
                ("address-of-caller", Warning, "The caller is believed where it calls from")
            }
            Self::ClusterOfCaller => {
                ("cluster-of-caller", Error, "A header chooses where requests go")
            }
            Self::CatchAll => {
                ("catch-all", Warning, "Hosts that are no destination are routed somewhere")
            }
            Self::CertificateOfCaller => (
                "certificate-of-caller",
                Warning,
                "The caller is believed whose certificate it has",
            ),
            Self::SessionResumption => (
                "session-resumption",
                Warning,
                "A resumed session is not asked for its certificate again",
            ),
            Self::PeerEvidence => {
                ("peer-evidence", Error, "The filter does not learn whose certificate a caller has")
            }
            Self::CertificateOptional => {
                ("certificate-optional", Warning, "TLS lets callers in without a certificate")
            }
            Self::CertificateUnverified => {
                ("certificate-unverified", Error, "TLS takes certificates that nobody vouches for")
            }
            Self::TrustDomain => (
                "trust-domain",
                Warning,
                "TLS takes certificates of other trust domains than the filter",
            ),
            Self::ConnectionAge => (
                "connection-age",
                Warning,
                "A connection outlives the certificate that it began with",
            ),
            Self::Plain => ("plain", Warning, "Tokens cross the network in the clear"),
            Self::Tunnels => ("tunnels", Note, "Tunnels may be asked for"),
            Self::Vm => ("vm", Warning, "The VM is not the one that is tested, or shares its data"),
            Self::CodeNotPinned => {
                ("code-not-pinned", Error, "Whoever serves the code may change it")
            }
            Self::VariableMissing => {
                ("variable-missing", Error, "A secret that the filter asks for is not handed to it")
            }
            Self::ClusterUnknown => {
                ("cluster-unknown", Error, "The filter asks a cluster that is not there")
            }
            Self::ClusterNotVerified => (
                "cluster-not-verified",
                Error,
                "Anybody can pretend to be the server of keys or policy",
            ),
            Self::ConnectTimeout => {
                ("connect-timeout", Note, "A server that is gone is waited for long")
            }
            Self::AdminOpen => ("admin-open", Warning, "A task reaches Envoy's admin interface"),
            Self::CredentialsGoOn => (
                "credentials-go-on",
                Error,
                "Credentials that Envoy is to take away reach the upstream",
            ),
            Self::FilterStateUntold => (
                "filter-state-untold",
                Warning,
                "Filter state is read that the filter is not asked to write",
            ),
            Self::ShadowMode => ("shadow-mode", Note, "Nothing is refused"),
            Self::NotInFile => {
                ("not-in-file", Note, "A part is fetched by Envoy and cannot be checked here")
            }
        }
    }

    /// Its stable name.
    pub const fn name(self) -> &'static str {
        self.row().0
    }
}

impl Kind for Setting {
    const KINDS: &'static [Self] = &[
        Self::Syntax,
        Self::Invalid,
        Self::NoFilter,
        Self::NotJson,
        Self::FailsOpen,
        Self::NoReload,
        Self::StopsHeadersOnly,
        Self::FilterOrder,
        Self::FilterOff,
        Self::FilterOffForRoute,
        Self::ChangedAfterwards,
        Self::PathNotNormalised,
        Self::UnderscoreHeaders,
        Self::SchemeOfCaller,
        Self::AddressOfCaller,
        Self::ClusterOfCaller,
        Self::CatchAll,
        Self::CertificateOfCaller,
        Self::SessionResumption,
        Self::PeerEvidence,
        Self::CertificateOptional,
        Self::CertificateUnverified,
        Self::TrustDomain,
        Self::ConnectionAge,
        Self::Plain,
        Self::Tunnels,
        Self::Vm,
        Self::CodeNotPinned,
        Self::VariableMissing,
        Self::ClusterUnknown,
        Self::ClusterNotVerified,
        Self::ConnectTimeout,
        Self::AdminOpen,
        Self::CredentialsGoOn,
        Self::FilterStateUntold,
        Self::ShadowMode,
        Self::NotInFile,
    ];

    fn name(self) -> &'static str {
        self.row().0
    }

    fn meaning(self) -> &'static str {
        self.row().2
    }

    fn severity(self) -> Severity {
        self.row().1
    }
}
