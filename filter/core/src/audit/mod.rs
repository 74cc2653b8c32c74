//! The audit trail.

pub mod collector;

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Its place in its stream.
    pub seq: u64,
    /// Canonical bytes, without `\n`.
    pub bytes: Vec<u8>,
}

impl Line {
    /// Its place in its stream.
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// Canonical bytes, without `\n`.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
impl Line {
    fn of(seq: u64, bytes: Vec<u8>) -> Self {
        Self { seq, bytes }
    }
}
