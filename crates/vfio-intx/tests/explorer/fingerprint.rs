// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What tells one state of the code under test from another: its own words, with the counts of the eventfds that they name.

use std::fs;

/// The words without the numbers that mean nothing (of files, and of openings), and the counts of the eventfds.
pub fn of(said: &str) -> (String, Vec<u64>) {
    let (mut words, mut counts) = (String::new(), Vec::new());
    let mut before = "";
    for word in said.split_whitespace() {
        match (before, word.trim_end_matches([',', ')', '}']).parse::<u64>()) {
            ("fd:", Ok(fd)) => counts.push(count(fd)),
            ("opening:", Ok(_)) => {}
            _ => {
                words += word;
                words.push(' ');
            }
        }
        before = word;
    }
    (words, counts)
}

/// The count of an eventfd, or how many files an epoll watches.
fn count(fd: u64) -> u64 {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).unwrap();
    let of_eventfd = info.lines().find_map(|line| line.strip_prefix("eventfd-count:"));
    match of_eventfd {
        Some(count) => u64::from_str_radix(count.trim(), 16).unwrap(),
        None => info.lines().filter(|line| line.starts_with("tfd:")).count() as u64,
    }
}
