// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The one place where a [`Composition`] becomes objects. A new value of an option is a new arm here.

use std::sync::Arc;

use interrupt_core::LevelSource;
use kvm_irqfd::{KvmInterrupts, WaitMode, Waiter};

use crate::composition::{Composition, Eoi, Source, Wait};
use crate::device::Device;
use crate::eoi::{Eois, keys};
use crate::error::Result;
use crate::machine::Machine;

/// What a run consists of beside its machine.
#[derive(Debug)]
pub struct Parts {
    /// The devices, which share one line.
    pub devices: Arc<[Device]>,
    /// The EOIs of that line.
    pub eois: Eois,
    /// What injects into the VM.
    pub interrupts: KvmInterrupts,
}

impl Parts {
    /// Puts the parts together.
    ///
    /// # Errors
    /// [`Error::Impossible`](crate::error::Error::Impossible) for a composition that cannot work, before anything is registered. Otherwise that of the part that
    /// could not be had; nothing is left registered.
    pub fn compose(machine: &Machine, composition: &Composition) -> Result<Self> {
        composition.check()?;
        let interrupts = KvmInterrupts::new(Arc::clone(machine.vm()))?;
        let gsi = composition.controller.gsi();
        let sources = (0..composition.sharers)
            .map(|n| {
                let label = format!("device {n}");
                Ok(match composition.source {
                    Source::Resample => Arc::new(interrupts.resample_source(gsi, label)?) as Arc<dyn LevelSource>,
                    Source::Line => Arc::new(interrupts.irq_line_source(gsi, label)?),
                })
            })
            .collect::<Result<Vec<_>>>()?;

        let waiter = Waiter::new(match composition.wait {
            Wait::Block => WaitMode::Block,
            Wait::Spin => WaitMode::Spin,
            Wait::Adaptive => WaitMode::Adaptive,
        });
        let eois = match (composition.source, composition.eoi) {
            (_, Eoi::Resamplefd) => Eois::by_eventfd(&interrupts, &keys(&sources), waiter),
            (Source::Resample, Eoi::Gsi) => Eois::by_eventfd(&interrupts, &[gsi.into()], waiter),
            // The dispatch loop has to run anyway: it states levels again that KVM may have forgotten.
            (Source::Line, Eoi::Gsi) => Eois::by_dispatch(&interrupts, gsi.into(), waiter),
        }?;

        let status = machine.status()?;
        let devices = sources
            .into_iter()
            .enumerate()
            .map(|(n, source)| Ok(Device::new(source, status.device(n)?)))
            .collect::<Result<Vec<_>>>()?;
        Ok(Self {
            devices: devices.into(),
            eois,
            interrupts,
        })
    }
}
