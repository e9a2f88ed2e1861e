// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guest's own interrupt counts: /proc/interrupts, taken from the console when the guest's init prints the file.

use std::collections::BTreeMap;

use interrupt_core::Gsi;
use serde::Serialize;

/// A line of the guest's /proc/interrupts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GuestCount {
    /// How often the line's handler ran, on all CPUs together.
    pub count: u64,
    /// The flow that the guest's kernel uses: `fasteoi` for a level, `edge` for an edge.
    pub flow: String,
}

/// The longest line that is kept. Lines of /proc/interrupts are shorter.
const LINE_MAX: usize = 512;

/// Parses the console's output as it arrives.
#[derive(Debug, Default)]
pub struct GuestCounts {
    line: Vec<u8>,
    found: BTreeMap<u32, GuestCount>,
}

impl GuestCounts {
    /// Takes the next byte.
    pub fn take(&mut self, byte: u8) {
        match byte {
            b'\n' => {
                if let Some((pin, count)) = parse(&String::from_utf8_lossy(&self.line)) {
                    self.found.insert(pin, count);
                }
                self.line.clear();
            }
            _ if self.line.len() < LINE_MAX => self.line.push(byte),
            _ => {}
        }
    }

    /// The last printed counts of the line `gsi`.
    pub fn of(&self, gsi: Gsi) -> Option<&GuestCount> {
        self.found.get(&gsi.0)
    }
}

/// ` 17: 12 3 IO-APIC 16-fasteoi virtio0, virtio1`: the kernel's own number, a count for each CPU, the chip, its pin
/// and the flow, and the devices. On this machine a pin has the number of its GSI.
fn parse(line: &str) -> Option<(u32, GuestCount)> {
    let mut words = line.split_whitespace();
    words.next()?.strip_suffix(':')?.parse::<u32>().ok()?;
    let mut count = 0_u64;
    let chip = loop {
        let word = words.next()?;
        match word.parse::<u64>() {
            Ok(on_cpu) => count = count.checked_add(on_cpu)?,
            Err(_) => break word,
        }
    };
    let (pin, flow) = words.next()?.split_once('-')?;
    let pin = (chip == "IO-APIC").then(|| pin.parse().ok())??;
    Some((
        pin,
        GuestCount {
            count,
            flow: flow.to_owned(),
        },
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_of_the_ioapic_are_picked_out() {
        let mut counts = GuestCounts::default();
        let console = "booting\r\n            CPU0       CPU1       \r\n\
             \x20 4:         17          0   IO-APIC   4-fasteoi   ttyS0\r\n\
             \x20 5:        100         23   IO-APIC  16-fasteoi   virtio0, virtio1\r\n\
             NMI:          0          0   Non-maskable interrupts\r\n\
             \x20 6:          1          0   PCI-MSI 17-edge      x\r\n 7: what\r\n";
        for byte in console.bytes() {
            counts.take(byte);
        }
        let fasteoi = |count| GuestCount {
            count,
            flow: "fasteoi".to_owned(),
        };
        assert_eq!(counts.of(Gsi(4)), Some(&fasteoi(17)));
        assert_eq!(counts.of(Gsi(16)), Some(&fasteoi(123)));
        assert_eq!(counts.found.len(), 2);
        for byte in " 5: 200 0 IO-APIC 16-fasteoi virtio0\n".bytes() {
            counts.take(byte);
        }
        assert_eq!(counts.of(Gsi(16)), Some(&fasteoi(200)), "the last one");
    }

    #[test]
    fn a_guest_cannot_make_it_grow() {
        let mut counts = GuestCounts::default();
        (0..10_000).for_each(|_| counts.take(b'1'));
        assert_eq!(counts.line.len(), LINE_MAX);
        let overflow = format!(" 5: {0} {0} IO-APIC 16-fasteoi x\n", u64::MAX);
        overflow.bytes().for_each(|byte| counts.take(byte));
        assert_eq!(counts.of(Gsi(16)), None);
    }
}
