// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The options and the results of a run.

use std::time::Duration;

use interrupt_core::forward::Explanation;
use serde::Serialize;

use crate::composition::options::{Composition, Without};
use crate::latency::{Latency, Percentiles};
use crate::passthrough::path_changes::Account as SwapAccount;
use crate::roundtrip::device::Device;
use crate::roundtrip::doorbell::DoorbellSummary;
use crate::roundtrip::guest::status::Status;
use crate::roundtrip::traffic::{Traffic, Watched};

/// The options of a run.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The composition.
    pub composition: Composition,
    /// Round trips.
    pub count: u64,
    /// What the guest leaves out, in a run that is a negative control.
    pub without: Option<Without>,
    /// The number of round trips between two changes of path.
    pub swap_every: Option<u64>,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// All round trips were made, nothing was lost and nothing was spurious.
    Ok,
    /// A request was not served, or its device was not notified.
    Lost,
    /// The guest took interrupts that no device had raised.
    Spurious,
    /// A store to the doorbell was not signalled exactly once.
    Doorbell,
    /// Stopped early, with nothing lost and nothing spurious until then.
    Interrupted,
    /// The negative control passed: the handler served the request and wrote no EOI, and no EOI was reported.
    NoEoi,
    /// The negative control found that the host ends interrupts without the guest. Figures of this path do not measure
    /// EOIs.
    EndedByHost,
}

/// The results of a run.
#[derive(Clone, Debug)]
pub struct Summary {
    /// The options of the run.
    pub options: Options,
    /// Round trips completed.
    pub done: u64,
    /// Assertions made: one for each request, and one for each re-assertion after an EOI.
    pub asserted: u64,
    /// Requests that the guest reports as served.
    pub serviced: u64,
    /// EOIs of the line that the devices were notified of.
    pub resampled: u64,
    /// Requests that were not served, or whose device was not notified.
    pub lost: u64,
    /// Interrupts that the guest took beyond the assertions made.
    pub spurious: u64,
    /// The device pulses: its relay may run the handler once more than needed, which is no failure.
    pub pulses: bool,
    /// How often the handler ran.
    pub handler_runs: u64,
    /// How often the handler found no request.
    pub found_nothing: u64,
    /// From assertion to the EOI that ends the request.
    pub latency: Option<Percentiles>,
    /// The histogram of these latencies.
    pub distribution: Latency,
    /// The first round trips.
    pub trace: Vec<Watched>,
    /// From the first assertion to the last EOI.
    pub elapsed: Duration,
    /// The doorbell, if the guest rang it.
    pub doorbell: Option<DoorbellSummary>,
    /// The path of a forwarded interrupt at the beginning of the run, and the reasons for it.
    pub forwarding: Option<Explanation>,
    /// The changes of path, if the options asked for them.
    pub swaps: Option<SwapAccount>,
    /// The outcome of the run.
    pub outcome: Outcome,
}

impl Summary {
    /// Computes the results of a run that has ended.
    pub fn new(
        options: &Options,
        traffic: &Traffic,
        devices: &[Device],
        status: &Status,
        pulses: bool,
        doorbell: Option<DoorbellSummary>,
        interrupted: bool,
    ) -> Self {
        let sum = |of: fn(&Device) -> u64| devices.iter().map(of).sum::<u64>();
        let (raised, asserted, serviced) = (sum(Device::raised), sum(Device::asserted), sum(Device::serviced));
        let handler_runs = u64::from(status.handler_runs());
        let mut summary = Self {
            options: *options,
            done: traffic.done,
            asserted,
            serviced,
            resampled: traffic.resampled,
            // Without an EOI a served request is not lost, although its device is not notified.
            lost: raised
                - if options.without.is_none() {
                    traffic.done
                } else {
                    serviced
                },
            spurious: handler_runs.saturating_sub(asserted) + u64::from(status.stray()),
            pulses,
            handler_runs,
            found_nothing: status.found_nothing().into(),
            latency: traffic.latency.percentiles(),
            distribution: traffic.latency.clone(),
            trace: traffic.trace.clone(),
            elapsed: traffic.elapsed,
            doorbell,
            forwarding: None,
            swaps: None,
            outcome: Outcome::Ok,
        };
        summary.outcome = summary.judge(interrupted);
        summary
    }

    /// Whether the run made all round trips and all stores that the options asked for.
    fn is_complete(&self) -> bool {
        let count = self.options.count;
        self.done == count && self.doorbell.as_ref().is_none_or(|doorbell| doorbell.made(count))
    }

