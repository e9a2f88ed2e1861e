// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! QEMU's `edu` device as the guest sees it, and the part of the handler that serves it.
//!
//! The device's line is high while its interrupt status is not 0. The registers are mapped into the guest's memory, so
//! an access costs no exit.

use iced_x86::IcedError;
use iced_x86::code_asm::{CodeAssembler, dword_ptr, eax, ptr};

use crate::passthrough::edu_registers::{ACKNOWLEDGE, STATUS};
use crate::roundtrip::guest::layout::{FOUND_NOTHING, raised, serviced};

/// Acknowledges the device if it asserts its line, and stores the number of the served request.
pub(super) fn serve(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut nothing = a.create_label();
    let mut done = a.create_label();
    a.mov(eax, dword_ptr(STATUS as u32).gs())?;
    a.test(eax, eax)?;
    a.jz(nothing)?;
    a.mov(dword_ptr(ACKNOWLEDGE as u32).gs(), eax)?;
    // Read the register back: a posted write may still be on the bus when the CPU continues. The read completes after
    // the write, and the EOI follows the read.
    a.mov(eax, dword_ptr(STATUS as u32).gs())?;
    // The device makes its next request only after it has seen this word, so that two requests cannot merge.
    a.mov(eax, ptr(raised(0) as u32))?;
    a.mov(ptr(serviced(0) as u32), eax)?;
    a.jmp(done)?;
    a.set_label(&mut nothing)?;
    a.inc(dword_ptr(FOUND_NOTHING as u32))?;
    a.set_label(&mut done)
}
