// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! QEMU's `edu` device as the guest sees it, and the part of the handler that serves it.
//!
//! Its line is high while its interrupt status is not 0. The registers lie in memory that the guest has been given
//! whole, so that reaching them costs no exit.

use iced_x86::IcedError;
use iced_x86::code_asm::{CodeAssembler, dword_ptr, eax, ptr};

use crate::passthrough::edu_registers::{ACKNOWLEDGE, STATUS};
use crate::roundtrip::guest::layout::{FOUND_NOTHING, raised, serviced};

/// Acknowledges what the device asserts, if it asserts anything, and says which request that was.
pub(super) fn serve(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut nothing = a.create_label();
    let mut done = a.create_label();
    a.mov(eax, dword_ptr(STATUS as u32).gs())?;
    a.test(eax, eax)?;
    a.jz(nothing)?;
    a.mov(dword_ptr(ACKNOWLEDGE as u32).gs(), eax)?;
    // On a bus a write is under way for a while after the CPU has gone on; a read comes after it, and the EOI after the
    // read.
    a.mov(eax, dword_ptr(STATUS as u32).gs())?;
    // The device's next request comes after this word, so that it cannot have merged with the one that is served.
    a.mov(eax, ptr(raised(0) as u32))?;
    a.mov(ptr(serviced(0) as u32), eax)?;
    a.jmp(done)?;
    a.set_label(&mut nothing)?;
    a.inc(dword_ptr(FOUND_NOTHING as u32))?;
    a.set_label(&mut done)
}
