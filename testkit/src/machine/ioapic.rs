// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The in-kernel IOAPIC: driven by guest stores, observed and restored through KVM_GET_IRQCHIP and KVM_SET_IRQCHIP.

use kvm_bindings::{KVM_IRQCHIP_IOAPIC, kvm_ioapic_state, kvm_irqchip, kvm_irqchip__bindgen_ty_1};

use super::Machine;

const BASE: u64 = 0xfec0_0000;
const REDIRECTION_TABLE: u32 = 0x10;

impl Machine {
    /// The whole state of the IOAPIC.
    pub fn ioapic(&self) -> kvm_ioapic_state {
        let mut chip = kvm_irqchip {
            chip_id: KVM_IRQCHIP_IOAPIC,
            ..Default::default()
        };
        self.vm.get_irqchip(&mut chip).expect("KVM_GET_IRQCHIP(IOAPIC)");
        // SAFETY: every bit pattern is a valid `kvm_ioapic_state`, and the kernel has written one for this chip_id.
        unsafe { chip.chip.ioapic }
    }

    /// Replaces the whole state of the IOAPIC, as a restore does.
    pub fn restore_ioapic(&mut self, state: kvm_ioapic_state) {
        let chip = kvm_irqchip {
            chip_id: KVM_IRQCHIP_IOAPIC,
            pad: 0,
            chip: kvm_irqchip__bindgen_ty_1 { ioapic: state },
        };
        self.vm.set_irqchip(&chip).expect("KVM_SET_IRQCHIP(IOAPIC)");
    }

    /// The guest writes one IOAPIC register: index, then data window.
    pub fn write_ioapic(&mut self, register: u32, value: u32) {
        self.call(self.stubs.ioapic_write, |r| {
            r.rbx = BASE;
            r.rcx = register.into();
            r.rax = value.into();
        });
    }

    /// The guest writes the low half of the pin's redirection-table entry.
    pub fn write_rte_low(&mut self, pin: u32, value: u32) {
        self.write_ioapic(REDIRECTION_TABLE + 2 * pin, value);
    }

    /// The guest writes the high half of the pin's redirection-table entry.
    pub fn write_rte_high(&mut self, pin: u32, value: u32) {
        self.write_ioapic(REDIRECTION_TABLE + 2 * pin + 1, value);
    }

    /// The guest writes the pin's redirection-table entry, high half first.
    pub fn set_rte(&mut self, pin: u32, entry: u64) {
        self.write_rte_high(pin, (entry >> 32) as u32);
        self.write_rte_low(pin, entry as u32);
    }

    /// The pin's redirection-table entry, remote IRR in bit 14.
    pub fn rte(&self, pin: u32) -> u64 {
        // SAFETY: both members of the union cover the same 8 bytes and every bit pattern is a valid u64.
        unsafe { self.ioapic().redirtbl[pin as usize].bits }
    }

    /// The pin's remote IRR bit.
    pub fn remote_irr(&self, pin: u32) -> bool {
        self.rte(pin) & crate::rig::REMOTE_IRR != 0
    }

    /// The pin's bit in the IOAPIC's IRR: asserted (level) or pending (edge).
    pub fn ioapic_irr(&self, pin: u32) -> bool {
        self.ioapic().irr & (1 << pin) != 0
    }
}
