// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What an EOI is told of: the key of a level source, or a line.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::gsi::Gsi;

/// Names one level source for as long as the process lives.
///
/// The 2012 proposal returned such a key from the registration of a level irqfd, and took the key to bind an EOI eventfd.
/// A key is never used twice, so a key that outlives its source reaches no other source. The number of an fd and the
/// kernel's eventfd id are used again, and cannot be keys.
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

/// What a listener is told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EoiScope {
    /// The EOIs of a level source: all EOIs of its line, also those of other sources that share the line. A source has at
    /// most one listener, and the subscription ends with the source.
    Source(SourceKey),
    /// The EOIs of a line, whatever drives the line. A line has any number of listeners.
    Gsi(Gsi),
}

impl EoiScope {
    /// The line.
    pub fn gsi(&self) -> Gsi {
        match self {
            Self::Source(key) => key.gsi(),
            Self::Gsi(gsi) => *gsi,
        }
    }

    pub(crate) fn is_gsi(self) -> bool {
        matches!(self, Self::Gsi(_))
    }
}

impl From<SourceKey> for EoiScope {
    fn from(key: SourceKey) -> Self {
        Self::Source(key)
    }
}

impl From<Gsi> for EoiScope {
    fn from(gsi: Gsi) -> Self {
        Self::Gsi(gsi)
    }
}

impl fmt::Display for EoiScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Source(key) => key.fmt(f),
            Self::Gsi(gsi) => gsi.fmt(f),
        }
    }
}
