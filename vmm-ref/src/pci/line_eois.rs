// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The EOIs of a line, counted for the summary, and awaited where the path is to change after a number of them.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use interrupt_core::{EoiGuard, EoiNotifier, Gsi, Listener};
use rustix::event::{EventfdFlags, eventfd};

use crate::error::{Error, Result};

/// The EOIs of a line. An eventfd counts them, so that no thread has to wake for them.
#[derive(Debug)]
pub struct LineEois {
    /// The line.
    pub gsi: Gsi,
    fd: OwnedFd,
    counted: AtomicU64,
    _guard: EoiGuard,
}

impl LineEois {
    /// Counts the EOIs of `gsi` from now on.
    ///
    /// # Errors
    /// Those of the notifier, and of making an eventfd.
    pub fn new(notifier: &dyn EoiNotifier, gsi: Gsi) -> Result<Self> {
        let failed = |source| Error::System {
            step: "eventfd",
            source,
        };
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(|errno| failed(errno.into()))?;
        let listener = Listener::fd(fd.try_clone().map_err(failed)?);
        Ok(Self {
            gsi,
            fd,
            counted: AtomicU64::new(0),
            _guard: notifier.subscribe(gsi.into(), listener)?,
        })
    }

    /// The EOIs so far. Until the next one, the descriptor is not readable.
    pub fn count(&self) -> u64 {
        let mut new = [0; 8];
        // The read fails when nothing has come since the last one.
        let new = rustix::io::read(&self.fd, &mut new).map_or(0, |_| u64::from_ne_bytes(new));
        self.counted.fetch_add(new, Ordering::Relaxed) + new
    }
}

/// Readable after an EOI that is not counted yet.
impl AsFd for LineEois {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
