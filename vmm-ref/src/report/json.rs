// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A report as one JSON object.

use std::io::{self, Write};

use interrupt_core::Irqchip;
use interrupt_core::forward::{Explanation, Path};
use serde::Serialize;

use crate::composition::options::{Controller, DeviceKind, Eoi, Forward, MachineKind, Source, Wait, serialize_irqchip};
use crate::explain;
use crate::latency::Percentiles;
use crate::report::Report;
use crate::roundtrip::negative_control::EndedBy;
use crate::roundtrip::summary::Outcome;

/// The fields of the object, in order. Their meaning is documented at their sources: [`crate::composition`] and
/// [`crate::roundtrip::summary::Summary`].
#[derive(Debug, Serialize)]
pub struct Object<'a> {
    host: &'a crate::host::Host,
    #[serde(serialize_with = "serialize_irqchip")]
    irqchip: Irqchip,
    controller: Controller,
    source: Source,
    eoi: Eoi,
    forward: Forward,
    device: DeviceKind,
    sharers: usize,
    wait: Wait,
    eoi_observable: bool,
    count: u64,
    asserted: u64,
    serviced: u64,
    resampled: u64,
    lost: u64,
    spurious: u64,
    /// `null` when no round trip was completed.
    latency_us: Option<Percentiles>,
    elapsed_s: f64,
    outcome: Outcome,
    machine: MachineKind,
    /// Absent without `--doorbell`.
    #[serde(skip_serializing_if = "Option::is_none")]
    doorbell: Option<&'a crate::roundtrip::doorbell::DoorbellSummary>,
    /// Absent with the embedded device.
    #[serde(skip_serializing_if = "Option::is_none")]
    forwarding: Option<Pair>,
    /// Absent without `--swap-every`.
    #[serde(skip_serializing_if = "Option::is_none")]
    swaps: Option<&'a crate::passthrough::path_changes::Account>,
}

/// The connection's explanation for the device and its line.
#[derive(Debug, Serialize)]
pub struct Pair {
    device: Option<String>,
    gsi: Option<u32>,
    /// The irqchip of the line.
    end: Option<String>,
    /// `null` when they are not connected.
    path: Option<String>,
    since_s: f64,
    changes: u64,
    /// `null` when the interrupt is not held back.
    held: Option<String>,
    /// One reason for each better path, best first.
    why_not: Vec<Reason>,
}

/// The output of `vmm-ref explain`.
#[derive(Debug, Serialize)]
pub struct Explained {
    #[serde(flatten)]
    pair: Pair,
    /// The paths that device and line support, best first.
    possible: Vec<String>,
}

impl From<&explain::Explained> for Explained {
    fn from(explained: &explain::Explained) -> Self {
        Self {
            pair: Pair::from(&explained.pair),
            possible: explained.possible.iter().map(Path::to_string).collect(),
        }
    }
}

/// Why a path is not taken.
#[derive(Debug, Serialize)]
pub struct Reason {
    path: String,
    reason: String,
}

impl From<&Explanation> for Pair {
    fn from(pair: &Explanation) -> Self {
        let line = pair.line.as_ref();
        let reason = |(path, reason): &(Path, String)| Reason {
            path: path.to_string(),
            reason: reason.clone(),
        };
        Self {
            device: pair.producer.clone(),
            gsi: line.map(|(gsi, _, _)| gsi.0),
            end: line.map(|(_, _, end)| end.to_string()),
            path: pair.path.map(|path| path.to_string()),
            since_s: pair.elapsed.as_secs_f64(),
            changes: pair.changes,
            held: pair.held.clone(),
            why_not: pair.why_not.iter().map(reason).collect(),
        }
    }
}

impl<'a> From<&'a Report> for Object<'a> {
    fn from(report: &'a Report) -> Self {
        let summary = &report.summary;
        let composition = summary.options.composition;
        Self {
            host: &report.host,
            irqchip: composition.irqchip,
            controller: composition.controller,
            source: composition.source,
            eoi: composition.eoi,
            forward: composition.forward,
            device: composition.device,
            sharers: composition.sharers,
            wait: composition.wait,
            eoi_observable: report.ended_by == EndedBy::Guest,
            count: summary.options.count,
            asserted: summary.asserted,
            serviced: summary.serviced,
            resampled: summary.resampled,
            lost: summary.lost,
            spurious: summary.spurious,
            latency_us: summary.latency,
            elapsed_s: summary.elapsed.as_secs_f64(),
            outcome: summary.outcome,
            machine: composition.machine,
            doorbell: summary.doorbell.as_ref(),
            forwarding: summary.forwarding.as_ref().map(Pair::from),
            swaps: summary.swaps.as_ref(),
        }
    }
}

/// Writes one object on one line.
///
/// # Errors
/// The errors of writing to `out`.
pub fn print(out: &mut impl Write, object: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *out, object)?;
    writeln!(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::report;

    #[test]
    fn the_fields_are_those_that_are_documented_and_in_their_order() {
        let json = serde_json::to_string(&Object::from(&report())).unwrap();
        assert_eq!(
            json,
            concat!(
                r#"{"host":"Linux 6.18.0, kvm_intel, 2 CPUs","irqchip":"kernel","controller":"pic","source":"resample","#,
                r#""eoi":"resamplefd","forward":"none","device":"embedded","sharers":1,"wait":"block","eoi_observable":true,"#,
                r#""count":10000,"asserted":10000,"serviced":10000,"resampled":10000,"lost":0,"spurious":0,"#,
                r#""latency_us":{"min":4.0,"p50":5.5,"p90":6.0,"p99":9.0,"max":1234.5},"elapsed_s":0.25,"outcome":"ok","machine":"kvm"}"#
            )
        );
    }

    #[test]
    fn without_a_round_trip_there_is_no_latency() {
        let mut report = report();
        report.summary.latency = None;
        let json = serde_json::to_value(Object::from(&report)).unwrap();
        assert!(json["latency_us"].is_null());
    }
}
