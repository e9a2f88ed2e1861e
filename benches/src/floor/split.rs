// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Floor of the split irqchip.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context as _;
use interrupt_core::Irqchip;
use kvm_bindings::{KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_irq_routing_entry};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};
use vmm_ref::composition::check::Impossible;
use vmm_ref::error::{Error, Result as VmmResult, at};
use vmm_ref::latency::Latency;
use vmm_ref::roundtrip::machine::Machine;
use vmm_sys_util::eventfd::EventFd;

use super::rig::Floor;
use crate::Result;

const LAPIC: u32 = 0xfee0_0000;
/// Level-triggered, assert, fixed.
const LEVEL_ASSERT: u32 = 1 << 15 | 1 << 14;

pub(super) fn run(kvm: &Kvm, floor: &Floor, count: u64) -> Result<Latency> {
    let program = floor.program(Irqchip::Split);
    let machine = Machine::new(kvm, &program.assemble()?, Irqchip::Split)?;
    let registers = machine.status()?.device(0)?;
    let vector = program.vector().ok_or(Impossible::NoGic)?;

    let mut route = kvm_irq_routing_entry {
        gsi: floor.controller.gsi().0,
        type_: KVM_IRQ_ROUTING_MSI,
        ..Default::default()
    };
    route.u.msi.address_lo = LAPIC;
    route.u.msi.data = LEVEL_ASSERT | u32::from(vector);
    let routing = KvmIrqRouting::from_entries(&[route])
        .ok()
        .context("one route is too many")?;
    machine.vm().set_gsi_routing(&routing)?;

    let (trigger, told) = (EventFd::new(0)?, floor.eventfd()?);
    machine.vm().register_irqfd(&trigger, floor.controller.gsi().0)?;
    let ended = Arc::new(told.try_clone()?);
    let running = machine.start_with(move |fd, stop| vcpu(fd, stop, vector, &ended))?;
    let latency = floor.round_trips(&registers, &told, count, || Ok(trigger.write(1)?))?;
    running.stop()?;
    Ok(latency)
}

fn vcpu(mut fd: VcpuFd, stop: &AtomicBool, vector: u8, ended: &EventFd) -> VmmResult<()> {
    while !stop.load(Ordering::Acquire) {
        match fd.run() {
            Ok(VcpuExit::IoapicEoi(eoi)) if eoi == vector => ended.write(1).map_err(|source| Error::System {
                step: "write(eventfd)",
                source,
            })?,
            Ok(VcpuExit::MmioRead(_, data)) => data.fill(0),
            Ok(VcpuExit::MmioWrite(..) | VcpuExit::IoOut(..)) => {}
            Ok(other) => return Err(Error::Guest(format!("unexpected exit {other:?}"))),
            Err(error) if error.errno() == libc::EINTR => {}
            Err(error) => return Err(at("KVM_RUN")(error)),
        }
    }
    Ok(())
}
