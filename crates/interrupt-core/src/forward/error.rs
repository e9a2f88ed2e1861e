// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a connection and a registry refuse.

use std::os::fd::RawFd;
use std::sync::Arc;

use super::{DeviceIrq, EventfdId, Side};

const EBADF: i32 = 9;
const EAGAIN: i32 = 11;
const ENOENT: i32 = 2;
const EBUSY: i32 = 16;
const EINVAL: i32 = 22;
const EDEADLK: i32 = 35;

/// A refusal. Nothing has changed unless the variant says otherwise.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// That end is registered already. EBUSY; the connection is untouched.
    #[error("{id} has a {side} already ({label}); drop its registration first")]
    Busy {
        /// The identity.
        id: EventfdId,
        /// Which end.
        side: Side,
        /// The label of the end that is there.
        label: Box<str>,
    },
    /// Each path that both ends can do has failed. An end that was just added is not kept. Ends that were connected
    /// before still are, or else the producer is disconnected; the producer is not left masked.
    #[error("no path from {producer} to {line}: {source}")]
    Connect {
        /// The device's end.
        producer: Box<str>,
        /// The guest's end.
        line: Box<str>,
        /// The error of the last path that was tried.
        source: Arc<crate::Error>,
    },
    /// The two ends have no path in common, or only the relay in the case of an explicit forward. EOPNOTSUPP.
    #[error("no path from {producer} to {line}: {reason}")]
    NoPath {
        /// The device's end.
        producer: Box<str>,
        /// The guest's end.
        line: Box<str>,
        /// Why not.
        reason: Box<str>,
    },
    /// A method of an end has used the connection that called it. EDEADLK. Nothing has changed.
    #[error("the connection is calling this method, and cannot be used within it")]
    Reentrant,
    /// No end is registered under this identity. ENOENT.
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
            Self::Reentrant => Some(EDEADLK),
            Self::Malformed(_) => Some(EINVAL),
            Self::UnknownDevice(_) => Some(EBADF),
            Self::NotIdle { .. } => Some(EAGAIN),
        }
    }
}

/// As for [`crate::Error`].
const _: () = assert!(size_of::<Error>() <= 64);

/// The result of an operation of a connection or a registry.
pub type Result<T> = std::result::Result<T, Error>;
