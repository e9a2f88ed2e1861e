// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Eventfds for the tests.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(dead_code, reason = "each test target uses its own part")]

use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{EventfdFlags, eventfd as new_eventfd};

/// A non-blocking eventfd with nothing pending.
pub fn eventfd() -> OwnedFd {
    new_eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
}

/// Takes the counter of a non-blocking eventfd; 0 when it is empty.
pub fn taken(eventfd: impl AsFd) -> u64 {
    let mut count = [0; 8];
    match rustix::io::read(eventfd, &mut count) {
        Ok(_) => u64::from_ne_bytes(count),
        Err(rustix::io::Errno::AGAIN) => 0,
        Err(error) => panic!("read(eventfd): {error}"),
    }
}
