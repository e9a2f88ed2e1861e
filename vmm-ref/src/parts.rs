// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The one place where a [`Composition`] becomes objects. A new value of an option is a new arm here.

use std::sync::Arc;

use kvm_irqfd::{WaitMode, Waiter};

use crate::composition::{Composition, DeviceKind, Eoi, Source, Wait};
use crate::controllers::Controllers;
use crate::device::Device;
use crate::eoi::{Eois, keys};
use crate::error::Result;
use crate::guest::Status;
use crate::passthrough::{ByGsi, Edu, EduPin, Forwarding};

/// What a run consists of beside its machine.
#[derive(Debug)]
pub struct Parts {
    /// The devices, which share one line.
    pub devices: Arc<[Device]>,
    /// The EOIs of that line.
    pub eois: Eois,
    /// The device outside of this process, if it is one, with what carries its interrupt.
    pub passthrough: Option<Passthrough>,
}

/// A device outside of this process and what carries its interrupt.
// Field order is drop order: INTx is disabled while the device is there.
#[derive(Debug)]
pub struct Passthrough {
    /// From the device to the line and back.
    pub forwarding: Forwarding,
    /// The device.
    pub edu: Edu,
}

impl Parts {
    /// Puts the parts together.
    ///
    /// # Errors
    /// [`Error::Impossible`](crate::error::Error::Impossible) for a composition that cannot work, before anything is registered.
    /// Otherwise that of the part that could not be had; nothing is left registered.
    pub fn compose(controllers: &Controllers, status: &Status, composition: &Composition) -> Result<Self> {
        composition.check()?;
        let edu = match composition.device {
            DeviceKind::Embedded => None,
            DeviceKind::Vfio(address) => Some(Edu::open(address)?),
            DeviceKind::VfioUser(path) => Some(Edu::connect(&path)?),
        };
        if let Some(edu) = edu {
            return Self::pass_through(edu, controllers, status, composition);
        }
        let gsi = composition.controller.gsi();
        let sources = (0..composition.sharers)
            .map(|n| controllers.source(composition.source, gsi, format!("device {n}")))
            .collect::<Result<Vec<_>>>()?;

        let waiter = waiter(composition.wait);
        let notifier = &*controllers.notifier();
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
            passthrough: None,
        })
    }

    /// The forwarder listens to the line for the device. The devices' thread listens besides, by GSI, and is not in the way of either:
    /// it is how the EOIs are counted and timed.
    fn pass_through(edu: Edu, controllers: &Controllers, status: &Status, composition: &Composition) -> Result<Self> {
        let gsi = composition.controller.gsi();
        let label = edu.label().to_owned();
        let source = controllers.source(composition.source, gsi, label)?;
        let notifier = controllers.notifier();
        let eois = Eois::by_eventfd(&*notifier, &[gsi.into()], waiter(composition.wait))?;
        let notifier = match composition.source {
            Source::Irqfd => Arc::new(ByGsi(notifier)),
            Source::Resample | Source::Line | Source::Pin => notifier,
        };
        let forwarding = Forwarding::start(&edu, composition.forward, source, notifier)?;
        let device = Device::new(Arc::new(EduPin::new(&edu, gsi)), status.device(0)?);
        Ok(Self {
            devices: [device].into(),
            eois,
            passthrough: Some(Passthrough { forwarding, edu }),
        })
    }
}

fn waiter(wait: Wait) -> Waiter {
    Waiter::new(match wait {
        Wait::Block => WaitMode::Block,
        Wait::Spin => WaitMode::Spin,
        Wait::Adaptive => WaitMode::Adaptive,
    })
}
