// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest on KVM with a split irqchip: LAPICs in the kernel, the IOAPIC in this process. On the direct path the device
//! signals an irqfd on the pin's message, and the IOAPIC, told of the EOI by KVM's exit or by the guest's write of the
//! EOI register, signals the device.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use interrupt_core::forward::{GuestLine, Path};
use interrupt_core::{Gsi, Irqfds, LevelSource, LoweredBy, Msi, MsiOutput};
use kvm_bindings::{KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_irq_routing_entry};
use kvm_ioctls::{Kvm, VmFd};
use kvm_irqfd::{EoiBroadcast, KvmInterrupts, SPLIT_PINS, enable_split_irqchip, set_eoi_broadcast};
use testkit::machine::{Exit, Irqchip, Machine};
use testkit::rig::{LEVEL, MASKED};
use user_irqchip::ioapic::Version;
use user_irqchip::{BorrowedEventFd, Ioapic, IrqfdPins};
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
    /// Makes an irqfd of the pin.
    irqfd: Box<dyn Fn(Gsi) -> Arc<dyn LevelSource>>,
    machine: Machine,
    /// The guest suppresses the broadcast of its EOIs, and writes the IOAPIC's EOI register after each.
    directs_eois: bool,
}

impl SplitGuest {
    pub fn new() -> Self {
        let machine = Machine::builder().irqchip(Irqchip::Split).build().unwrap();
        Self::on(machine, Version::V11)
    }

    /// A guest of a VMM that keeps its irqfds and its routing table.
    pub fn on_the_vmms_irqfds() -> Self {
        let machine = Machine::builder().irqchip(Irqchip::Split).build().unwrap();
        let vmm = Vmm {
            vm: Arc::clone(machine.vm()),
            routes: Mutex::default(),
        };
        let pins = Arc::new(IrqfdPins::new(Arc::new(vmm), Gsi(0), 24).unwrap());
        let output = Arc::clone(&pins);
        let irqfd = move |gsi| -> Arc<dyn LevelSource> { pins.source(gsi, "irqfd").unwrap() };
        Self::of(machine, Version::V11, output, Box::new(irqfd))
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
        let interrupts = KvmInterrupts::new(Arc::clone(machine.vm())).unwrap();
        let output = Arc::new(interrupts.clone());
        let irqfd = move |gsi| -> Arc<dyn LevelSource> { interrupts.split_source(gsi, "irqfd").unwrap() };
        Self::of(machine, version, output, Box::new(irqfd))
    }

    fn of(
        machine: Machine,
        version: Version,
        output: Arc<dyn MsiOutput>,
        irqfd: Box<dyn Fn(Gsi) -> Arc<dyn LevelSource>>,
    ) -> Self {
        keep_kvm_on();
        let ioapic = Ioapic::builder().version(version).build(output);
        let ioapic = Arc::new(ioapic.unwrap());
        let pin = |line| -> Arc<dyn LevelSource> { ioapic.source(Gsi(gsi(line)), "pin", LoweredBy::Eoi).unwrap() };
        let mut guest = Self {
            irqfds: LINES.map(|line| irqfd(Gsi(gsi(line)))),
            pins: LINES.map(pin),
            ioapic,
            irqfd,
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

/// A VMM that has KVM to itself.
struct Vmm {
    vm: Arc<VmFd>,
    routes: Mutex<BTreeMap<Gsi, Msi>>,
}

impl Irqfds for Vmm {
    fn bind(&self, trigger: BorrowedFd<'_>, gsi: Gsi) -> io::Result<()> {
        Ok(self.vm.register_irqfd(&BorrowedEventFd::from(trigger), gsi.0)?)
    }

    fn unbind(&self, trigger: BorrowedFd<'_>, gsi: Gsi) -> io::Result<()> {
        Ok(self.vm.unregister_irqfd(&BorrowedEventFd::from(trigger), gsi.0)?)
    }

    fn route(&self, gsi: Gsi, message: Msi) -> io::Result<()> {
        let mut routes = self.routes.lock().unwrap();
        routes.insert(gsi, message);
        let entry = |(gsi, message): (&Gsi, &Msi)| {
            let mut entry = kvm_irq_routing_entry {
                gsi: gsi.0,
                type_: KVM_IRQ_ROUTING_MSI,
                ..Default::default()
            };
            entry.u.msi.address_lo = message.address as u32;
            entry.u.msi.address_hi = (message.address >> 32) as u32;
            entry.u.msi.data = message.data;
            entry
        };
        let table: Vec<_> = routes.iter().map(entry).collect();
        Ok(self.vm.set_gsi_routing(&KvmIrqRouting::from_entries(&table).unwrap())?)
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
            State::Carried(Path::SplitKick) => GuestLine::split((self.irqfd)(gsi), self.ioapic.clone()),
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
