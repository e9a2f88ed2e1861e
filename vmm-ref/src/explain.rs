// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which path a composition takes and why, without a run.

use interrupt_core::forward::{Explanation, Path};
use kvm_ioctls::Kvm;

use crate::composition::check::Impossible;
use crate::composition::options::Composition;
use crate::error::Result;
use crate::roundtrip::parts::Parts;
use crate::roundtrip::run::Guest;

/// The connection of the composition's device.
#[derive(Clone, Debug)]
pub struct Explained {
    /// The device and its line.
    pub pair: Explanation,
    /// The paths that device and line support, best first.
    pub possible: Vec<Path>,
}

/// Builds the parts of a composition, asks its connection for its path, and drops them again.
///
/// # Errors
/// When the parts cannot be built; [`Impossible::NothingToForward`] for a device that is not forwarded.
pub fn explain(kvm: Option<&Kvm>, composition: &Composition) -> Result<Explained> {
    let (guest, controllers) = Guest::new(kvm, composition, true)?;
    let parts = Parts::compose(&controllers, &guest.status()?, composition)?;
    let forwarding = parts.forwarding().ok_or(Impossible::NothingToForward)?;
    let connection = forwarding.connection().ok_or(Impossible::NothingToForward)?;
    Ok(Explained {
        possible: connection.possible(),
        pair: connection.explain(),
    })
}
