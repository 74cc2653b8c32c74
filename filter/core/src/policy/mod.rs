//! The policy: read, compile, decide.
