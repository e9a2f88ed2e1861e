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

const EVENTS: &str = "/sys/kernel/tracing/events/kvm";
/// An exit of any kind.
const EXITS: Histogram = Histogram {
    event: "kvm_exit",
    key: "exit_reason",
};
/// Which register an exit that is for one accesses.
const REGISTERS: Histogram = Histogram {
    event: "kvm_msr",
    key: "ecx",
};
/// The code of an exit that accesses a model-specific register.
const MSR: u64 = 0x7c;

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

/// The checksum of the first bytes of what the neighbour sends.
///
/// # Errors
/// Outside of the lab, and when the programs cannot be run.
pub fn checksum(mib: u32) -> Result<String> {
    let disk = std::env::var_os("IRQ_TEST_GUEST_DISK");
    let disk = disk.context("no IRQ_TEST_GUEST_DISK; it is set in cargo xtask lab")?;
    let script = format!("head -c {mib}M \"$0\" | md5sum");
    let output = Command::new("sh").args(["-c", &script]).arg(disk).output();
    let text = String::from_utf8(output.context("cannot run md5sum")?.stdout)?;
    let sum = text.split_whitespace().next().context("md5sum said nothing")?;
    Ok(sum.to_owned())
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
        let counter = Self(());
        EXITS.trigger("")?;
        REGISTERS.trigger("")?;
        Ok(counter)
    }

    /// Exits by reason since the start. Accesses to model-specific registers are counted by register.
    ///
    /// # Errors
    /// When a histogram cannot be read.
    pub fn read(&self) -> Result<BTreeMap<String, u64>> {
        let exits = EXITS.read()?.into_iter().filter(|(code, _)| *code != MSR);
        let exits = exits.map(|(code, count)| (reason_name(code), count));
        let registers = REGISTERS.read()?.into_iter();
        let mut sums = BTreeMap::new();
        for (name, count) in exits.chain(registers.map(|(number, count)| (register_name(number), count))) {
            *sums.entry(name).or_default() += count;
        }
        Ok(sums)
    }
}

impl Drop for ExitCounter {
    fn drop(&mut self) {
        // Without a histogram nothing is left to end.
        let _ = (EXITS.trigger("!"), REGISTERS.trigger("!"));
    }
}

/// A histogram of a tracepoint of KVM.
struct Histogram {
    event: &'static str,
    key: &'static str,
}

impl Histogram {
    /// Begins it; with `!` as `sign` ends it.
    fn trigger(&self, sign: &str) -> Result<()> {
        let path = format!("{EVENTS}/{}/trigger", self.event);
        let text = format!("{sign}hist:keys={}", self.key);
        let file = OpenOptions::new().write(true).open(&path);
        let write = file.and_then(|mut file| file.write_all(text.as_bytes()));
        write.with_context(|| format!("cannot count exits with {path}"))
    }

    /// How often each value of the key was seen.
    fn read(&self) -> Result<Vec<(u64, u64)>> {
        let path = format!("{EVENTS}/{}/hist", self.event);
        Ok(self.parse(&fs::read_to_string(&path).context(path)?))
    }

    /// Reads lines like `{ exit_reason:        120 } hitcount:          5`.
    fn parse(&self, text: &str) -> Vec<(u64, u64)> {
        let number = |line: &str, after: &str| {
            let rest = line.split_once(after)?.1;
            rest.split_whitespace().next()?.parse::<u64>().ok()
        };
        let entries = text
            .lines()
            .filter_map(|line| Some((number(line, &format!("{}:", self.key))?, number(line, "hitcount:")?)));
        entries.collect()
    }
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
        0x81 => "hypercall",
        0x400 => "nested page fault",
        _ => return format!("{code:#x}"),
    };
    name.to_owned()
}

/// The registers that a Linux guest writes often, in the mode of the APIC in which it has registers (x2APIC).
fn register_name(number: u64) -> String {
    let name = match number {
        0x6e0 => "TSC deadline",
        0x80b => "EOI",
        0x818..=0x81f => "trigger mode",
        0x830 => "IPI",
        0x838 => "APIC timer",
        _ => return format!("MSR {number:#x}"),
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
        assert_eq!(EXITS.parse(text), [(120, 5), (33, 1)]);
        assert_eq!([120, 33].map(reason_name), ["HLT", "0x21"]);
    }

    #[test]
    fn a_line_is_summed_over_the_processors() {
        let lines = "           CPU0       CPU1\n 21:          2          3  IR-IO-APIC  21-fasteoi   x\nLOC:   7   8   Local\n";
        assert_eq!(counts_of(lines.lines().nth(1).unwrap()), 5);
        assert_eq!(row(lines, "LOC:"), 15);
        assert_eq!(first_number("cpu 1 2\nintr 99 1 2\n", "intr "), Some(99));
    }
}
