// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The in-kernel irqchip against the conformance list: the shared rows, and the rows that only a kernel has.

use std::process::ExitCode;

use testkit::conformance::{Row, add_rows};
use testkit::harness::Suite;
use testkit::kernel_rig::KernelRig;

fn main() -> ExitCode {
    let needs = |row: &Row| [KernelRig::NEEDS, row.kernel_needs].concat();
    add_rows(Suite::new("kernel_rows"), "kernel", needs, KernelRig::new).run()
}
