// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The one place where a [`Composition`] becomes objects. A new value of an option is a new arm here.

use std::sync::Arc;

use kvm_irqfd::{WaitMode, Waiter};

use crate::composition::{Composition, Eoi, Source, Wait};
use crate::controllers::Controllers;
use crate::device::Device;
use crate::eoi::{Eois, keys};
use crate::error::Result;
use crate::guest::Status;

/// What a run consists of beside its machine.
#[derive(Debug)]
pub struct Parts {
    /// The devices, which share one line.
    pub devices: Arc<[Device]>,
    /// The EOIs of that line.
    pub eois: Eois,
}

impl Parts {
    /// Puts the parts together.
    ///
    /// # Errors
    /// [`Error::Impossible`](crate::error::Error::Impossible) for a composition that cannot work, before anything is registered.
    /// Otherwise that of the part that could not be had; nothing is left registered.
    pub fn compose(controllers: &Controllers, status: &Status, composition: &Composition) -> Result<Self> {
        composition.check()?;
        let gsi = composition.controller.gsi();
        let sources = (0..composition.sharers)
            .map(|n| controllers.source(composition.source, gsi, format!("device {n}")))
            .collect::<Result<Vec<_>>>()?;

        let waiter = Waiter::new(match composition.wait {
            Wait::Block => WaitMode::Block,
            Wait::Spin => WaitMode::Spin,
            Wait::Adaptive => WaitMode::Adaptive,
        });
        let notifier = controllers.notifier();
        let eois = match (composition.source, composition.eoi, controllers) {
            (_, Eoi::Resamplefd | Eoi::Key, _) => Eois::by_eventfd(notifier, &keys(&sources), waiter),
            // The dispatch loop has to run anyway: it states levels again that KVM may have forgotten.
            (Source::Line, Eoi::Gsi, Controllers::Kernel(interrupts)) => {
                Eois::by_dispatch(interrupts, gsi.into(), waiter)
            }
            (_, Eoi::Gsi, _) => Eois::by_eventfd(notifier, &[gsi.into()], waiter),
        }?;

        let devices = sources
            .into_iter()
            .enumerate()
            .map(|(n, source)| Ok(Device::new(source, status.device(n)?)))
            .collect::<Result<Vec<_>>>()?;
        Ok(Self {
            devices: devices.into(),
            eois,
        })
    }
}
