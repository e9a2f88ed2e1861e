// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The exit loop: dispatches each exit of a processor to its target.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use ioevent::{IoeventBus, Space};
use kvm_bindings::kvm_run;
use kvm_ioctls::{VcpuExit, VcpuFd};
use vm_device::bus::{MmioAddress, PioAddress};
use vm_device::device_manager::{IoManager, MmioManager as _, PioManager as _};

use super::cpu_thread::EINTR;
use super::ending::{End, Ending};
use super::inject::inject;
use super::irqchip::Controllers;
use crate::error::{Error, Result, at};

const EAGAIN: i32 = 11;

/// The result of an access to an address without a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unassigned {
    /// As on hardware: a read returns ones, a write has no effect.
    Ones,
    /// An error: a guest that we wrote accesses nothing else.
    Error,
}

/// The targets of all exits. They do not change while the guest runs.
pub struct Exits {
    /// The devices by their addresses and ports.
    pub devices: IoManager,
    /// The doorbells. A store that a doorbell takes does not reach a device.
    pub doorbells: IoeventBus,
    /// How many stores exited and were taken by a doorbell.
    pub doorbell_stores: Arc<DoorbellStores>,
    /// The interrupt controllers. Their registers, as far as they are in this process, are in `devices`.
    pub controllers: Controllers,
    /// The end of the machine.
    pub ending: Arc<Ending>,
    /// The result of an access to an address without a device.
    pub unassigned: Unassigned,
}

/// How many stores exited and were taken by a doorbell, by address space.
#[derive(Debug, Default)]
pub struct DoorbellStores {
    pio: AtomicU64,
    mmio: AtomicU64,
}

impl DoorbellStores {
    /// The stores to that space so far.
    pub fn of(&self, space: Space) -> u64 {
        self.count(space).load(Ordering::Relaxed)
    }

    fn count(&self, space: Space) -> &AtomicU64 {
        match space {
            Space::Pio => &self.pio,
            Space::Mmio => &self.mmio,
        }
    }
}

impl Exits {
    /// Runs a processor until `stop`, or until the machine ends. A failure of the processor ends the machine.
    ///
    /// # Errors
    /// KVM's failure, a device's ([`Ending::fail`]), or [`Error::Guest`] for an exit that this machine does not handle.
    pub fn run(&self, mut vcpu: VcpuFd, stop: &AtomicBool) -> Result<()> {
        if let Controllers::User(chips) = &self.controllers {
            chips.processor.is_this_thread();
        }
        while !stop.load(Ordering::Acquire) && !self.ending.has_ended() {
            if let Err(error) = self.run_once(&mut vcpu, stop) {
                self.ending.end(End::Failed);
                return Err(error);
            }
        }
        match self.ending.take_failure() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Enters the guest, and serves its next exit.
    fn run_once(&self, vcpu: &mut VcpuFd, stop: &AtomicBool) -> Result<()> {
        if let Controllers::User(chips) = &self.controllers {
            inject(vcpu, &chips.pic)?;
        }
        let run: *const kvm_run = vcpu.get_kvm_run();
        let exit = match vcpu.run() {
            Ok(exit) => exit,
            // EAGAIN: a processor that waited for its start message has received it.
            Err(error) if matches!(error.errno(), EINTR | EAGAIN) => return Ok(()),
            Err(error) => return Err(at("KVM_RUN")(error)),
        };
        match (exit, &self.controllers) {
            (VcpuExit::IoIn(port, data), _) => {
                // SAFETY: the processor's page is mapped while `vcpu` lives, and `data` is behind it.
                let run = unsafe { &*run };
                // SAFETY: the exit is one of a port, of which this is the field.
                let size = unsafe { run.__bindgen_anon_1.io.size };
                // KVM makes one exit of a string instruction, which reads the same port again and again.
                data.chunks_mut(usize::from(size).max(1)).try_for_each(|data| {
                    match self.devices.pio_read(PioAddress(port), data) {
                        Ok(()) => Ok(()),
                        Err(_) => self.read_nothing("IoIn", port.into(), data),
                    }
                })
            }
            (VcpuExit::MmioRead(address, data), _) => match self.devices.mmio_read(MmioAddress(address), data) {
                Ok(()) => Ok(()),
                Err(_) => self.read_nothing("MmioRead", address, data),
            },
            (VcpuExit::IoOut(port, data), _) => {
                if !self.ring(Space::Pio, port.into(), data)? && self.devices.pio_write(PioAddress(port), data).is_err()
                {
                    return self.reach_nothing("IoOut", port.into());
                }
                Ok(())
            }
            (VcpuExit::MmioWrite(address, data), _) => {
                if !self.ring(Space::Mmio, address, data)?
                    && self.devices.mmio_write(MmioAddress(address), data).is_err()
                {
                    return self.reach_nothing("MmioWrite", address);
                }
                Ok(())
            }
            (VcpuExit::IoapicEoi(vector), Controllers::Split { ioapic, .. }) => {
                ioapic.eoi(vector);
                Ok(())
            }
            // `inject` checks the 8259 before the next entry.
            (VcpuExit::IrqWindowOpen, Controllers::User(_)) => Ok(()),
            (VcpuExit::Hlt, Controllers::User(chips)) => {
                let (pic, processor) = (&chips.pic, &chips.processor);
                processor.wait_until(|| pic.intr() || stop.load(Ordering::Acquire));
                Ok(())
            }
            (VcpuExit::Shutdown, _) => {
                self.ending.end(End::TripleFault);
                Ok(())
            }
            (other, _) => Err(Error::Guest(format!("unexpected exit {other:?}"))),
        }
    }

    /// Whether a doorbell took the store.
    fn ring(&self, space: Space, address: u64, data: &[u8]) -> Result<bool> {
        let taken = self.doorbells.dispatch(space, address, data)?;
        if taken {
            self.doorbell_stores.count(space).fetch_add(1, Ordering::Relaxed);
        }
        Ok(taken)
    }

    fn read_nothing(&self, access: &str, address: u64, data: &mut [u8]) -> Result<()> {
        data.fill(0xff);
        self.reach_nothing(access, address)
    }

    fn reach_nothing(&self, access: &str, address: u64) -> Result<()> {
        match self.unassigned {
            Unassigned::Ones => Ok(()),
            Unassigned::Error => Err(Error::Guest(format!("unexpected exit {access} at {address:#x}"))),
        }
    }
}

impl fmt::Debug for Exits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exits")
            .field("doorbells", &self.doorbells)
            .field("controllers", &self.controllers)
            .finish_non_exhaustive()
    }
}
