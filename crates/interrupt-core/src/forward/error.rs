// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a registry refuses.

use std::os::fd::RawFd;
use std::sync::Arc;

use super::{DeviceIrq, EventfdId, Side};

const EBADF: i32 = 9;
const EAGAIN: i32 = 11;
const ENOENT: i32 = 2;
const EBUSY: i32 = 16;
const EINVAL: i32 = 22;

/// A refusal. Nothing has changed, if it does not say otherwise.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is one of that side already. EBUSY; the pair is untouched.
    #[error("{id} has a {side} already ({label}); drop its registration first")]
    Busy {
        /// The identity.
        id: EventfdId,
        /// Which side.
        side: Side,
        /// Who is there.
        label: String,
    },
    /// No path could be had. What was just registered is not; a pair that was connected before is so still, or else its producer
    /// leads nowhere and is not left masked.
    #[error("{id}: no path from {producer} to {line}: {source}")]
    Connect {
        /// The identity.
        id: EventfdId,
        /// The device's side.
        producer: String,
        /// The guest's side.
        line: String,
        /// What stood in the way of the last path that was tried.
        source: Arc<crate::Error>,
    },
    /// Both sides are there, and have no path in common; or none but a relay, for an explicit forward. EOPNOTSUPP.
    #[error("{id}: no path from {producer} to {line}: {reason}")]
    NoPath {
        /// The identity.
        id: EventfdId,
        /// The device's side.
        producer: String,
        /// The guest's side.
        line: String,
        /// Why not.
        reason: String,
    },
    /// Nobody is registered under this identity. ENOENT.
    #[error("{0} is not registered")]
    NotFound(EventfdId),
    /// A malformed request to forward or unforward. EINVAL.
    #[error("forward: {0}")]
    Malformed(String),
    /// No interrupt of this device is registered. EBADF.
    #[error("forward: no interrupt of a device with fd {0} is registered")]
    UnknownDevice(RawFd),
    /// The interrupt is masked, or the guest has not ended it. EAGAIN: try again.
    #[error("forward {irq}: it is {what}; try again when it is not")]
    NotIdle {
        /// The interrupt.
        irq: DeviceIrq,
        /// "masked" or "active".
        what: &'static str,
    },
}

impl Error {
    /// The errno that says the same.
    pub fn errno(&self) -> Option<i32> {
        const EOPNOTSUPP: i32 = 95;
        match self {
            Self::Busy { .. } => Some(EBUSY),
            Self::Connect { source, .. } => source.errno(),
            Self::NoPath { .. } => Some(EOPNOTSUPP),
            Self::NotFound(_) => Some(ENOENT),
            Self::Malformed(_) => Some(EINVAL),
            Self::UnknownDevice(_) => Some(EBADF),
            Self::NotIdle { .. } => Some(EAGAIN),
        }
    }
}

/// The result of a registry's operations.
pub type Result<T> = std::result::Result<T, Error>;
