// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Floor of a VFIO device's INTx: the kernel loop, set up in bare ioctls.

use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::sync::Arc;

use interrupt_core::Irqchip;
use interrupt_core::LevelSource as _;
use kvm_ioctls::Kvm;
use vmm_ref::composition::pci_address::PciAddress;
use vmm_ref::latency::Latency;
use vmm_ref::passthrough::edu::{Edu, EduPin};
use vmm_ref::roundtrip::machine::Machine;
use vmm_sys_util::eventfd::EventFd;

use super::rig::Floor;
use crate::Result;

/// vfio-pci signals an irqfd whose resamplefd is its unmask eventfd. A second resample irqfd, whose trigger is never
/// written, reports the EOI.
pub(super) fn run(kvm: &Kvm, floor: &Floor, address: PciAddress, count: u64) -> Result<Latency> {
    let edu = Edu::open(address)?;
    let mut machine = Machine::new(kvm, &floor.program(Irqchip::Kernel).assemble()?, Irqchip::Kernel)?;
    machine.map_bar(Arc::clone(edu.bar()))?;
    let registers = machine.status()?.device(0)?;
    let gsi = floor.controller.gsi();

    let (silent, told) = (EventFd::new(0)?, floor.eventfd()?);
    machine.vm().register_irqfd_with_resample(&silent, &told, gsi.0)?;
    let (trigger, unmask) = (EventFd::new(0)?, EventFd::new(0)?);
    machine.vm().register_irqfd_with_resample(&trigger, &unmask, gsi.0)?;
    edu.interrupt().set_trigger(Some(borrow(&trigger)))?;
    edu.interrupt().set_unmask(Some(borrow(&unmask)))?;

    let pin = EduPin::new(&edu, gsi);
    let controllers = machine.controllers()?;
    let running = machine.start(&controllers, || Ok(()))?;
    let latency = floor.round_trips(&registers, &told, count, || Ok(pin.assert().map(drop)?))?;
    running.stop()?;
    edu.interrupt().set_trigger(None)?;
    Ok(latency)
}

fn borrow(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the descriptor is open for as long as the `EventFd` that owns it is borrowed.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}
