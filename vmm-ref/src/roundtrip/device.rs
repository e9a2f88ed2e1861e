// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A device that holds a level interrupt for as long as it has a request that the guest has not served.
//!
//! It is written against `interrupt-core` alone. What its line is, who tells it of an EOI and on which thread is for the VMM to
//! choose, and none of it shows here.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use interrupt_core::{Level, LevelSource, Result};

use crate::roundtrip::guest::status::Registers;

/// See the [module](self).
#[derive(Debug)]
pub struct Device {
    line: Arc<dyn LevelSource>,
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
    pub fn new(line: Arc<dyn LevelSource>, registers: Registers) -> Self {
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

#[cfg(test)]
mod tests {
    use interrupt_core::Gsi;
    use interrupt_core::testing::RecordingSource;
    use vm_memory::{GuestAddress, GuestMemoryMmap};

    use super::*;
    use crate::roundtrip::guest::layout::MEMORY_SIZE;
    use crate::roundtrip::guest::status::Status;

    /// A device, its line, and the guest's side of its registers.
    fn device() -> (Device, Arc<RecordingSource>, Registers) {
        let memory = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY_SIZE)]).unwrap());
        let status = Status::new(&memory).unwrap();
        let line = Arc::new(RecordingSource::new(Gsi(5)));
        let device = Device::new(Arc::<RecordingSource>::clone(&line), status.device(0).unwrap());
        (device, line, status.device(0).unwrap())
    }

    fn serve(guest: &Registers) {
        let raised = guest.raised.load(Ordering::Acquire);
        guest.serviced.store(raised, Ordering::Release);
    }

    #[test]
    fn a_request_asserts() {
        let (device, line, guest) = device();
        device.request().unwrap();
        assert_eq!((line.level(), line.asserts()), (Level::High, 1));
        assert_eq!(guest.raised.load(Ordering::Acquire), 1);
        assert!(!device.is_served());
    }

    #[test]
    fn a_device_that_is_told_asserts_again_as_long_as_its_cause_persists() {
        let (device, line, guest) = device();
        device.request().unwrap();
        line.deassert().unwrap();
        assert_eq!(device.state_level().unwrap(), Level::High);
        assert_eq!((line.level(), device.asserted()), (Level::High, 2));
        line.deassert().unwrap();
        serve(&guest);
        assert_eq!(device.state_level().unwrap(), Level::Low);
        assert_eq!((line.level(), device.asserted()), (Level::Low, 2));
    }

    #[test]
    fn an_idle_sharer_that_is_told_does_nothing() {
        let (device, line, _guest) = device();
        assert_eq!(device.state_level().unwrap(), Level::Low);
        assert_eq!(line.asserts(), 0);
    }

    #[test]
    fn an_acknowledgement_lowers_only_what_is_served() {
        let (device, line, guest) = device();
        device.request().unwrap();
        device.acknowledge().unwrap();
        assert_eq!(line.level(), Level::High);
        serve(&guest);
        device.acknowledge().unwrap();
        assert_eq!(line.level(), Level::Low);
    }

    #[test]
    fn a_request_whose_assertion_is_refused_is_asserted_when_the_level_is_next_stated() {
        let (device, line, _guest) = device();
        line.refuse_next(1);
        device.request().unwrap_err();
        assert_eq!((device.raised(), device.asserted()), (1, 0));
        assert_eq!(device.state_level().unwrap(), Level::High);
        assert_eq!(line.level(), Level::High);
    }
}
