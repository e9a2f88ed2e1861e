// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The host's own count of a device's interrupts: its /proc/interrupts.
//!
//! On a direct path no interrupt passes through this process. The host's kernel counts all of them.

use std::fs;

/// How often vfio-pci's handler of the INTx of the device `address` ran; `None` if the host has no such line.
pub(super) fn host_count(address: &str) -> Option<u64> {
    count(&fs::read_to_string("/proc/interrupts").ok()?, address)
}

fn count(table: &str, address: &str) -> Option<u64> {
    let action = format!("vfio-intx({address})");
    let line = table.lines().find(|line| line.contains(&action))?;
    let counts = line
        .split_whitespace()
        .skip(1)
        .map_while(|word| word.parse::<u64>().ok());
    Some(counts.fold(0, u64::saturating_add))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counts_of_all_cpus_are_added() {
        let table = "           CPU0       CPU1\n\
                     \x20 9:          1          0   IO-APIC   9-fasteoi   acpi\n\
                     \x2022:        100          7   IO-APIC  22-fasteoi   vfio-intx(0000:00:0a.0)\n";
        assert_eq!(count(table, "0000:00:0a.0"), Some(107));
        assert_eq!(count(table, "0000:00:0c.0"), None);
    }
}
