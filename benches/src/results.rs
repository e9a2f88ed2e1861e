// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! All figures of one run, as written to JSON and read back for a comparison. Times are microseconds unless a name says
//! otherwise.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use vmm_ref::latency::Percentiles;

use crate::digits::number;

/// The format of [`Results`]. A file with another format is not compared.
pub const FORMAT: u32 = 2;

/// One run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Results {
    /// [`FORMAT`].
    pub format: u32,
    /// The version of the workspace.
    pub version: String,
    /// Seconds since 1970 at the start.
    pub started: u64,
    /// Seconds that the run took.
    pub seconds: u64,
    /// Whether the run measured the full set.
    pub full: bool,
    /// The host.
    pub host: Host,
    /// Round trips, by irqchip and controller.
    pub groups: Vec<Group>,
    /// A network card under Linux, beside QEMU.
    #[serde(default)]
    pub nic: Option<Nic>,
    /// Adaptive waiting beside polling and blocking.
    pub waiting: Option<Waiting>,
    /// Costs that depend on the number of lines, sharers, routes and pairs.
    pub scaling: Vec<Series>,
    /// Criterion's figures of single operations, in nanoseconds: name, and lower bound, estimate, upper bound.
    pub operations_ns: BTreeMap<String, [f64; 3]>,
    /// Instructions of single operations.
    pub instructions: BTreeMap<String, f64>,
    /// The items without a figure.
    pub left_out: Vec<LeftOut>,
    /// The targets.
    pub targets: Vec<Target>,
}

/// The properties of the host that figures depend on.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Host {
    /// Kernel, KVM module and CPUs.
    pub summary: String,
    /// The processor's name.
    pub processor: String,
    /// The load average before the run: runnable tasks over the last minute.
    pub load_before: f64,
    /// The load average after the run, which includes this run.
    pub load_after: f64,
}

/// One irqchip and controller.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Group {
    /// The result of the negative control.
    pub control: Control,
    /// The floors and compositions of this irqchip and controller.
    pub ways: Vec<Figures>,
}

/// The outcome of a negative control.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Control {
    /// The irqchip and controller.
    pub group: String,
    /// The result in words.
    pub finding: String,
    /// Whether the EOI is the guest's own. If not, no figure of the group measures an EOI.
    pub eoi: bool,
}

/// One way to make the round trip.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Figures {
    /// The name of the way.
    pub name: String,
    /// How the device waits for an EOI.
    pub wait: String,
    /// The index of its floor in the group; `None` for a floor.
    pub floor: Option<usize>,
    /// The number of round trips.
    pub round_trips: u64,
    /// The quantiles of all round trips.
    pub latency_us: Quantiles,
    /// The medians of the turns.
    pub p50_us: Spread,
    /// The ratios of these medians to those of the floor.
    pub over_floor: Option<Spread>,
    /// The costs besides time.
    pub per_round_trip: PerRoundTrip,
    /// The distribution: upper bound of each range in microseconds, and the number of round trips in it.
    pub buckets: Vec<(f64, u64)>,
}

/// Quantiles of a distribution.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Quantiles {
    /// The shortest.
    pub min: f64,
    /// The median.
    pub p50: f64,
    /// The 90th percentile.
    pub p90: f64,
    /// The 99th percentile.
    pub p99: f64,
    /// The longest.
    pub max: f64,
}

impl From<Percentiles> for Quantiles {
    fn from(of: Percentiles) -> Self {
        Self {
            min: of.min,
            p50: of.p50,
            p90: of.p90,
            p99: of.p99,
            max: of.max,
        }
    }
}

/// One value of several turns.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Spread {
    /// The least.
    pub least: f64,
    /// The median.
    pub median: f64,
    /// The greatest.
    pub most: f64,
}

impl Spread {
    /// A value that was measured once, or does not vary.
    pub fn one(value: f64) -> Self {
        Self {
            least: value,
            median: value,
            most: value,
        }
    }

    /// The ratio of two values that vary independently.
    #[must_use]
    pub fn over(self, other: Self) -> Self {
        Self {
            least: self.least / other.most,
            median: self.median / other.median,
            most: self.most / other.least,
        }
    }

    /// The spread of at least one value.
    pub fn of(values: &[f64]) -> Self {
        let mut values = values.to_vec();
        values.sort_by(f64::total_cmp);
        let at = |n: usize| values.get(n).copied().unwrap_or(f64::NAN);
        Self {
            least: at(0),
            median: at(values.len() / 2),
            most: at(values.len().saturating_sub(1)),
        }
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", number(self.median))?;
        if self.least < self.most {
            write!(f, " ({} to {})", number(self.least), number(self.most))?;
        }
        Ok(())
    }
}

