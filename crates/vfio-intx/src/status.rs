// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What an INTx says of itself: its state, the reason for it, and what has failed.

use std::fmt;
use std::sync::Arc;

use interrupt_core::Gsi;
use interrupt_core::forward::Path;

/// The state of a device's INTx.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Not set up at the device. The line is low.
    Disabled,
    /// Set up, and held back: by a mask, by Interrupt Disable, or while the path changes.
    Masked,
    /// Carried to the line by this path.
    Carried(Path),
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disabled => f.write_str("disabled"),
            Self::Masked => f.write_str("masked"),
            Self::Carried(path) => path.fmt(f),
        }
    }
}

/// Why INTx is in its state.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Reason {
    /// The path is the one that INTx was connected by.
    /// [`Connection::explain`](interrupt_core::forward::Connection::explain) says why that path was chosen.
    Connected,
    /// Not enabled.
    NotEnabled,
    /// The device is in MSI or MSI-X mode.
    Msi,
    /// The device is being reset.
    Reset,
    /// Not connected to a line.
    NoLine,
    /// Only the [`Relay`](crate::Relay) could carry INTx, and it has been dropped.
    NoRelay,
    /// The VMM masks INTx on the guest's behalf.
    GuestMask,
    /// Interrupt Disable is set in the device's command register.
    DisIntx,
    /// The path that INTx was connected by has failed, and the relay carries INTx instead. The path is tried again when
    /// INTx is enabled (again), connected, reset, or comes back from MSI.
    FellBack {
        /// The path that failed.
        from: Path,
        /// The step that failed, with the device and the errno.
        error: Arc<interrupt_core::Error>,
    },
    /// The path is being changed.
    Changing,
    /// The relay carries INTx until the EOI of the interrupt that is under way, and this path from then on.
    HandingOver(Path),
    /// INTx was disabled because it could not be kept working.
    Failed(Arc<interrupt_core::Error>),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connected => f.write_str("connected so"),
            Self::NotEnabled => f.write_str("not enabled"),
            Self::Msi => f.write_str("the device is in MSI mode"),
            Self::Reset => f.write_str("the device is being reset"),
            Self::NoLine => f.write_str("not connected to a line"),
            Self::NoRelay => f.write_str("the relay is gone, and no direct path is possible"),
            Self::GuestMask => f.write_str("masked on the guest's behalf"),
            Self::DisIntx => f.write_str("Interrupt Disable is set"),
            Self::FellBack { from, error } => write!(f, "{from} failed: {error}"),
            Self::Changing => f.write_str("its path is being changed"),
            Self::HandingOver(path) => write!(f, "{path} follows at the EOI of the interrupt that is under way"),
            Self::Failed(error) => write!(f, "taken down: {error}"),
        }
    }
}

/// The state of a device's INTx, the reason for it, and what has failed.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Status {
    /// The device's label.
    pub device: String,
    /// The state.
    pub state: State,
    /// Why INTx is in that state.
    pub reason: Reason,
    /// The line that INTx is wired to, with the source's label.
    pub line: Option<(Gsi, String)>,
    /// How often a direct path has failed.
    pub fallbacks: u64,
    /// How often the relay or a direct path has been set up, the first time included.
    pub swaps: u64,
    /// The last step that failed.
    pub last_error: Option<Arc<interrupt_core::Error>>,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.device, self.state)?;
        if let Some((gsi, label)) = &self.line {
            write!(f, " on {gsi} ({label})")?;
        }
        write!(f, ": {}", self.reason)
    }
}
