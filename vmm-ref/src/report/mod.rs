// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a run says of itself: lines for people, one JSON object for programs, and a progress bar.

pub mod json;
pub mod progress;
pub mod text;

use crate::host::Host;
use crate::observe::EndedBy;
use crate::run::Summary;

/// A run and the host that it was on.
#[derive(Clone, Debug)]
pub struct Report {
    /// The host.
    pub host: Host,
    /// Who ends interrupts at the controller of this run.
    pub ended_by: EndedBy,
    /// The run.
    pub summary: Summary,
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Duration;

    use super::*;
    use crate::composition::Composition;
    use crate::guest::Controller;
    use crate::latency::{Latency, Percentiles};
    use crate::run::{Options, Outcome};
    use crate::traffic::Watched;

    /// A run that went well.
    pub(crate) fn report() -> Report {
        Report {
            host: Host {
                kernel: "6.18.0".to_owned(),
                kvm_modules: vec!["kvm_intel".to_owned()],
                cpus: 2,
            },
            ended_by: EndedBy::Guest,
            summary: Summary {
                options: Options {
                    composition: Composition::in_kernel(Controller::Pic),
                    count: 10_000,
                    guest_eoi: true,
                    swap_every: None,
                },
                done: 10_000,
                asserted: 10_000,
                serviced: 10_000,
                resampled: 10_000,
                lost: 0,
                spurious: 0,
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
            },
        }
    }
}