    /// Decides how the run ended. No other function does.
    fn judge(&self, interrupted: bool) -> Outcome {
        if self.lost > 0 {
            Outcome::Lost
        } else if self.spurious > 0 && !self.pulses {
            Outcome::Spurious
        } else if self.doorbell.as_ref().is_some_and(|doorbell| !doorbell.is_exact()) {
            Outcome::Doorbell
        } else if self.options.without.is_some() && self.done > 0 {
            Outcome::EndedByHost
        } else if interrupted && !self.is_complete() {
            Outcome::Interrupted
        } else if self.options.without.is_some() {
            Outcome::NoEoi
        } else {
            Outcome::Ok
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::composition::options::Controller;
    use crate::composition::options::DoorbellPath;
    use crate::roundtrip::doorbell::DoorbellStats;

    /// A run that went well.
    pub(crate) fn sample() -> Summary {
        Summary {
            options: Options {
                composition: Composition::in_kernel(Controller::Pic),
                count: 10_000,
                without: None,
                swap_every: None,
            },
            done: 10_000,
            asserted: 10_000,
            serviced: 10_000,
            resampled: 10_000,
            lost: 0,
            spurious: 0,
            pulses: false,
            handler_runs: 10_000,
            found_nothing: 0,
            latency: Some(Percentiles {
                min: 4.0,
                p50: 5.5,
                p90: 6.0,
                p99: 9.0,
                max: 1234.5,
            }),
            trace: vec![Watched {
                asserted: Duration::from_nanos(500),
                handled: Duration::from_nanos(3_200),
                told: Duration::from_nanos(5_750),
            }],
            distribution: Latency::new(),
            elapsed: Duration::from_millis(250),
            doorbell: None,
            forwarding: None,
            swaps: None,
            outcome: Outcome::Ok,
        }
    }

    /// Applies `change` to a successful run of 100, and returns the new outcome.
    fn outcome(without: Option<Without>, interrupted: bool, change: impl FnOnce(&mut Summary)) -> Outcome {
        let mut summary = sample();
        summary.options.without = without;
        (summary.options.count, summary.done) = (100, 100);
        change(&mut summary);
        summary.judge(interrupted)
    }

    #[test]
    fn a_run_is_judged_by_its_worst() {
        assert_eq!(outcome(None, false, |_| {}), Outcome::Ok);
        assert_eq!(outcome(None, false, |run| run.spurious = 1), Outcome::Spurious);
        let pulses = outcome(None, false, |run| (run.spurious, run.pulses) = (1, true));
        assert_eq!(pulses, Outcome::Ok);
        assert_eq!(
            outcome(None, true, |run| (run.lost, run.spurious) = (1, 1)),
            Outcome::Lost
        );
        assert_eq!(outcome(None, true, |run| run.done = 99), Outcome::Interrupted);
        assert_eq!(
            outcome(None, true, |_| {}),
            Outcome::Ok,
            "an interruption after the last round trip"
        );
    }

    #[test]
    fn a_doorbell_is_judged_too() {
        let rung = |signals, exits| DoorbellStats {
            path: DoorbellPath::Trap,
            why: None,
            stores: 100,
            signals,
            exits,
            p50_ns: None,
        };
        let with = |interrupted, pio, mmio, done| {
            outcome(None, interrupted, |run| {
                run.done = done;
                run.doorbell = Some(DoorbellSummary {
                    pio,
                    mmio,
                    clock_p50_ns: None,
                });
            })
        };
        assert_eq!(with(false, rung(100, 100), rung(100, 100), 100), Outcome::Ok);
        for (signals, exits) in [(99, 100), (101, 100), (100, 99), (100, 101), (0, 0)] {
            assert_eq!(
                with(false, rung(signals, exits), rung(100, 100), 100),
                Outcome::Doorbell
            );
            assert_eq!(with(true, rung(100, 100), rung(signals, exits), 99), Outcome::Doorbell);
        }
        let some = || DoorbellStats {
            stores: 64,
            ..rung(64, 64)
        };
        assert_eq!(with(true, some(), some(), 100), Outcome::Interrupted);
    }

    #[test]
    fn the_negative_control_expects_that_nothing_is_reported() {
        assert_eq!(outcome(Some(Without::Eoi), false, |run| run.done = 0), Outcome::NoEoi);
        assert_eq!(
            outcome(Some(Without::Eoi), false, |run| run.done = 1),
            Outcome::EndedByHost
        );
        assert_eq!(
            outcome(Some(Without::Eoi), true, |run| run.done = 0),
            Outcome::Interrupted
        );
        assert_eq!(
            outcome(Some(Without::Eoi), false, |run| (run.done, run.lost) = (0, 1)),
            Outcome::Lost
        );
    }
}
