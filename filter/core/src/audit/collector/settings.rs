//! The configuration of an HTTP collector: a sink `{"http": {…}}`.

use crate::configuration::{Environment, bounded_span, read_token, read_uri, timeout};
use crate::document::{Node, Report};
use crate::feed::{Secret, Uri};
use crate::time::Span;

/// Where a collector is, and how records are sent there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The Envoy cluster that the callout goes to; the URI's host never chooses one.
    pub cluster: String,
    /// What is posted to.
    pub uri: Uri,
    /// The collector's bearer token (RFC 6750 §2.1).
    pub token: Option<Secret>,
    /// The most bytes of a batch with more than one record.
    pub batch_bytes: usize,
    /// Longest time that a record waits for others to share its batch.
    pub batch_time: Span,
    /// The most bytes of records that are kept; what comes then goes to the log.
    pub queue_bytes: usize,
    /// Most batches on their way at once.
    pub in_flight: usize,
    /// Time after which an answer is no longer waited for.
    pub timeout: Span,
}

impl Settings {
    /// Reads the sink's `http` member.
    pub fn read(
        node: &Node<'_>,
        report: &mut Report,
        environment: Environment<'_>,
    ) -> Option<Self> {
        let mut object = node.object(report)?;
        let cluster = object.required(report, "cluster").and_then(|node| node.string(report));
        let uri = object.required(report, "uri").and_then(|node| read_uri(&node, report));
        let token = read_token(&mut object, report, environment);
        let mut size = |name, least: u64, most: u64, default: u64| {
            let size = match object.optional(name) {
                Some(node) => node.integer(report, least, most),
                None => Some(default),
            };
            size.and_then(|size| usize::try_from(size).ok())
        };
        let batch_bytes = size("batch_bytes", 1024, 1 << 20, 1 << 16);
        let queue_bytes = size("queue_bytes", 1 << 14, 1 << 24, 1 << 20);
        let in_flight = size("in_flight", 1, 4, 1);
        let batch_time = match object.optional("batch_time") {
            Some(node) => bounded_span(&node, report, Span::from_millis(100), Span::from_secs(60)),
            None => Some(Span::from_secs(1)),
        };
        let timeout = timeout(&mut object, report);
        object.finish(report);
        let (batch_bytes, queue_bytes) = (batch_bytes?, queue_bytes?);
        if queue_bytes < batch_bytes {
            let problem = format!(
                "`queue_bytes` {queue_bytes} are less than `batch_bytes` {batch_bytes}: no batch would \
                 ever be full"
            );
            node.fault(report, problem);
        }
        Some(Self {
            cluster: cluster?.to_owned(),
            uri: uri?,
            token: token?,
            batch_bytes,
            batch_time: batch_time?,
            queue_bytes,
            in_flight: in_flight?,
            timeout: timeout?,
        })
    }
}
