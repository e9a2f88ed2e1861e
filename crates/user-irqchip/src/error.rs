// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Errors of a chip's description, of a saved state and of a route. The errors of a line are
//! [`interrupt_core::Error`].

use interrupt_core::{Gsi, Msi};

/// A chip that cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The number of pins is not 1 to 64.
    #[error("an IOAPIC has 1 to 64 pins, not {pins}")]
    Pins {
        /// The number asked for.
        pins: u8,
    },
    /// The pins' GSIs are beyond 32 bits.
    #[error("{pins} pins from {first_gsi} have no GSI numbers of their own")]
    Gsis {
        /// The GSI of the first pin.
        first_gsi: Gsi,
        /// The number of pins.
        pins: u8,
    },
    /// The ID is not 0 to 15.
    #[error("an IOAPIC has an ID of 0 to 15, not {id}")]
    Id {
        /// The ID asked for.
        id: u8,
    },
}

/// A saved state that cannot be restored. The chip is as it was, except after [`StateError::Route`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// The state was saved in a format that this version of the crate does not read. Reading a state with serde gives this
    /// error's text as the error of the deserialiser.
    #[error("saved state has format {found}, and formats {oldest} to {newest} are known here")]
    Format {
        /// The format of the saved state.
        found: u32,
        /// The oldest format that is known.
        oldest: u32,
        /// The newest format that is known.
        newest: u32,
    },
    /// The state is of another chip: of another number of pins, say.
    #[error("saved state has {what} {found}, and this chip has {here}")]
    OtherChip {
        /// What differs.
        what: &'static str,
        /// What the saved state has.
        found: usize,
        /// What the chip has.
        here: usize,
    },
    /// No chip can be in this state.
    #[error("saved state has an impossible {what}: {value:#x}")]
    Impossible {
        /// What is impossible.
        what: &'static str,
        /// Its value.
        value: u64,
    },
    /// The state was taken over, but the output would not be told of a route. Pins of such routes send nothing until their
    /// entries are written again.
    #[error("a route of the restored state: {0}")]
    Route(#[source] interrupt_core::Error),
}

/// Where a GSI leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// To the IOAPIC's pin that has this GSI by itself.
    Ioapic(Gsi),
    /// To this IRQ of the 8259 pair.
    Pic(Gsi),
    /// To no controller: a rising line sends this message, and nobody learns of its end.
    Msi(Msi),
}

/// A route that a GSI cannot have.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RouteError {
    /// There is no such pin, or no such controller.
    #[error("{gsi} cannot lead to {route:?}: there is no such pin here")]
    NoPin {
        /// The GSI.
        gsi: Gsi,
        /// Where it was to lead.
        route: Route,
    },
    /// A GSI leads to pins or to an MSI, not to both.
    #[error("{gsi} cannot lead to a pin and to an MSI; clear its routes first")]
    Mixed {
        /// The GSI.
        gsi: Gsi,
    },
    /// The GSI has sources or listeners, and an MSI has no EOI.
    #[error("{gsi} has sources or listeners, and cannot lead to an MSI before they are gone")]
    InUse {
        /// The GSI.
        gsi: Gsi,
    },
    /// A controller would not let go of the line or take it, or the output would not be told of an MSI.
    #[error(transparent)]
    Line(#[from] interrupt_core::Error),
}
