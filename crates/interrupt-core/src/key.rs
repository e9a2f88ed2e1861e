// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The key of one level source, to which one EOI listener can be bound.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::Gsi;

/// Names one level source for as long as the process lives.
///
/// The 2012 proposal returned such a key from the registration of a level irqfd and took it to bind an EOI eventfd.
/// Keys are never used twice, so that a key that outlived its source cannot reach another one; the number of an fd or the
/// kernel's own eventfd id would be recycled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SourceKey {
    gsi: Gsi,
    id: u64,
}

impl SourceKey {
    /// A key for a new source on `gsi`, different from every key made before.
    pub fn new(gsi: Gsi) -> Self {
        // A std atomic even under a model checker: the number is an identity and orders nothing.
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self {
            gsi,
            id: NEXT.fetch_add(1, Ordering::Relaxed),
        }
    }

    /// The GSI of the source.
    pub fn gsi(&self) -> Gsi {
        self.gsi
    }
}

impl fmt::Display for SourceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "source #{} on {}", self.id, self.gsi)
    }
}
