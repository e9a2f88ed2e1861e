// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The lab, an emulated PC (`cargo xtask lab`), for tests: it has all hardware, but is slow.

/// Whether this is the lab, which sets `IRQ_TEST_LAB`.
pub fn in_lab() -> bool {
    std::env::var_os("IRQ_TEST_LAB").is_some()
}

/// The number of repetitions of a step whose count does not matter: `count`, and a tenth of `count` in the lab. Do not
/// use it for a count that the test checks.
pub fn repeats(count: u64) -> u64 {
    if in_lab() { (count / 10).max(1) } else { count }
}
