// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the exits of the embedded guest lead to.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use ioevent::Space;
use kvm_ioctls::{VcpuExit, VcpuFd};
use user_irqchip::{Ioapic, Pic};
use vm_device::bus::{MmioAddress, PioAddress};
use vm_device::{DeviceMmio as _, DevicePio as _};

use crate::error::{Error, Result, at};
use crate::passthrough::bar::Remote;
use crate::passthrough::edu_registers::BAR_SIZE;
use crate::roundtrip::doorbell::Bell;
use crate::roundtrip::guest::layout::{ACKNOWLEDGE_PORT, BAR_ADDRESS, FAULT_PORT};
use crate::vm::cpu_thread::EINTR;
use crate::vm::inject::inject;
use crate::vm::irqchip::Controllers;

/// A vCPU of KVM, and what its exits lead to.
pub struct Vcpu {
    /// The vCPU.
    pub fd: VcpuFd,
    /// The machine's interrupt controllers.
    pub controllers: Controllers,
    /// What serves the stores to the doorbell that exit, if there is one.
    pub bell: Option<Arc<Bell>>,
    /// The BAR whose registers the guest reaches by exits, if it has one.
    pub bar: Option<Remote>,
    /// Called when the guest's handler acknowledges its devices, before it ends the interrupt.
    pub on_acknowledge: Box<dyn FnMut() -> Result<()> + Send>,
}

impl Vcpu {
    /// Runs until `stop`.
    ///
    /// # Errors
    /// The guest's failure, or KVM's.
    pub fn run(mut self, stop: &AtomicBool) -> Result<()> {
        if let Controllers::Pic(_, processor) = &self.controllers {
            processor.is_this_thread();
        }
        while !stop.load(Ordering::Acquire) {
            if let Controllers::Pic(pic, _) = &self.controllers {
                inject(&mut self.fd, pic)?;
            }
            let exit = match self.fd.run() {
                Ok(exit) => exit,
                Err(error) if error.errno() == EINTR => continue,
                Err(error) => return Err(at("KVM_RUN")(error)),
            };
            let rings = |space, address, data: &[u8]| match &self.bell {
                Some(bell) => bell.serve(space, address, data),
                None => Ok(false),
            };
            match (exit, &self.controllers) {
                (VcpuExit::IoOut(ACKNOWLEDGE_PORT, _), _) => (self.on_acknowledge)()?,
                (VcpuExit::IoOut(FAULT_PORT, _), _) => {
                    return Err(Error::Guest("it took a vector that nothing here raises".to_owned()));
                }
                (VcpuExit::IoapicEoi(vector), Controllers::Split { ioapic, .. }) => ioapic.eoi(vector),
                (VcpuExit::MmioWrite(address, data), Controllers::Split { ioapic, .. }) if is_ioapic(address) => {
                    ioapic.mmio_write(MmioAddress(Ioapic::BASE), address - Ioapic::BASE, data);
                }
                (VcpuExit::MmioRead(address, data), Controllers::Split { ioapic, .. }) if is_ioapic(address) => {
                    ioapic.mmio_read(MmioAddress(Ioapic::BASE), address - Ioapic::BASE, data);
                }
                // The guest of a split irqchip masks an 8259 that is not there.
                (VcpuExit::IoOut(port, _), Controllers::Split { .. }) if is_pic(port) => {}
                (VcpuExit::IoOut(port, data), Controllers::Pic(pic, _)) if is_pic(port) => {
                    pic.pio_write(PioAddress(port), 0, data);
                }
                (VcpuExit::IoIn(port, data), Controllers::Pic(pic, _)) if is_pic(port) => {
                    pic.pio_read(PioAddress(port), 0, data);
                }
                (VcpuExit::IrqWindowOpen, Controllers::Pic(..)) => {}
                (VcpuExit::Hlt, Controllers::Pic(pic, _)) => {
                    while !pic.intr() && !stop.load(Ordering::Acquire) {
                        thread::park();
                    }
                }
                (VcpuExit::IoOut(port, data), _) if rings(Space::Pio, port.into(), data)? => {}
                (VcpuExit::MmioWrite(address, data), _) if rings(Space::Mmio, address, data)? => {}
                (exit, _) => reach(self.bar.as_ref(), exit)?,
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Vcpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Vcpu({:?})", self.fd)
    }
}

/// An access of the guest to a device that another process has.
fn reach(bar: Option<&Remote>, exit: VcpuExit<'_>) -> Result<()> {
    let reached = match (exit, bar) {
        (VcpuExit::MmioRead(address, data), Some(bar)) if is_bar(address) => bar.read(address - BAR_ADDRESS, data),
        (VcpuExit::MmioWrite(address, data), Some(bar)) if is_bar(address) => bar.write(address - BAR_ADDRESS, data),
        (other, _) => return Err(Error::Guest(format!("unexpected exit {other:?}"))),
    };
    reached.map_err(|source| Error::System {
        step: "the guest's access to its device",
        source,
    })
}

fn is_bar(address: u64) -> bool {
    (BAR_ADDRESS..BAR_ADDRESS + BAR_SIZE as u64).contains(&address)
}

fn is_ioapic(address: u64) -> bool {
    (Ioapic::BASE..Ioapic::BASE + Ioapic::SIZE).contains(&address)
}

fn is_pic(port: u16) -> bool {
    Pic::PORTS
        .iter()
        .any(|&(first, ports)| (first..first + ports).contains(&port))
}
