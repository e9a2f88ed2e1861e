// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! All figures of one run, as they are written as JSON and read again to be compared. Times are microseconds unless a
//! name says otherwise.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use vmm_ref::latency::Percentiles;

/// The format of [`Results`]; another one is not compared.
pub const FORMAT: u32 = 1;

/// One run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Results {
    /// [`FORMAT`].
    pub format: u32,
    /// The version of the workspace.
    pub version: String,
    /// Seconds since 1970 at the start.
    pub started: u64,
    /// Seconds that it took.
    pub seconds: u64,
    /// Whether it was the full set.
    pub full: bool,
    /// The host.
    pub host: Host,
    /// Round trips, by irqchip and controller.
    pub groups: Vec<Group>,
    /// How waiting adapts.
    pub waiting: Option<Waiting>,
    /// What grows with the number of lines, sharers, routes and pairs.
    pub scaling: Vec<Series>,
    /// Criterion's figures of single operations, in nanoseconds: name, and lower bound, estimate, upper bound.
    pub operations_ns: BTreeMap<String, [f64; 3]>,
    /// Instructions of single operations.
    pub instructions: BTreeMap<String, f64>,
    /// What there is no figure of.
    pub left_out: Vec<LeftOut>,
    /// The targets.
    pub targets: Vec<Target>,
}

/// The host, as far as figures depend on it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Host {
    /// Kernel, KVM module and CPUs.
    pub summary: String,
    /// The processor's name.
    pub processor: String,
    /// How many tasks were runnable before the run, on average over the last minute.
    pub load_before: f64,
    /// The same after it; this run is part of it.
    pub load_after: f64,
}

/// One irqchip and controller.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Group {
    /// Its negative control.
    pub control: Control,
    /// The ways through it, floors and compositions.
    pub ways: Vec<Figures>,
}

/// The outcome of a negative control.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Control {
    /// The irqchip and controller.
    pub group: String,
    /// What was found, in words.
    pub finding: String,
    /// Whether the EOI is the guest's own. Without, no figure of the group is an EOI figure.
    pub eoi: bool,
}

/// One way round.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Figures {
    /// What it is.
    pub name: String,
    /// How it waits.
    pub wait: String,
    /// The place of its floor in the group; a floor has none.
    pub floor: Option<usize>,
    /// How many.
    pub round_trips: u64,
    /// All of them together.
    pub latency_us: Quantiles,
    /// The medians of the turns.
    pub p50_us: Spread,
    /// The medians over those of the floor.
    pub over_floor: Option<Spread>,
    /// What else it costs.
    pub per_round_trip: PerRoundTrip,
    /// The distribution: upper bound of a range in microseconds, and how many.
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
    /// That of at least one value.
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

/// What one round trip costs besides time, of the whole process.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct PerRoundTrip {
    /// System calls of all threads, KVM_RUN among them; `None` where they cannot be counted.
    pub system_calls: Option<f64>,
    /// Context switches of all threads; `None` likewise.
    pub context_switches: Option<f64>,
    /// Allocations of all threads.
    pub allocations: f64,
}

/// How waiting adapts.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Waiting {
    /// Adaptive over blocking, medians, with an idle neighbour.
    pub idle: Spread,
    /// The same with all processors busy.
    pub busy: Spread,
    /// Microseconds of processor time that one adaptive wait of a second took.
    pub second_us: f64,
}

/// How something grows.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Series {
    /// What is counted along the x axis.
    pub of: String,
    /// What is measured.
    pub what: String,
    /// Its unit.
    pub unit: String,
    /// Number and value.
    pub points: Vec<(u64, f64)>,
}

/// Something without a figure.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LeftOut {
    /// What.
    pub what: String,
    /// Why.
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
    /// What is limited.
    pub what: String,
    /// The greatest value that is good.
    pub limit: f64,
    /// The unit; empty for a ratio.
    pub unit: String,
    /// What was measured, or why nothing was.
    pub measured: Result<f64, String>,
}

impl Target {
    /// Whether it was met; `None` without a figure.
    pub fn is_met(&self) -> Option<bool> {
        self.measured.as_ref().ok().map(|measured| *measured <= self.limit)
    }
}
