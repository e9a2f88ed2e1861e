// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Parts that the floors share.

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

/// The path of the interrupt to the guest and of the EOI back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// In-kernel irqchip: an irqfd with a resamplefd.
    Resample,
    /// In-kernel irqchip: KVM_IRQ_LINE high, KVM_IRQ_LINE low at the handler's acknowledgement, and a resamplefd that
    /// reports the EOI.
    Line,
    /// Split irqchip: an irqfd on a message, and the exit that reports the EOI. There is no IOAPIC; the guest's
    /// accesses to it are ignored.
    Split,
    /// No irqchip: KVM_INTERRUPT, and the exit of the OUT that is the EOI. There is no 8259; the guest's other accesses
    /// are ignored.
    Interrupt,
    /// No KVM: a thread wakes up and writes an eventfd.
    Thread,
    /// In-kernel irqchip: the INTx of that device signals an irqfd, whose resamplefd is the device's unmask eventfd.
    Intx(PciAddress),
}

/// One floor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Floor {
    /// The path that the floor measures.
    pub path: Path,
    /// The controller that the guest's program sets up.
    pub controller: Controller,
    /// Whether the device polls the eventfd instead of making a blocking read.
    pub polls: bool,
}

impl Floor {
    pub(super) fn program(&self, irqchip: Irqchip) -> Program {
        Program {
            controller: self.controller,
            devices: 1,
            edu: matches!(self.path, Path::Intx(_)),
            acknowledge: self.path == Path::Line,
            without: None,
            idle: Idle::on(irqchip),
        }
    }

    /// The eventfd that reports EOIs.
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
            // The request is already served, unless the host ends interrupts before the handler has run.
            while !registers.is_served() {
                std::hint::spin_loop();
            }
        }
        Ok(latency)
    }

    fn wait(&self, told: &EventFd) -> Result<()> {
        loop {
            match told.read() {
                // The count may be above 1 on a host that ends interrupts by itself, because the guest takes a level
                // twice if it is still high.
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => std::hint::spin_loop(),
                Err(error) => return Err(error.into()),
            }
        }
    }
}
