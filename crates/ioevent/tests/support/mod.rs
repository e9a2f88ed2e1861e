// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the tests of several targets share.
#![allow(dead_code, reason = "each test target uses a part of it")]

pub mod backends;
pub mod guest;
pub mod logged;

use std::sync::Arc;

use ioevent::{IoeventBus, Match, Registration};
use testkit::counter::count;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

pub fn eventfd() -> Arc<EventFd> {
    Arc::new(EventFd::new(EFD_NONBLOCK).unwrap())
}

/// A registration and its own eventfd.
pub struct Doorbell {
    pub registration: Registration,
    pub event: Arc<EventFd>,
}

impl Doorbell {
    pub fn on(bus: &IoeventBus, at: Match) -> Self {
        let event = eventfd();
        let registration = bus.register(at, event.clone()).unwrap();
        Self { registration, event }
    }

    /// Signals since the last call.
    pub fn rings(&self) -> u64 {
        count(self.event.as_ref())
    }
}
