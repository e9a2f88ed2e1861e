// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What can go wrong, for which registration, and the errno that KVM uses for it.

use rustix::io::Errno as Code;
use vmm_sys_util::errno::Error as Errno;

use crate::matching::{Match, Rejection};
use crate::reserved::ReservedRange;

/// An operation that was not done, and for which registration.
///
/// That the kernel refuses to serve a registration is no error: such a registration is served from the exit path, and
/// [`Registration::path`](crate::Registration::path) says why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The registration could not work. Nothing was changed.
    #[error("ioevent {at}: {why}")]
    Rejected {
        /// What was asked for.
        at: Match,
        /// Why it could not work.
        why: Rejection,
    },
    /// A store could match this and an earlier registration. Nothing was changed.
    #[error("ioevent {at}: collides with the registration {with}")]
    Collision {
        /// What was asked for.
        at: Match,
        /// What is registered, or what comes earlier in the same set.
        with: Match,
    },
    /// The registration is inside a range that [`IoeventBus::reserve`](crate::IoeventBus::reserve) keeps free. Nothing
    /// was changed.
    #[error("ioevent {at}: inside {range}, where a store does not reach an ioeventfd or must not")]
    Reserved {
        /// What was asked for.
        at: Match,
        /// The range.
        range: ReservedRange,
    },
    /// The event is closed (`EBADF`), or is something else than an eventfd (`EINVAL`). Nothing was changed.
    #[error("ioevent {at}: its event is not an open eventfd: {errno}")]
    NotAnEventFd {
        /// What was asked for.
        at: Match,
        /// `EBADF` or `EINVAL`, as KVM would answer.
        errno: Errno,
    },
    /// The kernel did not remove a registration that it had accepted. `ENOENT` means that the kernel no longer has it,
    /// because somebody else removed it past the bus.
    #[error("ioevent {at}: the kernel did not remove it: {errno}")]
    NotRemoved {
        /// The registration.
        at: Match,
        /// The kernel's answer.
        errno: Errno,
    },
    /// A store matched, and writing the eventfd failed.
    #[error("ioevent {at}: a store matched, and its eventfd could not be written: {errno}")]
    NotSignalled {
        /// The registration that the store matched.
        at: Match,
        /// The answer to the write.
        errno: Errno,
    },
    /// The registration was made on another bus. Nothing was changed.
    #[error("ioevent {at}: the registration belongs to another bus")]
    OtherBus {
        /// The registration.
        at: Match,
    },
    /// A range to reserve holds a registration already. Nothing was changed.
    #[error("ioevent {at}: registered inside {range}, which is to be reserved")]
    Occupied {
        /// The registration.
        at: Match,
        /// The range.
        range: ReservedRange,
    },
}

impl Error {
    /// The registration that the error is about.
    pub fn at(&self) -> Match {
        match self {
            Self::Rejected { at, .. }
            | Self::Collision { at, .. }
            | Self::Reserved { at, .. }
            | Self::NotAnEventFd { at, .. }
            | Self::NotRemoved { at, .. }
            | Self::NotSignalled { at, .. }
            | Self::OtherBus { at }
            | Self::Occupied { at, .. } => *at,
        }
    }

    /// The errno: the kernel's own where it answered, and otherwise the one that KVM uses for the like.
    pub fn errno(&self) -> Errno {
        match self {
            Self::Rejected { .. } | Self::Reserved { .. } | Self::OtherBus { .. } => errno(Code::INVAL),
            Self::Collision { .. } => errno(Code::EXIST),
            Self::Occupied { .. } => errno(Code::BUSY),
            Self::NotAnEventFd { errno, .. } | Self::NotRemoved { errno, .. } | Self::NotSignalled { errno, .. } => {
                *errno
            }
        }
    }
}

/// The ecosystem's errno type from the one whose values have names.
pub(crate) fn errno(code: Code) -> Errno {
    Errno::new(code.raw_os_error())
}
