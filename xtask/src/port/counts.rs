// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the lab's kernel counted: the histograms of three of its tracepoints, as run.sh prints them.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Sub;

/// KVM_EXIT_IOAPIC_EOI
const IOAPIC_EOI: u64 = 26;
/// KVM_SET_GSI_ROUTING
const SET_GSI_ROUTING: u64 = 0x4008_ae6a;
/// KVM_RUN
const RUN: u64 = 0xae80;
/// The number of ioctl(2) on x86_64.
const IOCTL: u64 = 16;

/// What a VMM has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Exits that reported an EOI of the split irqchip's LAPIC.
    pub eoi_exits: u64,
    /// Ioctls that set KVM's routes.
    pub routing_ioctls: u64,
    /// All other ioctls but KVM_RUN.
    pub other_ioctls: u64,
    /// System calls but ioctls.
    pub other_calls: u64,
}

impl Sub for Counts {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            eoi_exits: self.eoi_exits.saturating_sub(before.eoi_exits),
            routing_ioctls: self.routing_ioctls.saturating_sub(before.routing_ioctls),
            other_ioctls: self.other_ioctls.saturating_sub(before.other_ioctls),
            other_calls: self.other_calls.saturating_sub(before.other_calls),
        }
    }
}

impl Counts {
    /// Counts the lines of one `counts` of run.sh: the VMM's threads, then lines such as `{ common_pid: 7, id: 16 }
    /// hitcount: 3`.
    pub fn of<'a>(lines: impl Iterator<Item = &'a str>) -> Self {
        let mut counts = Self::default();
        let mut threads = BTreeSet::new();
        for line in lines {
            if let Some(thread) = line.strip_prefix("thread ") {
                threads.extend(thread.trim().parse::<u64>());
            }
            let Some((key, hits)) = entry(line) else { continue };
            let field = |name| key.get(name).copied();
            if field("reason") == Some(IOAPIC_EOI) {
                counts.eoi_exits += hits;
            }
            if !field("common_pid").is_some_and(|pid| threads.contains(&pid)) {
                continue;
            }
            match (field("cmd"), field("id")) {
                (Some(SET_GSI_ROUTING), _) => counts.routing_ioctls += hits,
                (Some(RUN), _) | (_, Some(IOCTL)) => {}
                (Some(_), _) => counts.other_ioctls += hits,
                (_, Some(_)) => counts.other_calls += hits,
                _ => {}
            }
        }
        counts
    }
}

/// The key and the hits of one line of a histogram.
fn entry(line: &str) -> Option<(BTreeMap<&str, u64>, u64)> {
    let (key, hits) = line.strip_prefix("{ ")?.split_once("} hitcount:")?;
    let key = key
        .split(',')
        .filter_map(|field| {
            let (name, value) = field.split_once(':')?;
            Some((name.trim(), value.trim().parse().ok()?))
        })
        .collect();
    Some((key, hits.trim().parse().ok()?))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    const BEFORE: &str = "\
thread 7
{ reason:          6 } hitcount:        674
# event histogram
{ common_pid:          7, cmd:      44672 } hitcount:        100
{ common_pid:          7, cmd: 1074310762 } hitcount:          2
{ common_pid:          9, cmd: 1074310762 } hitcount:          5
{ common_pid:          7, id:         16 } hitcount:        102
";

    const AFTER: &str = "\
thread 7
thread 8
{ reason:         26 } hitcount:         30
{ common_pid:          7, cmd:      44672 } hitcount:        200
{ common_pid:          7, cmd: 1074310762 } hitcount:          3
{ common_pid:          8, cmd:      15214 } hitcount:          4
{ common_pid:          8, id:          1 } hitcount:         30
{ common_pid:          9, id:          0 } hitcount:         99
";

    #[test]
    fn what_the_vmms_threads_did_between_two_counts_is_told_apart() {
        let done = Counts::of(AFTER.lines()) - Counts::of(BEFORE.lines());
        let expected = Counts {
            eoi_exits: 30,
            routing_ioctls: 1,
            other_ioctls: 4,
            other_calls: 30,
        };
        assert_eq!(done, expected);
    }
}
