// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The controllers' registers as the guest's programs use them, and the instructions that write them.

use iced_x86::IcedError;
use iced_x86::code_asm::{CodeAssembler, al, dword_ptr, dx, eax, ecx, edx};

// 8259 (8259A data sheet).
pub(crate) const MASTER_COMMAND: u32 = 0x20;
pub(crate) const MASTER_DATA: u32 = 0x21;
pub(crate) const SLAVE_COMMAND: u32 = 0xa0;
pub(crate) const SLAVE_DATA: u32 = 0xa1;
pub(crate) const MASTER_ELCR: u32 = 0x4d0;
pub(crate) const ICW1_CASCADED_WITH_ICW4: i32 = 0x11;
pub(crate) const ICW4_8086: i32 = 0x01;
pub(crate) const CASCADE_IRQ: u32 = 2;
pub(crate) const OCW2_NON_SPECIFIC_EOI: i32 = 0x20;

// LAPIC in x2APIC mode (Intel SDM volume 3, "Extended XAPIC (X2APIC)").
pub(crate) const MSR_APIC_BASE: u32 = 0x1b;
pub(crate) const APIC_BASE_ENABLE_X2APIC: u32 = 0b11 << 10;
pub(crate) const MSR_EOI: u32 = 0x80b;
pub(crate) const MSR_SPURIOUS: u32 = 0x80f;
pub(crate) const SPURIOUS_LAPIC_ENABLE: u32 = 1 << 8;
pub(crate) const MSR_LVT0: u32 = 0x835;
pub(crate) const LVT_MASKED: u32 = 1 << 16;

// IOAPIC (82093AA data sheet), at the base of ES.
pub(crate) const IOREGSEL: u32 = 0x00;
pub(crate) const IOWIN: u32 = 0x10;
const REDIRECTION_TABLE: u32 = 0x10;
pub(crate) const RTE_LEVEL: u32 = 1 << 15;
#[cfg(target_arch = "x86_64")]
pub(crate) const RTE_MASKED: u32 = 1 << 16;

/// Vector of the 8259's IRQ 0. Real mode has the CPU's exceptions below it.
pub(crate) const PIC_BASE: u8 = 0x20;
/// Vector of the line's pin of the IOAPIC.
pub(crate) const IOAPIC_VECTOR: u8 = 0x41;

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
pub(crate) const fn redirection(pin: u32) -> u32 {
    REDIRECTION_TABLE + 2 * pin
}

/// Masks all pins of both 8259s.
pub(super) fn mask_pics(a: &mut CodeAssembler) -> Result<(), IcedError> {
    out(a, MASTER_DATA, 0xff)?;
    out(a, SLAVE_DATA, 0xff)
}

/// The port writes that put both 8259s into 8086 mode, make input `pin` of the first open and level-triggered, and mask
/// every other input.
pub(crate) fn pic_set_up(pin: u32) -> Vec<(u32, i32)> {
    let master = (MASTER_COMMAND, MASTER_DATA, i32::from(PIC_BASE), 1 << CASCADE_IRQ);
    let slave = (SLAVE_COMMAND, SLAVE_DATA, i32::from(PIC_BASE) + 8, CASCADE_IRQ as i32);
    let mut writes = Vec::new();
    for (command, data, base, cascade) in [master, slave] {
        writes.extend([
            (command, ICW1_CASCADED_WITH_ICW4),
            (data, base),
            (data, cascade),
            (data, ICW4_8086),
        ]);
    }
    writes.extend([
        (MASTER_ELCR, 1 << pin),
        (MASTER_DATA, 0xff & !(1 << pin)),
        (SLAVE_DATA, 0xff),
    ]);
    writes
}

/// The register writes that make `pin` of the IOAPIC open and level-triggered: fixed delivery, physical destination 0,
/// active high. The low half comes last, because it unmasks the pin.
pub(crate) fn ioapic_set_up(pin: u32) -> [(u32, u32); 2] {
    let rte = redirection(pin);
    [(rte + 1, 0), (rte, RTE_LEVEL | u32::from(IOAPIC_VECTOR))]
}
