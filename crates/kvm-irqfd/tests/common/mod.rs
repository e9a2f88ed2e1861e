// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Eventfds for the tests.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(dead_code, reason = "each test target uses its own part")]

use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{EventfdFlags, eventfd as new_eventfd};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use vmm_sys_util::eventfd::EventFd;

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

/// An eventfd as vmm-sys-util has it.
pub fn vmm_eventfd(fd: OwnedFd) -> EventFd {
    kvm_irqfd::eventfd::from_owned(fd)
}

/// Runs `body` while this process may have no fd with a number of `limit` or above. Not for two tests at a time.
pub fn limit_fds<T>(limit: u64, body: impl FnOnce() -> T) -> T {
    let before = getrlimit(Resource::Nofile);
    let current = Some(limit);
    setrlimit(Resource::Nofile, Rlimit { current, ..before }).unwrap();
    let result = body();
    setrlimit(Resource::Nofile, before).unwrap();
    result
}

/// A machine with a GIC that is made by this crate and turned on.
#[cfg(target_arch = "aarch64")]
pub fn gic_machine() -> testkit::gic_machine::GicMachine {
    let mut machine = testkit::gic_machine::GicMachine::new(|vm| drop(GIC.create(vm).unwrap()));
    machine.turn_on();
    machine
}

/// The GIC of [`gic_machine`].
#[cfg(target_arch = "aarch64")]
pub const GIC: kvm_irqfd::GicV3 = kvm_irqfd::GicV3 {
    spis: kvm_irqfd::GIC_SPIS,
    distributor: testkit::gic_machine::DISTRIBUTOR,
    redistributors: testkit::gic_machine::REDISTRIBUTOR,
};
