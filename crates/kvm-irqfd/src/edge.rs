// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An edge irqfd.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use interrupt_core::Gsi;

use crate::event::Event;
use crate::interrupts::Shared;
use crate::{Error, Result};

/// An edge irqfd, on a pin or on an MSI route: each signal of its eventfd is an event of its own. Several that come before the
/// guest takes the first are one, and one that comes while a pin is masked is lost, as on hardware.
///
/// Dropping it takes the irqfd away. A signal that comes later stays in the eventfd.
pub struct EdgeIrqfd {
    shared: Arc<Shared>,
    gsi: Gsi,
    trigger: Arc<Event>,
    token: u64,
}

impl EdgeIrqfd {
    pub(crate) fn new(shared: Arc<Shared>, gsi: Gsi, trigger: Arc<Event>, token: u64) -> Self {
        Self {
            shared,
            gsi,
            trigger,
            token,
        }
    }

    /// The line it is on.
    pub fn gsi(&self) -> Gsi {
        self.gsi
    }

    /// Raises the interrupt.
    ///
    /// # Errors
    /// [`Error::Os`] when the eventfd cannot be written.
    pub fn signal(&self) -> Result<()> {
        self.trigger
            .signal()
            .map_err(|e| Error::os("write(trigger)", self.gsi, e))
    }

    /// The eventfd whose write raises the interrupt.
    pub fn trigger(&self) -> BorrowedFd<'_> {
        self.trigger.as_fd()
    }
}

impl Drop for EdgeIrqfd {
    fn drop(&mut self) {
        // There is nobody to report to, and KVM's deassign fails only for an fd that is not open.
        drop(self.shared.remove(self.gsi, self.token));
    }
}

impl fmt::Debug for EdgeIrqfd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: edge irqfd", self.gsi)
    }
}
