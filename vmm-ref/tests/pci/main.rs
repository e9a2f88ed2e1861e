// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Devices of the PCI host, which is a PC's, without a guest: one behind a vfio-user server, and the vectors of one with
//! MSI-X on real KVM.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[cfg(target_arch = "x86_64")]
mod msix;
#[cfg(target_arch = "x86_64")]
mod string_io;
#[cfg(target_arch = "x86_64")]
mod vfio_user;

use std::process::ExitCode;

use testkit::harness::Suite;

fn main() -> ExitCode {
    let suite = Suite::new("vmm-ref::pci");
    #[cfg(target_arch = "x86_64")]
    let suite = string_io::tests(msix::tests(vfio_user::tests(suite)));
    suite.run()
}
