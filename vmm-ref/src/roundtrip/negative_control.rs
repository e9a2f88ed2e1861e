// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Whether a host reports the guest's EOI, or ends interrupts itself.
//!
//! Some hosts end an interrupt when they inject it, and a resamplefd then says nothing of the guest. It cannot be
//! looked up; it is found by taking the EOI out of the guest's handler and seeing whether one is reported all the same.

use std::fmt;
use std::sync::atomic::AtomicBool;

use kvm_ioctls::Kvm;
use serde::Serialize;

use crate::composition::options::Composition;
use crate::error::Result;
use crate::roundtrip::run::run;
use crate::roundtrip::summary::{Options, Outcome};

/// Who ends interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum EndedBy {
    /// The guest: without its EOI nobody is told.
    Guest,
    /// The host: an EOI is reported for a handler that makes none.
    Host,
    /// Nobody: no EOI is reported even for a handler that makes one.
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

/// Enough to see that the path works.
const ROUNDS: u64 = 20;

/// Finds out by two short runs, with the guest's EOI and without it. `interrupted` cuts them short, and the answer is
/// then of no value.
///
/// # Errors
/// As [`run`].
pub fn ended_by(kvm: Option<&Kvm>, composition: Composition, interrupted: &AtomicBool) -> Result<EndedBy> {
    let options = |guest_eoi| Options {
        composition,
        count: ROUNDS,
        guest_eoi,
        swap_every: None,
    };
    if run(kvm, &options(true), interrupted, &mut |_| {})?.done == 0 {
        return Ok(EndedBy::Nobody);
    }
    let control = run(kvm, &options(false), interrupted, &mut |_| {})?;
    Ok(match control.outcome {
        Outcome::NoEoi => EndedBy::Guest,
        _ if control.resampled > 0 => EndedBy::Host,
        // The handler did not even run.
        _ => EndedBy::Nobody,
    })
}
