// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which path a composition takes and why, without a run.

use std::os::fd::AsRawFd as _;
use std::sync::Arc;

use interrupt_core::forward::{DeviceInterrupt, DeviceIrq, Explanation, Path};
use kvm_ioctls::Kvm;
use vfio_intx::VfioIntx;
use vfio_intx::irq_set::INTX;

use crate::composition::check::Impossible;
use crate::composition::options::{Composition, DeviceKind};
use crate::error::Result;
use crate::passthrough::forwarding::Forwarding;
use crate::passthrough::open::{connect, container, open};
use crate::passthrough::preflight::check;
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

/// Connects the composition's device to a line, asks the connection for its path, and disconnects the two. A PCI device
/// can be any that has an INTx: it is not driven.
///
/// # Errors
/// When the parts cannot be built; [`Impossible::NothingToForward`] for a device that is not forwarded.
pub fn explain(kvm: Option<&Kvm>, composition: &Composition) -> Result<Explained> {
    let (guest, controllers) = Guest::new(kvm, composition, None)?;
    let (interrupt, irq): (Arc<dyn DeviceInterrupt>, _) = match composition.device {
        DeviceKind::Embedded => return Err(Impossible::NothingToForward.into()),
        DeviceKind::Model => {
            let parts = Parts::compose(&controllers, &guest.status()?, composition)?;
            return explained(parts.forwarding().ok_or(Impossible::NothingToForward)?);
        }
        DeviceKind::Vfio(address) => {
            check(address)?;
            let device = open(address, container(address)?)?;
            let irq = DeviceIrq {
                device: device.as_raw_fd(),
                index: INTX,
                sub: 0,
            };
            (Arc::new(VfioIntx::new(address.to_string(), device)), Some(irq))
        }
        DeviceKind::VfioUser(path) => (connect(&path)?, None),
    };
    let gsi = composition.controller.gsi();
    let source = controllers.source(composition.source, gsi, interrupt.label().to_owned())?;
    let line = controllers.line(composition.source, source, controllers.kvm_vfio());
    let forwarding = Forwarding::start(interrupt, irq, composition.forward, line)?;
    explained(&forwarding)
}

fn explained(forwarding: &Forwarding) -> Result<Explained> {
    let connection = forwarding.connection().ok_or(Impossible::NothingToForward)?;
    Ok(Explained {
        possible: connection.possible(),
        pair: connection.explain(),
    })
}
