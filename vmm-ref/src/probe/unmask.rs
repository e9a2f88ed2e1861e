// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Whether KVM asks a resampler for the level of its line when the pin is unmasked (Linux 6.3, "KVM: x86/ioapic:
//! Resample the pending state of an IRQ when unmasking").

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;

use interrupt_core::Irqchip;
use kvm_bindings::{KVM_IRQCHIP_IOAPIC, kvm_irqchip};
use kvm_ioctls::{Kvm, VmFd};

use crate::error::{Error, Result, at};
use crate::probe::trial::{GSI, Trial, event};
use crate::roundtrip::guest::unmask_program::unmask_program;
use crate::roundtrip::machine::Machine;
use crate::vm::stall::{STALL_LIMIT, StallDetector};

pub(super) fn trial(kvm: &Kvm) -> Trial {
    let machine = Machine::new(kvm, &unmask_program(GSI.into())?, Irqchip::Kernel)?;
    let (vm, registers) = (Arc::clone(machine.vm()), machine.status()?.device(0)?);
    let (trigger, resample) = (event()?, event()?);
    vm.register_irqfd_with_resample(&trigger, &resample, GSI)
        .map_err(at("KVM_IRQFD(resample)"))?;
    let controllers = machine.controllers()?;
    let running = machine.start(&controllers, || Ok(()))?;

    trigger.write(1).map_err(|source| Error::System {
        step: "write(trigger)",
        source,
    })?;
    until("the assertion did not reach the masked pin", || is_pending(&vm))?;
    if resample.read().is_ok() {
        return Err(Error::Absent(
            "a masked pin is resampled without being unmasked".to_owned(),
        ));
    }
    registers.raised.store(1, Ordering::Release);
    until("the guest did not unmask the pin", || Ok(registers.is_served()))?;
    // KVM has completed the guest's store, and the resample is part of that store.
    let resampled = resample.read().is_ok();
    running.stop()?;
    if resampled {
        Ok("unmasking a pin asks its resamplers for their level".to_owned())
    } else {
        Err(Error::Absent(
            "unmasking a pin injects what is pending without asking".to_owned(),
        ))
    }
}

/// Whether the IOAPIC has an interrupt of the pin pending.
fn is_pending(vm: &VmFd) -> Result<bool> {
    let mut chip = kvm_irqchip {
        chip_id: KVM_IRQCHIP_IOAPIC,
        ..Default::default()
    };
    vm.get_irqchip(&mut chip).map_err(at("KVM_GET_IRQCHIP"))?;
    // SAFETY: every bit pattern is a valid state, and the kernel has just written an IOAPIC's state.
    Ok(unsafe { chip.chip.ioapic }.irr & (1 << GSI) != 0)
}

fn until(otherwise: &str, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    let mut stall = StallDetector::new(STALL_LIMIT);
    while !condition()? {
        if stall.is_stalled(0) {
            return Err(Error::Guest(otherwise.to_owned()));
        }
        thread::yield_now();
    }
    Ok(())
}
