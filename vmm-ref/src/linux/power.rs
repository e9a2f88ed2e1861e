// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How a run ends: the registers by which a guest switches itself off or resets itself, and whoever else ends it.

use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use vm_device::DevicePio;
use vm_device::bus::{PioAddress, PioAddressOffset};
use vm_superio::{I8042Device, Trigger};

use super::acpi::{S5, SLEEP_ENABLE, SLEEP_TYPE_SHIFT};
use super::layout::{EXIT_STATUS_PORT, I8042, SLEEP_CONTROL};
use super::wake::Wake;
use crate::error::Result;

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum End {
    /// The guest switched itself off.
    PowerOff,
    /// The guest reset itself: it rebooted, or its kernel panicked with `panic=-1`.
    Reset,
    /// A processor gave up (triple fault).
    TripleFault,
    /// A signal ended it: SIGINT, SIGTERM or SIGHUP.
    Interrupted,
    /// Nobody reads the console any more.
    ConsoleClosed,
    /// A processor could not go on; the error says why.
    Failed,
}

/// Takes the end of a run, once, and wakes who waits for it.
#[derive(Debug)]
pub struct Ending {
    end: Mutex<Option<End>>,
    event: Wake,
}

impl Ending {
    /// Not yet.
    ///
    /// # Errors
    /// As [`Wake::new`].
    pub fn new() -> Result<Arc<Self>> {
        Ok(Arc::new(Self {
            end: Mutex::new(None),
            event: Wake::new()?,
        }))
    }

    /// Ends the run, if it has not ended.
    pub fn end(&self, end: End) {
        self.slot().get_or_insert(end);
        self.event.wake();
    }

    /// How it ended, once it has.
    pub fn ended(&self) -> Option<End> {
        *self.slot()
    }

    /// Becomes readable at the end.
    pub fn event(&self) -> &Wake {
        &self.event
    }

    fn slot(&self) -> MutexGuard<'_, Option<End>> {
        self.end.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The registers: ACPI's sleep control, the reset command of the keyboard controller, and the exit status.
#[derive(Debug)]
pub struct Power {
    ending: Arc<Ending>,
    keyboard: Mutex<I8042Device<Reset>>,
    /// 256 until the guest gives one.
    status: AtomicU16,
}

const NO_STATUS: u16 = 256;

impl Power {
    /// The registers of a machine that has just been switched on.
    pub fn new(ending: Arc<Ending>) -> Arc<Self> {
        Arc::new(Self {
            keyboard: Mutex::new(I8042Device::new(Reset(Arc::clone(&ending)))),
            ending,
            status: AtomicU16::new(NO_STATUS),
        })
    }

    /// The exit status that the guest has given, if it has.
    pub fn status(&self) -> Option<u8> {
        u8::try_from(self.status.load(Ordering::Acquire)).ok()
    }
}

#[derive(Debug)]
struct Reset(Arc<Ending>);

impl Trigger for Reset {
    type E = std::convert::Infallible;

    fn trigger(&self) -> std::result::Result<(), Self::E> {
        self.0.end(End::Reset);
        Ok(())
    }
}

/// Accesses of one byte; others read as ones and are ignored.
impl DevicePio for Power {
    fn pio_read(&self, base: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        data.fill(0xff);
        match (base.0, data) {
            (I8042, [byte]) => {
                let mut keyboard = self.keyboard.lock().unwrap_or_else(PoisonError::into_inner);
                *byte = keyboard.read(offset as u8);
            }
            (SLEEP_CONTROL, [byte]) => *byte = 0,
            _ => {}
        }
    }

    fn pio_write(&self, base: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        const POWER_OFF: u8 = S5 << SLEEP_TYPE_SHIFT | SLEEP_ENABLE;
        match (base.0, offset, data) {
            (I8042, _, [byte]) => {
                let mut keyboard = self.keyboard.lock().unwrap_or_else(PoisonError::into_inner);
                let Ok(()) = keyboard.write(offset as u8, *byte);
            }
            (SLEEP_CONTROL, 0, [POWER_OFF]) => self.ending.end(End::PowerOff),
            (EXIT_STATUS_PORT, 0, [byte]) => self.status.store((*byte).into(), Ordering::Release),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn power() -> Arc<Power> {
        Power::new(Ending::new().unwrap())
    }

    #[test]
    fn the_guest_switches_itself_off_by_the_sleep_register_alone() {
        let power = power();
        for (offset, value) in [(0, 0), (0, S5 << SLEEP_TYPE_SHIFT), (0, SLEEP_ENABLE), (1, 0x34)] {
            power.pio_write(PioAddress(SLEEP_CONTROL), offset, &[value]);
            assert_eq!(power.ending.ended(), None, "{value:#x} at {offset}");
        }
        power.pio_write(PioAddress(SLEEP_CONTROL), 0, &[0x34]);
        assert_eq!(power.ending.ended(), Some(End::PowerOff));
    }

    #[test]
    fn the_first_end_is_the_end() {
        let power = power();
        power.pio_write(PioAddress(I8042), 4, &[0xfe]);
        power.ending.end(End::Interrupted);
        assert_eq!(power.ending.ended(), Some(End::Reset));
    }

    #[test]
    fn a_guest_has_a_status_once_it_has_given_one() {
        let power = power();
        assert_eq!(power.status(), None);
        power.pio_write(PioAddress(EXIT_STATUS_PORT), 0, &[1, 2]);
        assert_eq!(power.status(), None, "no byte");
        power.pio_write(PioAddress(EXIT_STATUS_PORT), 0, &[0]);
        assert_eq!(power.status(), Some(0));
        power.pio_write(PioAddress(EXIT_STATUS_PORT), 0, &[255]);
        assert_eq!(power.status(), Some(255));
    }
}
