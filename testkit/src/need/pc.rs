// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The trials of a PC's interrupt controllers.

use std::time::Duration;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::counter::count;
use crate::ioctl;
use crate::machine::{Irqchip, Machine, PicChip};
use crate::rig::LEVEL;

/// The cause of the end of an interrupt.
#[derive(Clone, Copy, Debug)]
pub(super) enum EndedBy {
    /// Only the guest's EOI ended the interrupt.
    Guest,
    /// The controller ended the interrupt when it injected it, without the guest's EOI.
    Injection,
}

pub(super) fn vm() -> Result<(), String> {
    build(Irqchip::User).map(drop)
}

pub(super) fn split_irqchip() -> Result<(), String> {
    build(Irqchip::Split).map(drop)
}

fn build(irqchip: Irqchip) -> Result<Machine, String> {
    Machine::builder()
        .irqchip(irqchip)
        .build()
        .map_err(|e| format!("{irqchip:?} irqchip: {e}"))
}

fn eventfd() -> Result<EventFd, String> {
    EventFd::new(EFD_NONBLOCK).map_err(|e| format!("eventfd: {e}"))
}

/// A machine with a resample irqfd on `gsi`, and its two eventfds.
fn resample_machine(gsi: u32) -> Result<(Machine, EventFd, EventFd), String> {
    let machine = build(Irqchip::Kernel)?;
    let (trigger, resample) = (eventfd()?, eventfd()?);
    ioctl::assign_resample(machine.vm(), &trigger, &resample, gsi)
        .map_err(|e| format!("a resample irqfd on a full irqchip: {e}"))?;
    Ok((machine, trigger, resample))
}

pub(super) fn full_irqchip() -> Result<(), String> {
    resample_machine(GSI).map(drop)
}

const GSI: u32 = 10;
const VECTOR: u8 = 0x31;
/// The work queue takes about 10 us, at worst 160 us.
const LIMIT: Duration = Duration::from_secs(5);

fn signal(trigger: &EventFd) -> Result<(), String> {
    trigger.write(1).map_err(|e| format!("write to an eventfd: {e}"))
}

pub(super) fn accept_mode() -> Result<(), String> {
    let (mut machine, trigger, resample) = resample_machine(GSI)?;
    machine.set_rte(GSI, LEVEL | u64::from(VECTOR));
    signal(&trigger)?;
    let accepted = machine.accept_within(LIMIT);
    if accepted != Some(VECTOR) {
        return Err(format!(
            "accept mode: accepted {accepted:?} instead of vector {VECTOR:#x}"
        ));
    }
    let before = count(&resample);
    machine.eoi();
    let after = count(&resample);
    if (before, after) != (0, 1) {
        return Err(format!(
            "accept mode: {before} resamples before the EOI and {after} after it, not 0 and 1"
        ));
    }
    Ok(())
}

pub(super) fn lapic_interrupt() -> Result<EndedBy, String> {
    let (mut machine, trigger, resample) = resample_machine(GSI)?;
    machine.set_rte(GSI, LEVEL | u64::from(VECTOR));
    signal(&trigger)?;
    took(&mut machine, VECTOR)?;
    ended_by(&resample, || drop(machine.eoi()))
}

pub(super) fn pic_interrupt() -> Result<EndedBy, String> {
    const IRQ: u8 = 5;
    const BASE: u8 = 0x20;
    let (mut machine, trigger, resample) = resample_machine(IRQ.into())?;
    machine.init_pics(BASE, false);
    machine.set_elcr(PicChip::Master, 1 << IRQ);
    machine.set_pic_mask(PicChip::Master, !(1 << IRQ));
    signal(&trigger)?;
    took(&mut machine, BASE + IRQ)?;
    ended_by(&resample, || machine.pic_eoi(PicChip::Master))
}

fn took(machine: &mut Machine, vector: u8) -> Result<(), String> {
    match machine.take_interrupt_within(LIMIT) {
        Some(taken) if taken == vector => Ok(()),
        other => Err(format!("the CPU took {other:?} instead of vector {vector:#x}")),
    }
}

/// The negative control: in service, without the EOI, nothing may have been resampled.
fn ended_by(resample: &EventFd, eoi: impl FnOnce()) -> Result<EndedBy, String> {
    if count(resample) != 0 {
        return Ok(EndedBy::Injection);
    }
    eoi();
    match count(resample) {
        1 => Ok(EndedBy::Guest),
        n => Err(format!("{n} resamples at the guest's EOI, not 1")),
    }
}
