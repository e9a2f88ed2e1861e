// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What can go wrong, with the registration it went wrong for and the errno that KVM uses for it.

use std::os::fd::RawFd;

use rustix::io::Errno as Code;
use vmm_sys_util::errno::Error as Errno;

use crate::matching::Match;
use crate::window::Window;

/// Why the library rejects a registration that could not work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Rejection {
    /// The datamatch has bits that a store of this length does not write. KVM accepts it and never matches.
    #[error("the datamatch has bits beyond the length, so no store can match it")]
    DatamatchBeyondLength,
    /// A datamatch needs a length to be compared on. KVM rejects it too.
    #[error("a datamatch needs an exact length")]
    DatamatchWithoutLength,
    /// A port above 0xffff, or a range that runs past it. KVM accepts it and never matches.
    #[error("the range ends beyond the last port, 0xffff")]
    PortBeyond16Bits,
    /// Port I/O on a processor that has none: x86 alone has. KVM accepts it and never matches.
    #[error("this architecture has no port I/O")]
    NoPorts,
    /// The range does not end below 2^64. KVM rejects it too.
    #[error("address plus length overflows 64 bits")]
    Overflow,
    /// The range touches a window that was excluded.
    #[error("the range is inside {0}, where a store does not reach an ioeventfd or must not")]
    InsideWindow(Window),
    /// A relocation from a base above the registration's address.
    #[error("the address is below the base {base:#x} that it is to move with")]
    BelowBase {
        /// The old base that was given.
        base: u64,
    },
}

/// The fd is closed (`EBADF`) or is something else than an eventfd (`EINVAL`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("fd {fd} is not an open eventfd: {errno}")]
pub struct NotAnEventFd {
    /// The fd's number.
    pub fd: RawFd,
    /// `EBADF` or `EINVAL`, as KVM would answer.
    pub errno: Errno,
}

/// An operation that was not done, and for which registration.
///
/// The kernel's refusal to serve a registration is not among them: such a registration is served from the exit path, and
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
    /// The event is not an eventfd. Nothing was changed.
    #[error("ioevent {at}: {source}")]
    Event {
        /// What was asked for.
        at: Match,
        /// What is wrong with the fd.
        source: NotAnEventFd,
    },
    /// The kernel did not remove a registration that it had accepted. `ENOENT` means that it no longer has it, so that
    /// the library's books were wrong, or that somebody else removed it.
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
    /// A window to exclude holds a registration already. Nothing was changed.
    #[error("ioevent {at}: registered inside {window}, which is to be excluded")]
    Occupied {
        /// The registration.
        at: Match,
        /// The window.
        window: Window,
    },
}

impl Error {
    /// The registration that it is about: space, address, length and datamatch.
    pub fn at(&self) -> Match {
        match self {
            Self::Rejected { at, .. }
            | Self::Collision { at, .. }
            | Self::Event { at, .. }
            | Self::NotRemoved { at, .. }
            | Self::NotSignalled { at, .. }
            | Self::OtherBus { at }
            | Self::Occupied { at, .. } => *at,
        }
    }

    /// The errno: the kernel's own where it answered, and otherwise the one that KVM uses for the like.
    pub fn errno(&self) -> Errno {
        match self {
            Self::Rejected { .. } | Self::OtherBus { .. } => errno(Code::INVAL),
            Self::Collision { .. } => errno(Code::EXIST),
            Self::Occupied { .. } => errno(Code::BUSY),
            Self::Event { source, .. } => source.errno,
            Self::NotRemoved { errno, .. } | Self::NotSignalled { errno, .. } => *errno,
        }
    }
}

/// The ecosystem's errno type from the one whose values have names.
pub(crate) fn errno(code: Code) -> Errno {
    Errno::new(code.raw_os_error())
}
