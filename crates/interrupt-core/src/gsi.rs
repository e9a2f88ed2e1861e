// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The global system interrupt number, which devices and controllers share.

use std::fmt;

/// A global system interrupt: the number of one input line of a VM's interrupt controllers.
///
/// The controller gives a number its meaning. On x86 GSIs 0 to 23 are the IOAPIC's pins, and 0 to 15 are the inputs of
/// the 8259 pair too. With a GIC, GSI *n* is SPI 32+*n*. A `Gsi` can hold any `u32`; a backend refuses a number that has
/// no line.
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
