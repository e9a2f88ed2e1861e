// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The in-kernel LAPIC, as KVM_GET_LAPIC shows it and as the guest drives it through x2APIC MSRs.

use std::time::Duration;

use kvm_bindings::kvm_lapic_state;

use super::{Exit, Irqchip, Machine};
use crate::patience::Patience;

const ISR: usize = 0x100;
const TMR: usize = 0x180;
const IRR: usize = 0x200;

const MSR_EOI: u32 = 0x80b;
const MSR_SVR: u32 = 0x80f;
const MSR_LVT0: u32 = 0x835;

const SVR_ENABLE: u64 = 1 << 8;
const SPURIOUS_VECTOR: u64 = 0xff;

/// The LAPIC's registers at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Lapic(kvm_lapic_state);

impl Lapic {
    /// Whether `vector` waits for the CPU.
    pub fn irr(&self, vector: u8) -> bool {
        self.bit(IRR, vector)
    }

    /// Whether `vector` is in service.
    pub fn isr(&self, vector: u8) -> bool {
        self.bit(ISR, vector)
    }

    /// Whether `vector` was delivered level-triggered.
    pub fn tmr(&self, vector: u8) -> bool {
        self.bit(TMR, vector)
    }

    /// The highest vector that waits.
    pub fn highest_irr(&self) -> Option<u8> {
        (0..=u8::MAX).rev().find(|&vector| self.irr(vector))
    }

    /// The highest vector in service.
    pub fn highest_isr(&self) -> Option<u8> {
        (0..=u8::MAX).rev().find(|&vector| self.isr(vector))
    }

    /// The vector the CPU would take now: the highest waiting vector, if its priority class is above that of the vector
    /// in service.
    pub fn deliverable(&self) -> Option<u8> {
        let class = |vector: u8| vector >> 4;
        let vector = self.highest_irr()?;
        match self.highest_isr() {
            Some(in_service) if class(in_service) >= class(vector) => None,
            _ => Some(vector),
        }
    }

    /// Registers hold 32 vectors each, 16 bytes apart; each of their bytes holds 8.
    fn place(register: usize, vector: u8) -> (usize, u8) {
        let vector = usize::from(vector);
        (register + vector / 32 * 16 + vector % 32 / 8, 1 << (vector % 8))
    }

    fn bit(&self, register: usize, vector: u8) -> bool {
        let (byte, bit) = Self::place(register, vector);
        self.0.regs[byte] as u8 & bit != 0
    }

    fn put(&mut self, register: usize, vector: u8, on: bool) {
        let (byte, bit) = Self::place(register, vector);
        let old = self.0.regs[byte] as u8;
        self.0.regs[byte] = if on { old | bit } else { old & !bit } as _;
    }
}

impl Machine {
    /// The LAPIC's registers now.
    pub fn lapic(&self) -> Lapic {
        Lapic(self.vcpu.get_lapic().expect("KVM_GET_LAPIC"))
    }

    /// Accept mode: moves the vector the CPU would take next from waiting to in service, as the CPU would, and returns
    /// it. `None`, at once, when there is none.
    ///
    /// The guest executes nothing, so this works even where the host's LAPIC would end the interrupt at injection. An
    /// interrupt that is still in the kernel's work queue is not found; see [`Machine::accept_within`].
    pub fn accept(&mut self) -> Option<u8> {
        let mut lapic = self.lapic();
        let vector = lapic.deliverable()?;
        lapic.put(IRR, vector, false);
        lapic.put(ISR, vector, true);
        self.vcpu.set_lapic(&lapic.0).expect("KVM_SET_LAPIC");
        Some(vector)
    }

    /// As [`Machine::accept`], repeated for this much of the thread's CPU time. Returns `None` when the time is used
    /// up.
    pub fn accept_within(&mut self, limit: Duration) -> Option<u8> {
        let patience = Patience::new(limit);
        loop {
            let accepted = self.accept();
            if accepted.is_some() || patience.is_over() {
                return accepted;
            }
            // Yield, because the kernel's work queue may need this CPU to deliver the interrupt.
            std::thread::yield_now();
        }
    }

    /// One EOI write by the guest. On a split irqchip the exits show whether KVM reported the EOI to userspace.
    pub fn eoi(&mut self) -> Vec<Exit> {
        let mut exits = self.wrmsr(MSR_EOI, 0);
        if self.irqchip == Irqchip::Split {
            // KVM raises the exit at the next entry of the vCPU, which may be as late as the next KVM_RUN.
            exits.extend(self.call(self.stubs.window, |_| {}).exits);
        }
        exits
    }

    /// Sets or clears the software enable bit of the LAPIC (the spurious vector is 0xff).
    pub fn set_lapic_enabled(&mut self, enabled: bool) {
        self.wrmsr(MSR_SVR, SPURIOUS_VECTOR | if enabled { SVR_ENABLE } else { 0 });
    }

    /// Connects the 8259's output to the CPU through LVT0, or disconnects it.
    pub fn set_lvt0_extint(&mut self, open: bool) {
        const EXTINT: u64 = 7 << 8;
        const MASKED: u64 = 1 << 16;
        self.wrmsr(MSR_LVT0, if open { EXTINT } else { EXTINT | MASKED });
    }
}
