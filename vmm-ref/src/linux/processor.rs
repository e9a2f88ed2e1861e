// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the exits of the guest's processors lead to.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ioevent::{IoeventBus, Space};
use kvm_ioctls::{VcpuExit, VcpuFd};
use user_irqchip::Ioapic;
use vm_device::bus::{MmioAddress, PioAddress};
use vm_device::device_manager::{IoManager, MmioManager as _, PioManager as _};

use crate::error::{Error, Result, at};
use crate::vm::cpu_thread::EINTR;
use crate::vm::ending::{End, Ending};

const EAGAIN: i32 = 11;

/// Everything that an exit can reach. Nothing in it changes while the guest runs.
pub struct Machine {
    /// The devices by their addresses and ports.
    pub devices: IoManager,
    /// The doorbells whose stores exit.
    pub doorbells: IoeventBus,
    /// The IOAPIC, if it is in this process.
    pub ioapic: Option<Arc<Ioapic>>,
    /// The end of the run.
    pub ending: Arc<Ending>,
}

impl Machine {
    /// Runs a processor until `stop`, or until it gives up. The end of a processor is the end of the run.
    ///
    /// # Errors
    /// KVM's failure, or what KVM says of the guest's.
    pub fn run(&self, mut vcpu: VcpuFd, stop: &AtomicBool) -> Result<()> {
        let ended = self.run_until(&mut vcpu, stop);
        match &ended {
            Ok(true) => self.ending.end(End::TripleFault),
            Ok(false) => {}
            Err(_) => self.ending.end(End::Failed),
        }
        ended.map(drop)
    }

    /// Whether it gave up.
    fn run_until(&self, vcpu: &mut VcpuFd, stop: &AtomicBool) -> Result<bool> {
        while !stop.load(Ordering::Acquire) {
            let exit = match vcpu.run() {
                Ok(exit) => exit,
                // A processor that waits for its start answers EAGAIN when it gets it.
                Err(error) if matches!(error.errno(), EINTR | EAGAIN) => continue,
                Err(error) => return Err(at("KVM_RUN")(error)),
            };
            match exit {
                VcpuExit::IoIn(port, data) => {
                    if self.devices.pio_read(PioAddress(port), data).is_err() {
                        data.fill(0xff);
                    }
                }
                VcpuExit::MmioRead(address, data) => {
                    if self.devices.mmio_read(MmioAddress(address), data).is_err() {
                        data.fill(0xff);
                    }
                }
                // Where there is nothing a write goes nowhere, as on hardware.
                VcpuExit::IoOut(port, data) => drop(self.devices.pio_write(PioAddress(port), data)),
                VcpuExit::MmioWrite(address, data) => {
                    if !self.doorbells.dispatch(Space::Mmio, address, data)? {
                        drop(self.devices.mmio_write(MmioAddress(address), data));
                    }
                }
                VcpuExit::IoapicEoi(vector) => {
                    if let Some(ioapic) = &self.ioapic {
                        ioapic.eoi(vector);
                    }
                }
                VcpuExit::Shutdown => return Ok(true),
                other => return Err(Error::Guest(format!("unexpected exit {other:?}"))),
            }
        }
        Ok(false)
    }
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machine")
            .field("doorbells", &self.doorbells)
            .field("ioapic", &self.ioapic)
            .finish_non_exhaustive()
    }
}
