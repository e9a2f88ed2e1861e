// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The global system interrupt number, the one name that devices and controllers share.

use std::fmt;

/// A global system interrupt: the number of one input line of a VM's interrupt controllers.
///
/// What a number means is the controller's matter: on x86 the first 24 are the IOAPIC's pins and the first 16 of
/// those are the 8259 pair's inputs too; with a GIC, GSI *n* is SPI 32+*n*. Any `u32` can be written down here; whether a
/// line of that number exists is answered by whoever binds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gsi(pub u32);

impl From<u32> for Gsi {
    fn from(number: u32) -> Self {
        Self(number)
    }
}

impl From<Gsi> for u32 {
    fn from(gsi: Gsi) -> Self {
        gsi.0
    }
}

impl fmt::Display for Gsi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "gsi {}", self.0)
    }
}
