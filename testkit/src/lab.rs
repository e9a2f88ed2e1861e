// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The lab, an emulated PC (`cargo xtask lab`), as a test sees it: everything is there, and everything takes long.

/// Whether this is the lab, which sets `IRQ_TEST_LAB`.
pub fn in_lab() -> bool {
    std::env::var_os("IRQ_TEST_LAB").is_some()
}

/// How often to do what shows itself once as well as many times: `count` times, and a tenth of that in the lab. Not for
/// counts that a test is about.
pub fn repeats(count: u64) -> u64 {
    if in_lab() { (count / 10).max(1) } else { count }
}
