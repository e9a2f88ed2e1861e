// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The in-kernel irqchip against the conformance list: the shared rows, and the rows that only a kernel has.

use std::process::ExitCode;

use testkit::conformance::{add_rows, ioapic, pic};
use testkit::harness::Suite;
use testkit::kernel_rig::{KernelPicRig, KernelRig};

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
        "pic",
        pic::ROWS,
        |row| [KernelPicRig::NEEDS, row.kernel_needs].concat(),
        || Box::new(KernelPicRig::new()),
    );
    suite.run()
}
