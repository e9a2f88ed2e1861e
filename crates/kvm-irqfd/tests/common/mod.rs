// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the tests share: eventfds, and the machine of either architecture.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(dead_code, reason = "each test target uses its own part")]

use std::os::fd::{AsFd, OwnedFd};

use interrupt_core::Gsi;
use kvm_irqfd::{Chip, KvmInterrupts, Route};

use rustix::event::{EventfdFlags, eventfd as new_eventfd};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
#[cfg(target_arch = "aarch64")]
pub use testkit::gic_machine::GicMachine as Machine;
#[cfg(target_arch = "x86_64")]
pub use testkit::machine::Machine;
use testkit::need::Need;
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
    distributor: testkit::gic::DISTRIBUTOR,
    redistributors: testkit::gic::REDISTRIBUTOR,
};

/// What a test needs in which the guest takes interrupts.
#[cfg(target_arch = "aarch64")]
pub const ACCEPT: &[Need] = &[Need::FullIrqchip];
#[cfg(target_arch = "x86_64")]
pub const ACCEPT: &[Need] = &[Need::AcceptMode];

/// The GSIs that lead to a pin from the beginning.
#[cfg(target_arch = "aarch64")]
pub const PINS: u32 = kvm_irqfd::GIC_SPIS;
#[cfg(target_arch = "x86_64")]
pub const PINS: u32 = testkit::machine::IOAPIC_PINS;

/// A GSI that leads nowhere at first, as do those that follow it.
pub const FREE: Gsi = Gsi(PINS + 16);

/// The route to a pin.
pub fn to_pin(pin: u32) -> Route {
    #[cfg(target_arch = "aarch64")]
    let chip = Chip::Gic;
    #[cfg(target_arch = "x86_64")]
    let chip = Chip::Ioapic;
    Route::Pin { chip, pin }
}

/// The route to a message.
pub const MESSAGE: Route = Route::Msi {
    address: 0xFEE0_0000,
    data: 0x61,
    device: if cfg!(target_arch = "aarch64") { Some(8) } else { None },
};

/// A machine with its controllers in the kernel.
pub fn full() -> (Machine, KvmInterrupts) {
    let machine = Machine::full();
    let interrupts = KvmInterrupts::new(machine.vm().clone()).unwrap();
    (machine, interrupts)
}

/// Whether a pin's line is high.
pub fn is_high(machine: &mut Machine, pin: u32) -> bool {
    #[cfg(target_arch = "aarch64")]
    return machine.irr(pin);
    #[cfg(target_arch = "x86_64")]
    machine.ioapic_irr(pin)
}
