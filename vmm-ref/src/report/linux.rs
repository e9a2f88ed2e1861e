// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Prints the summary of a run with a Linux guest, as lines.

use std::io::{self, Write};

use crate::linux::guest_summary::{GuestSummary, Setup, WhyNot};
use crate::vm::ending::End;

/// Prints the configuration, before the guest starts.
///
/// # Errors
/// The errors of writing to `out`.
pub fn setup(out: &mut impl Write, setup: &Setup) -> io::Result<()> {
    writeln!(out, "host      {}", setup.host)?;
    writeln!(out, "composed  {setup}")
}

/// Prints the summary.
///
/// # Errors
/// The errors of writing to `out`.
pub fn summary(out: &mut impl Write, summary: &GuestSummary) -> io::Result<()> {
    for device in &summary.devices {
        writeln!(out, "device    {device}")?;
    }
    for card in &summary.cards {
        writeln!(out, "card      {card}")?;
        for WhyNot { path, reason } in &card.why_not {
            writeln!(out, "{:<10}no {path}: {reason}", "")?;
        }
    }
    let elapsed = summary.elapsed.as_secs_f64();
    let end = match summary.end {
        End::PowerOff => "the guest switched itself off",
        End::Reset => "the guest reset itself",
        End::TripleFault => "a processor of the guest gave up (triple fault)",
        End::Interrupted => "interrupted",
        End::ConsoleClosed => "nobody reads the console any more",
        End::Failed => "a processor could not go on",
    };
    match summary.guest_status {
        Some(status) => writeln!(out, "ended     {end} after {elapsed:.1} s, with status {status}"),
        None => writeln!(out, "ended     {end} after {elapsed:.1} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linux::guest_summary::tests::account;

    #[test]
    fn lines_say_what_both_sides_counted() {
        let mut out = Vec::new();
        setup(&mut out, &account().setup).unwrap();
        summary(&mut out, &account()).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "host      Linux 6.18.0, kvm_amd, 2 CPUs\n\
             composed  irqchip split, source pin, doorbell trap, 2 CPUs, 256 MiB\n\
             device    ttyS0: gsi 4: raised 9, EOIs 8, reasserted 1; the guest counted 7 (fasteoi)\n\
             device    virtio0 (disk d): gsi 16: raised 9, EOIs 8, reasserted 1, high at the end; NEEDED A RESET: the chain at 3 is a loop\n\
             ended     the guest switched itself off after 1.5 s, with status 3\n"
        );
    }
}
