// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What can go wrong behind the three traits.

use std::io;

use crate::{EoiScope, Gsi};

// The errno values that the traits promise, spelled here because the crate has no libc.
const ENOENT: i32 = 2;
const EBUSY: i32 = 16;
const EOPNOTSUPP: i32 = 95;

/// An error of a level source, an EOI notifier or a device's interrupt. Each names the operation and the line.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The key has its listener already: one EOI listener for each level source. `errno` is EBUSY.
    #[error("{operation}: {subject} has an EOI listener already; drop its guard first")]
    Busy {
        /// What was tried.
        operation: &'static str,
        /// What it was tried on.
        subject: EoiScope,
    },
    /// No such source or line here: the key is of another notifier, its source is gone, or the GSI has no line.
    /// `errno` is ENOENT.
    #[error("{operation}: no {subject} here")]
    NotFound {
        /// What was tried.
        operation: &'static str,
        /// What it was tried on.
        subject: EoiScope,
    },
    /// The path cannot do this at all, on any try. `errno` is EOPNOTSUPP.
    #[error("{operation} on {gsi} is not possible: {reason}")]
    Unsupported {
        /// What was tried.
        operation: &'static str,
        /// The line it was tried on.
        gsi: Gsi,
        /// Why it cannot be done, and what can be done instead where there is something.
        reason: String,
    },
    /// The operating system refused. `errno` is its own.
    #[error("{operation} on {gsi}: {source}")]
    Os {
        /// What was tried, usually the system call or ioctl.
        operation: &'static str,
        /// The line it was tried on.
        gsi: Gsi,
        /// What the system said.
        source: io::Error,
    },
    /// The device refused, or is gone.
    #[error("{operation} on device {device}: {source}")]
    Device {
        /// What was tried.
        operation: &'static str,
        /// The device's label.
        device: String,
        /// What the device's side said.
        source: io::Error,
    },
    /// A refusal that a backend has a type of its own for; `source` downcasts to it.
    #[error("{operation} on {gsi}: {source}")]
    Backend {
        /// What was tried.
        operation: &'static str,
        /// The line it was tried on.
        gsi: Gsi,
        /// The errno that fits, where there is one.
        errno: Option<i32>,
        /// The backend's own error.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl Error {
    /// The errno that says the same, for callers that speak to a kernel-shaped interface.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Busy { .. } => Some(EBUSY),
            Self::NotFound { .. } => Some(ENOENT),
            Self::Unsupported { .. } => Some(EOPNOTSUPP),
            Self::Os { source, .. } | Self::Device { source, .. } => source.raw_os_error(),
            Self::Backend { errno, .. } => *errno,
        }
    }
}

/// The result of the traits' methods.
pub type Result<T> = std::result::Result<T, Error>;
