// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Floors of the in-kernel irqchip.

use std::sync::Arc;

use interrupt_core::Irqchip;
use kvm_ioctls::Kvm;
use vmm_ref::composition::options::GIC;
use vmm_ref::error::at;
use vmm_ref::latency::Latency;
use vmm_ref::roundtrip::machine::Machine;
use vmm_sys_util::eventfd::EventFd;

use super::rig::Floor;
use crate::Result;

/// An irqfd with a resamplefd: one `write`, one `read`.
pub(super) fn resample(kvm: &Kvm, floor: &Floor, count: u64) -> Result<Latency> {
    let machine = Machine::new(kvm, &floor.program(Irqchip::Kernel).assemble()?, Irqchip::Kernel)?;
    let registers = machine.status()?.device(0)?;
    let (trigger, told) = (EventFd::new(0)?, floor.eventfd()?);
    machine
        .vm()
        .register_irqfd_with_resample(&trigger, &told, floor.controller.gsi().0)?;
    let controllers = machine.controllers()?;
    let running = machine.start(&controllers, || Ok(()))?;
    let latency = floor.round_trips(&registers, &told, count, || Ok(trigger.write(1)?))?;
    running.stop()?;
    Ok(latency)
}

/// KVM_IRQ_LINE, and a resample irqfd whose trigger is never written.
pub(super) fn line(kvm: &Kvm, floor: &Floor, count: u64) -> Result<Latency> {
    let machine = Machine::new(kvm, &floor.program(Irqchip::Kernel).assemble()?, Irqchip::Kernel)?;
    let registers = machine.status()?.device(0)?;
    let (silent, told) = (EventFd::new(0)?, floor.eventfd()?);
    let gsi = floor.controller.gsi().0;
    machine.vm().register_irqfd_with_resample(&silent, &told, gsi)?;
    // On arm64 KVM_IRQ_LINE takes the kind, 1 for an SPI, and the interrupt ID.
    let gsi = if GIC { 1 << 24 | (32 + gsi) } else { gsi };
    let (vm, lowers) = (Arc::clone(machine.vm()), Arc::clone(machine.vm()));
    let controllers = machine.controllers()?;
    let running = machine.start(&controllers, move || {
        lowers.set_irq_line(gsi, false).map_err(at("KVM_IRQ_LINE"))
    })?;
    let latency = floor.round_trips(&registers, &told, count, || Ok(vm.set_irq_line(gsi, true)?))?;
    running.stop()?;
    Ok(latency)
}
