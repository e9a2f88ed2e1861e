// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The shared conformance body over the userspace chips.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod rig;

use std::process::ExitCode;

use testkit::conformance::{add_rows, cases, ioapic, pic};
use testkit::harness::Suite;

use rig::{UserPicRig, UserRig};

fn main() -> ExitCode {
    let suite = Suite::new("conformance");
    let suite = add_rows(
        suite,
        "user_ioapic",
        ioapic::ROWS,
        |_| Vec::new(),
        || Box::new(UserRig::new()),
    );
    let suite = add_rows(
        suite,
        "user_ioapic",
        cases::ROWS,
        |_| Vec::new(),
        || Box::new(UserRig::new()),
    );
    let suite = add_rows(
        suite,
        "user_pic",
        pic::ROWS,
        |_| Vec::new(),
        || Box::new(UserPicRig::new()),
    );
    suite.run()
}
