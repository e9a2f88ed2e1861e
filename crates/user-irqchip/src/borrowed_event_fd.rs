// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A borrowed descriptor as vmm-sys-util's `EventFd`, which has no conversion of its own.

use std::fmt;
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd};

use vmm_sys_util::eventfd::EventFd;

/// A borrowed eventfd as the `&EventFd` that hypervisors' interfaces take:
/// `vm.register_irqfd(&BorrowedEventFd::from(trigger), gsi)`. A `try_clone` of it is the VMM's own.
pub struct BorrowedEventFd<'fd> {
    event: ManuallyDrop<EventFd>,
    _borrow: PhantomData<BorrowedFd<'fd>>,
}

impl<'fd> From<BorrowedFd<'fd>> for BorrowedEventFd<'fd> {
    #[allow(unsafe_code, reason = "EventFd is made of a raw descriptor only")]
    fn from(fd: BorrowedFd<'fd>) -> Self {
        // SAFETY: the descriptor is open for as long as `'fd`, which outlives the value; `ManuallyDrop` keeps the
        // descriptor from being closed, and it is handed out by shared reference only.
        let event = unsafe { EventFd::from_raw_fd(fd.as_raw_fd()) };
        Self {
            event: ManuallyDrop::new(event),
            _borrow: PhantomData,
        }
    }
}

impl Deref for BorrowedEventFd<'_> {
    type Target = EventFd;

    fn deref(&self) -> &EventFd {
        &self.event
    }
}

impl fmt::Debug for BorrowedEventFd<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.event.fmt(f)
    }
}
