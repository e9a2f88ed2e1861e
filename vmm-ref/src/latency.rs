// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The latencies of round trips: recorded without an allocation, summarised as percentiles.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

/// The longest latency with a range of its own. It is far beyond the limit at which a run counts as stalled.
const LONGEST: Duration = Duration::from_secs(100);

/// Three significant digits: 0.1 %.
const DIGITS: u8 = 3;

/// A histogram of latencies.
#[derive(Clone, Debug)]
pub struct Latency(Histogram<u64>);

/// Percentiles of a histogram, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Percentiles {
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

impl Latency {
    /// An empty histogram. All its memory is allocated here.
    #[allow(
        clippy::expect_used,
        reason = "the bounds are constants that the histogram's documentation allows"
    )]
    pub fn new() -> Self {
        Self(Histogram::new_with_bounds(1, LONGEST.as_nanos() as u64, DIGITS).expect("valid bounds"))
    }

    /// Adds one latency.
    pub fn record(&mut self, latency: Duration) {
        self.0.saturating_record(latency.as_nanos() as u64);
    }

    /// Adds all latencies of `other`.
    pub fn merge(&mut self, other: &Self) {
        // Both have the same bounds, so every latency of `other` is in range.
        self.0 += &other.0;
    }

    /// The distribution for a chart: the upper bound of each range in microseconds, 5 % above the previous bound, and
    /// the number of latencies in the range. Empty ranges are left out.
    pub fn buckets(&self) -> Vec<(f64, u64)> {
        let bounds = self.0.iter_log(100, 1.05);
        bounds
            .map(|step| {
                (
                    step.value_iterated_to() as f64 / 1000.0,
                    step.count_since_last_iteration(),
                )
            })
            .filter(|(_, count)| *count > 0)
            .collect()
    }

    /// The sum of all latencies.
    pub fn total(&self) -> Duration {
        Duration::from_nanos(
            self.0
                .iter_recorded()
                .map(|step| step.value_iterated_to() * step.count_at_value())
                .sum(),
        )
    }

    /// The percentiles; `None` when nothing was recorded.
    pub fn percentiles(&self) -> Option<Percentiles> {
        if self.0.is_empty() {
            return None;
        }
        let us = |ns: u64| ns as f64 / 1000.0;
        let quantile = |quantile| us(self.0.value_at_quantile(quantile));
        Some(Percentiles {
            min: us(self.0.min()),
            p50: quantile(0.5),
            p90: quantile(0.9),
            p99: quantile(0.99),
            max: us(self.0.max()),
        })
    }
}

impl Default for Latency {
    fn default() -> Self {
        Self::new()
    }
}
