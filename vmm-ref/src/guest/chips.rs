// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The controllers' registers as the guest's programs use them, and the instructions that write them.

use iced_x86::IcedError;
use iced_x86::code_asm::{CodeAssembler, al, dword_ptr, dx, eax, ecx, edx};

// 8259 (8259A data sheet).
pub(super) const MASTER_COMMAND: u32 = 0x20;
pub(super) const MASTER_DATA: u32 = 0x21;
pub(super) const SLAVE_COMMAND: u32 = 0xa0;
pub(super) const SLAVE_DATA: u32 = 0xa1;
pub(super) const MASTER_ELCR: u32 = 0x4d0;
pub(super) const ICW1_CASCADED_WITH_ICW4: i32 = 0x11;
pub(super) const ICW4_8086: i32 = 0x01;
pub(super) const CASCADE_IRQ: u32 = 2;
pub(super) const OCW2_NON_SPECIFIC_EOI: i32 = 0x20;

// LAPIC in x2APIC mode (Intel SDM volume 3, "Extended XAPIC (X2APIC)").
pub(super) const MSR_APIC_BASE: u32 = 0x1b;
pub(super) const APIC_BASE_ENABLE_X2APIC: u32 = 0b11 << 10;
pub(super) const MSR_EOI: u32 = 0x80b;
pub(super) const MSR_SPURIOUS: u32 = 0x80f;
pub(super) const SPURIOUS_LAPIC_ENABLE: u32 = 1 << 8;
pub(super) const MSR_LVT0: u32 = 0x835;
pub(super) const LVT_MASKED: u32 = 1 << 16;

// IOAPIC (82093AA data sheet), at the base of ES.
const IOREGSEL: u32 = 0x00;
const IOWIN: u32 = 0x10;
const REDIRECTION_TABLE: u32 = 0x10;
pub(super) const RTE_LEVEL: u32 = 1 << 15;
pub(super) const RTE_MASKED: u32 = 1 << 16;

/// Writes a byte to a port.
pub(super) fn out(a: &mut CodeAssembler, port: u32, value: i32) -> Result<(), IcedError> {
    a.mov(al, value)?;
    match u8::try_from(port) {
        Ok(port) => a.out(i32::from(port), al),
        Err(_) => {
            a.mov(dx, port as i32)?;
            a.out(dx, al)
        }
    }
}

/// Writes the low half of an MSR; the high half of every register used here is 0.
pub(super) fn write_msr(a: &mut CodeAssembler, msr: u32, value: u32) -> Result<(), IcedError> {
    a.mov(ecx, msr)?;
    a.mov(eax, value)?;
    a.xor(edx, edx)?;
    a.wrmsr()
}

/// Writes one register of the IOAPIC.
pub(super) fn write_ioapic(a: &mut CodeAssembler, register: u32, value: u32) -> Result<(), IcedError> {
    a.mov(dword_ptr(IOREGSEL).es(), register)?;
    a.mov(dword_ptr(IOWIN).es(), value)
}

/// The low half of a pin's redirection-table entry; the high half is the register after it.
pub(super) const fn redirection(pin: u32) -> u32 {
    REDIRECTION_TABLE + 2 * pin
}

/// Masks all pins of both 8259s.
pub(super) fn mask_pics(a: &mut CodeAssembler) -> Result<(), IcedError> {
    out(a, MASTER_DATA, 0xff)?;
    out(a, SLAVE_DATA, 0xff)
}
