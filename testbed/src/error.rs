//! What went wrong while setting the stage: a sentence for a person, nothing to match on.

use std::fmt;

/// A fault of the testbed itself, as a sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error(String);

/// What the testbed's functions return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// The fault that `sentence` describes.
    pub fn new(sentence: impl Into<String>) -> Self {
        Self(sentence.into())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

/// Says what was being done when something failed.
pub trait Context<T> {
    /// The value, or the fault with `doing` before it.
    ///
    /// # Errors
    /// If there was a fault, or nothing where something was needed.
    fn context(self, doing: impl fmt::Display) -> Result<T>;
}

impl<T, E: fmt::Display> Context<T> for Result<T, E> {
    fn context(self, doing: impl fmt::Display) -> Result<T> {
        self.map_err(|error| Error::new(format!("{doing}: {error}")))
    }
}

impl<T> Context<T> for Option<T> {
    fn context(self, doing: impl fmt::Display) -> Result<T> {
        self.ok_or_else(|| Error::new(format!("{doing}: nothing there")))
    }
}
