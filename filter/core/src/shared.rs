//! What the workers of one Envoy process know in common.
//!
//! proxy-wasm gives each worker thread a virtual machine of its own, and between them a store of
//! byte strings with compare-and-swap. It has no expiry and nothing can be removed from it, so the
//! keys that are used are bounded in number.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;

/// The store, as the host gives it.
pub trait SharedData {
    /// The value of a key and its stamp.
    fn read(&self, key: &str) -> Option<(Vec<u8>, Stamp)>;

    /// Sets a key, if it still has the stamp that was read; with `None` whatever it has. A key that
    /// does not exist is set in any case, so of two workers that create one the later wins.
    ///
    /// # Errors
    /// [`Refused`] if another worker was first, or the host has no such store.
    fn write(&self, key: &str, value: &[u8], unchanged: Option<Stamp>) -> Result<(), Refused>;

    /// A number that differs from what it was before whenever [`Self::announce`] was called by any
    /// worker. Cheap enough to be asked for at each request.
    fn announced(&self) -> u64;

    /// Lets the other workers know that something was written that they should read.
    fn announce(&self);
}

/// Tells one write of a value from the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp(pub u32);

/// The value was not written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// It had changed.
    Changed,
    /// The host does not do this.
    Unsupported,
}

/// A store in memory: for a gate that is alone, and for tests with several.
#[derive(Debug, Default)]
pub struct Memory {
    values: RefCell<HashMap<String, (Vec<u8>, u32)>>,
    stamps: Cell<u32>,
    announced: Cell<u64>,
}

impl Memory {
    /// Bytes and number of the values, for tests that watch them grow.
    pub fn size(&self) -> (usize, usize) {
        let values = self.values.borrow();
        (values.values().map(|(value, _)| value.len()).sum(), values.len())
    }
}

impl SharedData for Memory {
    fn read(&self, key: &str) -> Option<(Vec<u8>, Stamp)> {
        let values = self.values.borrow();
        values.get(key).map(|(value, stamp)| (value.clone(), Stamp(*stamp)))
    }

    fn write(&self, key: &str, value: &[u8], unchanged: Option<Stamp>) -> Result<(), Refused> {
        let mut values = self.values.borrow_mut();
        let changed =
            |expected: Stamp| values.get(key).is_some_and(|(_, stamp)| Stamp(*stamp) != expected);
        if unchanged.is_some_and(changed) {
            return Err(Refused::Changed);
        }
        self.stamps.set(self.stamps.get().wrapping_add(1).max(1));
        values.insert(key.to_owned(), (value.to_vec(), self.stamps.get()));
        Ok(())
    }

    fn announced(&self) -> u64 {
        self.announced.get()
    }

    fn announce(&self) {
        self.announced.set(self.announced.get().wrapping_add(1));
    }
}
