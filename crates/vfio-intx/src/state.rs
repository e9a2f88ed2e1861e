// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the state machine says of itself: the state, why it is that one, and what the last fallback was about.

use std::fmt;
use std::sync::Arc;

use interrupt_core::Gsi;
use interrupt_core::forward::{Path, WhyNot};

/// Where a device's INTx is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Not set up at the device. The line is low.
    Disabled,
    /// Set up, and held back on the guest's behalf: masked by the VMM, or Interrupt Disable. The line is low.
    Masked,
    /// The event loop carries the interrupt to the line and the EOI to the device.
    Relay,
    /// The kernel carries both.
    KernelLoop,
    /// The kernel carries the interrupt, the userspace IOAPIC the EOI.
    SplitKick,
    /// The host's interrupt controller hands the interrupt over.
    HostForward,
}

impl From<Path> for State {
    fn from(path: Path) -> Self {
        match path {
            Path::HostForward => Self::HostForward,
            Path::KernelLoop => Self::KernelLoop,
            Path::SplitKick => Self::SplitKick,
            Path::Relay => Self::Relay,
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Disabled => "disabled",
            Self::Masked => "masked",
            Self::Relay => "relay",
            Self::KernelLoop => "kernel loop",
            Self::SplitKick => "split kick",
            Self::HostForward => "host forward",
        })
    }
}

/// Why INTx is in the state it is in, and not in a faster one.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Because {
    /// It is the fastest path that line and device have.
    Fastest,
    /// Nobody has enabled it.
    NotEnabled,
    /// The device is in MSI or MSI-X mode.
    Msi,
    /// The device is being reset.
    Reset,
    /// The guest has routed it nowhere.
    NoRoute,
    /// The [`Relay`](crate::Relay) is gone, and nothing else is possible.
    NoRelay,
    /// The VMM masks it on the guest's behalf.
    GuestMask,
    /// Interrupt Disable is set in the device's command register.
    DisIntx,
    /// The path that would be faster is not taken, for this reason. One that has failed is tried again when INTx is enabled (again),
    /// gets another line, or comes back from a reset or from MSI; [`Status::fallback`] says more.
    Slower(WhyNot),
    /// A registry is changing its path.
    Changing,
    /// It was taken down because it could not be kept working.
    Failed(Arc<interrupt_core::Error>),
}

impl fmt::Display for Because {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fastest => f.write_str("the fastest path that line and device have"),
            Self::NotEnabled => f.write_str("nobody has enabled it"),
            Self::Msi => f.write_str("the device is in MSI mode"),
            Self::Reset => f.write_str("the device is being reset"),
            Self::NoRoute => f.write_str("the guest has routed it nowhere"),
            Self::NoRelay => f.write_str("the relay is gone, and nothing else is possible"),
            Self::GuestMask => f.write_str("masked on the guest's behalf"),
            Self::DisIntx => f.write_str("Interrupt Disable is set"),
            Self::Slower(why_not) => write!(f, "{why_not}"),
            Self::Changing => f.write_str("its path is being changed"),
            Self::Failed(error) => write!(f, "taken down: {error}"),
        }
    }
}

/// A direct path that was tried and failed.
#[derive(Clone, Debug)]
pub struct Fallback {
    /// The path that was wanted.
    pub wanted: Path,
    /// The step that failed, with device and errno.
    pub error: Arc<interrupt_core::Error>,
}

impl fmt::Display for Fallback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} failed: {}", self.wanted, self.error)
    }
}

/// The answer to "where is this device's INTx, and why".
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Status {
    /// The device's label.
    pub device: String,
    /// Where its INTx is.
    pub state: State,
    /// Why there.
    pub because: Because,
    /// The line it is wired to now, with the source's label.
    pub line: Option<(Gsi, String)>,
    /// The last fallback, also when it has been overcome since.
    pub fallback: Option<Fallback>,
    /// How many fallbacks there have been.
    pub fallbacks: u64,
    /// How often the relay or a direct path has been set up, the first time included.
    pub swaps: u64,
    /// The last step that failed without consequence for the path: a mask that was refused, a line that would not be
    /// lowered, a relayed EOI whose unmask had to be replaced by a set-up from scratch.
    pub last_error: Option<Arc<interrupt_core::Error>>,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.device, self.state)?;
        if let Some((gsi, label)) = &self.line {
            write!(f, " on {gsi} ({label})")?;
        }
        match (&self.because, &self.fallback) {
            // It names the path too.
            (Because::Slower(WhyNot::Failed(_)), Some(fallback)) => write!(f, ": {fallback}"),
            (because, _) => write!(f, ": {because}"),
        }
    }
}
