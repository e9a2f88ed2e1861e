// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Wakes a thread that waits in `poll`.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, eventfd};

use crate::error::{Error, Result};

/// A non-blocking eventfd.
#[derive(Debug)]
pub struct Wake(OwnedFd);

impl Wake {
    /// A wake that is not signalled.
    ///
    /// # Errors
    /// [`Error::System`] when the eventfd cannot be made.
    pub fn new() -> Result<Self> {
        let made = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        made.map(Self).map_err(|errno| Error::System {
            step: "eventfd",
            source: errno.into(),
        })
    }

    /// Makes the eventfd readable.
    pub fn wake(&self) {
        // The write fails only when the count is full. The eventfd is then readable.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }

    /// Makes the eventfd unreadable until the next [`wake`](Self::wake).
    pub fn take(&self) {
        // The read fails when the count is 0.
        let _ = rustix::io::read(&self.0, &mut [0_u8; 8]);
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
