// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The figures as the tables of docs/benchmarks.md.

use crate::digits::number;
use crate::results::{Nic, NicFigures};

/// A heading, and the figure below it.
pub type Column = (&'static str, fn(&NicFigures) -> f64);

/// The figures of a VMM.
pub const FIGURES: [Column; 8] = [
    ("ping, us", |vmm| vmm.ping_us.median),
    ("boot, s", |vmm| vmm.boot_s.median),
    ("in, MiB/s", |vmm| vmm.receive_mib_s.median),
    ("out, MiB/s", |vmm| vmm.send_mib_s.median),
    ("exits", NicFigures::all_exits_per_ping),
    ("card's interrupts", |vmm| vmm.card_interrupts_per_ping),
    ("all interrupts", |vmm| vmm.host_interrupts_per_ping),
    ("switches", |vmm| vmm.context_switches_per_ping),
];

/// Two tables in Markdown: the figures, in brackets over those of the QEMU with the same path, and the exits by reason.
pub fn markdown(nic: &Nic) -> String {
    let figures = nic.vmms.iter().map(|vmm| {
        let cell = |(_, of): &Column| match nic.peer(vmm) {
            Some(peer) => format!("{} ({:.2})", number(of(vmm)), of(vmm) / of(peer)),
            None => number(of(vmm)),
        };
        row(vmm, FIGURES.iter().map(cell))
    });
    let mut reasons: Vec<&str> = nic
        .vmms
        .iter()
        .flat_map(|vmm| &vmm.exits_per_ping)
        .filter(|(_, count)| **count >= 0.005)
        .map(|(reason, _)| reason.as_str())
        .collect();
    reasons.sort_unstable();
    reasons.dedup();
    let exits = nic.vmms.iter().map(|vmm| {
        let count = |reason: &&str| number(vmm.exits_per_ping.get(*reason).copied().unwrap_or(0.0));
        row(vmm, reasons.iter().map(count))
    });
    let names: Vec<&str> = FIGURES.iter().map(|(name, _)| *name).collect();
    format!(
        "Medians of {} boots of each VMM, with {} pings each; exits, interrupts and switches are for each ping.\n\n{}\n\
         Exits of a ping by reason:\n\n{}",
        nic.rounds,
        nic.pings,
        table(&names, figures.collect()),
        table(&reasons, exits.collect())
    )
}

fn row(vmm: &NicFigures, cells: impl Iterator<Item = String>) -> Vec<String> {
    [vmm.name.clone()].into_iter().chain(cells).collect()
}

fn table(names: &[&str], rows: Vec<Vec<String>>) -> String {
    let heading = [""].iter().chain(names).map(|name| (*name).to_owned()).collect();
    let mut all = vec![heading];
    all.extend(rows);
    let width = |column: usize| all.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..all[0].len()).map(width).collect();
    let rule: String = widths
        .iter()
        .map(|width| format!("|{}", "-".repeat(width + 2)))
        .collect();
    let mut lines: Vec<String> = all
        .iter()
        .map(|row| {
            let cells = row.iter().zip(&widths).enumerate();
            let cells = cells.map(|(n, (cell, width))| match n {
                0 => format!("| {cell:width$} "),
                _ => format!("| {cell:>width$} "),
            });
            cells.collect::<String>() + "|\n"
        })
        .collect();
    lines.insert(1, rule + "|\n");
    lines.concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::tests::results;

    #[test]
    fn a_ratio_is_over_the_qemu_with_the_same_path() {
        let text = markdown(&results().nic.unwrap());
        let lines: Vec<&str> = text.lines().filter(|line| line.starts_with('|')).collect();
        assert!(lines[0].contains(" ping, us |"), "{text}");
        assert!(lines[2].starts_with("| QEMU <on> |       1000 |"), "{text}");
        assert!(
            lines[3].starts_with("| ours      | 900 (0.90) | 5.00 (1.00) |"),
            "{text}"
        );
        // No VMM has had an exit of a port.
        assert_eq!(
            lines[4..],
            [
                "|           |  HLT |",
                "|-----------|------|",
                "| QEMU <on> | 2.00 |",
                "| ours      | 2.00 |"
            ]
        );
    }
}
