// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What can go wrong in an operation on a device's INTx.

use std::io;

use crate::status::State;

const EINVAL: i32 = 22;
const ENXIO: i32 = 6;

/// An error of an operation on a device's INTx. Each names the operation and the device; [`errno`](Self::errno) is the
/// errno behind it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A step at the device or at the line failed, and there was no other way. `state` is where INTx is now; it works,
    /// or is disabled, and is not left masked.
    #[error("{operation} INTx of {device}: {source}; it is now in state: {state}")]
    Step {
        /// What was asked for.
        operation: &'static str,
        /// The device's label.
        device: String,
        /// Where INTx is now.
        state: State,
        /// The step, with what the system said.
        source: std::sync::Arc<interrupt_core::Error>,
    },
    /// The device has no interrupt that could be used, or cannot be asked.
    #[error("{operation} INTx of {device}: {source}")]
    NoInterrupt {
        /// What was asked for.
        operation: &'static str,
        /// The device's label.
        device: String,
        /// Why.
        source: Box<interrupt_core::Error>,
    },
    /// Only a relay is possible and the [`Relay`](crate::Relay) has been dropped. `errno` is ENXIO.
    #[error("{operation} INTx of {device}: only a relay is possible, and its Relay has been dropped")]
    NoRelay {
        /// What was asked for.
        operation: &'static str,
        /// The device's label.
        device: String,
    },
    /// No direct path leads to the line: see [`DirectIntx`](crate::DirectIntx). INTx is not connected, or still to the line
    /// before.
    #[error("{operation} INTx: {source}")]
    NoDirectPath {
        /// What was asked for.
        operation: &'static str,
        /// Why, with the device and the line.
        source: Box<interrupt_core::forward::Error>,
    },
    /// A saved state that cannot be one of this device, or is restored at the wrong time. `errno` is EINVAL. Nothing
    /// has changed.
    #[error("restore INTx of {device}: {reason}")]
    Saved {
        /// The device's label.
        device: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The operating system refused what the operation takes for itself.
    #[error("{operation} INTx of {device}: {step}: {source}")]
    Os {
        /// What was asked for.
        operation: &'static str,
        /// The device's label.
        device: String,
        /// The system call.
        step: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl Error {
    /// The errno behind it, where there is one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Step { source, .. } => source.errno(),
            Self::NoInterrupt { source, .. } => source.errno(),
            Self::NoDirectPath { source, .. } => source.errno(),
            Self::NoRelay { .. } => Some(ENXIO),
            Self::Saved { .. } => Some(EINVAL),
            Self::Os { source, .. } => source.raw_os_error(),
        }
    }
}

/// An error travels in every result, and in the enums of those who use this crate (clippy's `result_large_err`).
const _: () = assert!(size_of::<Error>() <= 64);

/// The result of an operation on a device's INTx.
pub type Result<T> = std::result::Result<T, Error>;
