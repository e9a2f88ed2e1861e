// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the floors have in common.

use std::sync::atomic::Ordering;
use std::time::Instant;

use interrupt_core::Irqchip;
use vmm_ref::composition::options::Controller;
use vmm_ref::composition::pci_address::PciAddress;
use vmm_ref::latency::Latency;
use vmm_ref::roundtrip::guest::program::{Idle, Program};
use vmm_ref::roundtrip::guest::status::Registers;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::Result;

/// What carries the interrupt there and the EOI back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// In-kernel irqchip: an irqfd with a resamplefd.
    Resample,
    /// In-kernel irqchip: KVM_IRQ_LINE up, KVM_IRQ_LINE down at the handler's acknowledgement, and a resamplefd that
    /// tells.
    Line,
    /// Split irqchip: an irqfd on a message, and the exit that tells of the EOI. No IOAPIC: the guest's accesses to one
    /// are ignored.
    Split,
    /// No irqchip: KVM_INTERRUPT, and the exit of the OUT that is the EOI. No 8259: the guest's other accesses are
    /// ignored.
    Interrupt,
    /// No KVM: a thread is woken, and writes an eventfd.
    Thread,
    /// In-kernel irqchip: the INTx of that device signals an irqfd, whose resamplefd is the device's unmask eventfd.
    Intx(PciAddress),
}

/// One floor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Floor {
    /// What is done.
    pub path: Path,
    /// Which of the guest's programs it is done with.
    pub controller: Controller,
    /// Whether the eventfd is polled, instead of a blocking read.
    pub polls: bool,
}

impl Floor {
    pub(super) fn program(&self, irqchip: Irqchip) -> Program {
        Program {
            controller: self.controller,
            devices: 1,
            edu: matches!(self.path, Path::Intx(_)),
            acknowledge: self.path == Path::Line,
            eoi: true,
            idle: Idle::on(irqchip),
        }
    }

    /// What tells of EOIs.
    pub(super) fn eventfd(&self) -> Result<EventFd> {
        Ok(EventFd::new(if self.polls { EFD_NONBLOCK } else { 0 })?)
    }

    /// The device's part, as [`vmm_ref::roundtrip::traffic`] does it.
    pub(super) fn round_trips(
        &self,
        registers: &Registers,
        told: &EventFd,
        count: u64,
        mut assert: impl FnMut() -> Result<()>,
    ) -> Result<Latency> {
        let mut latency = Latency::new();
        for round in 1..=count as u32 {
            let asserted = Instant::now();
            registers.raised.store(round, Ordering::Release);
            assert()?;
            self.wait(told)?;
            latency.record(asserted.elapsed());
            // It is served already, except where the host ends interrupts before the handler has run.
            while !registers.is_served() {
                std::hint::spin_loop();
            }
        }
        Ok(latency)
    }

    fn wait(&self, told: &EventFd) -> Result<()> {
        loop {
            match told.read() {
                // More than one is possible where the host ends interrupts by itself: a level that is still high is
                // taken twice.
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => std::hint::spin_loop(),
                Err(error) => return Err(error.into()),
            }
        }
    }
}
