// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The in-kernel irqchip against the conformance list: the shared rows, and with bare ioctls the rows that only a
//! kernel has.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a panic is how a trial fails"
)]

mod irqfd;
mod lines;
mod routing;

use std::process::ExitCode;
use std::time::Duration;

use testkit::conformance::{add_rows, cases, ioapic, pic};
use testkit::harness::Suite;
use testkit::ioctl;
use testkit::kernel_rig::{KernelPicRig, KernelRig};
use testkit::machine::Machine;
use testkit::patience::Patience;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

fn main() -> ExitCode {
    let suite = Suite::new("kernel_rows");
    let suite = add_rows(
        suite,
        "ioapic",
        ioapic::ROWS,
        |row| [KernelRig::NEEDS, row.kernel_needs].concat(),
        || Box::new(KernelRig::new()),
    );
    let suite = add_rows(
        suite,
        "ioapic",
        cases::ROWS,
        |row| [KernelRig::NEEDS, row.kernel_needs].concat(),
        || Box::new(KernelRig::new()),
    );
    let suite = add_rows(
        suite,
        "pic",
        pic::ROWS,
        |row| [KernelPicRig::NEEDS, row.kernel_needs].concat(),
        || Box::new(KernelPicRig::new()),
    );
    let suite = irqfd::add(suite);
    let suite = lines::add(suite);
    let suite = routing::add(suite);
    suite.run()
}

/// The GSI and pin of most rows: one that no 8259 shares.
const GSI: u32 = 18;
const VECTOR: u8 = 0x51;

fn eventfd() -> EventFd {
    EventFd::new(EFD_NONBLOCK).unwrap()
}

/// Enough for a hop of the work queue.
const SOON: Duration = Duration::from_secs(10);

/// Waits, without sleeping, until `condition` holds.
fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let patience = Patience::new(SOON);
    while !condition() {
        assert!(!patience.is_over(), "waited in vain: {what}");
    }
}

/// Returns when every injection that `trigger` has under way on `gsi` is done, with the level of the line unchanged:
/// deassign flushes the work, and another resample irqfd of the GSI keeps it from being the last.
fn flush(machine: &Machine, trigger: &EventFd, resample: Option<&EventFd>, gsi: u32) {
    let vm = machine.vm();
    let keeper = (eventfd(), eventfd());
    ioctl::assign_resample(vm, &keeper.0, &keeper.1, gsi).unwrap();
    ioctl::deassign(vm, trigger, gsi).unwrap();
    match resample {
        Some(resample) => ioctl::assign_resample(vm, trigger, resample, gsi),
        None => ioctl::assign_edge(vm, trigger, gsi),
    }
    .unwrap();
    ioctl::deassign(vm, &keeper.0, gsi).unwrap();
}
