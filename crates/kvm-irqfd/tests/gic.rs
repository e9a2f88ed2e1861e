// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is a vGIC's own: rows 170 to 180 of the conformance list. Rows that it shares with an IOAPIC are in
//! tests/conformance.rs.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::process::ExitCode;

#[cfg(target_arch = "aarch64")]
mod common;
#[cfg(target_arch = "aarch64")]
mod gic_rows;

#[cfg(target_arch = "aarch64")]
fn main() -> ExitCode {
    gic_rows::suite().run()
}

#[cfg(not(target_arch = "aarch64"))]
fn main() -> ExitCode {
    use testkit::harness::Suite;
    use testkit::need::Need;
    let need = Need::Host("a GIC", || Err("the machines of this host are PCs".to_owned()));
    Suite::new("kvm-irqfd::gic")
        .test("rows_170_to_180", &[need], || {})
        .run()
}
