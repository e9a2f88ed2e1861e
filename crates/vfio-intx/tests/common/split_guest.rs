// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest on KVM with a split irqchip: LAPICs in the kernel, the IOAPIC in this process. On the direct path the device
//! signals an irqfd on the pin's message, and the IOAPIC, told of the EOI by KVM's exit or by the guest's write of the
//! EOI register, signals the device.

use std::sync::Arc;
use std::time::Duration;

use interrupt_core::forward::{GuestLine, Path};
use interrupt_core::{Gsi, LevelSource, LoweredBy};
use kvm_ioctls::{Kvm, VmFd};
use kvm_irqfd::{EoiBroadcast, KvmInterrupts, SPLIT_PINS, enable_split_irqchip, set_eoi_broadcast};
use testkit::machine::{Exit, Irqchip, Machine};
use testkit::rig::{LEVEL, MASKED};
use user_irqchip::Ioapic;
use user_irqchip::ioapic::Version;
use vfio_intx::State;
use vm_device::DeviceMmio;
use vm_device::bus::MmioAddress;

use super::guest::{Guest, LINES, LineId};
use super::kvm_guest::{gsi, keep_kvm_on, vector};

/// KVM has the choice since 7.0 (6517dfbcc918), and on older lines since their updates of 2026.
pub fn eoi_broadcast_can_be_chosen() -> Result<(), String> {
    let vm = Kvm::new()
        .and_then(|kvm| kvm.create_vm())
        .map_err(|error| error.to_string())?;
    enable_split_irqchip(&vm, SPLIT_PINS).map_err(|error| error.to_string())?;
    match set_eoi_broadcast(&vm, EoiBroadcast::Suppressible) {
        Ok(true) => Ok(()),
        Ok(false) => Err("this kernel has none".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

pub struct SplitGuest {
    /// For the direct path.
    irqfds: [Arc<dyn LevelSource>; 2],
    /// For the relay.
    pins: [Arc<dyn LevelSource>; 2],
    ioapic: Arc<Ioapic>,
    interrupts: KvmInterrupts,
    machine: Machine,
    /// The guest suppresses the broadcast of its EOIs, and writes the IOAPIC's EOI register after each.
    directs_eois: bool,
}

impl SplitGuest {
    pub fn new() -> Self {
        let machine = Machine::builder().irqchip(Irqchip::Split).build().unwrap();
        Self::on(machine, Version::V11)
    }

    /// A guest that suppresses the broadcast of its EOIs.
    pub fn directing_eois() -> Self {
        let choose: fn(&VmFd) = |vm| assert!(set_eoi_broadcast(vm, EoiBroadcast::Suppressible).unwrap());
        let mut machine = Machine::builder()
            .irqchip(Irqchip::Split)
            .prepare(choose)
            .build()
            .unwrap();
        // The spurious vector register: enabled, broadcasts suppressed.
        machine.wrmsr(0x80f, 1 << 12 | 1 << 8 | 0xff);
        Self {
            directs_eois: true,
            ..Self::on(machine, Version::V20)
        }
    }

    fn on(machine: Machine, version: Version) -> Self {
        keep_kvm_on();
        let interrupts = KvmInterrupts::new(Arc::clone(machine.vm())).unwrap();
        let ioapic = Ioapic::builder().version(version).build(Arc::new(interrupts.clone()));
        let ioapic = Arc::new(ioapic.unwrap());
        let irqfd = |line| -> Arc<dyn LevelSource> { interrupts.split_source(Gsi(gsi(line)), "irqfd").unwrap() };
        let pin = |line| -> Arc<dyn LevelSource> { ioapic.source(Gsi(gsi(line)), "pin", LoweredBy::Eoi).unwrap() };
        let mut guest = Self {
            irqfds: LINES.map(irqfd),
            pins: LINES.map(pin),
            ioapic,
            interrupts,
            machine,
            directs_eois: false,
        };
        for line in LINES {
            guest.set_masked(line, false);
        }
        guest
    }

    /// The guest programs the line's entry, unmasked or not, with this LAPIC as its destination.
    pub fn send_to(&mut self, line: LineId, lapic: u8, masked: bool) {
        let mask = if masked { MASKED } else { 0 };
        let entry = u64::from(lapic) << 56 | LEVEL | mask | u64::from(vector(line));
        let register = 0x10 + 2 * gsi(line);
        self.write(register + 1, (entry >> 32) as u32);
        self.write(register, entry as u32);
    }

    fn write(&self, register: u32, value: u32) {
        const SELECT: u64 = 0x00;
        const WINDOW: u64 = 0x10;
        let base = MmioAddress(Ioapic::BASE);
        self.ioapic.mmio_write(base, SELECT, &register.to_le_bytes());
        self.ioapic.mmio_write(base, WINDOW, &value.to_le_bytes());
    }
}

impl Guest for SplitGuest {
    fn states(&self) -> &'static [State] {
        &[State::Carried(Path::Relay), State::Carried(Path::SplitKick)]
    }

    fn line(&self, line: LineId, state: State) -> GuestLine {
        match state {
            State::Carried(Path::SplitKick) => {
                GuestLine::split(Arc::clone(&self.irqfds[line as usize]), self.ioapic.clone())
            }
            _ => GuestLine::relay(
                Arc::clone(&self.pins[line as usize]),
                self.ioapic.clone(),
                "the test wants a relay",
            ),
        }
    }

    fn sharer(&mut self, line: LineId, state: State) -> GuestLine {
        let gsi = Gsi(gsi(line));
        match state {
            State::Carried(Path::SplitKick) => {
                let irqfd = self.interrupts.split_source(gsi, "sharer").unwrap();
                GuestLine::split(irqfd, self.ioapic.clone())
            }
            _ => {
                let pin = self.ioapic.source(gsi, "sharer", LoweredBy::Eoi).unwrap();
                GuestLine::relay(pin, self.ioapic.clone(), "the test wants a relay")
            }
        }
    }

    fn is_high(&self, line: LineId) -> bool {
        self.ioapic.levels() & 1 << gsi(line) != 0
    }

    fn waits(&self, line: LineId) -> bool {
        self.is_high(line) || self.machine.lapic().irr(vector(line))
    }

    fn accept(&mut self, line: LineId) -> bool {
        let next = self.machine.lapic().deliverable();
        if next != Some(vector(line)) {
            return false;
        }
        assert_eq!(self.machine.accept(), next);
        true
    }

    fn eoi(&mut self, line: LineId) {
        for exit in self.machine.eoi() {
            if let Exit::IoapicEoi(vector) = exit {
                assert!(!self.directs_eois, "the guest suppresses this exit");
                self.ioapic.eoi(vector);
            }
        }
        if self.directs_eois {
            const EOI: u64 = 0x40;
            let value = u32::from(vector(line)).to_le_bytes();
            self.ioapic.mmio_write(MmioAddress(Ioapic::BASE), EOI, &value);
        }
    }

    fn set_masked(&mut self, line: LineId, masked: bool) {
        self.send_to(line, 0, masked);
    }

    fn keeps_what_was_sent(&self) -> bool {
        true
    }

    fn sends_during_service(&self) -> bool {
        // An irqfd on a message knows nothing of the pin's remote IRR.
        true
    }

    fn pump(&mut self) {
        std::thread::yield_now();
    }

    fn quiet(&self) -> Duration {
        // What waited in a trigger goes through the kernel's work queue when its pin is let through.
        Duration::from_millis(3)
    }
}
