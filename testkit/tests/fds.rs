// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Descriptors are counted for the whole process, so this test is alone in its program.

use std::fs::File;

use testkit::process::fds;

#[test]
fn what_the_meter_reads_is_no_descriptor_of_the_test() {
    let before = fds();
    let _stat = File::open("/proc/self/stat").unwrap();
    assert_eq!(fds(), before);
    let _null = File::open("/dev/null").unwrap();
    assert_eq!(fds(), before + 1);
}
