// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Builds the objects of a [`Composition`]. No other module does. A new value of an option needs a new arm here.

use std::sync::Arc;

use interrupt_core::forward::Consumer;
use interrupt_core::forward::GuestLine;
use kvm_irqfd::{WaitMode, Waiter};

use crate::composition::options::{Composition, DeviceKind, Eoi, Source, Wait};
use crate::error::Result;
use crate::passthrough::edu::{Edu, EduPin};
use crate::passthrough::forwarding::Forwarding;
use crate::passthrough::model::{Model, PinIrqfd};
use crate::roundtrip::device::Device;
use crate::roundtrip::eoi_wait::{EoiWait, keys};
use crate::roundtrip::guest::status::Status;
use crate::vm::irqchip::Controllers;

/// The parts of a run besides its machine.
#[derive(Debug)]
pub struct Parts {
    /// The devices, which share one line.
    pub devices: Arc<[Device]>,
    /// The EOIs of that line.
    pub eois: EoiWait,
    /// The device outside of this process, if any, and its forwarder.
    pub passthrough: Option<Passthrough>,
    /// The model device, if any, and its forwarder.
    pub modelled: Option<Modelled>,
}

/// A model device and its forwarder.
// Field order is drop order: INTx is disabled before the device is dropped.
#[derive(Debug)]
pub struct Modelled {
    /// The forwarder between the device and the line.
    pub forwarding: Forwarding,
    /// The device.
    pub model: Model,
}

/// A device outside of this process and its forwarder.
// Field order is drop order: INTx is disabled before the device is dropped.
#[derive(Debug)]
pub struct Passthrough {
    /// The forwarder between the device and the line.
    pub forwarding: Forwarding,
    /// The device.
    pub edu: Edu,
}

impl Parts {
    /// Makes the parts of `composition` and connects them.
    ///
    /// # Errors
    /// [`Error::Impossible`](crate::error::Error::Impossible) for a composition that cannot work, before anything is
    /// registered. Otherwise the error of the part that failed. Nothing stays registered.
    pub fn compose(controllers: &Controllers, status: &Status, composition: &Composition) -> Result<Self> {
        composition.check()?;
        match composition.device {
            DeviceKind::Embedded => {}
            DeviceKind::Model => return Self::model(controllers, status, composition),
            DeviceKind::Vfio(address) => {
                return Self::pass_through(Edu::open(address)?, controllers, status, composition);
            }
            DeviceKind::VfioUser(path) => {
                return Self::pass_through(Edu::connect(&path)?, controllers, status, composition);
            }
        }
        let gsi = composition.controller.gsi();
        let sources = (0..composition.sharers)
            .map(|n| controllers.source(composition.source, gsi, format!("device {n}")))
            .collect::<Result<Vec<_>>>()?;

        let waiter = waiter(composition.wait);
        let notifier = &*controllers.notifier();
        let eois = match (composition.source, composition.eoi, controllers) {
            (_, Eoi::Resamplefd | Eoi::Key, _) => EoiWait::by_eventfd(notifier, gsi, &keys(&sources), waiter),
            // The dispatch loop has to run anyway, because it also re-asserts levels that KVM may have lost.
            (Source::Line, Eoi::Gsi, Controllers::Kernel(interrupts)) => EoiWait::by_dispatch(interrupts, gsi, waiter),
            (_, Eoi::Gsi, _) => EoiWait::by_eventfd(notifier, gsi, &[gsi.into()], waiter),
        }?;

        let devices = sources
            .into_iter()
            .enumerate()
            .map(|(n, source)| Ok(Device::new(source, eois.listeners(), status.device(n)?)?))
            .collect::<Result<Vec<_>>>()?;
        Ok(Self {
            devices: devices.into(),
            eois,
            passthrough: None,
            modelled: None,
        })
    }

    /// The forwarder of the device's interrupt. `None` for embedded devices.
    pub fn forwarding(&self) -> Option<&Forwarding> {
        let passthrough = self.passthrough.as_ref().map(|passthrough| &passthrough.forwarding);
        passthrough.or(self.modelled.as_ref().map(|modelled| &modelled.forwarding))
    }

    /// As [`pass_through`](Self::pass_through), with a model device.
    fn model(controllers: &Controllers, status: &Status, composition: &Composition) -> Result<Self> {
        let gsi = composition.controller.gsi();
        let source = controllers.source(composition.source, gsi, "model".to_owned())?;
        let eois = EoiWait::by_eventfd(&*controllers.notifier(), gsi, &[gsi.into()], waiter(composition.wait))?;
        // The model's thread plays the irqfd of a line for which the kernel has none.
        let irqfd = match controllers {
            Controllers::Kernel(_) | Controllers::Split { .. } => None,
            Controllers::User(_) => Some(Arc::new(PinIrqfd::new(Arc::clone(&source))?)),
        };
        let line: Arc<dyn Consumer> = match &irqfd {
            Some(irqfd) => Arc::new(GuestLine::split(Arc::<PinIrqfd>::clone(irqfd), controllers.notifier())),
            None => controllers.line(composition.source, source, controllers.kvm_vfio()),
        };
        let model = Model::start(irqfd)?;
        let forwarding = Forwarding::start(model.interrupt(), None, composition.forward, line)?;
        let device = Device::new(Arc::new(model.pin(gsi)), eois.listeners(), status.device(0)?)?;
        Ok(Self {
            devices: [device].into(),
            eois,
            passthrough: None,
            modelled: Some(Modelled { forwarding, model }),
        })
    }

    /// The forwarder subscribes to the line's EOIs for the device. The devices' thread subscribes by GSI as well, to
    /// count and time the EOIs, and does not disturb the forwarder.
    fn pass_through(edu: Edu, controllers: &Controllers, status: &Status, composition: &Composition) -> Result<Self> {
        let gsi = composition.controller.gsi();
        let label = edu.label().to_owned();
        let source = controllers.source(composition.source, gsi, label)?;
        let eois = EoiWait::by_eventfd(&*controllers.notifier(), gsi, &[gsi.into()], waiter(composition.wait))?;
        let line = controllers.line(composition.source, source, controllers.kvm_vfio());
        let forwarding = Forwarding::start(Arc::clone(edu.interrupt()), edu.irq(), composition.forward, line)?;
        let device = Device::new(Arc::new(EduPin::new(&edu, gsi)), eois.listeners(), status.device(0)?)?;
        Ok(Self {
            devices: [device].into(),
            eois,
            passthrough: Some(Passthrough { forwarding, edu }),
            modelled: None,
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
