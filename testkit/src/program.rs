// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Real-mode programs and the guest memory they live in.
//!
//! | guest address | what |
//! |---|---|
//! | 0x0000 | interrupt vector table |
//! | 0x0500 | the machine's own stubs |
//! | 0x0c00 | one catching handler per vector, see [`IRQ_PORT`] |
//! | [`PROGRAM`] | the test's programs, to 0x6fff |
//! | [`STACK`] | top of the stack, growing down |
//! | [`DATA`] | free for the test's data, to the end of memory |

use iced_x86::IcedError;
use iced_x86::code_asm::CodeAssembler;

/// The guest address at which a test's programs start.
pub const PROGRAM: u64 = 0x1000;
/// Initial stack pointer.
pub const STACK: u64 = 0x8000;
/// The guest address at which a test's data starts.
pub const DATA: u64 = 0x8000;

/// A byte written to this port ends [`crate::machine::Machine::run`] with [`crate::machine::End::Exit`].
pub const EXIT_PORT: u16 = 0xee;
/// The catching handlers write their vector to this port, which ends a run with [`crate::machine::End::Interrupt`].
pub const IRQ_PORT: u16 = 0xef;

/// Assembles 16-bit code that will run at guest address `at` with a code segment base of 0.
///
/// ```
/// use iced_x86::code_asm::*;
/// use testkit::program::{EXIT_PORT, PROGRAM, assemble};
/// let code = assemble(PROGRAM, |a| {
///     a.mov(al, 7)?;
///     a.out(i32::from(EXIT_PORT), al)
/// });
/// assert_eq!(code, [0xb0, 7, 0xe6, 0xee]);
/// ```
///
/// # Panics
/// When an instruction cannot be encoded, with the assembler's message.
pub fn assemble(at: u64, body: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Vec<u8> {
    let assembled = CodeAssembler::new(16).and_then(|mut assembler| {
        body(&mut assembler)?;
        assembler.assemble(at)
    });
    match assembled {
        Ok(code) => code,
        Err(e) => panic!("assembling the program at {at:#x}: {e}"),
    }
}
