// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A device that holds a level interrupt for as long as it has a request that the guest has not served.
//!
//! It is written against `interrupt-core` alone. What its line is, who tells it of an EOI and on which thread is for the VMM to
//! choose, and none of it shows here.

use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, PoisonError};

use interrupt_core::{Level, LevelSource, Result};

use crate::guest::Registers;

/// See the [module](self).
#[derive(Debug)]
pub struct Device {
    line: Box<dyn LevelSource>,
    registers: Registers,
    /// Between looking at the registers and driving the line nobody else may do either.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    asserted: u64,
}

impl Device {
    /// A device without a request.
    pub fn new(line: Box<dyn LevelSource>, registers: Registers) -> Self {
        Self {
            line,
            registers,
            state: Mutex::default(),
        }
    }

    /// Raises a request, and asserts the line for it.
    ///
    /// # Errors
    /// The line's. The request stays, and is asserted again when the device next states its level.
    pub fn request(&self) -> Result<()> {
        let mut state = self.state();
        self.registers.raised.fetch_add(1, Ordering::Release);
        self.assert(&mut state)
    }

    /// The line was sampled: asserts again if there is a request that is not served. Returns the level.
    ///
    /// # Errors
    /// The line's.
    pub fn state_level(&self) -> Result<Level> {
        let mut state = self.state();
        if self.registers.is_served() {
            return Ok(Level::Low);
        }
        self.assert(&mut state)?;
        Ok(Level::High)
    }

    /// The guest's handler acknowledges, before it ends the interrupt: lowers the line if all requests are served.
    ///
    /// # Errors
    /// The line's.
    pub fn acknowledge(&self) -> Result<()> {
        let _state = self.state();
        if self.registers.is_served() {
            self.line.deassert()?;
        }
        Ok(())
    }

    /// Whether the guest has served every request.
    pub fn is_served(&self) -> bool {
        self.registers.is_served()
    }

    /// How many requests it has raised.
    pub fn raised(&self) -> u64 {
        self.registers.raised.load(Ordering::Relaxed).into()
    }

    /// How many of them the guest says that it has served.
    pub fn serviced(&self) -> u64 {
        self.registers.serviced.load(Ordering::Acquire).into()
    }

    /// How often it has asserted its line: once for each request, and once each time its level had to be stated again.
    pub fn asserted(&self) -> u64 {
        self.state().asserted
    }

    fn assert(&self, state: &mut State) -> Result<()> {
        self.line.assert()?;
        state.asserted += 1;
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A counter is whole whenever it can be seen.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
