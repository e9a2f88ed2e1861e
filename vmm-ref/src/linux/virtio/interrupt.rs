// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A device's interrupt, which a processor's thread and the device's own thread share.

use std::sync::{Mutex, MutexGuard, PoisonError};

use interrupt_core::LevelInterrupt;

/// A [`LevelInterrupt`] whose changes are made one after the other.
///
/// A [`LevelInterrupt`] leaves a change to the thread that is at the source already. The guest's acknowledgement must
/// not do that: the guest goes on to its EOI, would find the line still high, and would take the interrupt once more
/// for nothing.
#[derive(Debug)]
pub struct OrderedInterrupt {
    interrupt: LevelInterrupt,
    changing: Mutex<()>,
}

impl OrderedInterrupt {
    /// Takes an interrupt over.
    pub fn new(interrupt: LevelInterrupt) -> Self {
        Self {
            interrupt,
            changing: Mutex::new(()),
        }
    }

    /// The interrupt, for a look at its causes and counts.
    pub fn get(&self) -> &LevelInterrupt {
        &self.interrupt
    }

    /// Adds causes. The line is high when this returns.
    pub fn raise(&self, causes: u32) {
        let _changing = self.change();
        // The interrupt counts a level that its source refuses, and tries it again at the next event.
        let _ = self.interrupt.raise(causes);
    }

    /// Takes causes away. The line is low when this returns, unless a cause is left.
    pub fn clear(&self, causes: u32) {
        let _changing = self.change();
        // As in `raise`.
        let _ = self.interrupt.clear(causes);
    }

    fn change(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
