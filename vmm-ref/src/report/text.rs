// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A report as lines for people. Styles are always written. The stream removes them where the output is no terminal.

use std::io::{self, Write};
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use interrupt_core::forward::Explanation;

use crate::composition::options::{Composition, Controller, DeviceKind, name};
use crate::explain::Explained;
use crate::host::Host;
use crate::passthrough::path_changes::Account as SwapAccount;
use crate::probe::capabilities::Probe;
use crate::report::Report;
use crate::roundtrip::doorbell::DoorbellSummary;
use crate::roundtrip::negative_control::EndedBy;
use crate::roundtrip::summary::{Outcome, Summary};

const LABEL: Style = Style::new().dimmed();
const GOOD: Style = AnsiColor::Green.on_default().bold();
const BAD: Style = AnsiColor::Red.on_default().bold();
const NOTE: Style = AnsiColor::Yellow.on_default();

fn line(out: &mut impl Write, label: &str, text: &str) -> io::Result<()> {
    writeln!(out, "{LABEL}{label:<10}{LABEL:#}{text}")
}

/// Prints the host.
///
/// # Errors
/// The errors of writing to `out`.
pub fn host(out: &mut impl Write, host: &Host, eois: &[(Controller, EndedBy)]) -> io::Result<()> {
    line(out, "host", &host.to_string())?;
    for (controller, ended_by) in eois {
        line(out, "EOI", &format!("{}: {ended_by}", register(*controller)))?;
    }
    Ok(())
}

/// The register that the guest writes to end an interrupt.
fn register(controller: Controller) -> &'static str {
    match controller {
        Controller::Ioapic => "LAPIC",
        Controller::Pic => "8259",
        Controller::Gic => "GIC",
    }
}

/// Prints the composition.
///
/// # Errors
/// The errors of writing to `out`.
pub fn composed(out: &mut impl Write, composition: &Composition) -> io::Result<()> {
    line(out, "composed", &composition.to_string())?;
    // The path of a forwarded device is chosen later, and printed then.
    if composition.device == DeviceKind::Embedded {
        line(
            out,
            "path",
            "none to choose: the embedded device holds its line itself (--device model does not)",
        )?;
    }
    Ok(())
}

/// Prints the summary.
///
/// # Errors
/// The errors of writing to `out`.
pub fn summary(out: &mut impl Write, report: &Report) -> io::Result<()> {
    let Report { ended_by, summary, .. } = report;
    if let Some(pair) = &summary.forwarding {
        forwarding(out, pair)?;
    }
    for (n, watched) in summary.trace.iter().enumerate() {
        let mut steps = [(watched.handled, "handler"), (watched.told, "resample")];
        // A host that ends interrupts by itself may notify the device before the handler has run.
        steps.sort();
        let [first, second] =
            steps.map(|(at, step)| format!("{step:<8} +{:.1} us", us(at.saturating_sub(watched.asserted))));
        let asserted = format!("assert at {:.1} us", us(watched.asserted));
        line(
            out,
            &format!("trace #{}", n + 1),
            &format!("{asserted:<22} {first:<20} {second}"),
        )?;
    }
    if let Some(swaps) = &summary.swaps {
        line(out, "swaps", &swapped(swaps))?;
    }
    line(
        out,
        "counts",
        &format!(
            "asserted {}, serviced {}, resampled {}, lost {}, spurious {}",
            summary.asserted, summary.serviced, summary.resampled, summary.lost, summary.spurious
        ),
    )?;
    line(
        out,
        "guest",
        &format!(
            "its handler ran {} times and found nothing to do in {} of them",
            summary.handler_runs, summary.found_nothing
        ),
    )?;
    if let Some(latency) = &summary.latency {
        line(
            out,
            "latency",
            &format!(
                "p50 {:.1} us, p90 {:.1} us, p99 {:.1} us (min {:.1}, max {:.1}), from assert to resample",
                latency.p50, latency.p90, latency.p99, latency.min, latency.max
            ),
        )?;
        if *ended_by != EndedBy::Guest {
            let register = register(summary.options.composition.controller);
            let note = format!(
                "not an EOI round trip: on this host the end of an interrupt at the {register} is not the guest's"
            );
            writeln!(out, "{:<10}{NOTE}{note}{NOTE:#}", "")?;
        }
    }
    if let Some(account) = &summary.doorbell {
        doorbell(out, account)?;
    }
    line(out, "elapsed", &format!("{:.3} s", summary.elapsed.as_secs_f64()))?;
    let style = match summary.outcome {
        Outcome::Ok | Outcome::NoEoi => GOOD,
        Outcome::Interrupted => NOTE,
        Outcome::Lost | Outcome::Spurious | Outcome::Doorbell | Outcome::EndedByHost => BAD,
    };
    writeln!(out, "{style}{}{style:#}", closing(summary))
}

/// Prints the path of a device's interrupt, and the reason against each better path.
///
/// # Errors
/// The errors of writing to `out`.
pub fn forwarding(out: &mut impl Write, pair: &Explanation) -> io::Result<()> {
    let Some(path) = pair.path else {
        return line(out, "path", &pair.to_string());
    };
    let (device, end) = match (&pair.producer, &pair.line) {
        (Some(producer), Some((gsi, _, end))) => (format!("{producer} to {gsi}"), end.to_string()),
        _ => (String::new(), String::new()),
    };
    line(out, "path", &format!("{path}, from {device} ({end} irqchip)"))?;
    for (path, reason) in &pair.why_not {
        writeln!(out, "{:<10}no {path}: {reason}", "")?;
    }
    Ok(())
}

