// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Between vmm-sys-util's `EventFd`, which kvm-ioctls and VMMs take, and std's `OwnedFd`, which
//! [`Listener`](interrupt_core::Listener), sockets and rustix do: vmm-sys-util has no conversion of its own.

use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};

use vmm_sys_util::eventfd::EventFd;

/// An eventfd that came from somewhere else, over a socket or from another library, as [`EventFd`]. Whether it is one, and one
/// that can be bound, is found out when it is bound.
///
/// ```
/// use kvm_irqfd::eventfd;
/// use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
///
/// let event = EventFd::new(EFD_NONBLOCK)?;
/// event.write(3)?;
/// let event = eventfd::from_owned(eventfd::into_owned(event));
/// assert_eq!(event.read()?, 3, "it is the same eventfd");
/// # Ok::<(), std::io::Error>(())
/// ```
pub fn from_owned(fd: OwnedFd) -> EventFd {
    // SAFETY: `into_raw_fd` gives up ownership of a descriptor that is open, so the `EventFd` is its only owner.
    unsafe { EventFd::from_raw_fd(fd.into_raw_fd()) }
}

/// A VMM's eventfd as [`Listener::fd`](interrupt_core::Listener::fd) takes one.
pub fn into_owned(event: EventFd) -> OwnedFd {
    // SAFETY: as in `from_owned`, the other way round.
    unsafe { OwnedFd::from_raw_fd(event.into_raw_fd()) }
}
