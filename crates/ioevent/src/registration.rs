// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guard of one registration.

use std::fmt;
use std::sync::Arc;

use log::error;
use vmm_sys_util::eventfd::EventFd;

use crate::error::Error;
use crate::ledger::{Ledger, Path, Registered};
use crate::matching::Match;

/// One registration on an [`IoeventBus`](crate::IoeventBus), for as long as it lives.
///
/// Remembers exactly what was registered, and removes exactly that when dropped. Registrations, bus and devices may go
/// in any order; the bus's backend and the eventfd stay open for as long as the registration lives.
#[must_use = "dropping it removes the registration"]
pub struct Registration {
    ledger: Arc<Ledger>,
    registered: Registered,
    /// Not removed yet: `remove` was not called.
    live: bool,
}

impl Registration {
    pub(crate) fn new(ledger: Arc<Ledger>, registered: Registered) -> Self {
        Self {
            ledger,
            registered,
            live: true,
        }
    }

    /// The stores that match.
    pub fn at(&self) -> Match {
        self.registered.entry.at
    }

    /// The eventfd that matching stores signal.
    pub fn eventfd(&self) -> &Arc<EventFd> {
        self.registered.entry.event.fd()
    }

    /// Whether the kernel signals the eventfd, or the exit path does, and why. Changes only when the registration is
    /// relocated.
    pub fn path(&self) -> Path {
        self.registered.path
    }

    /// Ends the registration, and says whether the kernel agreed that there was one.
    ///
    /// When this returns, no matching store signals the eventfd any more: neither the kernel nor a vCPU thread that was
    /// in the middle of a dispatch. Stores up to then have been counted, and the counter is left as it is: read the
    /// eventfd once more.
    ///
    /// Waits for dispatches that are under way, which take as long as a write to an eventfd.
    ///
    /// Dropping the registration does the same, and logs the error.
    ///
    /// # Errors
    /// [`Error::NotRemoved`]: the kernel did not remove what it had accepted. The registration is gone from the table
    /// all the same. After `ENOENT` the kernel has lost it. After any other answer, such as the `EPERM` of a seccomp
    /// filter, the kernel may go on to signal the eventfd; the bus keeps the eventfd open, and asks the kernel again
    /// before something else is registered or reserved at the same place.
    pub fn remove(mut self) -> Result<(), Error> {
        self.end()
    }

    fn end(&mut self) -> Result<(), Error> {
        self.live = false;
        self.ledger.remove(&self.registered)
    }

    /// For a relocation, which changes both the place and the path.
    pub(crate) fn registered(&mut self) -> &mut Registered {
        &mut self.registered
    }

    pub(crate) fn is_on(&self, ledger: &Arc<Ledger>) -> bool {
        Arc::ptr_eq(&self.ledger, ledger)
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        if self.live {
            if let Err(error) = self.end() {
                error!("{error}");
            }
        }
    }
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registration")
            .field("at", &self.at())
            .field("path", &self.path())
            .finish_non_exhaustive()
    }
}
