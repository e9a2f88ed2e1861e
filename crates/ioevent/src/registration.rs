// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guard of one registration.

use std::fmt;
use std::sync::Arc;

use log::error;
use vmm_sys_util::eventfd::EventFd;

use crate::backend::Refusal;
use crate::bus::Shared;
use crate::error::Error;
use crate::event::Event;
use crate::matching::Match;

/// Who signals the eventfd for a matching store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// The kernel, without an exit.
    ///
    /// KVM fails to find a few registrations that it has accepted: where the ranges of three or more overlap so that one
    /// that does not contain the store lies between two that do. Such a store exits, and is served from there.
    Kernel,
    /// [`IoeventBus::dispatch`](crate::IoeventBus::dispatch), from the exit that the store causes, for this reason.
    Trapped(Refusal),
}

/// One registration on an [`IoeventBus`](crate::IoeventBus), for as long as it lives.
///
/// Remembers exactly what was registered, and removes exactly that when it goes. Registrations, bus and devices may go in
/// any order; the bus's backend and the eventfd stay open for as long as the registration lives.
#[must_use = "dropping it removes the registration"]
pub struct Registration {
    bus: Arc<Shared>,
    at: Match,
    event: Event,
    path: Path,
    /// Not removed yet: `remove` was not called.
    live: bool,
}

impl Registration {
    pub(crate) fn new(bus: Arc<Shared>, at: Match, event: Event, path: Path) -> Self {
        Self {
            bus,
            at,
            event,
            path,
            live: true,
        }
    }

    /// The stores that it matches.
    pub fn at(&self) -> Match {
        self.at
    }

    /// The eventfd that they signal.
    pub fn eventfd(&self) -> &Arc<EventFd> {
        self.event.fd()
    }

    /// Whether the kernel signals it, or the exit path does, and why. Changes only when the registration is relocated.
    pub fn path(&self) -> Path {
        self.path
    }

    /// Ends the registration, and says whether the kernel agreed that there was one.
    ///
    /// When this returns, no matching store signals the eventfd any more: neither the kernel nor a vCPU thread that was
    /// in the middle of a dispatch. Stores up to then have been counted; the counter is left as it is, so whoever reads
    /// the eventfd should read it once more.
    ///
    /// Waits for dispatches that are under way, which take as long as a write to an eventfd.
    ///
    /// # Errors
    /// [`Error::NotRemoved`]: the kernel did not remove what it had accepted. The registration is gone from the table
    /// all the same. Dropping the registration does the same as this, and logs the error.
    pub fn remove(mut self) -> Result<(), Error> {
        self.end()
    }

    fn end(&mut self) -> Result<(), Error> {
        self.live = false;
        self.bus.remove(&self.at, &self.event, self.path)
    }

    pub(crate) fn event(&self) -> &Event {
        &self.event
    }

    pub(crate) fn is_on(&self, bus: &Arc<Shared>) -> bool {
        Arc::ptr_eq(&self.bus, bus)
    }

    /// Records where a relocation left it.
    pub(crate) fn settle(&mut self, at: Match, path: Path) {
        self.at = at;
        self.path = path;
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
            .field("at", &self.at)
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}
