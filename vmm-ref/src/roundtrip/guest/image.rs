// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The loadable image of a guest program.

use std::fmt;

/// An assembled program, with its addresses and its interrupt handlers.
#[derive(Clone)]
pub struct Image {
    /// The machine code.
    pub code: Vec<u8>,
    /// Guest address of `code`, and where the CPU starts.
    pub entry: u64,
    /// Initial stack pointer.
    pub stack: u64,
    /// Offset of the handler of each vector, for the interrupt vector table at address 0.
    pub vectors: [u16; 256],
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes at {:#x}", self.code.len(), self.entry)
    }
}
