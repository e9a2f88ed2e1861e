// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The userspace chips against the kernel's (row 86): random traces drive both, and everything that can be seen of
//! either is compared after every step.
//!
//! 10,000 traces of 200 steps each by default. `DIFFERENTIAL_SECONDS=3600` runs for so long instead, from a seed of its own,
//! and says how many traces that was; `DIFFERENTIAL_SEED` repeats one. In the lab, where everything is emulated, it is 20 seconds.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod flaws;
mod guest;
mod ioapic;
mod pic;
#[path = "../rig/mod.rs"]
mod rig;
mod trace;

use std::process::ExitCode;
use std::time::Duration;

use testkit::harness::Suite;
use testkit::kernel_rig::KernelPicRig;

/// Row 86. A day: a long run is limited by its own clock.
const LIMIT: Duration = Duration::from_secs(86_400);

fn main() -> ExitCode {
    let suite = Suite::new("differential");
    let suite = suite.test_within(LIMIT, "row_86_ioapic_traces", &ioapic::needs(), || {
        trace::compare("IOAPIC", ioapic::Ioapics::new())
    });
    let suite = suite.test_within(LIMIT, "row_86_pic_traces", KernelPicRig::NEEDS, || {
        trace::compare("8259 pair", pic::Pics::new())
    });
    flaws::add(suite).run()
}
