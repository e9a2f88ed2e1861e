// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The output of a run: lines for people, one JSON object for programs, and a progress bar.

pub mod json;
#[cfg(target_arch = "x86_64")]
pub mod linux;
pub mod progress;
pub mod text;

use crate::host::Host;
use crate::roundtrip::negative_control::EndedBy;
use crate::roundtrip::summary::Summary;

/// A run and the host that it was on.
#[derive(Clone, Debug)]
pub struct Report {
    /// The host.
    pub host: Host,
    /// The result of the negative control for this run's controller.
    pub ended_by: EndedBy,
    /// The run.
    pub summary: Summary,
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::roundtrip::summary::tests::sample;

    /// A run that went well.
    pub(crate) fn report() -> Report {
        Report {
            host: Host {
                kernel: "6.18.0".to_owned(),
                kvm_modules: vec!["kvm_intel".to_owned()],
                cpus: 2,
            },
            ended_by: EndedBy::Guest,
            summary: sample(),
        }
    }
}
