// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A program that unmasks a pin on request and takes no interrupts.

use iced_x86::IcedError;
use iced_x86::code_asm::{CodeAssembler, dword_ptr};
use interrupt_core::Gsi;

use crate::roundtrip::guest::chips::{RTE_LEVEL, RTE_MASKED, mask_pics, redirection, write_ioapic};
use crate::roundtrip::guest::image::Image;
use crate::roundtrip::guest::layout::{CODE, READY, STACK, raised, serviced};

/// Makes the pin level-triggered and masked, gets ready, waits until register `raised` of device 0 is not 0, unmasks
/// the pin, sets `serviced` to 1, and halts for good.
///
/// # Errors
/// None in practice; the assembler's error would name the instruction.
pub fn unmask_program(pin: Gsi) -> Result<Image, IcedError> {
    let mut a = CodeAssembler::new(16)?;
    let mut wait = a.create_label();
    let mut halt = a.create_label();

    mask_pics(&mut a)?;
    write_ioapic(&mut a, redirection(pin.0), RTE_MASKED | RTE_LEVEL)?;
    a.mov(dword_ptr(READY as u32), 1)?;

    a.set_label(&mut wait)?;
    a.cmp(dword_ptr(raised(0) as u32), 0)?;
    a.je(wait)?;

    write_ioapic(&mut a, redirection(pin.0), RTE_LEVEL)?;
    a.mov(dword_ptr(serviced(0) as u32), 1)?;

    a.set_label(&mut halt)?;
    a.hlt()?;
    a.jmp(halt)?;

    Ok(Image {
        parts: vec![(CODE, a.assemble(CODE)?)],
        entry: CODE,
        stack: STACK,
    })
}
