// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest on KVM with a full irqchip: sources are resample irqfds on two pins of the kernel's IOAPIC. The processor is
//! moved by hand ("accept mode"), so that the guest's EOI is its own also where the host would end interrupts as it
//! injects them.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use interrupt_core::forward::{GuestLine, Path};
use interrupt_core::{EoiNotifier, Gsi, LevelSource};
use kvm_ioctls::VmFd;
use kvm_irqfd::KvmInterrupts;
use testkit::machine::Machine;
use testkit::rig::{LEVEL, MASKED};
use vfio_intx::State;

use super::guest::{Guest, LINES, LineId};

pub struct KvmGuest {
    // The sources go before the VM that they are bound to.
    sources: [Arc<dyn LevelSource>; 2],
    interrupts: KvmInterrupts,
    machine: Machine,
}

/// Keeps one VM for as long as the process lives: with the last one KVM disables virtualisation on every CPU, and
/// enables it again with the next.
pub fn keep_kvm_on() {
    static STAYS: OnceLock<Arc<VmFd>> = OnceLock::new();
    STAYS.get_or_init(|| Arc::clone(Machine::full().vm()));
}

pub fn gsi(line: LineId) -> u32 {
    10 + line as u32
}

/// The second line's has the higher priority.
pub fn vector(line: LineId) -> u8 {
    0x31 + 0x20 * line as u8
}

impl KvmGuest {
    pub fn new() -> Self {
        keep_kvm_on();
        let machine = Machine::full();
        let interrupts = KvmInterrupts::new(Arc::clone(machine.vm())).unwrap();
        let source = |line| interrupts.resample_source(Gsi(gsi(line)), "device").unwrap();
        let mut guest = Self {
            sources: LINES.map(source),
            interrupts,
            machine,
        };
        for line in LINES {
            guest.set_masked(line, false);
        }
        guest
    }

    fn leading_to(&self, source: Arc<dyn LevelSource>, state: State) -> GuestLine {
        let notifier: Arc<dyn EoiNotifier> = Arc::new(self.interrupts.clone());
        match state {
            State::Carried(Path::KernelLoop) => GuestLine::kernel(source, notifier),
            _ => GuestLine::relay(source, notifier, "the test wants a relay"),
        }
    }
}

impl Guest for KvmGuest {
    fn states(&self) -> &'static [State] {
        &[State::Carried(Path::Relay), State::Carried(Path::KernelLoop)]
    }

    fn line(&self, line: LineId, state: State) -> GuestLine {
        self.leading_to(Arc::clone(&self.sources[line as usize]), state)
    }

    fn sharer(&mut self, line: LineId, state: State) -> GuestLine {
        let source = self.interrupts.resample_source(Gsi(gsi(line)), "sharer").unwrap();
        self.leading_to(source, state)
    }

    fn is_high(&self, line: LineId) -> bool {
        // A level pin's request bit is its level.
        self.machine.ioapic_irr(gsi(line))
    }

    fn accept(&mut self, line: LineId) -> bool {
        let next = self.machine.lapic().deliverable();
        if next != Some(vector(line)) {
            return false;
        }
        assert_eq!(self.machine.accept(), next);
        true
    }

    fn eoi(&mut self, _line: LineId) {
        // Of whichever is in service, which is the one with the highest priority.
        assert_eq!(self.machine.eoi(), []);
    }

    fn set_masked(&mut self, line: LineId, masked: bool) {
        let mask = if masked { MASKED } else { 0 };
        self.machine.set_rte(gsi(line), LEVEL | mask | u64::from(vector(line)));
    }

    fn keeps_what_was_sent(&self) -> bool {
        true
    }

    fn pump(&mut self) {
        // The work queue that carries an irqfd's signal may need this very CPU.
        std::thread::yield_now();
    }

    fn quiet(&self) -> Duration {
        // An irqfd's signal goes through the work queue, which takes some 10 us, and 160 us at worst on an idle host.
        Duration::from_millis(3)
    }
}
