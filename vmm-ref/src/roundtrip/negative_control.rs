// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Finds out whether a host reports the guest's EOI or ends interrupts itself.
//!
//! Some hosts end an interrupt when they inject it. A resamplefd is then signalled without the guest's EOI. KVM does
//! not report this, so the control runs a guest whose handler writes no EOI, and checks whether an EOI is reported.

use std::fmt;
use std::sync::atomic::AtomicBool;

use kvm_ioctls::Kvm;
use serde::Serialize;

use crate::composition::options::Composition;
use crate::error::Result;
use crate::roundtrip::run::run;
use crate::roundtrip::summary::{Options, Outcome};

/// The party that ends interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum EndedBy {
    /// The guest: without its EOI, no EOI is reported.
    Guest,
    /// The host: an EOI is reported although the handler writes none.
    Host,
    /// Neither: no EOI is reported although the handler writes one.
    Nobody,
}

impl fmt::Display for EndedBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Guest => "the guest's own EOI is observable (without it, none is reported)",
            Self::Host => "the host ends interrupts by itself (an EOI is reported without the guest's)",
            Self::Nobody => "no EOI is reported, not even the guest's",
        })
    }
}

/// The round trips of a control run: enough to see that the path works.
const ROUNDS: u64 = 20;

/// Makes short runs, one with the guest's EOI and one for each negative control of the controller. When `interrupted` becomes true the runs end early, and the
/// result means nothing.
///
/// # Errors
/// As [`run`].
pub fn ended_by(kvm: Option<&Kvm>, composition: Composition, interrupted: &AtomicBool) -> Result<EndedBy> {
    let options = |without| Options {
        composition,
        count: ROUNDS,
        without,
        swap_every: None,
    };
    if run(kvm, &options(None), interrupted, &mut |_| {})?.done == 0 {
        return Ok(EndedBy::Nobody);
    }
    for without in composition.controller.controls() {
        let control = run(kvm, &options(Some(*without)), interrupted, &mut |_| {})?;
        match control.outcome {
            Outcome::NoEoi => {}
            _ if control.resampled > 0 => return Ok(EndedBy::Host),
            // The handler did not even run.
            _ => return Ok(EndedBy::Nobody),
        }
    }
    Ok(EndedBy::Guest)
}
