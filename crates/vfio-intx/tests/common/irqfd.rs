// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A source with an eventfd that nobody listens to.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use interrupt_core::testing::RecordingSource;
use interrupt_core::{Delivery, Gsi, LevelSource, Result, SourceKey};
use rustix::event::{EventfdFlags, eventfd};

#[derive(Debug)]
struct Irqfd(RecordingSource, OwnedFd);

impl LevelSource for Irqfd {
    fn key(&self) -> SourceKey {
        self.0.key()
    }
    fn label(&self) -> &str {
        self.0.label()
    }
    fn assert(&self) -> Result<Delivery> {
        self.0.assert()
    }
    fn deassert(&self) -> Result<()> {
        self.0.deassert()
    }
    fn force_deassert(&self) -> Result<()> {
        self.0.force_deassert()
    }
    fn trigger(&self) -> Option<BorrowedFd<'_>> {
        Some(self.1.as_fd())
    }
}

pub fn source(gsi: u32) -> Arc<dyn LevelSource> {
    let trigger = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
    Arc::new(Irqfd(RecordingSource::new(Gsi(gsi)), trigger))
}
