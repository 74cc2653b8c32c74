//! The audit trail as it was written: found in files and logs ([`reader`]), read ([`record`]), verified
//! ([`verify`]).
//!
//! Everything here is about text that somebody may have tampered with: nothing in it may panic, and
//! memory is bounded by the limits of [`reader`]. What it is not: it writes no trail, the core does.

pub mod canonical;
pub mod link;
pub mod parallel;
pub mod reader;
pub mod record;
pub mod select;
pub mod verify;

pub use self::reader::{Chunk, Found, Place, Reader, Seen};
pub use self::record::{Decision, Kind, Record};
