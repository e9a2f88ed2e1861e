// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the registry of a composition says, without a run.

use interrupt_core::forward::{Explanation, Path};
use kvm_ioctls::Kvm;

use crate::composition::check::Impossible;
use crate::composition::options::Composition;
use crate::error::Result;
use crate::roundtrip::parts::Parts;
use crate::roundtrip::run::Guest;

/// The registry's table, which has one line: there is one device.
#[derive(Clone, Debug)]
pub struct Explained {
    /// The device and its line.
    pub pair: Explanation,
    /// The paths that the two can do, best first.
    pub possible: Vec<Path>,
}

/// Puts a composition together, asks its registry, and takes it apart again.
///
/// # Errors
/// When the parts cannot be put together; [`Impossible::NothingToForward`] for a device that is not forwarded.
pub fn explain(kvm: Option<&Kvm>, composition: &Composition) -> Result<Explained> {
    let (guest, controllers) = Guest::new(kvm, composition, true)?;
    let parts = Parts::compose(&controllers, &guest.status()?, composition)?;
    let forwarding = parts.forwarding().ok_or(Impossible::NothingToForward)?;
    let possible = forwarding.registry().possible(forwarding.id())?;
    let pair = forwarding.explanation().ok_or(Impossible::NothingToForward)?;
    Ok(Explained { pair, possible })
}