/// The costs of one round trip besides time, for the whole process.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct PerRoundTrip {
    /// System calls of all threads, KVM_RUN among them; `None` where they cannot be counted.
    pub system_calls: Option<f64>,
    /// Context switches of all threads; `None` likewise.
    pub context_switches: Option<f64>,
    /// Allocations of all threads.
    pub allocations: f64,
}

/// A network card on INTx, passed through to a Linux guest.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Nic {
    /// Boots of each VMM.
    pub rounds: usize,
    /// Pings of each boot that were timed, and pings of each boot whose exits were counted.
    pub pings: u32,
    /// The VMMs.
    pub vmms: Vec<NicFigures>,
}

impl Nic {
    /// The figures of a VMM.
    pub fn of(&self, name: &str) -> Option<&NicFigures> {
        self.vmms.iter().find(|vmm| vmm.name == name)
    }

    /// The figures of the QEMU that a VMM is compared with.
    pub fn peer(&self, vmm: &NicFigures) -> Option<&NicFigures> {
        self.of(vmm.compared_with.as_deref()?)
    }
}

/// The figures of one VMM. A spread is over the boots.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NicFigures {
    /// The VMM and its options.
    pub name: String,
    /// The name of the VMM that has the same path; `None` for a QEMU.
    pub compared_with: Option<String>,
    /// The medians of the pings, as the guest timed them.
    pub ping_us: Spread,
    /// From the start of the VMM to the first answer that its guest got over the card.
    pub boot_s: Spread,
    /// TCP from the neighbour to the guest.
    pub receive_mib_s: Spread,
    /// TCP from the guest to the neighbour.
    pub send_mib_s: Spread,
    /// Exits of the guest by reason, medians.
    pub exits_per_ping: BTreeMap<String, f64>,
    /// Interrupts of the card's line on the host, median.
    pub card_interrupts_per_ping: f64,
    /// All interrupts of the host, median.
    pub host_interrupts_per_ping: f64,
    /// All context switches of the host, median.
    pub context_switches_per_ping: f64,
}

impl NicFigures {
    /// The sum of all exits.
    pub fn all_exits_per_ping(&self) -> f64 {
        self.exits_per_ping.values().sum()
    }
}

/// Adaptive waiting beside polling and blocking.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Waiting {
    /// With an idle neighbour.
    pub idle: Adaptive,
    /// With all processors busy.
    pub busy: Adaptive,
    /// The part of an adaptive wait of a second that its thread spends on a processor, in thousandths.
    pub second_per_mille: f64,
}

/// The medians of adaptive waiting over those of the two floors, all measured in turns.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Adaptive {
    /// Over bare polling.
    pub over_polling: Spread,
    /// Over bare blocking.
    pub over_blocking: Spread,
}

impl Adaptive {
    /// Over the better of the two: the greater ratio is that to the shorter wait.
    pub fn over_better(&self) -> Spread {
        if self.over_polling.median > self.over_blocking.median {
            self.over_polling
        } else {
            self.over_blocking
        }
    }
}

/// A series: one cost against a number of objects.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Series {
    /// The objects that the x axis counts.
    pub of: String,
    /// The cost that is measured.
    pub what: String,
    /// The unit of the cost.
    pub unit: String,
    /// Number and value.
    pub points: Vec<(u64, f64)>,
}

/// Something without a figure.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LeftOut {
    /// The item.
    pub what: String,
    /// The reason.
    pub why: String,
}

impl LeftOut {
    /// `what` has no figure because of `why`.
    pub fn new(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            why: why.into(),
        }
    }
}

/// A target, and how it was met.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Target {
    /// The figure that is limited.
    pub what: String,
    /// The greatest value that meets the target.
    pub limit: f64,
    /// The unit; empty for a ratio.
    pub unit: String,
    /// The measured value and how much it moved between turns, or the reason why there is none.
    pub measured: Result<Spread, String>,
}

impl Target {
    /// Whether the target was met; `None` without a figure.
    pub fn is_met(&self) -> Option<bool> {
        self.measured
            .as_ref()
            .ok()
            .map(|measured| measured.median <= self.limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_moves_as_far_as_both_values_allow() {
        let ratio = Spread::of(&[8.0, 10.0, 12.0]).over(Spread::of(&[4.0, 5.0, 6.0]));
        assert_eq!(ratio.to_string(), "2.00 (1.33 to 3.00)");
        assert_eq!(Spread::one(613.0).to_string(), "613");
    }
}
