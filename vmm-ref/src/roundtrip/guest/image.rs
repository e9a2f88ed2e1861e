// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The loadable image of a guest program.

use std::fmt;

/// An assembled program, and the tables that lead the CPU to its handlers.
#[derive(Clone)]
pub struct Image {
    /// The machine code and the tables that the CPU reads, each at its guest address.
    pub parts: Vec<(u64, Vec<u8>)>,
    /// Where the CPU starts.
    pub entry: u64,
    /// Initial stack pointer.
    pub stack: u64,
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes: usize = self.parts.iter().map(|(_, bytes)| bytes.len()).sum();
        write!(f, "{bytes} bytes, entry at {:#x}", self.entry)
    }
}
