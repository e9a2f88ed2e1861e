// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The lab's side: the card, its neighbour, and the kernel's counters.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::process::Command;

use anyhow::{Context as _, bail};

use crate::Result;

/// The card that the guest gets: an e1000 on link 1.
pub const CARD: &str = "0000:00:0a.0";

const EXITS: &str = "/sys/kernel/tracing/events/kvm/kvm_exit";

/// Runs the lab's script that brings up the neighbours of its network cards.
///
/// # Errors
/// Outside of the lab, and when the script fails.
pub fn bring_up_neighbours() -> Result<()> {
    let script = std::env::var_os("IRQ_TEST_NEIGHBOURS");
    let script = script.context("no IRQ_TEST_NEIGHBOURS; it is set in cargo xtask lab")?;
    let status = Command::new(&script)
        .status()
        .context("cannot run the neighbours' script")?;
    if !status.success() {
        bail!("{}: {status}", script.to_string_lossy());
    }
    Ok(())
}

/// Counts of the whole host, at one moment or between two.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Interrupts of all lines and messages, the processor's timer among them.
    pub interrupts: u64,
    /// Interrupts of the line of the card.
    pub of_card: u64,
    /// Context switches.
    pub switches: u64,
}

impl Counts {
    /// Reads the counts of /proc/stat and /proc/interrupts.
    ///
    /// # Errors
    /// When these files cannot be read.
    pub fn read() -> Result<Self> {
        let stat = fs::read_to_string("/proc/stat").context("/proc/stat")?;
        let lines = fs::read_to_string("/proc/interrupts").context("/proc/interrupts")?;
        Ok(Self {
            // The field is the sum of the lines with a number; the timer has none.
            interrupts: first_number(&stat, "intr ").context("/proc/stat has no intr")? + row(&lines, "LOC:"),
            of_card: lines
                .lines()
                .filter(|line| line.contains(&format!("vfio-intx({CARD})")))
                .map(counts_of)
                .sum(),
            switches: first_number(&stat, "ctxt ").context("/proc/stat has no ctxt")?,
        })
    }

    /// The difference to earlier counts.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        Self {
            interrupts: self.interrupts - before.interrupts,
            of_card: self.of_card - before.of_card,
            switches: self.switches - before.switches,
        }
    }
}

fn first_number(text: &str, field: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(field))?;
    line.split_whitespace().next()?.parse().ok()
}

fn row(lines: &str, name: &str) -> u64 {
    lines
        .lines()
        .filter(|line| line.trim_start().starts_with(name))
        .map(counts_of)
        .sum()
}

/// The sum over all processors of one line of /proc/interrupts.
fn counts_of(line: &str) -> u64 {
    let numbers = line
        .split_whitespace()
        .skip(1)
        .map_while(|word| word.parse::<u64>().ok());
    numbers.sum()
}

/// Counts exits by reason, while it lives.
#[derive(Debug)]
pub struct ExitCounter(());

impl ExitCounter {
    /// Begins to count, in the kernel: a histogram of the tracepoint, which costs little for each exit.
    ///
    /// # Errors
    /// When there is no such tracepoint, or no histograms.
    pub fn start() -> Result<Self> {
        trigger("hist:keys=exit_reason")?;
        Ok(Self(()))
    }

    /// Exits by reason since the start.
    ///
    /// # Errors
    /// When the histogram cannot be read.
    pub fn read(&self) -> Result<BTreeMap<String, u64>> {
        let text = fs::read_to_string(format!("{EXITS}/hist")).with_context(|| format!("{EXITS}/hist"))?;
        Ok(histogram(&text))
    }
}

impl Drop for ExitCounter {
    fn drop(&mut self) {
        // Without the histogram nothing is left to end.
        let _ = trigger("!hist:keys=exit_reason");
    }
}

fn trigger(text: &str) -> Result<()> {
    let path = format!("{EXITS}/trigger");
    let file = OpenOptions::new().write(true).open(&path);
    let write = file.and_then(|mut file| file.write_all(text.as_bytes()));
    write.with_context(|| format!("cannot count exits with {path}"))
}

/// Reads lines like `{ exit_reason:        120 } hitcount:          5`.
fn histogram(text: &str) -> BTreeMap<String, u64> {
    let number = |line: &str, after: &str| {
        let rest = line.split_once(after)?.1;
        rest.split_whitespace().next()?.parse::<u64>().ok()
    };
    let entries = text.lines().filter_map(|line| {
        let reason = number(line, "exit_reason:")?;
        Some((reason_name(reason), number(line, "hitcount:")?))
    });
    entries.collect()
}

/// The lab's processor has SVM. The codes are those of the AMD64 Architecture Programmer's Manual, volume 2, appendix C.
fn reason_name(code: u64) -> String {
    let name = match code {
        0x60 => "interrupt",
        0x64 => "interrupt window",
        0x65 => "CR0 write",
        0x72 => "CPUID",
        0x78 => "HLT",
        0x7b => "port",
        0x7c => "MSR",
        0x81 => "hypercall",
        0x400 => "nested page fault",
        _ => return format!("{code:#x}"),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exits_are_counted_by_reason() {
        let text = "# event histogram\n#\n\n{ exit_reason:        120 } hitcount:          5\n\
                    { exit_reason:         33 } hitcount:          1\n\nTotals:\n    Hits: 6\n";
        let expected = [("HLT".to_owned(), 5), ("0x21".to_owned(), 1)];
        assert_eq!(histogram(text), expected.into());
    }

    #[test]
    fn a_line_is_summed_over_the_processors() {
        let lines = "           CPU0       CPU1\n 21:          2          3  IR-IO-APIC  21-fasteoi   x\nLOC:   7   8   Local\n";
        assert_eq!(counts_of(lines.lines().nth(1).unwrap()), 5);
        assert_eq!(row(lines, "LOC:"), 15);
        assert_eq!(first_number("cpu 1 2\nintr 99 1 2\n", "intr "), Some(99));
    }
}
