// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A machine without KVM. A bus master accesses the controllers' registers as the embedded guest's program does, and
//! serves interrupts as its handler does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use user_irqchip::testing::LocalApics;
use user_irqchip::{Ioapic, Pic};
use vm_device::bus::{MmioAddress, PioAddress};
use vm_device::{DeviceMmio as _, DevicePio as _};
use vm_memory::{GuestAddress, GuestMemoryMmap};

use crate::composition::options::Controller;
use crate::error::{Error, Result};
use crate::roundtrip::guest::chips;
use crate::roundtrip::guest::layout::MEMORY_SIZE;
use crate::roundtrip::guest::program::Program;
use crate::roundtrip::guest::status::Status;
use crate::roundtrip::machine::Running;
use crate::vm::cpu_thread::Cpu;
use crate::vm::irqchip::Controllers;

/// A machine that has not started yet.
#[derive(Debug)]
pub struct SoftMachine {
    program: Program,
    memory: Arc<GuestMemoryMmap>,
}

impl SoftMachine {
    /// Makes a machine whose bus master follows `program`.
    ///
    /// # Errors
    /// [`Error::Memory`] when the memory cannot be allocated.
    pub fn new(program: Program) -> Result<Self> {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY_SIZE)])
            .map_err(|error| Error::Memory(error.to_string()))?;
        Ok(Self {
            program,
            memory: Arc::new(memory),
        })
    }

    /// The status page.
    ///
    /// # Errors
    /// None in practice: the memory is large enough.
    pub fn status(&self) -> Result<Status> {
        Ok(Status::new(&self.memory)?)
    }

    /// Starts the bus master and returns when it is ready for interrupts.
    ///
    /// # Errors
    /// The errors of [`Cpu::start`], or [`Error::Guest`] when the bus master does not get ready.
    pub fn start(
        self,
        controllers: &Controllers,
        on_acknowledge: impl Fn() -> Result<()> + Send + 'static,
    ) -> Result<Running> {
        let status = self.status()?;
        let master = Master {
            program: self.program,
            status: self.status()?,
            controllers: controllers.clone(),
            on_acknowledge: Box::new(on_acknowledge),
        };
        let cpu = Cpu::start("soft0", move |stop| master.run(stop))?;
        Running::new(cpu, &status, self.memory)
    }
}

/// The bus master.
struct Master {
    program: Program,
    status: Status,
    controllers: Controllers,
    on_acknowledge: Box<dyn Fn() -> Result<()> + Send>,
}

impl Master {
    fn run(mut self, stop: &AtomicBool) -> Result<()> {
        let Controllers::User(chips) = self.controllers.clone() else {
            return Err(Error::Guest(
                "a soft machine has no controllers in the kernel".to_owned(),
            ));
        };
        chips.processor.is_this_thread();
        match self.program.controller {
            Controller::Pic => self.serve(stop, &OverPic(&chips.pic)),
            // A composition of the soft machine has no GIC.
            Controller::Ioapic | Controller::Gic => self.serve(
                stop,
                &OverIoapic {
                    ioapic: &chips.ioapic,
                    apics: &chips.apics,
                },
            ),
        }
    }

    fn serve(&mut self, stop: &AtomicBool, bus: &dyn Bus) -> Result<()> {
        bus.set_up(self.program.controller);
        self.status.ready.store(1, Ordering::Release);
        while !stop.load(Ordering::Acquire) {
            match bus.take() {
                taken @ Some(_) if taken == self.program.vector() => self.handle(bus)?,
                // A spurious interrupt of a controller needs no EOI.
                Some(_) => drop(self.status.stray.fetch_add(1, Ordering::Relaxed)),
                None => thread::park(),
            }
        }
        Ok(())
    }

    /// The steps of the program's handler, in its order.
    fn handle(&mut self, bus: &dyn Bus) -> Result<()> {
        self.status.handler_runs.fetch_add(1, Ordering::Relaxed);
        let mut found = false;
        for n in 0..self.program.devices {
            let registers = self.status.device(n)?;
            let raised = registers.raised.load(Ordering::Acquire);
            found |= registers.serviced.swap(raised, Ordering::AcqRel) != raised;
        }
        if !found {
            self.status.found_nothing.fetch_add(1, Ordering::Relaxed);
        }
        if self.program.acknowledge {
            (self.on_acknowledge)()?;
        }
        if self.program.without.is_none() {
            bus.end();
        }
        Ok(())
    }
}

/// The accesses of a processor to one kind of controller.
trait Bus {
    /// Programs the controller: the devices' line open and level-triggered, every other input masked.
    fn set_up(&self, controller: Controller);
    /// Takes the pending interrupt, if any.
    fn take(&self) -> Option<u8>;
    /// Ends the interrupt in service.
    fn end(&self);
}

struct OverPic<'a>(&'a Pic);

impl OverPic<'_> {
    fn out(&self, port: u32, value: i32) {
        // The constants of [`chips`](super::guest::chips) are ports and bytes, so they fit.
        self.0.pio_write(PioAddress(port as u16), 0, &[value as u8]);
    }
}

impl Bus for OverPic<'_> {
    fn set_up(&self, controller: Controller) {
        for (port, value) in chips::pic_set_up(controller.gsi().0) {
            self.out(port, value);
        }
    }

    fn take(&self) -> Option<u8> {
        self.0.intr().then(|| self.0.acknowledge())
    }

    fn end(&self) {
        self.out(chips::MASTER_COMMAND, chips::OCW2_NON_SPECIFIC_EOI);
    }
}

struct OverIoapic<'a> {
    ioapic: &'a Ioapic,
    apics: &'a LocalApics,
}

impl Bus for OverIoapic<'_> {
    fn set_up(&self, controller: Controller) {
        for (register, value) in chips::ioapic_set_up(controller.gsi().0) {
            for (offset, value) in [(chips::IOREGSEL, register), (chips::IOWIN, value)] {
                let base = MmioAddress(Ioapic::BASE);
                self.ioapic.mmio_write(base, offset.into(), &value.to_le_bytes());
            }
        }
    }

    fn take(&self) -> Option<u8> {
        self.apics.accept(0)
    }

    fn end(&self) {
        self.apics.eoi(0, self.ioapic);
    }
}
