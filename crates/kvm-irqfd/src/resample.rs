// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A level source that is a resample irqfd.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use interrupt_core::{Delivery, LevelSource, SourceKey};

use crate::event::Event;
use crate::interrupts::Shared;

/// A level source on a resample irqfd (KVM_IRQFD_FLAG_RESAMPLE): asserting is one write to an eventfd, by anybody who has it,
/// and KVM lowers the line at the EOI.
///
/// Dropping it takes the irqfd away and lowers what it asserts. Other sources of the line are asked to state their level then,
/// because KVM keeps one assertion for all resample irqfds of a GSI.
pub struct ResampleSource {
    shared: Arc<Shared>,
    key: SourceKey,
    label: String,
    trigger: Arc<Event>,
    token: u64,
}

impl ResampleSource {
    pub(crate) fn new(shared: Arc<Shared>, key: SourceKey, label: String, trigger: Arc<Event>, token: u64) -> Self {
        Self {
            shared,
            key,
            label,
            trigger,
            token,
        }
    }
}

impl LevelSource for ResampleSource {
    fn key(&self) -> SourceKey {
        self.key
    }

    fn label(&self) -> &str {
        &self.label
    }

    fn assert(&self) -> interrupt_core::Result<Delivery> {
        self.trigger.assert(self.gsi())
    }

    fn deassert(&self) -> interrupt_core::Result<()> {
        Ok(())
    }

    fn force_deassert(&self) -> interrupt_core::Result<()> {
        let lowered = self.shared.lower(self.gsi(), self.token);
        lowered.map_err(|error| error.into_core("force_deassert", self.gsi()))
    }

    fn trigger(&self) -> Option<BorrowedFd<'_>> {
        Some(self.trigger.as_fd())
    }
}

impl Drop for ResampleSource {
    fn drop(&mut self) {
        // There is nobody to report to, and KVM's deassign fails only for an fd that is not open.
        drop(self.shared.remove(self.gsi(), self.token));
    }
}

impl fmt::Debug for ResampleSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {}: resample irqfd", self.label, self.gsi())
    }
}
