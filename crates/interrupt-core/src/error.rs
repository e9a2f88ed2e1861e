// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The errors of level sources, EOI notifiers and devices' interrupts.

use std::io;

use crate::{EoiScope, Gsi};

// The errno values that the traits promise, spelled here because the crate has no libc.
const ENOENT: i32 = 2;
const EBUSY: i32 = 16;
const EOPNOTSUPP: i32 = 95;

/// An error of a level source, an EOI notifier or a device's interrupt, with the operation and the line or the device.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The source has its EOI listener already; a source has at most one. `errno` is EBUSY.
    #[error("{operation}: {subject} has an EOI listener already; drop its guard first")]
    Busy {
        /// The operation.
        operation: &'static str,
        /// The source or the line.
        subject: EoiScope,
    },
    /// The notifier has no such source or line: the key belongs to another notifier, the source is gone, or the GSI has no
    /// line. `errno` is ENOENT.
    #[error("{operation}: no {subject} here")]
    NotFound {
        /// The operation.
        operation: &'static str,
        /// The source or the line.
        subject: EoiScope,
    },
    /// The path cannot do this, at any time. `errno` is EOPNOTSUPP.
    #[error("{operation} on {gsi} is not possible: {reason}")]
    Unsupported {
        /// The operation.
        operation: &'static str,
        /// The line.
        gsi: Gsi,
        /// The reason, and the way out if there is one.
        reason: String,
    },
    /// The operating system refused. `errno` is the system's.
    #[error("{operation} on {gsi}: {source}")]
    Os {
        /// The operation: usually the system call or ioctl.
        operation: &'static str,
        /// The line.
        gsi: Gsi,
        /// The system's error.
        source: io::Error,
    },
    /// The device refused, or is gone.
    #[error("{operation} on device {device}: {source}")]
    Device {
        /// The operation.
        operation: &'static str,
        /// The device's label.
        device: String,
        /// The error of the device's side.
        source: io::Error,
    },
    /// A backend refused, with an error type of its own; `source` downcasts to this type.
    #[error("{operation} on {gsi}: {source}")]
    Backend {
        /// The operation.
        operation: &'static str,
        /// The line.
        gsi: Gsi,
        /// The errno that says the same, if there is one.
        errno: Option<i32>,
        /// The backend's own error.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl Error {
    /// The errno that says the same, for a caller with an interface like the kernel's.
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

/// An error travels in every result, and in the enums of those who use this crate (clippy's `result_large_err`).
const _: () = assert!(size_of::<Error>() <= 64);

/// The result of the traits' methods.
pub type Result<T> = std::result::Result<T, Error>;
