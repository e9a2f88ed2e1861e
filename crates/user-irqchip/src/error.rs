// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Errors of a chip's description, of a saved state and of a route. The errors of a line are
//! [`interrupt_core::Error`].

use interrupt_core::{Gsi, Msi};

/// An invalid description of a chip.
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

/// The reason against restoring a saved state. The chip is unchanged, except after [`StateError::Route`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// The state was saved in a format that this version of the crate does not read. With serde the deserialiser's
    /// error has the text of this error.
    #[error("saved state has format {found}, and formats {oldest} to {newest} are known here")]
    Format {
        /// The format of the saved state.
        found: u32,
        /// The oldest format that this version reads.
        oldest: u32,
        /// The newest format that this version reads.
        newest: u32,
    },
    /// The state belongs to a different chip, with another number of pins for example.
    #[error("saved state has {what} {found}, and this chip has {here}")]
    OtherChip {
        /// The property that differs.
        what: &'static str,
        /// The value in the saved state.
        found: usize,
        /// The value of the chip.
        here: usize,
    },
    /// No chip can be in this state.
    #[error("saved state has an impossible {what}: {value:#x}")]
    Impossible {
        /// The impossible property.
        what: &'static str,
        /// Its value.
        value: u64,
    },
    /// The chip has taken over the state, but the output refused a route. The pins of refused routes send nothing until
    /// their entries are written again.
    #[error("a route of the restored state: {0}")]
    Route(#[source] interrupt_core::Error),
}

/// Errors travel in every result, and in the enums of those who use this crate (clippy's `result_large_err`).
const _: () = assert!(size_of::<StateError>() <= 64 && size_of::<RouteError>() <= 64 && size_of::<ConfigError>() <= 64);

/// Where a GSI leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// To the IOAPIC's pin that has this GSI by itself.
    Ioapic(Gsi),
    /// To this IRQ of the 8259 pair.
    Pic(Gsi),
    /// To no controller: a rising line sends this message, which has no EOI.
    Msi(Msi),
}

/// The reason against a route.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RouteError {
    /// There is no such pin, or no such controller.
    #[error("{gsi} cannot lead to {route:?}: there is no such pin here")]
    NoPin {
        /// The GSI.
        gsi: Gsi,
        /// The refused target.
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
    /// A controller refused to release or to add the line, or the output refused an MSI.
    #[error(transparent)]
    Line(#[from] interrupt_core::Error),
}