/// Prints the connection's explanation for a composition that is not run.
///
/// # Errors
/// The errors of writing to `out`.
pub fn explained(out: &mut impl Write, explained: &Explained) -> io::Result<()> {
    let Explained { pair, possible } = explained;
    forwarding(out, pair)?;
    let possible: Vec<_> = possible.iter().map(ToString::to_string).collect();
    line(out, "possible", &possible.join(", "))
}

/// Prints the number of path changes, and the time that they took.
fn swapped(swaps: &SwapAccount) -> String {
    let to: Vec<_> = swaps
        .to
        .iter()
        .map(|(path, times)| format!("{times} to {path}"))
        .collect();
    let mut text = format!("{} changes of path, one every {} round trips", swaps.swaps, swaps.every);
    if let Some(cost) = &swaps.cost_us {
        text += &format!(
            " ({}); each took p50 {:.1} us, p99 {:.1} us, max {:.1} us",
            to.join(", "),
            cost.p50,
            cost.p99,
            cost.max
        );
    }
    text
}

/// Prints the counts and times of the doorbell.
fn doorbell(out: &mut impl Write, summary: &DoorbellSummary) -> io::Result<()> {
    for (space, rung) in [("PIO", &summary.pio), ("MMIO", &summary.mmio)] {
        let mut text = format!(
            "{space} by {}: {} stores, {} signals, {} exits",
            name(&rung.path),
            rung.stores,
            rung.signals,
            rung.exits
        );
        if let Some(p50) = rung.p50_ns {
            text += &format!(", p50 {p50} ns each");
        }
        if let Some(why) = &rung.why {
            text += &format!(" (trapped: {why})");
        }
        line(out, "doorbell", &text)?;
    }
    if let Some(clock) = summary.clock_p50_ns {
        let text = format!("in each of these ns are p50 {clock} ns for reading the clock");
        writeln!(out, "{:<10}{text}", "")?;
    }
    Ok(())
}

/// Prints the capabilities of a host.
///
/// # Errors
/// The errors of writing to `out`.
pub fn probe(out: &mut impl Write, probe: &Probe) -> io::Result<()> {
    line(out, "host", &probe.host.to_string())?;
    for (name, found) in &probe.capabilities {
        let (style, answer) = if found.available { (GOOD, "yes") } else { (NOTE, "no") };
        writeln!(
            out,
            "{LABEL}{name:<22}{LABEL:#}{style}{answer:<5}{style:#}{}",
            found.detail
        )?;
    }
    Ok(())
}

fn closing(summary: &Summary) -> String {
    let (done, count) = (summary.done, summary.options.count);
    match summary.outcome {
        Outcome::Ok if summary.spurious > 0 => {
            format!(
                "all well: {done} of {count} round trips, nothing lost; the device pulses, and a pulse may be told twice"
            )
        }
        Outcome::Ok => format!("all well: {done} of {count} round trips, nothing lost, nothing spurious"),
        Outcome::Lost => format!("NOT well: {} lost after {done} of {count} round trips", summary.lost),
        Outcome::Spurious => format!(
            "NOT well: {} spurious in {done} of {count} round trips",
            summary.spurious
        ),
        Outcome::Doorbell => "NOT well: stores to the doorbell were not signalled exactly once each".to_owned(),
        Outcome::Interrupted => {
            format!("interrupted: {done} of {count} round trips, nothing lost, nothing spurious until then")
        }
        Outcome::NoEoi => {
            "no EOI seen, as expected: the handler ran, did not end its interrupt, and nobody was told".to_owned()
        }
        Outcome::EndedByHost => format!(
            "the negative control FAILED: the host ended {done} of {count} interrupts by itself, without an EOI of the guest"
        ),
    }
}

fn us(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::report;

    /// The summary as a pipe gets it.
    fn text(report: &Report) -> String {
        let mut out = anstream::StripStream::new(Vec::new());
        summary(&mut out, report).unwrap();
        String::from_utf8(out.into_inner()).unwrap()
    }

    #[test]
    fn a_summary_reads_like_this() {
        assert_eq!(
            text(&report()),
            "trace #1  assert at 0.5 us       handler  +2.7 us     resample +5.2 us\n\
             counts    asserted 10000, serviced 10000, resampled 10000, lost 0, spurious 0\n\
             guest     its handler ran 10000 times and found nothing to do in 0 of them\n\
             latency   p50 5.5 us, p90 6.0 us, p99 9.0 us (min 4.0, max 1234.5), from assert to resample\n\
             elapsed   0.250 s\n\
             all well: 10000 of 10000 round trips, nothing lost, nothing spurious\n"
        );
    }

    #[test]
    fn a_figure_that_is_no_eoi_figure_says_so() {
        let mut report = report();
        report.ended_by = EndedBy::Host;
        assert!(text(&report).contains("not an EOI round trip"));
    }

    #[test]
    fn the_trace_is_in_the_order_of_events() {
        let mut report = report();
        report.summary.trace[0].told = Duration::from_nanos(1_000);
        let line = text(&report).lines().next().unwrap().to_owned();
        assert!(line.find("resample") < line.find("handler"), "{line}");
    }

    #[test]
    fn every_outcome_closes_with_one_line() {
        for outcome in [
            Outcome::Ok,
            Outcome::Lost,
            Outcome::Spurious,
            Outcome::Doorbell,
            Outcome::Interrupted,
            Outcome::NoEoi,
            Outcome::EndedByHost,
        ] {
            let mut report = report();
            report.summary.outcome = outcome;
            let closing = closing(&report.summary);
            assert_eq!(text(&report).lines().last(), Some(closing.as_str()));
            assert_eq!(closing.contains("all well"), outcome == Outcome::Ok, "{closing}");
        }
    }
}
